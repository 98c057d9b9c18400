"""Controllers: against plain simulations of their papers, in closed loops, and at their bounds."""

import functools
import json
import math

import numpy as np
import pytest
import tensorflow as tf

from vae_research import (
    GECO,
    Controller,
    Gaussian,
    KLDivergence,
    KLTarget,
    LinearWarmup,
    PIDControl,
    Schedule,
)
from vae_research.controllers import first_state, next_state, weight_of
from vae_research.settings import from_config

STEPS = 200


class Relay(Controller):
    """A controller as a user writes it, with no decorator."""

    target: float
    change: float = 0.25

    def initial(self):
        return {"weight": 1.0}

    def update(self, state, value, step):
        return {"weight": state["weight"] + self.change * tf.sign(value - self.target)}

    def weight(self, state):
        return state["weight"]


def trajectory(controller, values):
    """Returns the weights in steps 0 to `len(values)`, each before the value of its step."""
    return of_values(controller)(np.asarray(values, np.float32)).numpy()


@functools.cache
def of_values(controller):
    """Returns a function of the values, traced once, that gives the weights."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None])])
    def run(values):
        return loop(controller, tf.size(values), lambda step, weight, before: values[step])[0]

    return run


def closed_loop(controller, steps, plant, start=0.0):
    """Returns weights and values; a step reports `plant(step, weight, value before)`."""
    run = tf.function(lambda: loop(controller, steps, plant, start), autograph=False)
    weights, values = run()
    return weights.numpy(), values.numpy()


def loop(controller, steps, plant, start=0.0):
    def one_step(before, step):
        state, value, weight = before
        value = plant(step, weight, value)
        state = next_state(controller, state, value, tf.cast(step, tf.float32))
        return state, value, weight_of(controller, state)

    state = {name: tf.constant(number) for name, number in first_state(controller).items()}
    first = (state, tf.constant(start), weight_of(controller, state))
    _, values, weights = tf.scan(one_step, tf.range(steps), first)
    return tf.concat([first[2][None], weights], axis=0), values


def noisy(start, end, seed=0):
    """Returns values that fall or rise from `start` to `end`, with the noise of batches."""
    noise = np.random.default_rng(seed).normal(size=STEPS)
    return end + (start - end) * np.exp(-np.arange(STEPS) / 30.0) + noise


# The papers' algorithms, in double precision.


def geco_simulation(values, targets, rate, decay, start, minimum, maximum):
    """Rezende and Viola 2018, algorithm 1: returns the multipliers."""
    multipliers = [start]
    average = None
    for value, target in zip(values, targets, strict=True):
        constraint = value - target
        average = constraint if average is None else decay * average + (1 - decay) * constraint
        moved = math.exp(math.log(multipliers[-1]) + rate * average)
        multipliers.append(min(max(moved, minimum), maximum))
    return multipliers


def ascent_simulation(values, targets, rate, start, minimum, maximum):
    """Gradient ascent on log lambda for lambda * (KL - target): returns the multipliers."""
    multipliers = [start]
    for value, target in zip(values, targets, strict=True):
        logarithm = math.log(multipliers[-1]) + rate * (value - target)
        multipliers.append(min(max(math.exp(logarithm), minimum), maximum))
    return multipliers


def never(before, error, low, high):
    return False


def paper(before, error, low, high):
    return not low <= before <= high


def outward(before, error, low, high):
    return (before > high and error < 0) or (before < low and error > 0)


def pi_simulation(values, targets, k_p, k_i, low, high, held):
    """Shao et al. 2020, algorithm 1, with a rule for holding I: returns the weights."""
    integral, before, weights = 0.0, low, [low]
    for value, target in zip(values, targets, strict=True):
        error = target - value
        p = k_p / (1 + math.exp(min(error, 700.0)))  # exp of a Python float overflows at 710
        if not held(before, error, low, high):
            integral -= k_i * error
        before = p + integral + low
        weights.append(min(max(before, low), high))
    return weights


@pytest.mark.parametrize(
    ("values", "reaches"),
    [
        (noisy(120.0, 79.0), None),
        (noisy(540.0, 95.0), "maximum"),
        (noisy(90.0, 55.0), "minimum"),
        (np.concatenate([noisy(540.0, 100.0), noisy(100.0, 60.0, seed=1)]), "maximum"),
    ],
)
def test_geco_is_the_algorithm_of_its_paper(values, reaches):
    geco = GECO(target=80.0, rate=2e-3, decay=0.95, start=2.0, minimum=0.1, maximum=50.0)
    weights = trajectory(geco, values)
    targets = np.full(len(values), 80.0)
    expected = geco_simulation(values, targets, 2e-3, 0.95, 2.0, 0.1, 50.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    if reaches:
        assert getattr(geco, reaches) in weights.round(6)
    assert len(set(weights)) > 4  # it moved before it reached a bound


@pytest.mark.parametrize(
    ("values", "reaches"),
    [(noisy(2.0, 26.0), None), (noisy(2.0, 60.0), "maximum"), (noisy(30.0, 3.0), "minimum")],
)
def test_kl_target_is_gradient_ascent_on_the_logarithm(values, reaches):
    controller = KLTarget(target=25.0, rate=2e-3, start=0.5, minimum=0.05, maximum=5.0)
    weights = trajectory(controller, values)
    expected = ascent_simulation(values, np.full(STEPS, 25.0), 2e-3, 0.5, 0.05, 5.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    if reaches:
        assert getattr(controller, reaches) in weights.round(6)
    assert len(set(weights)) > STEPS / 4


def test_pi_control_is_the_algorithm_of_its_paper_within_the_bounds():
    values = noisy(60.0, 24.0)
    controller = PIDControl(target=25.0, maximum=2.0)
    weights = trajectory(controller, values)
    for held in (never, paper, outward):  # no matter which rule holds the integral
        expected = pi_simulation(values, np.full(STEPS, 25.0), 0.01, 1e-4, 0.0, 2.0, held)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert weights[0] == 0.0
    assert 0.0 < weights[1:].min() < weights.max() < 2.0


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.05), (1.0, 1.05)], ids=["of pictures", "of disentangling"]
)
def test_pi_control_saturates_and_holds_its_integral(low, high):
    # Far above the target, then far below it, then above it again, in thirds.
    values = np.concatenate([noisy(60.0, 45.0), noisy(45.0, 3.0, 1), noisy(3.0, 45.0, 2)])
    controller = PIDControl(target=25.0, minimum=low, maximum=high)
    weights = trajectory(controller, values)
    targets = np.full(len(values), 25.0)
    expected = pi_simulation(values, targets, 0.01, 1e-4, low, high, outward)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    for bound in (low, high):
        assert np.isclose(weights, bound, atol=1e-6).mean() > 0.25
    # Without the rule the integral grows in the first third, and the weight stays at its bound for
    # most of the second.
    wound_up = pi_simulation(values, targets, 0.01, 1e-4, low, high, never)
    second = slice(STEPS, 2 * STEPS)
    assert np.sum(np.isclose(wound_up[second], high)) > 2 * np.sum(
        np.isclose(weights[second], high, atol=1e-6)
    )


@pytest.mark.parametrize(
    ("first", "then", "low", "stays", "reaches"),
    [
        (0.0, 250.0, 0.0, 0.0, 1.0),  # the first error is 170, and moves I to -0.17
        (0.0, 250.0, 0.5, 0.5, 1.0),
        (2000.0, 140.0, 0.0, 1.0, 0.0),  # and here to 1.83
    ],
)
def test_pi_control_returns_from_a_bound_where_the_rule_for_both_signs_stays(
    first, then, low, stays, reaches
):
    # The first error moves the integral out of the bounds by more than P, at most 0.01, reaches.
    values = np.concatenate([[first], np.full(STEPS, then)])
    settings = (values, np.full(len(values), 170.0), 0.01, 1e-3, low, 1.0)
    assert set(pi_simulation(*settings, paper)[1:]) == {stays}
    weights = trajectory(PIDControl(target=170.0, integral_gain=1e-3, minimum=low), values)
    np.testing.assert_allclose(weights, pi_simulation(*settings, outward), atol=2e-6)
    assert (weights[1], weights[-1]) == (stays, reaches)


def test_set_point_may_follow_a_schedule_at_the_step_that_reported():
    targets = np.minimum(np.arange(STEPS) / 100.0, 1.0) * 25.0
    schedule = LinearWarmup(peak=25.0, steps=100)
    values = noisy(2.0, 26.0)
    for controller, expected in (
        (
            KLTarget(target=schedule, rate=2e-3),
            ascent_simulation(values, targets, 2e-3, 1.0, 0.01, 100.0),
        ),
        (
            PIDControl(target=schedule),
            pi_simulation(values, targets, 0.01, 1e-4, 0.0, 1.0, outward),
        ),
        (
            GECO(target=schedule, rate=2e-3, decay=0.5),
            geco_simulation(values, targets, 2e-3, 0.5, 1.0, 0.01, 100.0),
        ),
    ):
        np.testing.assert_allclose(trajectory(controller, values), expected, rtol=1e-4, atol=1e-6)


# Closed loops: the value follows the weight, with the delay of a network that is trained.


def delayed(steady):
    """Returns a plant whose value moves by a twentieth towards `steady(weight)` in each step."""
    return lambda step, weight, value: value + 0.05 * (steady(weight) - value)


@pytest.mark.parametrize(
    "controller",
    [
        PIDControl(target=25.0, integral_gain=5e-4, maximum=4.0),
        PIDControl(target=25.0, integral_gain=5e-4, minimum=0.2, maximum=4.0),
        KLTarget(target=25.0, rate=1e-3),
        KLTarget(target=25.0, rate=1e-3, start=100.0),
    ],
    ids=repr,
)
def test_divergence_reaches_its_target(controller):
    # KL = 40 / (1 + beta) is 25 at beta = 0.6.
    weights, values = closed_loop(controller, 2000, delayed(lambda beta: 40.0 / (1.0 + beta)))
    assert values[0] < 5.0
    np.testing.assert_allclose(values[-200:], 25.0, atol=0.1)
    np.testing.assert_allclose(weights[-200:], 0.6, atol=0.01)


@pytest.mark.parametrize("start", [0.01, 1.0, 100.0])
def test_reconstruction_reaches_its_target(start):
    # A negative log-likelihood of 60 + 40 / (1 + lambda) is 75 at lambda = 5/3.
    geco = GECO(target=75.0, start=start, decay=0.9)
    plant = delayed(lambda weight: 60.0 + 40.0 / (1.0 + weight))
    weights, values = closed_loop(geco, 2000, plant, start=100.0)
    assert values[0] > 90.0
    np.testing.assert_allclose(values[-200:], 75.0, atol=0.1)
    np.testing.assert_allclose(weights[-200:], 5.0 / 3.0, atol=0.02)


def test_weight_of_an_unreachable_target_stays_at_its_bound():
    below = delayed(lambda beta: 5.0 / (1.0 + beta))
    assert closed_loop(PIDControl(target=25.0), STEPS, below)[0][-1] == 0.0
    assert closed_loop(KLTarget(target=25.0, minimum=0.5), STEPS, below)[0][-1] == 0.5
    assert closed_loop(GECO(target=1.0, maximum=3.0), 2000, below)[0][-1] == 3.0


# Single steps.

CONTROLLERS = [
    GECO(target=80.0, rate=0.01),
    KLTarget(target=LinearWarmup(steps=10, peak=25.0), rate=0.01, of="kl"),
    PIDControl(target=25.0, minimum=0.1),
    Relay(target=25.0),
]
every_controller = pytest.mark.parametrize("controller", CONTROLLERS, ids=repr)


def both(controller, state, value, step):
    """Returns the next state, and the weight of it."""
    after = next_state(controller, state, value, step)
    return after, weight_of(controller, after)


def compiled(mode):
    if mode == "eager":
        return both
    return tf.function(both, autograph=False, jit_compile=mode == "XLA")


every_mode = pytest.mark.parametrize("mode", ["eager", "graph", "XLA"])


@pytest.mark.slow
@every_controller
@every_mode
def test_functions_are_pure_and_the_same_when_compiled(controller, mode):
    def calls(function):
        state = {name: tf.constant(number) for name, number in first_state(controller).items()}
        results = []
        for step, value in enumerate([30.0, 20.0, 90.0]):
            given = (state, tf.constant(value), tf.constant(step, tf.float32))
            before = {name: float(number) for name, number in state.items()}
            state, weight = function(controller, *given)
            assert function(controller, *given) == (state, weight)  # the same again
            assert {name: float(number) for name, number in given[0].items()} == before
            assert {t.dtype for t in (*state.values(), weight)} == {tf.float32}
            results.append([*state.values(), weight])
        return np.array(results)

    np.testing.assert_allclose(calls(compiled(mode)), calls(both), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("controller", CONTROLLERS[:3], ids=repr)
@every_mode
def test_value_that_is_not_a_number_reaches_the_state(controller, mode):
    # So that the step is undone: a bound must not hide it.
    state = {name: tf.constant(number) for name, number in first_state(controller).items()}
    after, weight = compiled(mode)(controller, state, tf.constant(math.nan), tf.constant(3.0))
    assert any(math.isnan(number) for number in after.values())
    assert math.isnan(weight)


@pytest.mark.parametrize(
    ("controller", "value", "weight"),
    [
        (GECO(target=80.0), 1e30, 100.0),
        (GECO(target=80.0), -1e30, 0.01),
        (KLTarget(target=25.0), 1e30, 100.0),
        (KLTarget(target=25.0, start=0.01), 1e30, 100.0),
        (PIDControl(target=25.0), 1e30, 1.0),
        (PIDControl(target=1e30), 0.0, 0.0),
    ],
    ids=repr,
)
def test_extreme_value_leads_to_a_bound(controller, value, weight):
    state, found = both(controller, first_state(controller), tf.constant(value), tf.constant(0.0))
    assert float(found) == np.float32(weight)
    assert np.all(np.isfinite([float(number) for number in state.values()]))


def test_first_value_starts_the_average_at_any_step():
    geco = GECO(target=80.0, rate=1e-3, decay=0.9)
    state = next_state(geco, first_state(geco), tf.constant(100.0), tf.constant(5000.0))
    assert float(state["average"]) == 20.0
    state = next_state(geco, state, tf.constant(90.0), tf.constant(5001.0))
    assert float(state["average"]) == pytest.approx(0.9 * 20.0 + 0.1 * 10.0)
    assert float(geco.weight(state)) == pytest.approx(math.exp(1e-3 * (20.0 + 19.0)))


def test_tolerance_of_the_paper_is_a_target_in_nats():
    # The formula of GECO's documentation, where the squared error is exactly kappa^2.
    kappa, deviation, values = 3.0, 0.5, 12
    error = kappa / math.sqrt(values)
    images = {"targets": tf.fill([1, values], 1.0 + error), "x_mean": tf.ones([1, values])}
    target = kappa**2 / (2 * deviation**2) + values / 2 * math.log(2 * math.pi * deviation**2)
    assert float(Gaussian(standard_deviation=deviation)(images)[0]) == pytest.approx(target)


# As settings.


@every_controller
def test_controller_is_saved_compared_and_printed_by_its_settings(controller):
    term = KLDivergence(weight=controller)
    again = from_config(json.loads(json.dumps(term.to_config())))
    assert again == term != KLDivergence()
    assert (again.weight, hash(again.weight)) == (controller, hash(controller))
    names = {cls.__name__: cls for cls in (GECO, KLTarget, PIDControl, Relay, LinearWarmup)}
    assert eval(repr(controller), names) == controller
    with pytest.raises(AttributeError):
        controller.target = 3.0


def test_lengths_in_epochs_inside_a_controller_become_steps():
    term = KLDivergence(weight=PIDControl(target=LinearWarmup(epochs=2, peak=25.0)))
    expected = KLDivergence(weight=PIDControl(target=LinearWarmup(steps=20, peak=25.0)))
    assert term.in_steps(10) == expected


def test_controller_is_a_weight_and_neither_a_schedule_nor_a_function():
    controller = PIDControl(target=25.0)
    assert KLDivergence(weight=controller).weight is controller
    assert not callable(controller)
    assert not isinstance(controller, Schedule)


@pytest.mark.parametrize("weight", [PIDControl, LinearWarmup, "0.5", [1.0]])
def test_weight_that_is_no_controller_is_refused(weight):
    with pytest.raises(TypeError, match="a number, a Schedule, a Controller, or None"):
        KLDivergence(weight=weight)


BAD = [
    (GECO, {"rate": 0.0}, "rate must be a positive number, got 0.0"),
    (GECO, {"rate": -0.1}, "rate must be a positive number, got -0.1"),
    (GECO, {"rate": True}, "rate must be a positive number, got True"),
    (GECO, {"rate": "0.1"}, "rate must be a positive number, got '0.1'"),
    (GECO, {"rate": math.inf}, "rate is inf; it must be a finite number"),
    (GECO, {"decay": 1.0}, r"decay must be a number in \[0, 1\), got 1.0"),
    (GECO, {"decay": -0.5}, r"decay must be a number in \[0, 1\), got -0.5"),
    (GECO, {"minimum": 0.0}, "minimum must be a positive number, got 0.0"),
    (GECO, {"minimum": 3.0, "maximum": 2.0}, "maximum must be a number >= minimum=3.0, got 2.0"),
    (GECO, {"start": 2e3}, "start must be a number from minimum=0.01 to maximum=100.0, got 2000.0"),
    (GECO, {"target": None}, r"target must be a number \(nats per example\) or a Schedule, got No"),
    (GECO, {"target": math.nan}, "target is nan; it must be a finite number"),
    (KLTarget, {"rate": 0}, "rate must be a positive number, got 0"),
    (KLTarget, {"target": -25.0}, "target must be a number >= 0.0 .* or a Schedule, got -25.0"),
    (KLTarget, {"target": abs}, "target must be a number >= 0.0 .* or a Schedule, got <built-in"),
    (PIDControl, {"target": -25.0}, "target must be a number >= 0.0 .*, got -25.0"),
    (PIDControl, {"proportional_gain": -0.01}, "proportional_gain must be a number >= 0, got -0"),
    (PIDControl, {"integral_gain": -1e-3}, "integral_gain must be a number >= 0, got -0.001"),
    (PIDControl, {"minimum": -1.0}, "minimum must be a number >= 0, got -1.0"),
    (PIDControl, {"minimum": 2.0}, "maximum must be a number >= minimum=2.0, got 1.0"),
    (PIDControl, {"maximum": None}, "maximum must be a number >= minimum=0.0, got None"),
]


@pytest.mark.parametrize(("controller", "settings", "message"), BAD)
def test_bad_setting_is_refused_by_name(controller, settings, message):
    with pytest.raises(ValueError, match=f"^{controller.__name__}.{message}"):
        controller(**({"target": 25.0} | settings))


def test_value_that_it_reads_is_given_by_name():
    with pytest.raises(TypeError, match=r"KLTarget.of must be the name of a loss term or None"):
        KLTarget(target=25.0, of=KLDivergence())
    with pytest.raises(TypeError, match="target"):
        KLTarget()


# What a controller of one's own returns.


def own(**methods):
    """Returns a controller with some methods of Relay replaced."""
    return type("Own", (Relay,), methods)(target=25.0)


def test_own_controller_works():
    weights = trajectory(Relay(target=25.0), [30.0, 30.0, 20.0, 25.0])
    np.testing.assert_array_equal(weights, [1.0, 1.25, 1.5, 1.25, 1.25])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "initial returned None; it must return numbers by name"),
        ({}, "initial returned {}; it must return numbers by name"),
        ({"weight": "1"}, "initial returned '1' for 'weight'; it must be a finite number"),
        ({"weight": math.nan}, "initial returned nan for 'weight'; it must be a finite number"),
    ],
)
def test_first_state_that_is_not_numbers_by_name_is_refused(state, message):
    with pytest.raises(ValueError, match=f"Own.{message}"):
        first_state(own(initial=lambda self: state))


def test_first_state_may_have_numbers_of_numpy():
    state = first_state(own(initial=lambda self: {"a": np.float32(0.5), "b": 2}))
    assert state == {"a": 0.5, "b": 2.0}
    assert {type(number) for number in state.values()} == {float}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "update returned None; it must return the state .* `initial` declares: weight"),
        ({"wieght": 1.0}, "update returned wieght; it must return the state .*: weight"),
        ({"weight": 1.0, "more": 1.0}, "update returned weight, more; it must return the state"),
        ({"weight": None}, "update, 'weight', is None; does the method end with a return"),
        ({"weight": [1.0, 2.0]}, r"update, 'weight', has shape \(2,\); it must be a scalar"),
    ],
)
def test_next_state_that_is_another_one_is_refused(state, message):
    controller = own(update=lambda self, *given: state)
    with pytest.raises(ValueError, match=f"Own.{message}"):
        next_state(controller, first_state(controller), tf.constant(1.0), tf.constant(0.0))


def test_next_state_is_of_one_type_and_in_order():
    controller = own(
        initial=lambda self: {"a": 0.0, "b": 0.0},
        update=lambda self, state, value, step: {"b": tf.constant(1), "a": value},
    )
    state = next_state(controller, first_state(controller), tf.constant(2.5), tf.constant(0.0))
    assert {name: float(number) for name, number in state.items()} == {"a": 2.5, "b": 1.0}
    assert list(state) == ["a", "b"]
    assert {number.dtype for number in state.values()} == {tf.float32}


@pytest.mark.parametrize(
    ("weight", "message"),
    [(None, "is None; does the method end"), ([1.0], r"has shape \(1,\); it must be a scalar")],
)
def test_weight_that_is_not_a_scalar_is_refused(weight, message):
    with pytest.raises(ValueError, match=f"Own.weight {message}"):
        weight_of(own(weight=lambda self, state: weight), {"weight": tf.constant(1.0)})


def test_base_names_what_a_subclass_must_write():
    class Empty(Controller):
        pass

    with pytest.raises(TypeError, match=r"initial.*update.*weight"):
        Empty()
