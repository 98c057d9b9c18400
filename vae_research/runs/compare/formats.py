"""A table of figures with errors as text for a screen, Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence

from vae_research.runs.compare.records import Scalar
from vae_research.runs.compare.settings import shown
from vae_research.tables import markdown_table


@dataclasses.dataclass(frozen=True)
class Measured:
    """A figure with its error.

    Attributes:
        value: the figure.
        error: what stands behind +-; None if unknown.
    """

    value: float
    error: float | None


Cell = Scalar | Measured
_PLUS_MINUS = "\\pm"  # of LaTeX


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: its name in CSV.
        label: its head elsewhere.
        cells: from the first row to the last; None where there is nothing.
        error: name of the column of errors in CSV, if the cells are measured.
        digits: significant digits of numbers without an error; CSV has all digits.
    """

    key: str
    label: str
    cells: Sequence[Cell]
    error: str | None = None
    digits: int = 6


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of one length, and sentences on them."""

    columns: Sequence[Column]
    notes: Sequence[str] = ()


def as_screen(table: Table) -> str:
    """Returns a table for a terminal, with its notes below."""
    head, rows = _texts(table, "+-")
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    is_left = [_is_text(column) for column in table.columns]
    lines = []
    for cells in (head, *rows):
        padded = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(cells, widths, is_left, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "".join(f"{line}\n" for line in [*lines, "", *table.notes])


def as_markdown(table: Table) -> str:
    """Returns a Markdown table, with its notes below."""
    head, rows = _texts(table, "±")
    escaped = [[cell.replace("|", "&#124;") for cell in cells] for cells in (head, *rows)]
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return markdown_table(escaped[0], escaped[1:]) + notes


def as_latex(table: Table) -> str:
    """Returns a `tabular` with the rules of the package booktabs, its notes as comments."""
    places = "".join("l" if _is_text(column) else "r" for column in table.columns)
    head = [_latex(column.label) for column in table.columns]
    rows = zip(*(_latex_cells(column) for column in table.columns), strict=True)
    body = [f"{' & '.join(cells)} \\\\" for cells in (head, *rows)]
    lines = [
        *(f"% {note}" for note in ("needs \\usepackage{booktabs}", *table.notes)),
        *(f"\\begin{{tabular}}{{{places}}}", "\\toprule", body[0], "\\midrule", *body[1:]),
        *("\\bottomrule", "\\end{tabular}"),
    ]
    return "".join(f"{line}\n" for line in lines)


def as_csv(table: Table) -> str:
    """Returns a table as CSV with all digits, errors in their own columns, and without notes."""
    heads, columns = [], []
    for column in table.columns:
        values = [cell.value if isinstance(cell, Measured) else cell for cell in column.cells]
        heads.append(column.key)
        columns.append(values)
        if column.error is not None:
            heads.append(column.error)
            columns.append([c.error if isinstance(c, Measured) else None for c in column.cells])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(zip(*columns, strict=True))
    return stream.getvalue()


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "screen": as_screen,
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}


def as_cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Returns the head of a table and its rows, all as text."""
    return _texts(table, "±")


def measured(value: float, error: float | None, sign: str) -> str:
    """Returns a figure and its error with two digits of the error.

    >>> measured(-102.8342, 0.2617, "+-"), measured(20.0, 0.0, "+-"), measured(0.12345, None, "+-")
    ('-102.83 +- 0.26', '20', '0.12345')
    """
    if not error:
        return f"{value:.5g}"
    digits = min(9, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} {sign} {error:.{digits}f}"


def _texts(table: Table, sign: str) -> tuple[list[str], list[list[str]]]:
    columns = [[_text(c, sign, column.digits) for c in column.cells] for column in table.columns]
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    return [column.label for column in table.columns], rows


def _text(cell: Cell, sign: str, digits: int) -> str:
    if isinstance(cell, Measured):
        return measured(cell.value, cell.error, sign)
    if isinstance(cell, float):
        return f"{cell:.{digits}g}"
    return "" if cell is None else shown(cell)


def _is_text(column: Column) -> bool:
    return any(isinstance(cell, str) for cell in column.cells)


def _latex_cells(column: Column) -> list[str]:
    found = []
    for cell in column.cells:
        text = _text(cell, _PLUS_MINUS, column.digits)
        is_formula = isinstance(cell, Measured) or (isinstance(cell, float) and cell < 0)
        found.append(f"${text}$" if is_formula else _latex(text))
    return found


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
