"""Rows that are not in memory: read by number, and the same to a model as an array of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests import proofs, trials
from vae_research.checkpoints import weights_sha256
from vae_research.data import Data, DataError, load_data
from vae_research.data.scaling import extremes, fit_scaling, fixed_draw
from vae_research.data.sources import (
    Rows,
    rows_of_array,
    rows_of_batches,
    rows_of_pipeline,
    rows_of_sequence,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 6, 5), dtype=np.uint8)


def counted(array):
    """Rows of an array, and the numbers of those that were read."""
    numbers = []

    def read(rows):
        numbers.extend(rows.tolist())
        return array[rows]

    return Rows(read, len(array), array.shape[1:], array.dtype), numbers


# Reading.


def test_rows_are_those_of_the_array():
    rows = rows_of_array(IMAGES)
    assert (len(rows), rows.shape, rows.ndim, rows.dtype) == (100, (100, 6, 5), 3, np.uint8)
    for index in (slice(None), slice(90, 200, 3), np.array([7, 3, 3]), [5]):
        np.testing.assert_array_equal(rows[index], IMAGES[index])
    assert rows[100:].shape == (0, 6, 5)
    part = rows.subset(np.array([9, 4, 2])).with_row_shape((6, 5, 1))
    np.testing.assert_array_equal(part[[2, 0]], IMAGES[[2, 9]][..., np.newaxis])
    np.testing.assert_array_equal(part.subset(slice(1, None))[:], IMAGES[[4, 2]][..., np.newaxis])


def test_what_is_read_is_native_float32():
    values = np.asfortranarray(np.arange(12.0).reshape(4, 3)).astype(">f8")
    rows = rows_of_array(values)[1:3]
    assert (rows.dtype, rows.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(rows, values[1:3])


def test_a_source_that_gives_other_rows_is_refused():
    rows = Rows(lambda numbers: np.zeros([1, 4]), 10, (4,), np.float32)
    with pytest.raises(DataError, match=r"shape \(1, 4\); \(2, 4\) was promised"):
        rows[[0, 1]]


def test_only_what_is_asked_for_is_read():
    rows, numbers = counted(IMAGES)
    data = Data.from_arrays(rows, rescale="none")
    numbers.clear()
    data.test.prepare(slice(0, 2))
    assert len(numbers) == 2


@pytest.mark.parametrize("name", [None, "image"])
def test_rows_of_a_sequence(name):
    """Also no rows at all: a run that resumes within an epoch has calls with nothing to do."""
    sequence = [image if name is None else {"image": image, "label": 3} for image in IMAGES[:9]]
    rows = rows_of_sequence(sequence, name)
    np.testing.assert_array_equal(rows[[4, 1]], IMAGES[[4, 1]])
    assert rows[[]].shape == (0, 6, 5)


def test_several_rows_of_a_sequence_are_asked_for_at_once():
    class Source:
        def __len__(self):
            return len(IMAGES)

        def __getitems__(self, numbers):
            asked.append(numbers)
            return [{"image": IMAGES[number]} for number in numbers]

    asked = []
    rows = rows_of_sequence(Source(), "image")
    np.testing.assert_array_equal(rows[[8, 80]], IMAGES[[8, 80]])
    assert asked[-1] == [8, 80]


def test_a_sequence_without_the_name_is_refused():
    with pytest.raises(DataError, match="no 'picture'; it has image, label"):
        rows_of_sequence([{"image": IMAGES[0], "label": 1}], "picture")
    with pytest.raises(DataError, match="list has no rows"):
        rows_of_sequence([])


def test_rows_of_a_dataset_of_keras():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return IMAGES[3 * index : min(3 * index + 3, 11)], np.zeros(3)

    rows = rows_of_batches(Batches(), 0)
    assert len(rows) == 11
    np.testing.assert_array_equal(rows[[10, 0, 4, 5]], IMAGES[[10, 0, 4, 5]])


def test_rows_of_a_pipeline_come_in_its_order_and_begin_again():
    """Arrays that are asked for by the same numbers belong together, whoever asks first."""
    dataset = tf.data.Dataset.from_tensor_slices({"inputs": IMAGES[:10], "labels": np.arange(10)})
    found = rows_of_pipeline(dataset.batch(4), count=100)
    assert (found["inputs"].shape, found["labels"].dtype) == ((100, 6, 5), np.int64)
    here, there = np.array([50, 3, 7]), np.arange(9)
    labels = found["labels"][here], found["labels"][there]
    np.testing.assert_array_equal(labels[0], [0, 1, 2])
    np.testing.assert_array_equal(labels[1], [3, 4, 5, 6, 7, 8, 9, 0, 1])
    np.testing.assert_array_equal(found["inputs"][there], IMAGES[labels[1]])
    np.testing.assert_array_equal(found["inputs"][here], IMAGES[labels[0]])


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ((IMAGES, IMAGES), r'a tuple of 2; give names: .*"labels": y'),
        ({"image": IMAGES}, "gives image, and no 'inputs'"),
        ({"inputs": IMAGES, "labels": 3}, r"batches \[rows, ...\] are needed"),
        (IMAGES[0, 0], r"batches \[rows, ...\] are needed"),
    ],
)
def test_a_pipeline_of_something_else_is_refused(elements, words):
    with pytest.raises(DataError, match=words):
        rows_of_pipeline(tf.data.Dataset.from_tensors(elements), 10)
    with pytest.raises(DataError, match="gives no batch"):
        rows_of_pipeline(tf.data.Dataset.from_tensors(IMAGES).skip(1), 10)


def test_no_split_is_cut_from_a_pipeline():
    rows = rows_of_pipeline(tf.data.Dataset.from_tensors(IMAGES), 100)
    with pytest.raises(DataError, match="cut from a pipeline; give validation and test"):
        Data.from_arrays(rows, IMAGES)


def test_further_arrays_are_streamed_with_the_inputs():
    """In a stream with a last batch that is smaller, as arrays in memory give them."""
    further = {"mask": IMAGES % 2 == 0, "labels": np.arange(100)}
    rows = {name: rows_of_array(array) for name, array in further.items()}
    streamed = Data.from_arrays({"inputs": rows_of_array(IMAGES), **rows})
    found = []
    for data in (streamed, Data.from_arrays({"inputs": IMAGES, **further})):
        batches = data.train.batches(30, seed=1, names=("mask", "labels")).take(3)
        found.append([{name: value.numpy() for name, value in b.items()} for b in batches])
    assert streamed.fingerprint == data.fingerprint  # there are below 1000 rows
    for ours, theirs in zip(*found, strict=True):
        assert ours["mask"].shape == (len(ours["inputs"]), 6, 5)
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values)


# Statistics and draws by rows.


@pytest.mark.parametrize("mode", ["none", "unit", "standardize"])
def test_scaling_is_that_of_the_array(mode):
    values = np.random.default_rng(1).normal(3.0, 2.0, (50, 4)).astype(np.float32)
    ours, wanted = fit_scaling(mode, rows_of_array(values)), fit_scaling(mode, values)
    np.testing.assert_array_equal(ours.offset, wanted.offset)
    np.testing.assert_array_equal(ours.divisor, wanted.divisor)


def test_known_bounds_are_not_looked_for():
    rows = Rows(lambda numbers: 1 / 0, 10, (4,), np.uint8, bounds=(0, 255))
    np.testing.assert_array_equal(extremes(rows), [0, 255])


@pytest.mark.parametrize("shape", [(9000, 15, 23), (50, 3), (3, 2**22)])
def test_any_rows_of_the_fixed_draw_are_those_of_the_whole(shape):
    """Rows of an odd size, in several blocks, and one that is larger than a block."""
    values = np.full(shape, 100, np.uint8)
    scaling = fit_scaling("unit", np.array([[0, 255]], np.uint8))
    whole = fixed_draw(values, scaling, "test")
    assert 0.37 < whole.mean() < 0.41 or whole.size < 1000
    rows = np.append(np.random.default_rng(0).permutation(len(values))[:40], [0, 1, 2])
    assert fixed_draw(values, scaling, "test", rows[:0]).shape == (0, *shape[1:])
    drawn = fixed_draw(values, scaling, "test", rows)
    np.testing.assert_array_equal(drawn, whole[rows])


# A model does not see the difference.


def trained(data, epochs=3):
    keras.utils.set_random_seed(0)
    networks = vr.dense_encoder(data.shape, 2, hidden_units=(4,)), vr.GaussianBottleneck(2)
    decoder = vr.dense_decoder(data.shape, 2, hidden_units=(4,))
    model = vr.VAE(*networks, decoder, [vr.Bernoulli(), vr.KLDivergence()])
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), steps_per_execution=3, jit_compile=False
    )
    validation = data.validation.on_device(4)
    history = model.fit(
        data.train.on_device(9, seed=0), epochs=epochs, validation_data=validation, verbose=0
    ).history
    return model, history


@pytest.mark.slow
@pytest.mark.parametrize("binarize", ["dynamic", "static"] if proofs.SOAK else ["dynamic"])
def test_training_on_a_stream_is_training_on_the_array(binarize):
    found = []
    for values in (IMAGES, rows_of_array(IMAGES)):
        data = Data.from_arrays(values, binarize=binarize)
        model, history = trained(data)
        figures = vr.estimate(model, data.test.tensors_by_block(), num_samples=2)
        inputs = [batch["inputs"].numpy() for batch in data.train.batches(9, seed=1).take(11)]
        found.append([weights_sha256(model), history, figures, np.concatenate(inputs).tolist()])
        assert data.train.is_streamed == (values is not IMAGES)
    assert found[0] == found[1]


@pytest.mark.slow
def test_what_goes_wrong_while_rows_are_read_is_what_fit_raises():
    def read(numbers):
        if len(asked) > 2:
            raise DataError("photo cannot be decoded")
        asked.append(numbers)
        return IMAGES[numbers]

    asked = []
    data = Data.from_arrays(Rows(read, 100, (6, 5), np.uint8, bounds=(0, 255)), rescale="unit")
    with pytest.raises(DataError, match="photo cannot be decoded"):
        trained(data)


def test_a_batch_of_a_stream_is_read_for_the_gate():
    data, plain = (Data.from_arrays(values) for values in (rows_of_array(IMAGES), IMAGES))
    place = tf.constant(0, tf.int64), tf.constant(1, tf.int64), tf.constant([5, 2], tf.int32)
    ours, wanted = (found.train.on_device(9, seed=0).reader.read(*place) for found in (data, plain))
    np.testing.assert_array_equal(ours["inputs"], wanted["inputs"])


# Files.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small images in a folder for each of two classes, and the same as an .npy file."""
    from PIL import Image

    place = tmp_path_factory.mktemp("streamed")
    for number, image in enumerate(IMAGES):
        path = place / "images" / f"class{number % 2}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.save(place / "images.npy", IMAGES)
    return place


@pytest.mark.parametrize("name", ["images", "images.npy"])
def test_files_are_streamed_when_asked_for(name, folder):
    streamed, loaded = (load_data(folder / name, stream=stream) for stream in (True, None))
    assert (streamed.train.is_streamed, loaded.train.is_streamed) == (True, False)
    assert streamed.summary() | {"streamed": False} == loaded.summary()  # there are below 1000 rows
    for ours, theirs in zip(streamed.splits, loaded.splits, strict=True):
        np.testing.assert_array_equal(ours.prepare(), theirs.prepare())
        assert (ours.labels is None) == (theirs.labels is None)


def test_what_does_not_fit_in_memory_is_streamed(folder):
    from vae_research.data.readers.arrays import load_npy
    from vae_research.data.readers.folders import load_image_folder

    for load, name in ((load_npy, "images.npy"), (load_image_folder, "images")):
        assert load(folder / name, memory_limit=1000).train.is_streamed


@pytest.mark.parametrize("name", ["mnist", "x.npz"])
def test_what_cannot_be_streamed_is_refused(name):
    with pytest.raises(DataError, match=r"--stream: .* is read into memory"):
        load_data(name, stream=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, pytest.param("own_data", marks=pytest.mark.soak)])
def test_a_streamed_run_that_is_killed_goes_on(name, folder, tmp_path):
    flags = [f"--dataset={folder / 'images'}", "--epochs=2", "--notensorboard"]
    flags += ["--checkpoint_minutes=0", "--checkpoint_steps=6", "--jit=off", "--steps_per_call=3"]
    if name is None:
        flags.append("--binarize=dynamic")
    else:  # mirrored, and by default a stream
        flags += ["--latent_dim=2", "--filters=2", "--hidden_units=4"]
    wanted = proofs.go_on(tmp_path / "in memory", *flags, "--nostream", experiment=name)
    flags.append("--stream")
    for number in range(20 if proofs.SOAK else 1):
        run_dir = tmp_path / f"streamed{number}"
        result = trials.run(run_dir, *flags, kill_in_call=2 + number % 3, experiment=name)
        assert result["status"] == -9, result
        assert proofs.go_on(run_dir, *flags, experiment=name) == wanted
    again = trials.run(run_dir, *flags[:-1], "--nostream", experiment=name)
    assert again["status"] == 2
    assert "--stream" in again["stderr"]
