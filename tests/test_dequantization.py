"""Uniform noise on integers: its distribution, its keys, and how values are rescaled with it."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research.data import DataError, Split
from vae_research.data.sources import rows_of_array

LEVELS = np.random.default_rng(0).integers(0, 256, (60, 5, 5, 1)).astype(np.uint8)
LEVELS[:3] = np.reshape([0, 255, 254], (3, 1, 1, 1))


def stored_again(split: Split, prepared: np.ndarray) -> np.ndarray:
    """Returns prepared values in stored units, float64."""
    scaling = split.scaling
    return prepared.astype(np.float64) * scaling.divisor + scaling.offset


@pytest.mark.parametrize("rescale", ["none", "unit", "standardize"])
def test_noise_stays_in_the_cell_of_each_integer(rescale):
    data = vr.Data.from_arrays(LEVELS, rescale=rescale).dequantized()
    for split in data.splits:
        noise = stored_again(split, split.prepare()) - split.raw
        assert noise.min() >= -0.5001 and noise.max() <= 0.5001
        # The mean of n numbers from [-1/2, 1/2) has the error sqrt(1 / 12 / n).
        assert abs(noise.mean()) < 4 * (1 / 12 / noise.size) ** 0.5
        assert noise.var() == pytest.approx(1 / 12, rel=0.2)
    low, high = data.value_range()
    prepared = np.concatenate([split.prepare() for split in data.splits])
    assert low <= prepared.min() <= prepared.max() <= high
    if rescale == "unit":
        assert (low, high) == (0.0, 1.0)
        assert str(data.train.scaling) == "(x + 0.5) / 256"


def test_standardized_integers_with_noise_have_mean_0_and_variance_1():
    bits = (np.random.default_rng(1).random((4000, 4)) < 0.3).astype(np.int64)
    data = vr.Data.from_arrays(bits, bits, bits, rescale="standardize").dequantized()
    values = data.train.prepare()
    # Without the 1/12 of the noise, the variance of bits of 0.21 would be 1.4.
    np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(values.var(axis=0), 1.0, atol=0.05)


def test_evaluation_sees_one_draw_and_others_when_asked():
    split = vr.Data.from_arrays(LEVELS).dequantized().test
    values = split.prepare()
    np.testing.assert_array_equal(split.prepare(np.array([2, 0])), values[[2, 0]])
    np.testing.assert_array_equal(split.prepare(slice(1, 3)), values[1:3])
    zero = tf.constant(0, tf.int64)
    batch = split.on_device(4).reader.read(zero, zero, tf.range(len(split)))
    np.testing.assert_array_equal(batch["inputs"], values)
    other = dataclasses.replace(split, draw=1).prepare()
    assert abs(np.corrcoef((other - values).ravel(), values.ravel())[0, 1]) < 1.0
    assert np.mean(other == values) < 0.01


@pytest.mark.slow
def test_training_draws_again_in_every_epoch_and_the_same_again_when_resumed():
    train = vr.Data.from_arrays(LEVELS).dequantized().train
    rows = {}
    for epoch in (0, 1):
        batches = iter(train.batches(12, seed=3, first_epoch=epoch))
        rows[epoch] = np.concatenate([next(batches)["inputs"] for _ in range(4)])
    stored = np.rint(stored_again(train, rows[0]))
    assert sorted(map(bytes, stored.astype(np.uint8))) == sorted(map(bytes, train.raw))
    both = iter(train.batches(12, seed=3))
    unbroken = np.concatenate([next(both)["inputs"] for _ in range(8)])
    np.testing.assert_array_equal(unbroken, np.concatenate([rows[0], rows[1]]))
    assert np.mean(np.isin(rows[0], rows[1])) < 0.1


@functools.cache
def read_on_device(jit_compile):
    """The inputs of the first batch of 8, read by a compiled function."""
    batches = vr.Data.from_arrays(LEVELS, LEVELS, LEVELS).dequantized().train.on_device(8, seed=5)
    call = next(iter(batches.calls(1, 0)))
    read = tf.function(batches.reader.__call__, jit_compile=jit_compile, autograph=False)
    given = batches.reader.tensors, call["epoch"], call["first"], call["rows"][0]
    return read(*given)["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_device_and_stream_have_the_same_noise_with_xla_and_without(streamed):
    array = rows_of_array(LEVELS) if streamed else LEVELS
    split = vr.Data.from_arrays(array, LEVELS, LEVELS).dequantized().train
    wanted = next(iter(split.batches(8, seed=5)))["inputs"]
    if streamed:
        evaluated = split.on_device(8).reader
        zero = tf.constant(0, tf.int64)
        found = evaluated.read(zero, zero, tf.range(len(split)))["inputs"]
        np.testing.assert_array_equal(found, split.prepare())
    for jit_compile in (False, True):
        np.testing.assert_array_equal(read_on_device(jit_compile), wanted)


def test_only_integers_that_are_not_binarised_are_dequantised():
    with pytest.raises(DataError, match="these values are float32: store them as integers"):
        vr.Data.from_arrays(LEVELS / 255.0).dequantized()
    with pytest.raises(DataError, match="add --binarize=none"):
        vr.load_data("mnist", binarize="dynamic", dequantize="uniform")
    with pytest.raises(ValueError, match=r"dequantize='uniforn' does not exist; .*'uniform'"):
        vr.load_data("mnist", dequantize="uniforn")
    data = vr.Data.from_arrays(LEVELS).dequantized()
    assert data.dequantized() is data
    assert data.grey_values
    assert data.summary()["dequantize"] == "uniform"
