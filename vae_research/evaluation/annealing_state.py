"""The state of an annealed evaluation, which is resumed bit for bit."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vae_research import files
from vae_research.checkpoints import CheckpointError
from vae_research.evaluation.annealing import Chains, Place

_RUNNING = "running"


class AnnealingState:
    """What was found so far: arrays by name, and in a file if there is one.

    Args:
        path: the file, or None.
        identity: of the evaluation, which that of the file must equal.

    Raises:
        CheckpointError: the file is damaged or is of another evaluation.
    """

    def __init__(self, path: str | Path | None, identity: str) -> None:
        self._path = None if path is None else Path(path)
        self.arrays: dict[str, Any] = {}
        if self._path is not None and self._path.exists():
            try:
                with np.load(self._path, allow_pickle=False) as found:
                    self.arrays = dict(found)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                raise CheckpointError(
                    f"{self._path} is damaged ({error}); remove it to begin again."
                ) from error
            if str(self.arrays.get("identity")) != identity:
                raise CheckpointError(
                    f"{self._path} is the state of an evaluation with another model, other data or "
                    "settings; remove it to begin again."
                )
        self.arrays["identity"] = np.array(identity)

    def running(self, name: str) -> tuple[int, Chains, np.ndarray] | None:
        """Returns position, chains and what they found, if these chains were interrupted."""
        kept = {
            key.removeprefix(f"{_RUNNING}/{name}/"): values
            for key, values in self.arrays.items()
            if key.startswith(f"{_RUNNING}/{name}/")
        }
        if not kept:
            return None
        place = Place(*(tf.constant(kept[field]) for field in Place._fields))
        rest = (tf.constant(kept[field]) for field in Chains._fields[1:])
        return int(kept["position"]), Chains(place, *rest), kept["found"].copy()

    def save_running(self, name: str, position: int, chains: Chains, found: np.ndarray) -> None:
        """Keeps the state of chains."""
        values = {"position": position, "found": found, **chains.place._asdict()}
        values |= {field: getattr(chains, field) for field in Chains._fields[1:]}
        for key, value in values.items():
            self.arrays[f"{_RUNNING}/{name}/{key}"] = np.asarray(value)
        self._save()

    def finish(self, name: str, found: np.ndarray) -> None:
        """Keeps what chains have found instead of their state."""
        self.arrays = {
            key: each for key, each in self.arrays.items() if not key.startswith(_RUNNING)
        }
        self.arrays[name] = found
        self._save()

    def _save(self) -> None:
        if self._path is not None:
            stream = io.BytesIO()
            np.savez(stream, **self.arrays)
            files.replace(self._path, stream.getvalue())
