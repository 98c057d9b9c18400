"""The figures of every epoch as lines of JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_research.callbacks.base import EpochCallback, EpochRecord


class MetricsFile(EpochCallback):
    """Appends one JSON object per epoch to a file.

    Keys: `epoch`, `step`, `seconds` (of training), `images_per_second`, and for each split
    `train/...` and `validation/...`: `loss`, `elbo` and every term by name, in nats, and
    `weight/NAME`.

    If the file cannot be written, it warns once and keeps the lines until it can be, also in the
    checkpoints of a run.

    Args:
        path: the file to append to.

    Attributes:
        waiting: lines that are not written yet.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.waiting = ""
        self._has_warned = False

    def get_state(self) -> dict[str, Any]:
        """Returns the state of the clock, and the lines that are not written yet."""
        return super().get_state() | ({"waiting": self.waiting} if self.waiting else {})

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the clock, and the lines to be written with the next one."""
        super().set_state(state)
        self.waiting = state.get("waiting", "")

    def on_record(self, record: EpochRecord) -> None:
        """Appends the line of this epoch."""
        line: dict[str, float] = {
            "epoch": record.epoch,
            "step": record.step,
            "seconds": round(record.seconds, 3),
            "images_per_second": round(record.images_per_second, 1),
        }
        for split, figures in record.figures.items():
            weights = {f"weight/{name}": value for name, value in record.weights.items()}
            line |= {f"{split}/{name}": value for name, value in (figures | weights).items()}
        # JSON has neither NaN nor infinity.
        finite = {key: value if math.isfinite(value) else None for key, value in line.items()}
        self.waiting += json.dumps(finite) + "\n"
        self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Tries one last time to write the waiting lines."""
        self._write()

    def _write(self) -> None:
        try:
            if self.waiting:
                append(self.path, self.waiting)
            self.waiting = ""
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{self.path} cannot be written ({error.strerror or error}). Training "
                    "continues, and its lines are kept until it can be.",
                    stacklevel=2,
                )


def append(path: Path, lines: str) -> None:
    """Appends all of the lines or none: a reader could not parse half a line.

    Raises:
        OSError: they could not be written.
    """
    content = lines.encode()
    with open(path, "ab", buffering=0) as stream:
        size = stream.tell()
        try:
            if stream.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            stream.truncate(size)
            raise
