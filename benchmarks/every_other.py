"""A run of `vae_mnist` whose callbacks for TensorBoard are active in every other epoch.

    python -m benchmarks.every_other --epochs=40 --run_dir=...

Prints their cost as JSON. Two whole runs of the same command differ by more than that cost;
neighbouring epochs of one process differ by less.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from typing import Any

import keras

from experiments import vae_mnist
from vae_research import runs
from vae_research.runs.session import training


class EveryOther(keras.callbacks.Callback):
    """Calls other callbacks in every other epoch, beginning with the first.

    An epoch is timed from the end of the previous one to its own end: what is written at the end of
    an epoch is still being drawn and encoded in the background when the next one has begun.
    """

    def __init__(self, callbacks: list[keras.callbacks.Callback], seconds_to_make: float) -> None:
        super().__init__()
        self.callbacks = callbacks
        self.at_work = True
        self.ends: list[float] = []  # of epochs
        self.seconds = [0.0]  # in the callbacks, by epoch
        self.seconds_around = seconds_to_make  # and before and after training

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        for callback in self.callbacks:
            callback.set_params(params)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.seconds_around += self._call("on_train_begin", logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.seconds_around += self._call("on_train_end", logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.ends.append(time.perf_counter())
        self.at_work = len(self.ends) % 2 == 1
        self.seconds.append(0.0)
        self._call_if_at_work("on_epoch_end", epoch, logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._call_if_at_work("on_epoch_begin", epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._call_if_at_work("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._call_if_at_work("on_train_batch_end", batch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._call_if_at_work("on_test_begin", logs)

    def _call_if_at_work(self, hook: str, *given: Any) -> None:
        if self.at_work:
            self.seconds[-1] += self._call(hook, *given)

    def _call(self, hook: str, *given: Any) -> float:
        started = time.perf_counter()
        for callback in self.callbacks:
            getattr(callback, hook)(*given)
        return time.perf_counter() - started

    def figures(self) -> dict[str, Any]:
        """Returns seconds: `once`, and those of neighbouring epochs `with` and `without`."""
        lengths = [end - begin for begin, end in itertools.pairwise(self.ends)]
        # Not the first two: one of them includes what callbacks do only once.
        pairs = list(zip(lengths[2::2], lengths[3::2], strict=False))
        typical = statistics.median(self.seconds[3::2])
        return {
            "once": self.seconds_around + self.seconds[0] + self.seconds[1] - typical,
            "with": [pair[0] for pair in pairs],
            "without": [pair[1] for pair in pairs],
        }


class _Watched:
    """Makes the callbacks of a run and wraps them in `EveryOther`."""

    def __init__(self) -> None:
        self._made = training.tensorboard_callbacks
        self.every_other: EveryOther | None = None

    def __call__(self, *given: Any) -> list[keras.callbacks.Callback]:
        started = time.perf_counter()
        callbacks = self._made(*given)
        self.every_other = EveryOther(callbacks, time.perf_counter() - started)
        return [self.every_other]


if __name__ == "__main__":
    training.tensorboard_callbacks = watched = _Watched()
    try:
        runs.main(vae_mnist.build)
    finally:  # `runs.main` ends the program
        if watched.every_other is not None:
            print(json.dumps(watched.every_other.figures()))
