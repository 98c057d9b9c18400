"""What ends a run, or warns, in the middle of training. Imports TensorFlow."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from vae_research.runs.cli import signals
from vae_research.runs.cli.errors import DivergedError


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Prints warnings as one line each, without file and line."""
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        yield


def _print_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


class StopAtSignal(keras.callbacks.Callback):
    """Ends a run or a study between two steps where Ctrl-C or SIGTERM has come.

    Signals are only noted while TensorFlow is at work. A study that calls `fit` itself gives it
    this callback.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        signals.raise_if_received()


class WarnOfCollapse(keras.callbacks.Callback):
    """Says once that the KL divergence has been next to nothing at several evaluations in a row.

    The posterior is then the prior: z says nothing of x.
    """

    nats, evaluations = 0.01, 3

    def __init__(self) -> None:
        super().__init__()
        self._in_a_row = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        divergence = float((logs or {}).get("val_kl", math.inf))
        self._in_a_row = self._in_a_row + 1 if divergence < self.nats else 0
        if self._in_a_row == self.evaluations:
            warnings.warn(
                f"The KL divergence was below {self.nats} nats at {self.evaluations} evaluations "
                "in a row: z says nothing of the data. A smaller --kl_weight at the beginning, or "
                "free bits, may help.",
                stacklevel=2,
            )


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends a run or a study where the figures of an epoch are not finite, with exit code 6."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        bad = {name for name, value in (logs or {}).items() if not math.isfinite(float(value))}
        if bad:
            terms = sorted(bad - {"loss", "elbo", "val_loss", "val_elbo"}) or sorted(bad)
            step = int(self.model.optimizer.iterations)
            raise DivergedError(
                f"training diverged in epoch {epoch + 1} (step {step}): not finite are "
                f"{', '.join(terms)}. Nothing of this epoch is kept. The usual causes are a term "
                "of your own, and a --learning_rate that is too large."
            )
