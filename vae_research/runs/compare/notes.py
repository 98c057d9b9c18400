"""Notes below a table of runs: those of the runs, and which figures are missing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vae_research.runs.compare.records import Record

_NUMBER = re.compile(r"\d+(\.\d+)?")
_NAMED = 3


def notes_on(finished: Sequence[Record], figures: Sequence[str]) -> list[str]:
    """Returns the notes of finished runs, each once with its runs, and missing figures.

    Notes that differ only in their numbers are merged, with the numbers of the first run.
    """
    runs: dict[str, dict[str, str]] = {}  # by the note without its numbers: the notes by run
    for run in finished:
        for note in str(run["notes"] or "").splitlines():
            runs.setdefault(_NUMBER.sub("", note), {})[str(run["run"])] = note
    found = [_with_runs(notes, len(finished)) for notes in runs.values()]
    for figure in figures:
        names = [str(run["run"]) for run in finished if run[f"test/{figure}"] is None]
        if names:
            found.append(f"Without a finite {figure}: {', '.join(names)}.")
    return found


def _with_runs(notes: dict[str, str], count: int) -> str:
    """Returns one note with the runs that have it.

    Args:
        notes: by run; they differ in numbers at most.
        count: the number of all runs.
    """
    first, *others = notes
    is_one = len(set(notes.values())) == 1
    if others and not is_one:
        whom = "all others" if len(notes) == count else _in_words(others)
        return f"{first}, and with other numbers {whom}: {notes[first]}"
    return f"{'All runs' if len(notes) == count > 1 else _in_words([*notes])}: {notes[first]}"


def _in_words(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED])} and {more} more"
