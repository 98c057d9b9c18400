"""What a sweep prints: a line for each point that ends, and how much time is left."""

from __future__ import annotations

import time
from pathlib import Path

from vae_research.checkpoints import CheckpointError
from vae_research.runs.session import directory
from vae_research.runs.sweep.workers import Ended, Report

# Seconds between lines while no point ends.
_BETWEEN = 60.0


class Progress:
    """Counts the parts of points that were trained in this session, and says when the rest is.

    Args:
        into: the folder of the sweep.
        done: how many points had ended when the session began.
        clock: seconds, of which only differences count.
    """

    def __init__(self, into: Path, done: int) -> None:
        self._into, self._done = into, done
        self._started = self._printed = time.monotonic()
        self._trained = 0.0  # in points
        self._shares: dict[str, float] = {}  # of the points that run

    def started(self, name: str, number: int, total: int) -> None:
        """Prints that a point starts."""
        self._shares[name] = 0.0
        print(f"start  {name} ({number} of {total})", flush=True)

    def reported(self, report: Report, total: int) -> None:
        """Takes the end of an epoch; prints a line once a minute."""
        share = report.epoch / max(report.epochs, 1)
        before = self._shares.get(report.name, 0.0)
        # The first report of a resumed point says what earlier sessions have trained.
        first = before == 0.0 and report.epoch > 1
        self._trained += 1 / max(report.epochs, 1) if first else share - before
        self._shares[report.name] = share
        if time.monotonic() - self._printed > _BETWEEN:
            self._print(f"{report.name}: epoch {report.epoch} of {report.epochs}", total)

    def ended(self, ended: Ended, state: str, total: int) -> None:
        """Prints a line about a point that has ended."""
        self._trained += 1.0 - self._shares.pop(ended.name, 0.0)
        self._done += 1
        words = {
            "done": f"done in {in_words(ended.seconds)}{_test_elbo(self._into / ended.name)}",
            "pruned": f"pruned after {in_words(ended.seconds)}",
            "interrupted": "interrupted; its state is saved",
        }.get(state, f"failed with exit code {ended.exit_code}: {ended.message}")
        self._print(f"{state:<6} {ended.name}: {words}", total)

    def _print(self, words: str, total: int) -> None:
        self._printed = time.monotonic()
        left = total - self._done - sum(self._shares.values())
        when = ""
        if self._trained > 0 and left > 0:
            seconds = (self._printed - self._started) / self._trained * left
            when = f"; about {in_words(seconds)} left"
        print(f"{words} ({self._done} of {total}{when})", flush=True)


def in_words(seconds: float) -> str:
    """Returns a duration.

    >>> in_words(4.4), in_words(75), in_words(7500)
    ('4 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _test_elbo(run_dir: Path) -> str:
    try:
        summary = directory.read_summary(run_dir) or {}
    except CheckpointError:
        return ""
    found = summary.get("test", {}).get("elbo")
    if not found or found["value"] is None:
        return ""
    return f", test ELBO {found['value']:.2f} +- {found['standard_error']:.2f}"
