"""Training batches: every row once per epoch, order and noise a function of seed and epoch."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from vae_research.data import Data, load_data, pipeline

ROWS, BATCH = 23, 5  # the last batch of an epoch has 3 rows
SIZES = [5, 5, 5, 5, 3]
PER_EPOCH = len(SIZES)


def numbered(rows: int = ROWS, **keywords) -> Data:
    """Row i of train holds the value i everywhere."""
    train = np.tile(np.arange(rows, dtype=np.float32)[:, None], (1, 3))
    return Data.from_arrays(train, train, train, **keywords)


def grey(rows: int = ROWS, width: int = 40) -> Data:
    train = np.tile(np.linspace(0, 1, width, dtype=np.float32), (rows, 1))
    return Data.from_arrays(train, train, train, binarize="dynamic")


def take(data: Data, count: int, **keywords) -> list[np.ndarray]:
    """The first `count` batches of training inputs."""
    batches = data.train.batches(**{"batch_size": BATCH, "seed": 0, **keywords})
    return [batch["inputs"].numpy() for batch in batches.take(count)]


def order(batches: list[np.ndarray]) -> list[int]:
    return np.concatenate(batches)[:, 0].astype(int).tolist()


@pytest.mark.slow
def test_every_row_exactly_once_per_epoch_and_a_short_last_batch():
    batches = take(numbered(), 3 * PER_EPOCH)
    assert [len(batch) for batch in batches] == 3 * SIZES
    assert numbered().train.steps(BATCH) == PER_EPOCH
    for epoch in range(3):
        part = batches[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH]
        assert sorted(order(part)) == list(range(ROWS))


@pytest.mark.parametrize("batch_size", [1, ROWS])
def test_the_smallest_and_the_largest_batch(batch_size):
    batches = take(numbered(), 2 * ROWS // batch_size, batch_size=batch_size)
    assert sorted(order(batches)) == sorted(2 * list(range(ROWS)))


@pytest.mark.slow
def test_order_is_new_in_every_epoch_and_for_every_seed():
    orders = []
    for seed in (0, 1, 2**32 - 1):
        batches = take(numbered(), 3 * PER_EPOCH, seed=seed)
        whole = order(batches)
        orders += [tuple(whole[epoch * ROWS : (epoch + 1) * ROWS]) for epoch in range(3)]
    # 23! orders: any two equal ones among nine are no accident.
    assert len(set(orders)) == 9
    assert tuple(range(ROWS)) not in orders


@pytest.mark.slow
def test_every_row_visits_every_position():
    # Mean position over 400 epochs: 11 +- 6.63 / 20 for each of the rows; five standard errors.
    whole = np.array(order(take(numbered(), 400, batch_size=ROWS))).reshape(400, ROWS)
    positions = np.argsort(whole, axis=1).mean(axis=0)
    assert np.abs(positions - 11).max() < 5 * 6.63 / 20


@pytest.mark.slow
@pytest.mark.parametrize("make", [numbered, grey])
def test_the_same_seed_gives_the_same_batches(make):
    for first, second in zip(take(make(), 12, seed=7), take(make(), 12, seed=7), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("make", [numbered, grey])
def test_a_stream_begun_at_an_epoch_continues_the_unbroken_one(make):
    unbroken = take(make(), 5 * PER_EPOCH)[3 * PER_EPOCH :]
    resumed = take(make(), 2 * PER_EPOCH, first_epoch=3)
    for first, second in zip(unbroken, resumed, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(take(make(), 1)[0], resumed[0])


def test_two_iterations_of_one_dataset_agree():
    dataset = grey().train.batches(BATCH, seed=0).take(7)
    for first, second in zip(dataset, dataset, strict=True):
        np.testing.assert_array_equal(first["inputs"], second["inputs"])


# Values


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", "uint32", "int64", "float16"])
@pytest.mark.parametrize("rescale", ["none", "unit", "standardize"])
def test_batches_hold_what_prepare_gives_to_the_last_bit(dtype, rescale):
    values = np.random.default_rng(0).integers(0, 200, (40, 6, 5, 3)).astype(dtype)
    split = Data.from_arrays(values, rescale=rescale).train
    (batch,) = split.batches(len(split), seed=3).take(1)
    found, expected = batch["inputs"].numpy(), split.prepare()
    assert found.dtype == np.float32
    assert sorted(row.tobytes() for row in found) == sorted(row.tobytes() for row in expected)


@pytest.mark.parametrize("binarize", ["threshold", "static"])
def test_fixed_binarisation_is_that_of_evaluation_whatever_the_seed(binarize):
    values = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    split = Data.from_arrays(values, binarize=binarize).train
    expected = sorted(row.tobytes() for row in split.prepare())
    for seed in (0, 1):
        (batch,) = split.batches(len(split), seed=seed).take(1)
        assert sorted(row.tobytes() for row in batch["inputs"].numpy()) == expected


def test_labels_come_when_asked_for_and_fit_their_rows():
    rows = np.arange(ROWS)
    data = Data.from_arrays(rows[:, None], rows[:, None], rows[:, None], train_labels=rows)
    for batch in data.train.batches(BATCH, seed=0, names=["labels"]).take(7):
        np.testing.assert_array_equal(batch["inputs"][:, 0], batch["labels"])
        assert batch["labels"].dtype == "int64"
    (batch,) = data.train.batches(BATCH, seed=0).take(1)
    assert list(batch) == ["inputs"]


def test_the_shape_of_a_batch_is_known_but_for_its_rows():
    specification = load_data("mnist").train.batches(128, seed=0).element_spec["inputs"]
    assert specification.shape.as_list() == [None, 28, 28, 1]


# Dynamic binarisation


def test_every_epoch_draws_new_values():
    data = grey(rows=4)
    # The rows are equal, so that their order cannot be what differs; 160 fresh coins, of which most
    # are undecided, agree by accident in fewer than one of 10**20 cases.
    epochs = take(data, 6, batch_size=4)
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(epochs, 2))


def test_draws_have_the_frequencies_of_the_grey_values():
    rows, epochs = 1000, 20
    batches = take(grey(rows), epochs, batch_size=rows)
    drawn = np.concatenate(batches)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    probability = np.linspace(0, 1, 40)
    error = np.sqrt(probability * (1 - probability) / (rows * epochs))
    # Five standard errors, and the rounding to 2**-16; exact at 0 and at 1.
    allowed = 5 * error + 2.0**-17 * (error > 0)
    assert np.all(np.abs(drawn.mean(axis=0) - probability) <= allowed)


@pytest.mark.slow
def test_draws_are_independent_over_pixels_rows_batches_and_epochs():
    half = np.full((64, 64), 0.5, np.float32)
    data = Data.from_arrays(half, half, half, binarize="dynamic")
    batches = np.stack(take(data, 8, batch_size=32)) - 0.5  # 4 epochs of 2 batches [32, 64]
    other_seed = np.stack(take(data, 8, batch_size=32, seed=1)) - 0.5
    pairs = {
        "pixels": (batches[..., :-1], batches[..., 1:]),
        "rows": (batches[:, :-1], batches[:, 1:]),
        "batches": (batches[0::2], batches[1::2]),
        "epochs": (batches[:-2], batches[2:]),
        "seeds": (batches, other_seed),
    }
    for name, (first, second) in pairs.items():
        correlation = np.mean(first * second) / 0.25
        assert abs(correlation) < 5 / np.sqrt(first.size), name


def test_certain_values_are_drawn_without_fail():
    # Two million draws: an error of 2**-16 would show about 30 times.
    key = tf.constant([1, 2], tf.int64)
    assert not np.any(pipeline.bernoulli(tf.zeros([1999, 1001]), key))
    assert np.all(pipeline.bernoulli(tf.ones([1999, 1001]), key))


def test_evaluation_does_not_see_the_dynamic_draws():
    data = grey(rows=4)
    before = data.train.prepare()
    take(data, 3, batch_size=4)
    np.testing.assert_array_equal(data.train.prepare(), before)


@pytest.mark.slow
def test_mnist_pixels_that_are_certain_stay_certain():
    data = load_data("mnist", binarize="dynamic")
    (batch,) = data.train.batches(500, seed=0).take(1)
    drawn = batch["inputs"].numpy().reshape(500, -1)
    stored = data.train.raw.reshape(len(data.train), -1)
    border = (stored == 0).all(axis=0)  # always paper
    assert border.sum() > 50
    assert not drawn[:, border].any()
    # The mean of a batch: 0.1307 up to the spread of the digits' ink (0.04 / sqrt(500)).
    assert drawn.mean() == pytest.approx(0.1307, abs=5 * 0.04 / np.sqrt(500))


# Arguments


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"batch_size": 0}, "batch_size must be an integer from 1 to 23 .*, got 0"),
        ({"batch_size": 24}, "batch_size must be an integer from 1 to 23 .*, got 24"),
        ({"batch_size": 2.5}, "batch_size must be an integer from 1 to 23 .*, got 2.5"),
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295, got 4294967296"),
        ({"first_epoch": -1}, "first_epoch must be an integer from 0 to .*, got -1"),
        ({"names": ["labels"]}, "split 'train' has no labels, it has no further array"),
    ],
)
def test_arguments_outside_their_range_are_refused(keywords, words):
    with pytest.raises(ValueError, match=words):
        numbered().train.batches(**{"batch_size": BATCH, "seed": 0, **keywords})
