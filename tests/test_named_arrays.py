"""Further arrays of a data set by name: from files and dictionaries to whoever reads them."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import vae_research as vr
from vae_research import runs
from vae_research.data import Data, DataError, load_data
from vae_research.runs.session.building import build_model, names_read, traced_step

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (30, 4, 4), dtype=np.uint8)
LABELS = np.arange(30) % 3
MASK = RANDOM.integers(0, 2, (30, 4, 4, 1), dtype=np.uint8)
FACTORS = RANDOM.normal(size=(30, 2))


def arrays(rows=slice(None), **more):
    return {"inputs": IMAGES[rows], "labels": LABELS[rows], "mask": MASK[rows], **more}


# ---------------------------------------------------------------- data sets


def test_arrays_of_any_type_and_rank_follow_their_rows():
    data = Data.from_arrays(
        {
            "inputs": LABELS[:, None] + np.zeros(4, int),
            "labels": LABELS,
            "factors": FACTORS,
            "weight": np.arange(30) > 20,
            "mask": MASK,
            "row": np.arange(30, dtype=">u2"),
        }
    )
    assert data.names == ("labels", "factors", "weight", "mask", "row")
    assert [len(split) for split in data.splits] == [24, 3, 3]
    for split in data.splits:
        rows = split.arrays["row"]
        np.testing.assert_array_equal(split.labels, LABELS[rows])
        np.testing.assert_array_equal(split.arrays["factors"], FACTORS[rows].astype(np.float32))
        np.testing.assert_array_equal(split.arrays["weight"], rows > 20)
        np.testing.assert_array_equal(split.arrays["mask"], MASK[rows])
        assert not split.arrays["mask"].flags.writeable
    kinds = {name: array.dtype for name, array in data.train.arrays.items()}
    assert kinds == {"labels": "int64", "factors": "float32", "weight": "bool"} | {
        "mask": "uint8",
        "row": "uint16",
    }
    assert data.summary()["arrays"]["mask"] == "uint8 [4, 4, 1]"


def test_a_split_gives_rows_of_what_is_asked_for():
    split = Data.from_arrays(arrays(), arrays(slice(5)), arrays(slice(5))).train
    found = split.tensors(np.array([4, 1]), ["labels", "mask"])
    assert list(found) == ["inputs", "labels", "mask"]
    np.testing.assert_array_equal(found["inputs"], split.prepare()[[4, 1]])
    np.testing.assert_array_equal(found["labels"], LABELS[[4, 1]])
    np.testing.assert_array_equal(found["mask"], MASK[[4, 1]])


def test_further_arrays_change_the_fingerprint_and_nothing_else_does():
    plain = Data.from_arrays(IMAGES, IMAGES[:5], IMAGES[5:10])
    assert (
        plain.fingerprint
        == Data.from_arrays(
            {"inputs": IMAGES}, {"inputs": IMAGES[:5]}, {"inputs": IMAGES[5:10]}
        ).fingerprint
    )
    assert plain.fingerprint.startswith("1cb041321acc")  # before there were further arrays
    labelled = Data.from_arrays(IMAGES, IMAGES[:5], IMAGES[5:10], train_labels=LABELS)
    assert labelled.fingerprint.startswith("475de13e0516")
    found = {plain.fingerprint, labelled.fingerprint}
    for name, mask in (("mask", MASK), ("mask", 1 - MASK), ("other", MASK)):
        given = {"inputs": IMAGES, "labels": LABELS, name: mask}
        found.add(Data.from_arrays(given, IMAGES[:5], IMAGES[5:10]).fingerprint)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"labels": LABELS}, "has labels, and no 'inputs'"),
        (arrays(z=FACTORS), "train z: a forward pass writes 'z' itself"),
        (arrays(seed=LABELS), "writes 'seed' itself"),
        (arrays(**{"my mask": MASK}), "'my mask' cannot be the name of a parameter"),
        (arrays(factors=FACTORS[1:]), r"factors: has shape \(29, 2\) for 30 rows"),
        (arrays(factors=np.float64(3)), r"has shape \(\) for 30 rows"),
        (arrays(word=np.array(["a"] * 30)), "dtype <U1; bool, integers and floats"),
        (arrays(ragged=[[1], [2, 3]] * 15), "the rows do not form one array"),
        (arrays(factors=np.ma.zeros(30)), "got a masked array"),
        (arrays(targets=IMAGES), "a likelihood needs floats; got uint8"),
    ],
)
def test_arrays_that_fit_nothing_are_refused_by_name(train, words):
    with pytest.raises(DataError, match=words) as error:
        Data.from_arrays(train)
    assert "\n" not in str(error.value)


def test_labels_are_given_once():
    with pytest.raises(DataError, match="labels are given twice"):
        Data.from_arrays(arrays(), train_labels=LABELS)


def test_splits_need_the_same_kind_of_rows():
    with pytest.raises(DataError, match=r"validation mask: rows are uint8 \(2,\), those of train"):
        Data.from_arrays(arrays(), {"inputs": IMAGES[:5], "mask": MASK[:5, 0, :2, 0]})


def test_values_that_are_not_finite_matter_when_they_are_read():
    gaps = FACTORS.copy()
    gaps[3, 1] = np.nan
    data = Data.from_arrays(arrays(gaps=gaps), arrays(slice(3)), arrays(slice(3)))
    assert np.isnan(data.train.tensors(names=["gaps"])["gaps"][3, 1])
    data.train.on_device(5, seed=0, names=["labels"])
    words = r"gaps of split 'train': 1 of 60 values are not finite, first nan at index \(3, 1\)"
    for make in (data.train.on_device, data.train.batches):
        with pytest.raises(DataError, match=words):
            make(5, seed=0, names=["gaps"])


# ---------------------------------------------------------------- files


def test_npz_names_further_arrays_by_split(tmp_path):
    path = tmp_path / "a.npz"
    train = {"train": IMAGES[:20], "train_mask": MASK[:20], "factors_train": FACTORS[:20]}
    validation = {"x_val": IMAGES[20:25], "val_mask": MASK[20:25], "factors_val": FACTORS[20:25]}
    test = {"test": IMAGES[25:], "test_mask": MASK[25:], "test_labels": LABELS[25:]}
    np.savez(path, **train, **validation, **test)
    data = load_data(path)
    assert data.names == ("mask",)
    assert data.warnings == ()
    np.testing.assert_array_equal(data.validation.arrays["mask"], MASK[20:25])
    assert data.validation.arrays["factors"].shape == (5, 2)
    assert data.why_missing("factors") == "a.npz: test has no factors; give it for every split"
    assert data.why_missing("labels").startswith("a.npz: train and validation has no labels")
    assert data.why_missing("other") is None


def test_npz_with_one_array_of_values_has_the_others_by_their_names(tmp_path):
    # As dSprites has them, with a description that is pickled.
    path = tmp_path / "a.npz"
    np.savez(
        path,
        imgs=IMAGES,
        latents_classes=LABELS[:, None],
        latents_values=FACTORS,
        names=np.array(["a", "b"]),
        metadata=np.array({"a": 1}, dtype=object),
    )
    data = load_data(path)
    assert data.names == ("latents_classes", "latents_values")
    assert data.warnings == ("a.npz: these arrays are not used: metadata, names",)


def test_what_fits_nothing_in_a_file_is_left_out_with_a_warning(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, train=IMAGES, train_labels=LABELS[1:], train_z=FACTORS, train_mask=MASK)
    data = load_data(path)
    assert data.names == ("mask",)
    assert data.warnings == (
        "a.npz: train: 29 labels for 30 rows; one per row is needed ('labels' is left out)",
        "a.npz: train z: a forward pass writes 'z' itself; give another name ('z' is left out)",
    )
    assert data.why_missing("labels").startswith("a.npz: train: 29 labels for 30 rows")


# ---------------------------------------------------------------- who reads them

DATA = Data.from_arrays(
    arrays(slice(20), factors=FACTORS[:20], unread=FACTORS[:20]),
    arrays(slice(20, 25), factors=FACTORS[20:25], unread=FACTORS[20:25]),
    arrays(slice(25, 30), factors=FACTORS[25:], unread=FACTORS[25:]),
)
register = keras.saving.register_keras_serializable(package="test_named_arrays")


@register
class MaskedEncoder(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.heads = keras.layers.Dense(4)

    def build(self, *shapes):
        self.heads.build([None, 16])

    def call(self, inputs, mask):
        values = ops.reshape(inputs * ops.cast(mask, "float32"), [-1, 16])
        mean, log_var = ops.split(self.heads(values), 2, axis=-1)
        return {"z_mean": mean, "z_log_var": log_var}


@register
class MaskedDecoder(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pixels = keras.layers.Dense(16)

    def build(self, *shapes):
        self.pixels.build([None, 2])

    def call(self, z, labels=None, mask=None):
        logits = ops.reshape(self.pixels(z), [-1, 4, 4, 1])
        return {"logits": logits * (1.0 if mask is None else 0.5 + ops.cast(mask, "float32"))}


@register
class MaskedBottleneck(vr.GaussianBottleneck):
    def call(self, z_mean, z_log_var, seed, mask):
        share = ops.mean(ops.cast(ops.reshape(mask, [-1, 16]), "float32"), axis=1, keepdims=True)
        return super().call(z_mean * share, z_log_var, seed)


class MaskedError(vr.LossTerm):
    """Squared error where the mask is 1. Reads targets, logits and mask."""

    def per_example(self, targets, logits, mask):
        error = ops.square(targets - ops.sigmoid(logits)) * ops.cast(mask, "float32")
        return vr.sum_over_event(error)


def functional_encoder():
    inputs, mask = keras.Input([4, 4, 1], name="inputs"), keras.Input([4, 4, 1], name="mask")
    flat = keras.layers.Flatten()(inputs * mask)
    heads = {name: keras.layers.Dense(2)(flat) for name in ("z_mean", "z_log_var")}
    return keras.Model({"inputs": inputs, "mask": mask}, heads)


def model(encoder=None, bottleneck=None, decoder=None, *terms):
    vae = vr.VAE(
        encoder or vr.dense_encoder([4, 4, 1], 2, hidden_units=(4,)),
        bottleneck or vr.GaussianBottleneck(2),
        decoder or vr.dense_decoder([4, 4, 1], 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(), *terms],
    )
    vae.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    return vae


READERS = {
    "functional encoder": lambda: model(functional_encoder()),
    "encoder": lambda: model(MaskedEncoder()),
    "bottleneck": lambda: model(None, MaskedBottleneck(2)),
    "decoder": lambda: model(None, None, MaskedDecoder()),
    "term": lambda: model(None, None, None, MaskedError()),
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_mask_is_read_by_its_name(reader, tmp_path):
    vae = READERS[reader]()
    vae.run_eagerly = reader != "functional encoder"  # tracing takes longer than these few steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Keras would warn of a mask that a layer destroys
        batch = DATA.train.tensors(names=["mask"])
        vae.fit(DATA.train.on_device(8, seed=0, names=["mask"]), verbose=0)
        vae.fit(batch, batch_size=10, verbose=0)
    other = batch | {"mask": 1 - batch["mask"]}
    losses = [vae.report(data)[1].loss.numpy() for data in (batch, other)]
    assert not np.allclose(*losses)
    called = [vae(data).numpy() for data in (batch, other)]
    # `center` of this bottleneck does not read it.
    assert np.array_equal(*called) == (reader in ("term", "bottleneck"))
    vae.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(batch), called[0])
    np.testing.assert_array_equal(loaded.report(batch)[1].loss, losses[0])


def test_the_mask_of_keras_own_layers_is_not_ours():
    encoder = vr.named(keras.layers.GRU(4), "z_mean", "z_log_var")
    rows = {"inputs": np.ones([3, 5, 2], np.float32), "mask": np.zeros([3, 7], np.float32)}
    decoder = vr.named(
        keras.Sequential([keras.layers.Dense(10), keras.layers.Reshape([5, 2])]), "logits"
    )
    vae = vr.VAE(encoder, vr.GaussianBottleneck(2), decoder, [vr.Bernoulli(), vr.KLDivergence()])
    assert vae.data_read(rows) == ()


# ---------------------------------------------------------------- in a run


def config_of(build, **flags):
    return runs.configure(build, batch_size=8, binarize="none", device="cpu", **flags)


@pytest.mark.slow
def test_only_what_is_read_is_given_to_a_step():
    def build(config, data):
        return model(None, None, MaskedDecoder(), MaskedError())

    config = config_of(build)
    vae = build_model(build, config, DATA)
    assert names_read(vae, DATA) == ("labels", "mask")
    assert vae.data_names == ("labels", "mask")
    batches = DATA.train.on_device(8, 0, names=names_read(vae, DATA))
    assert {"array labels", "array mask"} < set(batches.reader.tensors)
    assert not any("unread" in name or "factors" in name for name in batches.reader.tensors)
    graph = traced_step(vae, config, DATA).graph
    shapes = sorted(x.shape.as_list() for x in graph.inputs if x.dtype != tf.resource)
    assert shapes == [[], [], [8], [8, 16], [8, 16]]  # offset and divisor, and three arrays


@pytest.mark.slow
def test_a_model_that_reads_nothing_further_sees_no_difference():
    def weights(data):
        keras.utils.set_random_seed(1)
        vae = build_model(lambda *_: model(), config_of(lambda *_: None), data)
        names = names_read(vae, data)
        batches = data.train.on_device(8, 0, names=names)
        vae.run_eagerly = True
        vae.fit(batches, epochs=2, verbose=0)
        return names, sorted(batches.reader.tensors), vae.get_weights()

    plain = Data.from_arrays(IMAGES[:20], IMAGES[20:25], IMAGES[25:])
    (names, tensors, found), (_, of_plain, expected) = weights(DATA), weights(plain)
    assert (names, tensors) == ((), of_plain)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


class FactorError(vr.LossTerm):
    def per_example(self, z, gaps):
        return vr.sum_over_event(ops.square(z - gaps))


class LabelError(vr.LossTerm):
    def per_example(self, z, labels):
        return vr.sum_over_event(ops.square(z - ops.cast(labels, "float32")[:, None]))


@pytest.mark.slow
def test_what_is_read_must_be_there_and_finite(tmp_path):
    np.savez(tmp_path / "a.npz", train=IMAGES, train_labels=LABELS[1:])
    left_out = load_data(tmp_path / "a.npz")
    gaps = np.full_like(FACTORS, np.nan)
    test_only = {"inputs": IMAGES[:5], "gaps": gaps[:5]}
    whole = [{"inputs": IMAGES[:n], "gaps": FACTORS[:n]} for n in (20, 5)]
    for data, term, words in (
        (left_out, LabelError(), "term 'label_error' reads 'labels': a.npz: train: 29 labels"),
        (Data.from_arrays(*whole, test_only), FactorError(), "gaps of split 'test': 10 of 10"),
        (
            Data.from_arrays(whole[0], IMAGES[:5], IMAGES[5:9]),
            FactorError(),
            "validation and test has no gaps",
        ),
    ):

        def build(config, data, term=term):
            return model(None, None, None, term)

        with pytest.raises(DataError, match=words):
            build_model(build, config_of(build), data)
    vae = build_model(lambda *_: model(), config_of(lambda *_: None), left_out)
    assert names_read(vae, left_out) == ()


@pytest.mark.slow
def test_samples_have_the_conditions_of_the_first_examples_in_turn():
    from vae_research.callbacks.pictures import Pictures, conditions_of, samples

    vae = model(None, None, MaskedDecoder())
    data = DATA.validation.tensors(names=["mask"])
    vae.report(data)
    picture = samples(vae, 3, rows=4, conditions=conditions_of(data))
    turned = samples(vae, 3, rows=4, conditions={"mask": data["mask"][np.arange(12) % 5]})
    np.testing.assert_array_equal(picture, turned)
    other = samples(vae, 3, rows=4, conditions={"mask": 1 - data["mask"]})
    assert not np.array_equal(picture, other)

    drawn = Pictures("unused", data, columns=2).draw(vae)
    mask = {"mask": data["mask"][np.arange(8) % 5]}
    codes = vae.bottleneck.sample_prior(8, tf.constant([0, 0]))
    from vae_research.callbacks.tensorboard.drawing import tile

    np.testing.assert_allclose(
        drawn["samples"], tile([vae.decode(codes, **mask).numpy()], 2), rtol=1e-5
    )
