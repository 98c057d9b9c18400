"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table with its cells as they are.

    >>> print(markdown_table(["model", "beta"], [["VAE", "1"]]), end="")
    | model | beta |
    | --- | --- |
    | VAE | 1 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
