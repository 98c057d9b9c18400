"""Parsers of flag values: numbers in a range, choices, lists of numbers.

Their errors say what a value must be; absl prepends the name of the flag and the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from vae_research.settings import did_you_mean

_LARGEST_FLOAT32 = 3.4028235e38


class Number(flags.ArgumentParser):
    """An integer, or a finite float, in a range."""

    def __init__(
        self,
        kind: type,
        minimum: float | None,
        maximum: float | None = None,
        above: float | None = None,
    ) -> None:
        self.kind = kind
        self.minimum = minimum
        self.maximum = maximum
        self.above = above
        limits = [
            f"{sign} {limit:g}" if kind is float else f"{sign} {limit}"
            for sign, limit in ((">=", minimum), (">", above), ("<=", maximum))
            if limit is not None and (sign, above is None) != (">=", False)
        ]
        name = "an integer" if kind is int else "a finite number"
        self.syntactic_help = " ".join([name, " and ".join(limits)]).strip()

    def parse(self, argument: Any) -> Any:
        error = ValueError(f"must be {self.syntactic_help}")
        if isinstance(argument, bool) or (self.kind is int and isinstance(argument, float)):
            raise error
        try:
            value = self.kind(argument)
        except (TypeError, ValueError, OverflowError):
            raise error from None
        outside = (
            not abs(value) <= _LARGEST_FLOAT32  # written so that it is true of NaN
            or (self.minimum is not None and value < self.minimum)
            or (self.maximum is not None and value > self.maximum)
            or (self.above is not None and value <= self.above)
        )
        if outside:
            raise error
        return value

    def flag_type(self) -> str:
        return self.kind.__name__


class Choice(flags.ArgumentParser):
    """One of a few words."""

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)
        self.syntactic_help = f"one of {', '.join(choices)}"

    def parse(self, argument: Any) -> str:
        if argument not in self.choices:
            near = did_you_mean(str(argument), self.choices)
            raise ValueError(f"must be {self.syntactic_help}.{near}")
        return argument

    def flag_type(self) -> str:
        return "choice"


class Devices(Choice):
    """One of a few words, and how many devices of that kind: `cpu:2`."""

    def __init__(self, choices: Sequence[str], counted: Sequence[str]) -> None:
        super().__init__(choices)
        self.counted = tuple(counted)
        self.syntactic_help = f"one of {', '.join((*choices, *(f'{each}:N' for each in counted)))}"

    def parse(self, argument: Any) -> str:
        kind, colon, count = str(argument).partition(":")
        if kind in self.counted and colon and count.isdecimal() and int(count) >= 1:
            return f"{kind}:{int(count)}"
        return super().parse(argument)


class Line(flags.ArgumentParser):
    """A line of text, which can be printed and put into a table."""

    syntactic_help = "a line of text"

    def parse(self, argument: Any) -> str:
        if not isinstance(argument, str) or not argument.strip() or not argument.isprintable():
            raise ValueError(f"must be {self.syntactic_help}, without control characters")
        return argument

    def flag_type(self) -> str:
        return "string"


class Auto(flags.ArgumentParser):
    """The word `auto`, which becomes None, or a value of another parser."""

    def __init__(self, other: flags.ArgumentParser) -> None:
        self.other = other
        self.syntactic_help = f"auto or {other.syntactic_help}"

    def parse(self, argument: Any) -> Any:
        if argument in (None, "auto"):
            return None
        try:
            return self.other.parse(argument)
        except ValueError:
            raise ValueError(f"must be {self.syntactic_help}") from None

    def flag_type(self) -> str:
        return self.other.flag_type()


class Numbers(flags.ArgumentParser):
    """A comma-separated list of at least one number."""

    def __init__(self, item: Number) -> None:
        self.item = item
        kind = "integers" if item.kind is int else "finite numbers"
        self.syntactic_help = f"{kind} >= {item.minimum:g} separated by commas"

    def parse(self, argument: Any) -> tuple[Any, ...]:
        items = argument.split(",") if isinstance(argument, str) else argument
        try:
            values = tuple(self.item.parse(item) for item in items)
        except ValueError:
            values = ()
        if not values:
            raise ValueError(f"must be {self.syntactic_help}")
        return values

    def flag_type(self) -> str:
        return "numbers"


class Range(flags.ArgumentParser):
    """Two integers `first,last` with 1 <= first <= last."""

    syntactic_help = "two integers first,last with 1 <= first <= last"

    def parse(self, argument: Any) -> tuple[int, int]:
        items = argument.split(",") if isinstance(argument, str) else argument
        try:
            first, last = (Number(int, 1).parse(item) for item in items)
        except (TypeError, ValueError):
            first, last = 1, 0
        if first > last:
            raise ValueError(f"must be {self.syntactic_help}")
        return first, last

    def flag_type(self) -> str:
        return "range"


class Serializer(flags.ArgumentSerializer):
    """Turns a value into the text that is parsed to it."""

    def serialize(self, value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
