"""A gate against updates that are not finite. Imports TensorFlow.

However many steps run in a call, the state at its beginning is kept until it ends. The state
consists of tensors, which training replaces and never changes, so that keeping them copies nothing.
If anything is not finite at the end, the state is restored and the call is repeated step by step,
up to the last good one.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from vae_research import checkpoints
from vae_research.callbacks.base import Resumable
from vae_research.data.streams import DeviceDataset
from vae_research.model import VAE
from vae_research.runs.cli.errors import DivergedError
from vae_research.runs.session import directory
from vae_research.runs.session.fit.causes import causes, failed_update, not_finite
from vae_research.state import all_variables
from vae_research.trainer import StepFunction

FOLDER = "nonfinite"
# With --on_nonfinite=skip, training ends if this many steps fail without a good one between.
_MOST_SKIPS_IN_A_ROW = 10


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer step: its epoch and position, from 0, and the rows of its batch.

    What was read for it of a stream is in `read`, at `places`.
    """

    epoch: tf.Tensor
    position: tf.Tensor
    rows: tf.Tensor
    read: Mapping[str, tf.Tensor] | None = None
    places: tf.Tensor | None = None

    def batch(self, batches: DeviceDataset) -> dict[str, tf.Tensor]:
        """Returns its batch, named tensors."""
        reader, place = batches.reader, (self.epoch, self.position, self.rows)
        if self.read is None:
            return reader.read(*place)
        return reader({**reader.tensors, **self.read}, *place, self.places)


class FiniteGate(Resumable):
    """Rolls back any step that makes a loss term or the state non-finite.

    It is the `guard` of a model that trains on a `DeviceDataset`. What is rolled back is all of
    `training_state`: weights, what layers keep, slots and counters of all optimizers, controllers
    and running means. Then training ends with `DivergedError`, or continues without that step: then
    the model counts it, so that the next one has other noise, and no optimizer does.

    Args:
        model: a model with all its variables, compiled.
        batches: the training data of the `fit`.
        run_dir: where the state before the failing step is left for `scripts/replay`.
        skip: continue without the step.

    Attributes:
        skipped: steps that were left out.
    """

    def __init__(
        self, model: VAE, batches: DeviceDataset, run_dir: Path, *, skip: bool = False
    ) -> None:
        self.skipped = 0
        self._in_a_row = 0
        self._model, self._batches, self._run_dir, self._skip = model, batches, run_dir, skip
        self._variables = all_variables(model)
        values = [variable.value for variable in self._variables]
        self._take = tf.function(lambda: [tf.identity(value) for value in values], autograph=False)
        self._total = tf.function(lambda: _total(values), autograph=False)

    def get_state(self) -> dict[str, Any]:
        """Returns how many steps were left out."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues counting."""
        self.skipped, self._in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)

    def __call__(self, loop: StepFunction) -> StepFunction:
        """Returns the function that runs the steps of a call, guarded."""

        def guarded(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
            call = self._batches.next_call(iterator)
            before = self._take()
            try:
                logs = loop(iter([call]))
            except BaseException:
                self._put_back(before)  # a part of the call's steps may be done
                raise
            if self._is_finite():
                self._in_a_row = 0
                return logs
            self._put_back(before)
            return self._repeat(loop, call)

        return guarded

    def _repeat(self, loop: StepFunction, call: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs the steps of a call one by one, without those that fail; returns the last figures.

        Raises:
            DivergedError: a step failed and is not to be skipped, or the state was not finite
                before.
        """
        broken = not_finite(self._variables)
        if broken:  # by a callback, for example
            raise DivergedError(
                f"the state was not finite before step {self._model.step + 1} already: "
                f"{', '.join(broken[:3])}. It is not saved; the last checkpoint is as it was."
            )
        logs = self._model.get_metrics_result()
        for step, single in _steps_of(call):
            before = self._take()
            logs = loop(iter([single]))
            if self._is_finite():
                self._in_a_row = 0
                continue
            update = failed_update(self._model)
            self._put_back(before)
            self._failed(step, update)
            logs = self._model.get_metrics_result()
        return logs

    def _failed(self, step: Step, update: list[str]) -> None:
        """Ends the training at a step that failed, or counts it as skipped.

        Args:
            step: which one.
            update: what is named if it does not fail when it is repeated in Python.

        Raises:
            DivergedError: it ends here.
        """
        found = causes(self._model, step.batch(self._batches)) or update
        number, epoch = self._model.step + 1, int(step.epoch) + 1
        message = f"{' and '.join(found)} not finite in epoch {epoch}, step {number}"
        if self._skip and self._in_a_row < _MOST_SKIPS_IN_A_ROW:
            self.skipped += 1
            self._in_a_row += 1
            self._model.step_counter.assign_add(1)
            print(
                f"warning: {message}; step skipped ({self.skipped} so far, {self._in_a_row} in a "
                "row)",
                file=sys.stderr,
                flush=True,
            )
            return
        saved = checkpoints.save(
            self._run_dir / FOLDER,
            self._model,
            epoch=int(step.epoch),
            position=int(step.position),
            keep=1,
        )
        record = {
            "epoch": epoch,
            "step": number,
            "causes": found,
            "rows": step.rows.numpy().tolist(),
            "checkpoint": f"{FOLDER}/{saved.name}",
        }
        directory.write_json(self._run_dir / directory.NONFINITE, record)
        in_a_row = f", the {self._in_a_row + 1}th step in a row" if self._in_a_row else ""
        raise DivergedError(
            f"training diverged: {message}{in_a_row}. That step is undone, and the last checkpoint "
            f"is as it was; scripts/replay {self._run_dir} repeats the step. The usual causes are "
            "a term of your own, and a --learning_rate that is too large."
        )

    def _put_back(self, values: list[tf.Tensor]) -> None:
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)

    def _is_finite(self) -> bool:
        # A sum of finite numbers may overflow; then each value is checked.
        return math.isfinite(float(self._total())) or not not_finite(self._variables)


def _steps_of(call: Mapping[str, tf.Tensor]) -> Iterator[tuple[Step, dict[str, tf.Tensor]]]:
    """Yields each step of a call, with a call that contains only this step."""
    count, read = int(call["count"]), call.get("read")
    for index in range(int(call["begin"]), count):
        places = None if read is None else call["places"][index]
        step = Step(call["epoch"], call["first"] + index, call["rows"][index], read, places)
        single = {"begin": tf.constant(index), "count": tf.constant(index + 1)}
        yield step, {**call, **single, "is_last": tf.constant(False)}
    if call["is_last"] and len(call["rest"]):
        places = call.get("rest_places")
        step = Step(call["epoch"], call["first"] + count, call["rest"], read, places)
        yield step, {**call, "begin": call["count"]}


def _total(values: list[tf.Variable]) -> tf.Tensor:
    """Returns the sum of all values, which is not finite if one of them is not."""
    sums = [
        tf.reduce_sum(tf.cast(value, tf.float32)) for value in values if value.dtype.is_floating
    ]
    return tf.add_n(sums)
