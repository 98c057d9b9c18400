"""What a check found."""

from __future__ import annotations

import dataclasses

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "not applicable"


class NotApplicableError(ValueError):
    """A check says nothing about a part; the message says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One comparison.

    Attributes:
        name: of what is checked.
        compared: the two things, in words.
        difference: how far they are apart, in the unit that `compared` names.
        tolerance: the largest difference that is right.
        reason: why there is no difference; empty if there is one.
    """

    name: str
    compared: str
    difference: float | None = None
    tolerance: float | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """`OK`, `FAILED` or `NOT_APPLICABLE`; a difference that is not a number has failed.

        >>> Outcome("prior", "integral and 1", 0.5, 0.002).verdict
        'failed'
        >>> Outcome("prior", "integral and 1", reason="codes have 20 values").verdict
        'not applicable'
        """
        if self.difference is None or self.tolerance is None:
            return NOT_APPLICABLE
        return OK if self.difference <= self.tolerance else FAILED
