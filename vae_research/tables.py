"""Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; nothing in its cells is escaped.

    >>> print(markdown_table(["model", "beta"], [["VAE", "1"]]), end="")
    | model | beta |
    | --- | --- |
    | VAE | 1 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def median_and_range(values: Sequence[float], digits: int) -> str:
    """Returns the median of values with their range, as text.

    >>> median_and_range([3.0, 1.0, 1.5], 1)
    '1.5 (1.0 to 3.0)'
    """
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
