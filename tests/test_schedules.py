"""Schedules as tables of steps, inside and outside compiled functions."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from vae_research import (
    CapacityKL,
    Constant,
    Cosine,
    Cyclical,
    KLDivergence,
    LinearWarmup,
    Schedule,
    value_at,
)
from vae_research.schedules import unsettled


class HalfLife(Schedule):
    """A schedule as a user writes it, with no decorator."""

    steps: int = 1000
    start: float = 8.0

    def __call__(self, step):
        return self.start * 0.5 ** (step / self.steps)


# Schedule, and the value that its formula has at each step, worked out by hand.
TABLES = {
    "constant": (Constant(value=0.3), {0: 0.3, 1: 0.3, 10**6: 0.3}),
    "linear": (
        LinearWarmup(steps=10, peak=4.0),
        {0: 0.0, 1: 0.4, 5: 2.0, 9: 3.6, 10: 4.0, 11: 4.0, 10**6: 4.0},
    ),
    "linear, downwards from a start": (
        LinearWarmup(steps=4, start=2.0, peak=-1.0),
        {0: 2.0, 1: 1.25, 2: 0.5, 3: -0.25, 4: -1.0, 5: -1.0},
    ),
    "linear, one step": (LinearWarmup(steps=1), {0: 0.0, 1: 1.0, 2: 1.0}),
    "cosine": (
        # (1 - cos(pi * f)) / 2 is 0, 1/4, 1/2, 3/4, 1 at f = 0, 1/3, 1/2, 2/3, 1.
        Cosine(steps=6, peak=2.0),
        {0: 0.0, 2: 0.5, 3: 1.0, 4: 1.5, 6: 2.0, 7: 2.0, 10**6: 2.0},
    ),
    "cosine, downwards from a start": (
        Cosine(steps=6, start=2.0, peak=1.0),
        {0: 2.0, 2: 1.75, 3: 1.5, 4: 1.25, 6: 1.0, 12: 1.0},
    ),
    "cyclical": (
        # Two cycles of 8 steps; each rises for 4, holds for 4, and starts again at the eighth.
        Cyclical(steps=8, cycles=2, peak=2.0),
        {
            0: 0.0,
            1: 0.5,
            3: 1.5,
            4: 2.0,
            7: 2.0,
            8: 0.0,
            9: 0.5,
            12: 2.0,
            15: 2.0,
            16: 2.0,
            17: 2.0,
        },
    ),
    "cyclical, rising all the time": (
        Cyclical(steps=4, cycles=2, rising=1.0, start=1.0, peak=3.0),
        {0: 1.0, 1: 1.5, 3: 2.5, 4: 1.0, 7: 2.5, 8: 3.0, 9: 3.0},
    ),
    "cyclical, without end": (
        Cyclical(steps=4, cycles=None),
        {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.0, 4: 0.0, 400: 0.0, 401: 0.5, 4002: 1.0},
    ),
    "half life": (HalfLife(steps=10), {0: 8.0, 10: 4.0, 20: 2.0, 30: 1.0}),
}


@pytest.mark.parametrize("name", TABLES)
def test_schedule_has_the_values_of_its_table(name):
    schedule, table = TABLES[name]
    for step, expected in table.items():
        value = value_at(schedule, step)
        assert (value.dtype, value.shape) == (tf.float32, [])
        assert float(value) == pytest.approx(expected, abs=1e-6), f"step {step}"


@functools.cache
def compiled_values(jit_compile):
    """The values of all tables by step and name, of one function, and the traces of it."""
    traces = []

    @tf.function(jit_compile=jit_compile)
    def at(step):
        traces.append(1)
        return {name: value_at(schedule, step) for name, (schedule, _) in TABLES.items()}

    steps = {step for _, table in TABLES.values() for step in table}
    return {step: at(tf.constant(step, tf.int64)) for step in steps}, traces


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_schedule_follows_a_tensor_step_in_one_trace(name, jit_compile):
    values, traces = compiled_values(jit_compile)
    for step, expected in TABLES[name][1].items():
        assert float(values[step][name]) == pytest.approx(expected, abs=1e-6)
    assert len(traces) == 1


def test_number_that_a_trace_has_seen_does_not_change():
    # The mutant of the test above: a weight that a callback changes is frozen by tracing.
    holder = {"weight": 0.0}
    at = tf.function(lambda step: value_at(holder["weight"], step))
    at(tf.constant(0))
    holder["weight"] = 1.0
    assert float(at(tf.constant(1))) == 0.0


EXACT, FALLING_SHORT = [3, 64, 1000], [41, 47, 55, 61]


@functools.cache
def cycle_starts(jit_compile):
    """The values at the first step of 20 cycles by their length, compiled; all should be 0."""
    lengths = EXACT + FALLING_SHORT

    @tf.function(jit_compile=jit_compile)
    def at(*starts):
        schedules = [Cyclical(steps=steps, cycles=None) for steps in lengths]
        return [value_at(each, start) for each, start in zip(schedules, starts, strict=True)]

    found = [at(*[tf.constant(cycle * steps) for steps in lengths]) for cycle in range(20)]
    return dict(zip(lengths, np.transpose(found), strict=True))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("steps", EXACT)
def test_cycle_starts_again_at_the_exact_step(steps, jit_compile):
    np.testing.assert_allclose(cycle_starts(jit_compile)[steps], 0.0, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("steps", FALLING_SHORT)
def test_cycle_starts_again_where_the_rounded_reciprocal_falls_short(steps, jit_compile):
    # A compiled division by a constant is a product with its rounded reciprocal, and in float32
    # 41 * (1 / 41) is 1 - 6e-8. So it is for 47, 55, 61 and many other lengths.
    np.testing.assert_allclose(cycle_starts(jit_compile)[steps], 0.0, atol=1e-5)


def test_cosine_is_steepest_in_its_middle_where_the_straight_line_is_even():
    cosine, line = Cosine(steps=100), LinearWarmup(steps=100)
    steps = np.arange(101)
    slopes = np.diff([float(value_at(cosine, step)) for step in steps])
    assert np.argmax(slopes) in (49, 50)
    assert slopes.max() == pytest.approx(np.pi / 200, rel=1e-3)  # (pi / 2) * sin(pi / 2) / 100
    np.testing.assert_allclose(np.diff([float(value_at(line, s)) for s in steps]), 0.01, atol=1e-6)


def test_cyclical_with_one_full_cycle_is_the_warm_up():
    cyclical, warmup = Cyclical(steps=20, cycles=1, rising=1.0), LinearWarmup(steps=20)
    for step in range(45):
        assert float(value_at(cyclical, step)) == float(value_at(warmup, step))


# What value_at takes.


@pytest.mark.parametrize(
    "step", [3, 3.0, np.int64(3), tf.constant(3), tf.Variable(3, dtype=tf.int64)]
)
def test_step_may_be_any_number_or_tensor(step):
    assert float(value_at(LinearWarmup(steps=6), step)) == 0.5


def test_weight_may_be_a_number_or_a_function_of_the_step():
    assert float(value_at(0.25, 7)) == 0.25
    assert float(value_at(lambda step: step / 2, 7)) == 3.5
    assert value_at(2, 0).dtype == value_at(lambda step: 2, 0).dtype == tf.float32


def test_lambda_is_a_weight_that_follows_the_step_in_a_compiled_function():
    term = KLDivergence(weight=lambda step: tf.minimum(step / 4.0, 1.0))
    at = tf.function(lambda step: value_at(term.weight, step))
    assert [float(at(tf.constant(step))) for step in (0, 1, 3, 4, 9)] == [0.0, 0.25, 0.75, 1.0, 1.0]


def test_subclass_without_a_decorator_has_settings_and_not_class_attributes():
    schedule = HalfLife(steps=5)
    assert (schedule.steps, HalfLife().steps) == (5, 1000)
    assert schedule == HalfLife(steps=5, start=8.0) != HalfLife()
    assert repr(schedule) == "HalfLife(steps=5)"  # what differs from the defaults
    assert schedule.settled_at() is None
    with pytest.raises(AttributeError):
        schedule.steps = 6
    with pytest.raises(TypeError, match="stops"):
        HalfLife(stops=5)
    with pytest.raises(TypeError):
        HalfLife(5)  # by keyword alone


def test_subclass_without_call_says_what_to_define():
    class Empty(Schedule):
        pass

    with pytest.raises(TypeError, match=r"Empty.* __call__"):
        Empty()


# Lengths.

TIMED = [LinearWarmup, Cosine, Cyclical]


@pytest.mark.parametrize("schedule", TIMED)
def test_length_in_epochs_becomes_the_same_length_in_steps(schedule):
    assert schedule(epochs=3).in_steps(40) == schedule(steps=120)
    assert schedule(epochs=0.5).in_steps(41) == schedule(steps=20)  # round(20.5) is 20, the even
    assert schedule(epochs=0.01).in_steps(10) == schedule(steps=1)  # at least one step
    assert schedule(epochs=3, peak=2.0, start=1.0).in_steps(1) == schedule(
        steps=3, peak=2.0, start=1.0
    )


@pytest.mark.parametrize("schedule", TIMED)
def test_length_in_steps_stays_as_it_is(schedule):
    assert schedule(steps=7).in_steps(40) == schedule(steps=7)


@pytest.mark.parametrize("schedule", TIMED)
def test_length_in_epochs_has_no_value_before_an_epoch_has_a_length(schedule):
    with pytest.raises(ValueError, match=r"counts in epochs.*give steps=\.\.\., or call in_steps"):
        value_at(schedule(epochs=2), 0)


@pytest.mark.parametrize("schedule", TIMED)
@pytest.mark.parametrize("lengths", [{}, {"steps": 5, "epochs": 2}])
def test_length_is_given_exactly_once(schedule, lengths):
    with pytest.raises(ValueError, match=r"steps=\.\.\. or as epochs=\.\.\., one of the two"):
        schedule(**lengths)


@pytest.mark.parametrize("schedule", TIMED)
@pytest.mark.parametrize("lengths", [{"steps": 0}, {"steps": -3}, {"epochs": 0}, {"epochs": -0.5}])
def test_length_is_positive(schedule, lengths):
    message = r"\.(steps must be an integer >= 1|epochs must be a positive number), got"
    with pytest.raises(ValueError, match=message):
        schedule(**lengths)


@pytest.mark.parametrize("schedule", TIMED)
@pytest.mark.parametrize("steps", [2.5, True])
def test_number_of_steps_is_whole(schedule, steps):
    with pytest.raises(ValueError, match=rf"\.steps must be an integer >= 1, got {steps}"):
        schedule(steps=steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rising": 0.0}, r"rising must lie in \(0, 1\], got 0.0"),
        ({"rising": 1.5}, r"rising must lie in \(0, 1\], got 1.5"),
        ({"cycles": 0}, r"cycles must be an integer >= 1 \(or None for endless cycles\), got 0"),
    ],
)
def test_impossible_cycle_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Cyclical(steps=10, **settings)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("schedule", "setting"),
    [(Constant, "value"), (LinearWarmup, "peak"), (Cosine, "start"), (Cyclical, "rising")],
)
def test_setting_that_is_not_finite_is_refused_by_name(schedule, setting, bad):
    lengths = {} if schedule is Constant else {"steps": 10}
    with pytest.raises(ValueError, match=f"{schedule.__name__}.{setting} is .*finite"):
        schedule(**lengths, **{setting: bad})


@pytest.mark.parametrize("schedule", TIMED)
def test_length_that_is_not_finite_is_refused(schedule):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            schedule(epochs=bad)


@pytest.mark.parametrize(
    ("schedule", "step"),
    [
        (Constant(value=2.0), 0),
        (LinearWarmup(steps=10), 10),
        (Cosine(steps=10), 10),
        (Cyclical(steps=10, cycles=3, rising=0.5), 25),  # two whole cycles and half of the third
        (Cyclical(steps=10, cycles=1, rising=1.0), 10),
        (Cyclical(steps=3, cycles=1, rising=0.5), 2),  # 1.5, and steps are whole
        (Cyclical(steps=10, cycles=None), None),
        (LinearWarmup(epochs=2), None),  # not known yet
        (Cyclical(epochs=2), None),
    ],
)
def test_schedule_settles_at_the_step_from_which_it_no_longer_changes(schedule, step):
    assert schedule.settled_at() == step
    if step is not None:
        last = float(value_at(schedule, step))
        assert all(float(value_at(schedule, step + later)) == last for later in range(1, 40))
        if step > 0:
            assert float(value_at(schedule, step - 1)) != last


# Schedules inside terms.


@pytest.mark.parametrize("schedule", [LinearWarmup(steps=9), Cosine(steps=9)])
def test_schedule_is_unsettled_until_it_no_longer_changes(schedule):
    assert unsettled(schedule, 8) == f"{schedule} settles at step 9, and training ends at step 8"
    assert unsettled(schedule, 9) is None


@pytest.mark.parametrize("schedule", [Constant(), Cyclical(steps=9, cycles=None), HalfLife()])
def test_schedule_that_never_settles_is_not_called_unsettled(schedule):
    assert unsettled(schedule, 0) is None


def test_in_steps_of_a_term_reaches_its_weight_and_the_schedules_in_its_settings():
    term = CapacityKL(
        weight=LinearWarmup(epochs=2, peak=4.0), capacity=Cosine(epochs=0.5, peak=25.0)
    )
    assert term.in_steps(10) == CapacityKL(
        weight=LinearWarmup(steps=20, peak=4.0), capacity=Cosine(steps=5, peak=25.0)
    )
    assert term.weight.epochs == 2, "in_steps returns a new term"


def test_in_steps_leaves_a_term_without_epochs_equal():
    term = KLDivergence(weight=LinearWarmup(steps=5))
    assert term.in_steps(10) == term
    assert KLDivergence().in_steps(10) == KLDivergence()


def test_in_steps_reaches_a_schedule_inside_a_schedule():
    class Product(Schedule):
        first: Schedule
        second: Schedule

        def __call__(self, step):
            return self.first(step) * self.second(step)

    term = KLDivergence(
        weight=Product(first=LinearWarmup(epochs=1), second=Cosine(epochs=2, peak=3.0))
    ).in_steps(4)
    # Half of the straight line times (1 - cos(pi / 4)) / 2 of 3.
    expected = 0.5 * 3.0 * (1 - np.cos(np.pi / 4)) / 2
    assert float(value_at(term.weight, 2)) == pytest.approx(expected, rel=1e-6)


def test_in_steps_reaches_a_schedule_in_a_tuple_of_settings():
    class Sequence(Schedule):
        parts: tuple = ()

        def __call__(self, step):
            return sum(part(step) for part in self.parts)

    assert Sequence(parts=(LinearWarmup(epochs=2),)).in_steps(10) == Sequence(
        parts=(LinearWarmup(steps=20),)
    )
