"""Augmentation and corruption: functions of (batch, key) between the rows and the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research import runs
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session.building import build_model, choose_execution, names_read

ROWS = 22
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4), dtype=np.uint8)
CODES = np.arange(ROWS)


def flipped(batch, key):
    """Flips every second row or so, and the mask with it."""
    rows = tf.shape(batch["inputs"])[0]
    turned = tf.random.stateless_uniform([rows], key, alg="philox") < 0.5
    chosen = turned[:, tf.newaxis, tf.newaxis, tf.newaxis]
    names = [name for name in ("inputs", "mask") if name in batch]
    return {name: tf.where(chosen, batch[name][:, :, ::-1], batch[name]) for name in names}


def noisy(batch, key):
    noise = vr.standard_normal(tf.shape(batch["inputs"]), key)
    return {"inputs": batch["inputs"] + 0.5 * noise}


def data(**options):
    mask = (IMAGES > 100)[..., np.newaxis]
    whole = {"inputs": IMAGES, "mask": mask, "code": CODES}
    return vr.Data.from_arrays(whole, whole, whole, **options)


def epoch(dataset, number=1):
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset.take(number)]


def from_device(split, position, **keywords):
    """The batch at a position of an epoch, as a step gathers it."""
    dataset = split.on_device(8, **keywords)
    calls = iter(dataset.calls(1, dataset.first_epoch or 0))
    for _ in range(position + 1):
        call = next(calls)
    reader = dataset.reader
    found = reader(reader.tensors, call["epoch"], call["first"], call["rows"][0])
    return {name: tensor.numpy() for name, tensor in found.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "binarize"),
    [
        (vr.Data.augmented, "dynamic"),
        (vr.Data.corrupted, "none"),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in [(vr.Data.augmented, "none"), (vr.Data.corrupted, "dynamic")]
        ),
    ],
)
def test_stream_and_device_give_the_same_batches(make, binarize):
    split = make(data(binarize=binarize), noisy).train
    stream = epoch(split.batches(8, seed=3, first_epoch=1, names=["code"]), 5)
    for position in range(2):
        found = from_device(split, position, seed=3, first_epoch=1, names=["code"])
        assert_equal(found, stream[position])
    # What a resumed run reads is what the uninterrupted one would have.
    begun = epoch(split.batches(8, seed=3, first_epoch=2, names=["code"]), 2)
    assert_equal(begun[0], stream[3])
    assert not np.array_equal(begun[0]["inputs"], stream[0]["inputs"])
    (other,) = epoch(split.batches(8, seed=4, first_epoch=1, names=["code"]))
    assert not np.array_equal(other["inputs"], stream[0]["inputs"])


@pytest.mark.slow
def test_augmentation_changes_training_batches_only_and_what_belongs_together():
    plain, augmented = data(), data().augmented(flipped)
    assert augmented.fingerprint == plain.fingerprint
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(augmented, split), getattr(plain, split)
        assert_equal(ours.tensors(names=["mask"]), theirs.tensors(names=["mask"]))
        assert_equal(from_device(ours, 1, names=["mask"]), from_device(theirs, 1, names=["mask"]))
    (batch,) = epoch(augmented.train.batches(ROWS, seed=0, names=["mask", "code"]))
    values = plain.train.prepare()[batch["code"]]
    turned = [not np.array_equal(*pair) for pair in zip(batch["inputs"], values, strict=True)]
    assert 0 < sum(turned) < ROWS
    for row, is_turned in enumerate(turned):
        step = -1 if is_turned else 1
        np.testing.assert_array_equal(batch["inputs"][row], values[row][:, ::step])
        mask = plain.train.arrays["mask"][batch["code"][row]]
        np.testing.assert_array_equal(batch["mask"][row], mask[:, ::step])
    assert "targets" not in batch


@pytest.mark.slow
def test_corruption_keeps_the_targets_clean_after_augmentation():
    corrupted = data().augmented(flipped).corrupted(noisy)
    (batch,) = epoch(corrupted.train.batches(ROWS, seed=0, names=["code"]))
    (clean,) = epoch(data().augmented(flipped).train.batches(ROWS, seed=0, names=["code"]))
    np.testing.assert_array_equal(batch["targets"], clean["inputs"])
    noise = (batch["inputs"] - clean["inputs"]) / 0.5
    assert abs(noise.mean()) < 0.2
    assert noise.std() == pytest.approx(1.0, abs=0.2)


def test_an_evaluation_sees_one_draw_whichever_rows_are_read(monkeypatch):
    from vae_research.data import pipeline

    monkeypatch.setattr(pipeline, "_BLOCK", 6)
    corrupted = data().corrupted(noisy)
    whole = corrupted.validation.tensors(names=["code"])
    np.testing.assert_array_equal(whole["targets"], data().validation.prepare())
    np.testing.assert_array_equal(whole["code"], CODES)
    for rows in (slice(0, 2), slice(5, 14), np.array([21, 3, 3, 8])):
        some = corrupted.validation.tensors(rows, ["code"])
        assert_equal(some, {name: array[rows] for name, array in whole.items()})
    found = from_device(corrupted.validation, 1, names=["code"])
    assert_equal(found, {name: array[8:16] for name, array in whole.items()})
    other = corrupted.test.tensors()["inputs"]
    assert not np.array_equal(other, whole["inputs"])
    noise = (whole["inputs"] - whole["targets"]).reshape(ROWS, -1)
    assert len(np.unique(noise, axis=0)) == ROWS


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda batch, key: batch["inputs"], "augmentation returned .*; it must return the batch"),
        (lambda batch, key: {"inputs": batch["inputs"][:, :2]}, r"made inputs float32 \(2, 4, 1\)"),
        (lambda batch, key: {"x": batch["labels"]}, "augmentation reads 'labels'; it gets inputs"),
        (lambda batch, key: {"inputs": tf.cast(batch["inputs"], tf.uint8)}, "made inputs uint8"),
    ],
)
def test_a_function_that_does_something_else_is_refused(function, words):
    with pytest.raises(ValueError, match=words):
        next(iter(data().augmented(function).train.batches(8, seed=0)))


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
        seed=config.seed,
    )


def config_of(**flags):
    return runs.configure(build, batch_size=8, binarize="none", device="cpu", **flags)


@pytest.mark.slow
def test_training_reads_what_is_augmented_and_corrupted():
    keras.utils.set_random_seed(0)
    seen, config = data().corrupted(noisy), config_of()
    model = build_model(build, config, seen)
    assert names_read(model, seen) == ()
    assert model.data_names == ("targets",)
    clean = seen.validation.prepare()
    report = model.report(seen.validation.tensors())[1]
    blind = model.report({"inputs": seen.validation.tensors()["inputs"], "targets": clean})[1]
    np.testing.assert_array_equal(report.loss, blind.loss)
    assert choose_execution(model, config, seen).jit_compile
    weights = []
    for batches in (
        seen.train.on_device(8, 0),
        seen.train.batches(8, 0),
        data().train.batches(8, 0),
    ):
        keras.utils.set_random_seed(0)
        model = build_model(build, config_of(run_eagerly=True), seen)
        model.fit(batches, epochs=2, verbose=0)
        weights.append(np.concatenate([value.ravel() for value in model.get_weights()]))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.allclose(weights[1], weights[2])


def with_state(batch, key):
    return {"inputs": batch["inputs"] + tf.random.uniform([])}


def unknown_to_xla(batch, key):
    numbers = tf.strings.length(tf.strings.as_string(batch["inputs"]))
    return {"inputs": batch["inputs"] + 0.0 * tf.cast(numbers, tf.float32)}


@pytest.mark.slow
def test_a_run_looks_at_the_augmentation_before_it_begins():
    config = config_of()
    stateful = data().augmented(with_state)
    with pytest.raises(UsageError, match="the generator of RandomUniform"):
        choose_execution(build_model(build, config, stateful), config, stateful)
    slow = data().augmented(unknown_to_xla)
    chosen = choose_execution(build_model(build, config, slow), config, slow)
    assert not chosen.jit_compile
    assert "AsString" in chosen.reason
