"""Schedules: pure functions from the optimizer step to a number, for weights of loss terms.

A Python number that a callback changes is frozen into the compiled training step; a function of
the step is not. Lengths are given in `steps` or in `epochs`; `fit` turns epochs into steps.

TensorFlow is imported where it is used: an experiment file may subclass `Schedule` and still have
its flags checked before TensorFlow is loaded.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

from vae_research.arguments import checked_integer
from vae_research.settings import Settings

__all__ = ["Constant", "Cosine", "Cyclical", "LinearWarmup", "Schedule", "value_at"]


class Schedule(Settings, abc.ABC):
    """Base of all schedules. A subclass declares its settings and writes `__call__`.

    >>> class HalfLife(Schedule):
    ...     '''Halves every `steps` optimizer steps.'''
    ...     steps: int = 1000
    ...
    ...     def __call__(self, step):
    ...         return 0.5 ** (step / self.steps)
    >>> float(value_at(HalfLife(), 2000))
    0.25
    """

    @abc.abstractmethod
    def __call__(self, step: Any) -> Any:
        """Returns the value at `step`, a float32 scalar tensor (optimizer steps, from 0)."""

    def settled_at(self) -> int | None:
        """Returns the step from which the value no longer changes, or None if there is none."""
        return None


class _Timed(Schedule):
    """A schedule with one length, given either in steps or in epochs.

    `ahead` is set when epochs change their length during training: the steps by which the schedule
    is further than the step says.
    """

    steps: int | None = None
    epochs: float | None = None
    ahead: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"{type(self).__name__} takes its length as steps=... or as epochs=..., one of "
                f"the two; got steps={self.steps}, epochs={self.epochs}."
            )
        if self.epochs is None:
            checked_integer(f"{type(self).__name__}.steps", self.steps, 1)
        elif (
            isinstance(self.epochs, bool)
            or not isinstance(self.epochs, (int, float))
            or self.epochs <= 0
        ):
            raise ValueError(
                f"{type(self).__name__}.epochs must be a positive number, got {self.epochs!r}."
            )

    def in_steps(self, steps_per_epoch: int, ahead: float = 0.0) -> Self:
        """Returns this schedule with its length in steps (at least one)."""
        checked_integer("steps_per_epoch", steps_per_epoch, 1)
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * steps_per_epoch))
        return dataclasses.replace(self, steps=steps, epochs=None, ahead=ahead)

    def fraction(self, step: Any) -> Any:
        """Returns the elapsed lengths: 0 at step 0, 1 after one length, 1.5 after one and a half.

        Raises:
            ValueError: the length is in epochs, and the number of steps per epoch is not known.
        """
        return self._elapsed(step) / self._known_steps()

    def _elapsed(self, step: Any) -> Any:
        return step + self.ahead if self.ahead else step

    def _settled(self, steps: int) -> int:
        return max(0, math.ceil(steps - self.ahead))

    def _known_steps(self) -> int:
        if self.steps is None:
            raise ValueError(
                f"{self!r} counts in epochs, and the number of steps in an epoch is not known "
                "yet. `fit` sets it if the data have a length; otherwise give steps=..., or "
                "call in_steps(steps_per_epoch)."
            )
        return self.steps


class Constant(Schedule):
    """The same value at every step."""

    value: float = 1.0

    def __call__(self, step: Any) -> Any:
        """Returns `value`."""
        return step * 0.0 + self.value

    def settled_at(self) -> int:
        """Returns 0."""
        return 0


class _Ramp(_Timed):
    """A schedule from `start` to `peak` in one length, constant after that."""

    start: float = 0.0
    peak: float = 1.0

    def settled_at(self) -> int | None:
        """Returns the step at which `peak` is reached."""
        return None if self.steps is None else self._settled(self.steps)


class LinearWarmup(_Ramp):
    """Rises in a straight line from `start` to `peak` over `steps` (or `epochs`), then stays.

    Sønderby et al. 2016 (arXiv:1602.02282), section 2.3; Bowman et al. 2016 (arXiv:1511.06349).

    >>> float(value_at(LinearWarmup(peak=4.0, steps=100), 25))
    1.0
    """

    def __call__(self, step: Any) -> Any:
        """Returns `start + (peak - start) * min(step / steps, 1)`."""
        import tensorflow as tf

        return self.start + (self.peak - self.start) * tf.minimum(self.fraction(step), 1.0)


class Cosine(_Ramp):
    """Goes from `start` to `peak` along half a cosine over `steps` (or `epochs`), then stays.

    The shape of Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5, without restarts.

    >>> round(float(value_at(Cosine(steps=100), 50)), 6)
    0.5
    """

    def __call__(self, step: Any) -> Any:
        """Returns `start + (peak - start) * (1 - cos(pi * min(step / steps, 1))) / 2`."""
        import tensorflow as tf

        angle = math.pi * tf.minimum(self.fraction(step), 1.0)
        return self.start + (self.peak - self.start) * 0.5 * (1.0 - tf.cos(angle))


class Cyclical(_Timed):
    """Linear warm-ups that start again: each cycle of `steps` rises, then holds `peak`.

    `rising` is the fraction of a cycle in which the value rises from `start` to `peak`. After
    `cycles` cycles the value stays at `peak`; `cycles=None` repeats them endlessly.
    Fu et al. 2019 (arXiv:1903.10145), equations 6 and 7.

    >>> float(value_at(Cyclical(steps=100, rising=0.5), 125))
    0.5
    """

    start: float = 0.0
    peak: float = 1.0
    rising: float = 0.5
    cycles: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.rising <= 1.0:
            raise ValueError(f"Cyclical.rising must lie in (0, 1], got {self.rising}.")
        if self.cycles is not None:
            checked_integer("Cyclical.cycles", self.cycles, 1, why="or None for endless cycles")

    def __call__(self, step: Any) -> Any:
        """Returns the value of the current cycle, `peak` after the last one."""
        import tensorflow as tf

        # A remainder of whole steps is exact; after a division, rounding could start a cycle one
        # step late.
        length = float(self._known_steps())
        step = self._elapsed(step)
        risen = tf.minimum(tf.math.floormod(step, length) / (length * self.rising), 1.0)
        if self.cycles is not None:
            risen = tf.where(step < length * self.cycles, risen, 1.0)
        return self.start + (self.peak - self.start) * risen

    def settled_at(self) -> int | None:
        """Returns the step at which the last cycle has risen, None without a last cycle."""
        if self.steps is None or self.cycles is None:
            return None
        return self._settled(math.ceil(self.steps * (self.cycles - 1 + self.rising)))


def unsettled(schedule: Schedule, last_step: int) -> str | None:
    """Returns a clause about a schedule that still changes after the last step, otherwise None.

    >>> unsettled(LinearWarmup(steps=100), 40)
    'LinearWarmup(steps=100) settles at step 100, and training ends at step 40'
    """
    settled = schedule.settled_at()
    if settled is None or settled <= last_step:
        return None
    return f"{schedule!r} settles at step {settled}, and training ends at step {last_step}"


def value_at(value: float | Schedule | Callable[[Any], Any], step: Any) -> Any:
    """Returns a number, or the value of a schedule at `step`, as a float32 scalar tensor.

    Args:
        value: a number, a `Schedule`, or any function of the step.
        step: scalar, optimizer steps.

    Raises:
        ValueError: a function returned something other than one number, which would be another
            weight for each row.
    """
    import tensorflow as tf

    if not callable(value):
        return tf.cast(value, tf.float32)
    found = value(tf.cast(step, tf.float32))
    shape = None if found is None else tf.convert_to_tensor(found).shape
    if shape is None or shape.rank not in (0, None):
        returned = "None" if shape is None else f"values of shape {shape}"
        raise ValueError(
            f"The schedule {getattr(value, '__qualname__', value)} returned {returned}; it must "
            "return one number for a step."
        )
    return tf.cast(found, tf.float32)
