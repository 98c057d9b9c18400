"""Callbacks that end training, or warn. Imports TensorFlow."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from vae_research.callbacks.base import Resumable
from vae_research.evaluation.diagnosis import collapse_in_training
from vae_research.objective import LARGER_IS_BETTER
from vae_research.runs.cli import signals
from vae_research.runs.cli.errors import DivergedError
from vae_research.runs.session import directory
from vae_research.runs.session.scores import scored


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


class StopEarly(keras.callbacks.EarlyStopping, Resumable):
    """Ends a run whose validation has not become better for some epochs: `--early_stopping`.

    It is Keras' own callback. It monitors what decides which epoch is the best one, and waits until
    the schedules of all loss terms have settled.

    Args:
        patience: how many epochs.
    """

    _STATE = ("wait", "best", "best_epoch")

    def __init__(self, patience: int) -> None:
        super().__init__("val_elbo", patience=patience, mode="max")

    def get_state(self) -> dict[str, Any]:
        """Returns what the next epochs are compared with."""
        return {name: getattr(self, name) for name in self._STATE}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores it; empty if the run has begun without this callback."""
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Finds the first epoch that counts."""
        super().on_train_begin(logs)
        settled = self.model.objective.settled_at()
        if settled is None:
            warnings.warn(
                "--early_stopping counts from the first epoch: when the weights of all loss terms "
                "have settled is unknown.",
                stacklevel=2,
            )
        self.start_from_epoch = max(0, -(-(settled or 0) // self.model.steps_per_epoch) - 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares."""
        self.monitor = scored(logs or {}, "val_") or "val_loss"
        self.mode = "min" if self.monitor == "val_loss" else "max"
        super().on_epoch_end(epoch, logs)


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
            sums = {"loss", *LARGER_IS_BETTER}
            terms = sorted(name for name in bad if name.removeprefix("val_") not in sums)
            terms = terms or sorted(bad)
            step = self.model.step
            if self._run_dir is not None:
                record = {"epoch": epoch + 1, "step": step, "causes": terms}
                directory.write_json(self._run_dir / directory.NONFINITE, record)
            cause = "a term of your own, and a --learning_rate that is too large"
            if all(name.startswith("val_") for name in bad):
                cause = f"validation data with extreme values, {cause}"
            raise DivergedError(
                f"training diverged in epoch {epoch + 1} (step {step}): not finite are "
                f"{', '.join(terms)}. Nothing of this epoch is kept. The usual causes are {cause}."
            )
