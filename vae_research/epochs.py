"""Time in epochs, for schedules whose lengths are given in epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class EpochClock:
    """How many epochs a model has trained at a step, whatever their lengths were.

    Attributes:
        steps_per_epoch: batches of the present epochs; None before the first training.
        step: the step from which epochs have had this length.
        epochs: epochs that were done at that step.
    """

    steps_per_epoch: int | None = None
    step: int = 0
    epochs: float = 0.0

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Self:
        """Returns the clock of the three values, in the order of the attributes."""
        steps_per_epoch, step, epochs = values
        length = None if steps_per_epoch is None else int(steps_per_epoch)
        return cls(length, int(step), float(epochs))

    def with_length(self, steps_per_epoch: int, step: int) -> EpochClock:
        """Returns the clock from `step` on, if an epoch has `steps_per_epoch` batches then.

        >>> EpochClock(10).with_length(100, step=20)
        EpochClock(steps_per_epoch=100, step=20, epochs=2.0)
        """
        if self.steps_per_epoch in (None, steps_per_epoch):
            return dataclasses.replace(self, steps_per_epoch=steps_per_epoch)
        epochs = self.epochs + (step - self.step) / self.steps_per_epoch
        return EpochClock(steps_per_epoch, step, epochs)

    @property
    def steps_ahead(self) -> float:
        """The steps by which training is further than the step says, in epochs of this length.

        Negative if earlier epochs were longer than the present ones.

        >>> EpochClock(steps_per_epoch=100, step=20, epochs=2.0).steps_ahead
        180.0
        """
        return self.epochs * (self.steps_per_epoch or 0) - self.step
