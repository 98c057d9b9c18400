"""The figures of every epoch, as lines of JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

from vae_research.callbacks.epochs import EpochCallback, EpochRecord


class MetricsFile(EpochCallback):
    """Appends one JSON object an epoch to a file.

    Keys: `epoch`, `step`, `seconds` (of training), `images_per_second`, and for each split
    `train/...` and `validation/...`: `loss`, `elbo`, every term by name, `weight/NAME`, in nats.

    Args:
        path: the file, appended to.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    def on_record(self, record: EpochRecord) -> None:
        """Appends the line of this epoch."""
        line = {
            "epoch": record.epoch,
            "step": record.step,
            "seconds": round(record.seconds, 3),
            "images_per_second": round(record.images_per_second, 1),
        }
        for split, figures in record.figures.items():
            weights = {f"weight/{name}": value for name, value in record.weights.items()}
            line |= {f"{split}/{name}": value for name, value in (figures | weights).items()}
        # JSON has no NaN and no infinity.
        line = {key: value if math.isfinite(value) else None for key, value in line.items()}
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
