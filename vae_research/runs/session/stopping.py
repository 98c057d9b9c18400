"""Callbacks that end training, or warn. Imports TensorFlow."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from vae_research.evaluation.diagnosis import collapse_in_training
from vae_research.runs.cli import signals
from vae_research.runs.cli.errors import DivergedError
from vae_research.runs.session import directory


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Prints warnings as one line each, without file and line."""
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        yield


def _print_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


class StopAtSignal(keras.callbacks.Callback):
    """Ends a run or a study between two steps after Ctrl-C or SIGTERM.

    Signals are only noted while TensorFlow is at work. A study that calls `fit` itself passes this
    callback.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()


class WarnOfCollapse(keras.callbacks.Callback):
    """Warns once of a posterior collapse, from the KL divergence of the validation data."""

    def __init__(self) -> None:
        super().__init__()
        self._kl: list[float] = []
        self._warned = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._kl.append(float((logs or {}).get("val_kl", math.inf)))
        found = collapse_in_training(self._kl)
        if found is not None and not self._warned:
            self._warned = True
            warnings.warn(str(found), stacklevel=2)


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends a run or a study with exit code 6 if the figures of an epoch are not finite.

    Args:
        run_dir: where a record of it is left, nonfinite.json; default: nowhere.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        super().__init__()
        self._run_dir = run_dir

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        bad = {name for name, value in (logs or {}).items() if not math.isfinite(float(value))}
        if bad:
            terms = sorted(bad - {"loss", "elbo", "val_loss", "val_elbo"}) or sorted(bad)
            step = self.model.step
            if self._run_dir is not None:
                record = {"epoch": epoch + 1, "step": step, "causes": terms}
                directory.write_json(self._run_dir / directory.NONFINITE, record)
            raise DivergedError(
                f"training diverged in epoch {epoch + 1} (step {step}): not finite are "
                f"{', '.join(terms)}. Nothing of this epoch is kept. The usual causes are a term "
                "of your own, and a --learning_rate that is too large."
            )
