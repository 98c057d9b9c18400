"""Annealed importance sampling with Hamiltonian transitions, for any densities of real codes.

A chain moves through the distributions

    f_b(z) = p(z) p(x|z)^b,  0 = b_0 < b_1 < ... < b_T = 1,

from a sample of the prior to the posterior. At the t-th it multiplies its weight by
f_b(z) / f_c(z) = p(x|z)^(b - c) of its code so far, with b = b_t and c = b_(t-1), and then makes a
transition that leaves f_b invariant. The mean weight is an unbiased estimate of p(x): Neal 2001
(arXiv:physics/9803008). A reverse chain makes the same transitions in reverse order, beginning
with an exact sample of the posterior, and the mean of one over its weight is an unbiased estimate
of 1 / p(x): Grosse et al. 2015 (arXiv:1511.02543). Both are valid for transitions that do not
depend on the states of the chains before them, such as those with step sizes that were fixed
beforehand.

The rows of all tensors are images times chains, the chains of an image next to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vae_research.randomness import fold_in, standard_normal, uniform
from vae_research.tensors import repeat_rows

# The acceptance that the preliminary run aims at, and how far a transition moves the logarithm of
# the step size for each unit that its own is above that.
WANTED_ACCEPTANCE, ADAPTATION = 0.8, 0.3

# A step size varies by up to this share of it, or a code that turns around a mode in just the time
# of a transition would hardly move. Neal 2011 (arXiv:1206.1901), section 4.2.
_JITTER = 0.2

LogDensity = Callable[[tf.Tensor], tf.Tensor]
"""From codes `[rows, size]` to log-densities `[rows]`, nats, each of its own row alone."""


class Place(NamedTuple):
    """Where chains are: codes `[rows, size]`, their densities `[rows]`, nats, and their slopes."""

    z: tf.Tensor
    log_prior: tf.Tensor
    log_likelihood: tf.Tensor
    prior_slope: tf.Tensor
    likelihood_slope: tf.Tensor


class Chains(NamedTuple):
    """The state of chains.

    Attributes:
        place: where they are.
        log_weight: float64 `[rows]`, nats.
        acceptance: `[rows]`, the sum of the acceptance probabilities so far.
        adapted: `[images]`, what adaptation has added to the logarithm of the step size.
    """

    place: Place
    log_weight: tf.Tensor
    acceptance: tf.Tensor
    adapted: tf.Tensor


class Plan(NamedTuple):
    """What chains do at each of several temperatures, in order.

    Attributes:
        number: int64, which names the noise of the transition.
        temperature: of the transition, float64, from 0 to 1.
        before, after: float64, the change of temperature that the weight takes part in, before the
            transition (forward) or after it (reverse).
        log_step_size: `[temperatures, images]` float32.
    """

    number: npt.NDArray[Any]
    temperature: npt.NDArray[Any]
    before: npt.NDArray[Any]
    after: npt.NDArray[Any]
    log_step_size: npt.NDArray[Any]

    def part(self, start: int, size: int) -> Plan:
        """Returns `size` temperatures from one on, the last one repeated if there are fewer."""
        rows = np.minimum(np.arange(start, start + size), len(self.number) - 1)
        return Plan(*(values[rows] for values in self))


def sigmoidal_temperatures(count: int, steepness: float = 4.0) -> npt.NDArray[np.float64]:
    """Returns `count + 1` temperatures from 0 to 1, closest to each other at both ends.

    They are values of the logistic function at equal distances from -steepness to steepness,
    shifted and scaled. Wu et al. 2017 (arXiv:1611.04273), section 6.

    >>> [round(float(each), 3) for each in sigmoidal_temperatures(4)]
    [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    values = 1.0 / (1.0 + np.exp(-np.linspace(-steepness, steepness, count + 1)))
    return (values - values[0]) / (values[-1] - values[0])


def forward_plan(
    temperatures: npt.NDArray[np.float64], log_step_size: npt.NDArray[np.float32]
) -> Plan:
    """Returns the plan of chains from the prior to the posterior.

    Args:
        temperatures: T + 1 of them, from 0 to 1.
        log_step_size: `[T, images]`, of all temperatures but the first.
    """
    changes = np.diff(temperatures)
    number = np.arange(1, len(temperatures))
    return Plan(number, temperatures[1:], changes, np.zeros_like(changes), log_step_size)


def reverse_plan(
    temperatures: npt.NDArray[np.float64], log_step_size: npt.NDArray[np.float32]
) -> Plan:
    """Returns the plan of chains from the posterior to the prior: the same, in reverse order."""
    forward = forward_plan(temperatures, log_step_size)
    number, temperature, changes, nothing, sizes = (values[::-1] for values in forward)
    return Plan(number, temperature, nothing, changes, sizes)


def place_of(z: tf.Tensor, log_prior: LogDensity, log_likelihood: LogDensity) -> Place:
    """Returns the densities of codes `[rows, size]`, and their slopes."""
    of_prior, of_likelihood = tf.identity(z), tf.identity(z)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(of_prior)
        prior = log_prior(of_prior)
    prior_slope = tape.gradient(prior, of_prior, unconnected_gradients="zero")
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(of_likelihood)
        likelihood = log_likelihood(of_likelihood)
    likelihood_slope = tape.gradient(likelihood, of_likelihood, unconnected_gradients="zero")
    return Place(z, prior, likelihood, prior_slope, likelihood_slope)


def start(z: tf.Tensor, images: int, log_prior: LogDensity, log_likelihood: LogDensity) -> Chains:
    """Returns chains at codes `[rows, size]`, with weight 1."""
    place, rows = place_of(z, log_prior, log_likelihood), tf.shape(z)[0]
    return Chains(place, tf.zeros([rows], tf.float64), tf.zeros([rows]), tf.zeros([images]))


def leapfrog(
    place: Place,
    momentum: tf.Tensor,
    temperature: tf.Tensor,
    step_size: tf.Tensor,
    steps: int,
    log_prior: LogDensity,
    log_likelihood: LogDensity,
) -> tuple[Place, tf.Tensor]:
    """Follows Hamilton's equations in several steps; returns place and momentum at the end.

    It preserves volume, and the momentum with the other sign leads back. Neal 2011
    (arXiv:1206.1901), equations 5.18 to 5.20.

    Args:
        place: the beginning.
        momentum: `[rows, size]`.
        temperature: of the likelihood, a scalar.
        step_size: `[rows, 1]`.
        steps: their number.
        log_prior, log_likelihood: of codes.
    """

    def slope(place: Place) -> tf.Tensor:
        return place.prior_slope + temperature * place.likelihood_slope

    def body(index: tf.Tensor, place: Place, momentum: tf.Tensor) -> tuple[tf.Tensor, ...]:
        half = momentum + 0.5 * step_size * slope(place)
        reached = place_of(place.z + step_size * half, log_prior, log_likelihood)
        return index + 1, reached, half + 0.5 * step_size * slope(reached)

    _, place, momentum = tf.while_loop(
        lambda index, *_: index < steps, body, (0, place, momentum), parallel_iterations=1
    )
    return place, momentum


def transition(
    place: Place,
    temperature: tf.Tensor,
    step_size: tf.Tensor,
    steps: int,
    key: tf.Tensor,
    log_prior: LogDensity,
    log_likelihood: LogDensity,
) -> tuple[Place, tf.Tensor]:
    """Returns the places after a Hamiltonian transition, and its acceptance probabilities `[rows]`.

    It leaves p(z) p(x|z)^temperature invariant, and is reversible. What is not finite at the end of
    a path is not accepted. Neal 2011 (arXiv:1206.1901), section 3.

    Args:
        place: the beginning.
        temperature: of the likelihood, a scalar.
        step_size: `[rows]`, before jitter.
        steps: of the leapfrog.
        key: of its noise, `[2]`.
        log_prior, log_likelihood: of codes.
    """
    rows = tf.shape(place.z)[0]
    drawn = standard_normal(tf.shape(place.z), fold_in(key, 0))
    levels = uniform([2, rows], fold_in(key, 1))
    sizes = step_size * (1.0 + _JITTER * (2.0 * levels[1] - 1.0))
    proposed, momentum = leapfrog(
        place, drawn, temperature, sizes[:, tf.newaxis], steps, log_prior, log_likelihood
    )

    def energy(place: Place, momentum: tf.Tensor) -> tf.Tensor:
        kinetic = 0.5 * tf.reduce_sum(tf.square(momentum), axis=1)
        return kinetic - place.log_prior - temperature * place.log_likelihood

    fall = energy(place, drawn) - energy(proposed, momentum)
    # A path that has left the finite numbers has a fall of NaN or minus infinity.
    probability = tf.where(fall > -np.inf, tf.exp(tf.minimum(fall, 0.0)), 0.0)
    accepted = levels[0] < probability
    columns = accepted[:, tf.newaxis]
    chosen = [
        tf.where(columns if new.shape.rank == 2 else accepted, new, old)
        for new, old in zip(proposed, place, strict=True)
    ]
    return Place(*chosen), probability


def anneal(
    chains: Chains,
    plan: Plan,
    count: tf.Tensor,
    steps: int,
    key: tf.Tensor,
    adaptation: tf.Tensor,
    log_prior: LogDensity,
    log_likelihood: LogDensity,
) -> tuple[Chains, tf.Tensor]:
    """Returns chains after the first temperatures of a plan, and the log step sizes they used.

    Args:
        chains: the beginning.
        plan: of `count` temperatures or more.
        count: a scalar, int32.
        steps: of the leapfrog.
        key: of all noise of these chains, `[2]`; that of a transition has its number folded in.
        adaptation: a scalar. Above 0, the step sizes of an image move towards the wanted acceptance
            after each transition; the weights are then of no use, only the step sizes
            `[temperatures, images]` are. With 0 they are those of the plan.
        log_prior, log_likelihood: of codes.
    """
    images = plan.log_step_size.shape[1]
    each = chains.place.z.shape[0] // images
    found = tf.TensorArray(tf.float32, size=plan.log_step_size.shape[0], element_shape=[images])

    def body(index: tf.Tensor, chains: Chains, found: tf.TensorArray) -> tuple[tf.Tensor, ...]:
        now = Plan(*(tf.gather(values, index) for values in plan))
        size = now.log_step_size + chains.adapted
        place, temperature = chains.place, tf.cast(now.temperature, tf.float32)
        weight = chains.log_weight + now.before * tf.cast(place.log_likelihood, tf.float64)
        place, probability = transition(
            place,
            temperature,
            repeat_rows(tf.exp(size), each),
            steps,
            fold_in(key, now.number),
            log_prior,
            log_likelihood,
        )
        weight += now.after * tf.cast(place.log_likelihood, tf.float64)
        share = tf.reduce_mean(tf.reshape(probability, [images, each]), axis=1)
        adapted = chains.adapted + adaptation * (share - WANTED_ACCEPTANCE)
        chains = Chains(place, weight, chains.acceptance + probability, adapted)
        return index + 1, chains, found.write(index, size)

    _, chains, found = tf.while_loop(
        lambda index, *_: index < count, body, (0, chains, found), parallel_iterations=1
    )
    return chains, found.stack()
