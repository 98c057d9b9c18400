"""Controllers: weights of loss terms with a state, which react to what training reports.

A schedule is a function of the step alone. A controller also reads the value of a term after each
step, and moves its weight. It consists of immutable settings and three pure functions; the model
holds the state, which is saved, resumed and undone together with the step that it belongs to.

TensorFlow is imported where it is used, as in `schedules`.
"""

from __future__ import annotations

import abc
import math
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vae_research.schedules import Schedule, value_at
from vae_research.settings import Settings, did_you_mean

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["GECO", "Controller", "KLTarget", "PIDControl"]


class Controller(Settings, abc.ABC):
    """Base of weights with a state. A subclass declares its settings and writes three functions.

    Step t of the training is made with `weight(state)`. After it, `update(state, value, t)` returns
    the state for the next step, so that a weight depends on earlier steps only. The three functions
    are traced like the rest of a step: whatever they remember must be in the state, and a decision
    is `tf.where` instead of `if`.

    >>> import tensorflow as tf
    >>> class Relay(Controller):
    ...     '''Raises the weight while the value is above `target`, lowers it while it is below.'''
    ...     target: float
    ...     change: float = 0.25
    ...
    ...     def initial(self):
    ...         return {"weight": 1.0}
    ...
    ...     def update(self, state, value, step):
    ...         return {"weight": state["weight"] + self.change * tf.sign(value - self.target)}
    ...
    ...     def weight(self, state):
    ...         return state["weight"]
    >>> relay = Relay(target=25.0)
    >>> float(relay.weight(relay.update(relay.initial(), 31.0, 0)))
    1.25

    Settings:
        of: name of the value that it reads: the label of a term, or "kl" for the divergence in the
            ELBO. By default the value of the term whose weight it is.
    """

    of: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of is not None and not isinstance(self.of, str):
            raise TypeError(
                f"{type(self).__name__}.of must be the name of a loss term or None, got {self.of!r}"
            )

    @abc.abstractmethod
    def initial(self) -> dict[str, float]:
        """Returns the state before the first step: numbers by name."""

    @abc.abstractmethod
    def update(
        self, state: Mapping[str, tf.Tensor], value: tf.Tensor, step: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the next state, with the names of `initial`.

        Args:
            state: float32 scalars by name.
            value: float32 scalar, the mean over the batch of the unweighted value that it reads,
                nats.
            step: float32 scalar, the step that reported the value (from 0).
        """

    @abc.abstractmethod
    def weight(self, state: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the weight, a float32 scalar."""


class _Multiplier(Controller):
    """A Lagrange multiplier between two bounds, found by gradient ascent on its logarithm."""

    target: float | Schedule
    rate: float = 1e-3
    start: float = 1.0
    minimum: float = 0.01
    maximum: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number(self, "rate", "a positive number", lambda rate: rate > 0)
        _check_number(self, "minimum", "a positive number", lambda minimum: minimum > 0)
        _check_bounds(self)
        _check_number(
            self,
            "start",
            f"a number from minimum={self.minimum} to maximum={self.maximum}",
            lambda start: self.minimum <= start <= self.maximum,
        )

    def weight(self, state: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the multiplier."""
        import tensorflow as tf

        return tf.convert_to_tensor(state["multiplier"], tf.float32)

    def _ascended(self, multiplier: tf.Tensor, violation: tf.Tensor) -> tf.Tensor:
        """Returns `multiplier * exp(rate * violation)` within the bounds."""
        import tensorflow as tf

        return tf.clip_by_value(
            multiplier * tf.exp(self.rate * violation), self.minimum, self.maximum
        )


class GECO(_Multiplier):
    """The weight of the likelihood, moved until the reconstruction is as good as `target`.

    Generalized ELBO with Constrained Optimization: the KL divergence is minimised subject to
    `mean of -log p(x|z) <= target`, and the weight is the Lagrange multiplier lambda of this
    constraint. It belongs to the likelihood, and the KL divergence keeps the weight 1:
    `[Bernoulli(weight=GECO(target=80.0)), KLDivergence()]`. After each step, with
    `C = mean of -log p(x|z) - target`,

        average <- decay * average + (1 - decay) * C     (the first C after the first step)
        lambda  <- lambda * exp(rate * average)          (within the bounds)

    The weight rises while reconstructions are worse than the target, and falls while they are
    better. As a beta-VAE, the model has beta = 1 / lambda. An untrained network is so far from its
    target that lambda soon rises to `maximum`; the lower that is, the sooner it returns.

    The constraint of the paper is `||x - x_mean||^2 - kappa^2 <= 0`. For the `Gaussian` likelihood
    of D values with the standard deviation s, the same constraint is
    `target = kappa^2 / (2 s^2) + D / 2 * log(2 pi s^2)`, and the paper's multiplier is the weight
    divided by `2 s^2`. Rezende and Viola 2018 (arXiv:1810.00597), algorithm 1.

    Settings:
        target: largest mean negative log-likelihood, nats per example; a number or a `Schedule`.
        rate: step size of the logarithm of lambda, per nat and step.
        decay: of the moving average, the paper's alpha; 0 turns the average off.
        start: the first weight.
        minimum, maximum: bounds of the weight.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_target(self)
        _check_number(self, "decay", "a number in [0, 1)", lambda decay: 0 <= decay < 1)

    def initial(self) -> dict[str, float]:
        """Returns the multiplier, the moving average of the constraint, and a count of updates."""
        return {"multiplier": self.start, "average": 0.0, "updates": 0.0}

    def update(
        self, state: Mapping[str, tf.Tensor], value: tf.Tensor, step: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the next state."""
        import tensorflow as tf

        constraint = value - value_at(self.target, step)
        moved = self.decay * state["average"] + (1.0 - self.decay) * constraint
        average = tf.where(tf.equal(state["updates"], 0.0), constraint, moved)
        return {
            "multiplier": self._ascended(state["multiplier"], average),
            "average": average,
            "updates": state["updates"] + tf.constant(1.0),
        }


class KLTarget(_Multiplier):
    """The weight of the KL divergence, moved until the divergence is `target`.

    The weight is the Lagrange multiplier of the constraint KL = target. After each step,

        weight <- weight * exp(rate * (KL - target))     (within the bounds)

    Dual ascent on a bound of the KL divergence is that of Peng et al. 2019 (arXiv:1810.00821), who
    add to the multiplier; here its logarithm is updated, which keeps it positive, as in Rezende and
    Viola 2018 (arXiv:1810.00597). The target is the rate of Alemi et al. 2018 (arXiv:1711.00464).

    Settings:
        target: mean KL divergence, nats per example; a number or a `Schedule`.
        rate: step size of the logarithm of the weight, per nat and step.
        start: the first weight.
        minimum, maximum: bounds of the weight.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_target(self, lowest=0.0)

    def initial(self) -> dict[str, float]:
        """Returns the multiplier."""
        return {"multiplier": self.start}

    def update(
        self, state: Mapping[str, tf.Tensor], value: tf.Tensor, step: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the next state."""
        violation = value - value_at(self.target, step)
        return {"multiplier": self._ascended(state["multiplier"], violation)}


class PIDControl(Controller):
    """The weight of the KL divergence, set by the nonlinear PI controller of ControlVAE.

    After each step, with the error `e = target - KL`,

        P    = proportional_gain / (1 + exp(e))
        I   <- I - integral_gain * e
        weight = P + I + minimum                         (within the bounds)

    The KL divergence of the paper is that of `KLDivergence`: summed over latent dimensions,
    averaged over the batch. The gains are those of the authors' program for images; for
    disentangling, it uses `integral_gain=0.001`, bounds from 1, and a target that rises in steps.
    The derivative part, whose gain is 0 in that program, is left out. Shao et al. 2020
    (arXiv:2004.05988), algorithm 1.

    Against wind-up, the paper holds I after a step whose weight was out of bounds. Here it is the
    weight before clipping that counts, since a clipped one never is, and I is held only while the
    error would move it further out. If it were held for both signs, a weight that jumped over a
    bound by more than P could never return.

    Settings:
        target: mean KL divergence, nats per example; a number or a `Schedule`.
        proportional_gain: the paper's K_p, not negative; the largest contribution of P.
        integral_gain: the paper's K_i, not negative, per nat and step.
        minimum, maximum: bounds of the weight, which starts at `minimum`.
    """

    target: float | Schedule
    proportional_gain: float = 0.01
    integral_gain: float = 0.0001
    minimum: float = 0.0
    maximum: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_target(self, lowest=0.0)
        for name in ("proportional_gain", "integral_gain", "minimum"):
            _check_number(self, name, "a number >= 0", lambda number: number >= 0)
        _check_bounds(self)

    def initial(self) -> dict[str, float]:
        """Returns I, and the weight before clipping."""
        return {"integral": 0.0, "unclipped": self.minimum}

    def update(
        self, state: Mapping[str, tf.Tensor], value: tf.Tensor, step: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the next state."""
        import tensorflow as tf

        error = value_at(self.target, step) - value
        too_high = tf.logical_and(state["unclipped"] > self.maximum, error < 0.0)
        too_low = tf.logical_and(state["unclipped"] < self.minimum, error > 0.0)
        integral = tf.where(
            tf.logical_or(too_high, too_low),
            state["integral"],
            state["integral"] - self.integral_gain * error,
        )
        # sigmoid(-e) is 1 / (1 + exp(e)) without its overflow.
        proportional = self.proportional_gain * tf.sigmoid(-error)
        # Added up from the first to the last; see `tensors.sum_in_order`.
        unclipped = tf.reduce_sum(tf.stack([proportional, integral, self.minimum]))
        return {"integral": integral, "unclipped": unclipped}

    def weight(self, state: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns `P + I + minimum` within the bounds."""
        import tensorflow as tf

        return tf.clip_by_value(
            tf.convert_to_tensor(state["unclipped"], tf.float32), self.minimum, self.maximum
        )


def is_varying(weight: Any) -> bool:
    """Returns whether a weight may differ from step to step."""
    return callable(weight) or isinstance(weight, Controller)


def first_state(controller: Controller) -> dict[str, float]:
    """Returns what `initial` returns, as Python floats.

    Raises:
        ValueError: it is not a dictionary of finite numbers.
    """
    state = controller.initial()
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            f"{type(controller).__name__}.initial returned {state!r}; it must return numbers by "
            "name: {'average': 0.0}."
        )
    for name, number in state.items():
        if not _is_number(number) or not math.isfinite(number):
            raise ValueError(
                f"{type(controller).__name__}.initial returned {number!r} for {name!r}; it must be "
                "a finite number."
            )
    return {name: float(number) for name, number in state.items()}


def next_state(
    controller: Controller, state: Mapping[str, tf.Tensor], value: tf.Tensor, step: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns what `update` returns, in the order of `state`, as float32 scalars.

    Raises:
        ValueError: it has other names than `state`, or something else than a scalar.
    """
    updated = controller.update(state, value, step)
    if not isinstance(updated, Mapping) or updated.keys() != state.keys():
        found = ", ".join(updated) if isinstance(updated, Mapping) else repr(updated)
        raise ValueError(
            f"{type(controller).__name__}.update returned {found}; it must return the state that "
            f"`initial` declares: {', '.join(state)}."
        )
    owner = f"{type(controller).__name__}.update"
    return {name: _scalar(f"{owner}, {name!r},", updated[name]) for name in state}


def observed(controller: Controller, term: str, values: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the value that a controller reads.

    Args:
        controller: the weight of a term.
        term: the name of that term in the logs.
        values: means over the batch, by the names of the logs.

    Raises:
        ValueError: there is no such value.
    """
    name = term if controller.of is None else controller.of
    if name not in values:
        raise ValueError(
            f"The weight of {term!r} reads {name!r}, and the step reports {', '.join(values)}."
            f"{did_you_mean(name, values)}"
        )
    return values[name]


def weight_of(controller: Controller, state: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns what `weight` returns, as a float32 scalar.

    Raises:
        ValueError: it is not a scalar.
    """
    return _scalar(f"{type(controller).__name__}.weight", controller.weight(state))


def _scalar(name: str, value: Any) -> tf.Tensor:
    import tensorflow as tf

    if value is None:
        raise ValueError(f"{name} is None; does the method end with a return?")
    tensor = tf.cast(value, tf.float32)
    if tensor.shape.rank != 0:
        raise ValueError(f"{name} has shape {tensor.shape}; it must be a scalar.")
    return tensor


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_number(
    controller: Controller, name: str, wanted: str, allowed: Callable[[float], bool]
) -> None:
    value = getattr(controller, name)
    if not _is_number(value) or not allowed(value):
        raise ValueError(f"{type(controller).__name__}.{name} must be {wanted}, got {value!r}.")


def _check_bounds(controller: _Multiplier | PIDControl) -> None:
    _check_number(
        controller,
        "maximum",
        f"a number >= minimum={controller.minimum}",
        lambda maximum: maximum >= controller.minimum,
    )


def _check_target(controller: _Multiplier | PIDControl, lowest: float = -math.inf) -> None:
    if not isinstance(controller.target, Schedule):
        number = "a number" if lowest == -math.inf else f"a number >= {lowest}"
        wanted = f"{number} (nats per example) or a Schedule"
        _check_number(controller, "target", wanted, lambda target: target >= lowest)
