"""Scalars of every epoch, and of every so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vae_research.callbacks.base import EpochCallback, EpochRecord
from vae_research.callbacks.tensorboard.summaries import Summaries


class Scalars(EpochCallback):
    """Writes loss, ELBO, every term with its weight, learning rate and speed to TensorBoard.

    Tags, the same under `train` and `validation` so that their curves overlay: `loss`, `elbo`,
    `terms/NAME` unweighted, `weight/NAME`, `contribution/NAME` weight times value, all in nats;
    and for training alone `learning_rate` and `images_per_second`. The x axis is the optimizer
    step.

    Args:
        log_dir: the run directory.
        every_steps: write the training figures every so many optimizer steps, as means over the
            steps since they were last written. 0 writes at the end of epochs only.

    Raises:
        ValueError: `every_steps` is negative.
    """

    def __init__(self, log_dir: str | Path, *, every_steps: int = 0) -> None:
        super().__init__()
        if every_steps < 0:
            raise ValueError(f"every_steps must be 0 or positive, got {every_steps}.")
        self.every_steps = every_steps
        self._summaries = Summaries(log_dir)
        self._written: dict[str, tuple[float, float]] = {}
        self._interval = 0

    def get_state(self) -> dict[str, Any]:
        """Returns also what of this epoch is written already."""
        state = super().get_state()
        return state and state | {"written": self._written, "interval": self._interval}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on with the interval that was under way."""
        super().set_state(state)
        if state:
            self._written = {name: tuple(sums) for name, sums in state["written"].items()}
            self._interval = state["interval"]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock and the means of the first interval."""
        super().on_epoch_begin(epoch, logs)
        self._written = {}
        self._interval = self._steps_before // self.every_steps if self.every_steps else 0

    def on_step(self, step: int) -> None:
        """Writes at every interval."""
        if self.every_steps and step // self.every_steps > self._interval:
            self._interval = step // self.every_steps
            self._write_interval(step)

    def on_training_part_end(self) -> None:
        """Writes what is left of the last interval."""
        if self.every_steps:
            self._write_interval(self.model.step)

    def on_record(self, record: EpochRecord) -> None:
        """Writes the figures of both splits at the step that the epoch ended with."""
        values = {
            split: tagged(figures, record.weights)
            for split, figures in record.figures.items()
            if split != "train" or not self.every_steps  # then written by step, in the same chart
        }
        values["train"] = values.get("train", {}) | {
            "learning_rate": record.learning_rate,
            "images_per_second": record.images_per_second,
        }
        for split, tags in values.items():
            self._summaries.scalars(split, tags, record.step)
            self._summaries.flush(split)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event files."""
        self._summaries.close()

    def _write_interval(self, step: int) -> None:
        # A layer's own metrics may be of another kind.
        metrics = [each for each in self.model.metrics if isinstance(each, keras.metrics.Mean)]
        # In one piece: to fetch a value waits for the device.
        sums = tf.stack([[each.total.value, each.count.value] for each in metrics]).numpy()
        means = {}
        for metric, (total, count) in zip(metrics, sums.tolist(), strict=True):
            last_total, last_count = self._written.get(metric.name, (0.0, 0.0))
            if count > last_count:
                means[metric.name] = (total - last_total) / (count - last_count)
            self._written[metric.name] = total, count
        weights = {name: float(value) for name, value in self.model.objective.weights(step).items()}
        if means:
            self._summaries.scalars("train", tagged(means, weights), step)
            self._summaries.flush("train")


def tagged(figures: dict[str, float], weights: dict[str, float]) -> dict[str, float]:
    """Returns the figures of one split under their TensorBoard tags.

    A contribution that was recorded is kept: where the weight changes with the step it is the mean
    of the products. Otherwise it is the constant weight times the value.

    >>> tagged({"loss": 3.0, "kl": 1.5}, {"kl": 2.0})
    {'loss': 3.0, 'terms/kl': 1.5, 'weight/kl': 2.0, 'contribution/kl': 3.0}
    """
    weights = weights | {"regularization": 1.0}
    tags = {}
    for name, value in figures.items():
        if name in ("loss", "elbo") or name.startswith("contribution/"):
            tags[name] = value
            continue
        tags[f"terms/{name}"] = value
        if name in weights:
            tags[f"weight/{name}"] = weights[name]
            recorded = figures.get(f"contribution/{name}")
            tags[f"contribution/{name}"] = weights[name] * value if recorded is None else recorded
    return tags
