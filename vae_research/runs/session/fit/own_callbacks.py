"""The callbacks of an experiment, with which a run resumes bit for bit. Imports TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from vae_research.callbacks.base import Resumable
from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session.fit import callback_states
from vae_research.state import undone

# What Keras' own callbacks would do twice, or what a run does by itself.
_REFUSED = {
    keras.callbacks.BackupAndRestore: "a run saves and resumes by itself (--checkpoint_minutes)",
    keras.callbacks.CSVLogger: "it writes an epoch twice if a run resumes; metrics.jsonl has them",
    keras.callbacks.TensorBoard: "a run writes for TensorBoard; add figures to the logs instead",
    keras.callbacks.SwapEMAWeights: "--ema averages the weights, for validation and test as well",
}


class OwnCallbacks(keras.callbacks.Callback, Resumable):
    """Calls the callbacks of an experiment, and holds their states.

    Keras begins a training that resumes as if it were a new one: it calls `on_train_begin`, then
    `on_epoch_begin` for the interrupted epoch as well, and `on_train_batch_end` for the calls of
    that epoch that an earlier session made. The callbacks do not see the latter, and what they do
    to variables when a training or an interrupted epoch begins is undone: the checkpoint has it.

    Args:
        callbacks: of the experiment.
        resumes: whether a checkpoint has been restored.
        position: steps of the epoch that were done before it.

    Raises:
        UsageError: one is not a callback, or cannot be part of a run.
    """

    def __init__(
        self, callbacks: Iterable[keras.callbacks.Callback], *, resumes: bool, position: int
    ) -> None:
        super().__init__()
        if not isinstance(callbacks, Iterable):
            raise UsageError(
                f"callbacks() returned {callbacks!r}; it must return a list of instances of "
                "keras.callbacks.Callback."
            )
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            _refuse(callback)
        self._resumes, self._position = resumes, position
        self._begun: list[callback_states.Contents] = []
        # Their states at the end of an epoch, until the next one begins.
        self._between: dict[str, Any] | None = None

    def refuse_unsettable_learning_rate(self, model: keras.Model) -> None:
        """Raises UsageError if a callback sets a learning rate that follows a schedule."""
        schedules = keras.optimizers.schedules.LearningRateSchedule
        setting = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
        if not isinstance(getattr(model.optimizer, "_learning_rate", None), schedules):
            return
        for callback in self.callbacks:
            if isinstance(callback, setting):
                raise UsageError(
                    f"{type(callback).__name__} sets the learning rate, which follows a schedule. "
                    "Leave out one of the two; --learning_rate_schedule=constant has none."
                )

    def get_state(self) -> dict[str, Any]:
        """Returns the states by name.

        Raises:
            UsageError: a callback has a state that no checkpoint can hold.
        """
        if self._between is not None:
            return self._between
        named = callback_states.named(self.callbacks)
        return {
            name: callback_states.own_state(name, callback, begun)
            for (name, callback), begun in zip(named, self._begun, strict=True)
        }

    def difference_from(self, states: Mapping[str, Any]) -> str | None:
        """Returns how the callbacks differ from those with these saved states; None if by nothing.

        They are compared by their names.
        """
        names = dict(callback_states.named(self.callbacks))
        if states.keys() == names.keys():
            return None
        before, now = (", ".join(found) or "none" for found in (states, names))
        return f"callbacks were {before}, now {now}"

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the states; a callback that has none starts from scratch.

        Raises:
            CheckpointError: a `set_state` fails.
        """
        self._between = None
        for name, callback in callback_states.named(self.callbacks):
            if name not in state:
                continue
            try:
                callback_states.set_own_state(callback, state[name])
            except Exception as error:
                raise CheckpointError(
                    f"callback {name}: set_state() failed with the state that the run has saved "
                    f"({type(error).__name__}: {error}; --debug shows where). Let it accept that "
                    "state, or give the class another name: it then starts from scratch, with "
                    "--resume=changed."
                ) from error

    def set_model(self, model: keras.Model) -> None:
        """Keras calls it before the training."""
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(model)

    def set_params(self, params: Any) -> None:
        """Keras calls it before the training."""
        super().set_params(params)
        for callback in self.callbacks:
            callback.set_params(params)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Calls them, and notes with which contents they begin."""
        with undone(self.model) if self._resumes else contextlib.nullcontext():
            for callback in self.callbacks:
                callback.on_train_begin(logs)
        self._begun = [
            callback_states.Contents(name, callback)
            for name, callback in callback_states.named(self.callbacks)
        ]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls them."""
        self._between = None
        with undone(self.model) if self._position else contextlib.nullcontext():
            for callback in self.callbacks:
                callback.on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls them, unless all steps of the call were done before."""
        for callback in self._new(batch + self.model.steps_per_execution):
            callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls them, unless all steps of the call were done before."""
        for callback in self._new(batch + 1):
            callback.on_train_batch_end(batch, logs)

    def _new(self, done: int) -> Iterator[keras.callbacks.Callback]:
        """Yields the callbacks if the first `done` steps of the epoch are not all old."""
        if not self._position or min(done, self.model.steps_per_epoch) > self._position:
            yield from self.callbacks

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Calls them."""
        for callback in self.callbacks:
            callback.on_test_begin(logs)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls them."""
        for callback in self.callbacks:
            callback.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls them."""
        for callback in self.callbacks:
            callback.on_test_batch_end(batch, logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Calls them."""
        for callback in self.callbacks:
            callback.on_test_end(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls them, and raises UsageError if their states cannot be saved."""
        self._position, self._between = 0, None
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, logs)
        self._between = self.get_state()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Calls them."""
        for callback in self.callbacks:
            callback.on_train_end(logs)


def _refuse(callback: Any) -> None:
    """Raises UsageError if something cannot be a callback of a run."""
    name = type(callback).__name__
    if not isinstance(callback, keras.callbacks.Callback):
        raise UsageError(
            f"callbacks() returned a list with {callback!r}; it must return a list of instances of "
            "keras.callbacks.Callback."
        )
    for kind, why in _REFUSED.items():
        if isinstance(callback, kind):
            raise UsageError(f"{name} cannot be a callback of a run: {why}.")
    if getattr(callback, "restore_best_weights", False):
        raise UsageError(
            f"{name}(restore_best_weights=True) keeps weights that no checkpoint holds. Leave it "
            'out: a run keeps its best checkpoint, load_run(path, which="best").'
        )
    callback_states.refuse_half_a_state(callback)
