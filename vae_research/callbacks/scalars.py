"""Training and validation curves, by epoch or every few steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.callbacks.base import EpochCallback, EpochRecord
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.objective import LARGER_IS_BETTER


class Scalars(EpochCallback):
    """Writes loss, ELBO, every term with its weight, learning rate and speed to TensorBoard.

    Tags, the same under `train` and `validation` so that their curves overlay: `loss`, `elbo`,
    `terms/NAME` (unweighted), `weight/NAME` and `contribution/NAME` (weight times value), all but
    the weight in nats; under `train` also `learning_rate` and `images_per_second`. A critic has
    `CRITIC/loss`, `CRITIC/TERM`, `weight/CRITIC/TERM` and `CRITIC/learning_rate`. The x axis is the
    step of the model.

    Args:
        log_dir: the run directory.
        every_steps: interval in optimizer steps at which the training figures are written, as
            means over the steps since they were last written. 0: at the end of epochs only.

    Raises:
        ValueError: `every_steps` is not an integer >= 0.
    """

    def __init__(self, log_dir: str | Path, *, every_steps: int = 0) -> None:
        super().__init__()
        self.every_steps = checked_integer("every_steps", every_steps, 0)
        self._summaries = Summaries(log_dir)
        # Total and count of each metric when it was last written.
        self._last_sums: dict[str, tuple[float, float]] = {}
        self._interval = 0

    def get_state(self) -> dict[str, Any]:
        """Returns the state of the base, and what has been written of this epoch."""
        state = super().get_state()
        return state and state | {"written": self._last_sums, "interval": self._interval}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Resumes the interval that was interrupted."""
        super().set_state(state)
        if state:
            self._last_sums = {
                name: (total, count) for name, (total, count) in state["written"].items()
            }
            self._interval = state["interval"]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock and the means of the first interval."""
        super().on_epoch_begin(epoch, logs)
        self._last_sums = {}
        self._interval = self._steps_before // self.every_steps if self.every_steps else 0

    def on_step(self, step: int) -> None:
        """Writes the means of an interval when the next one has begun."""
        if self.every_steps and step // self.every_steps > self._interval:
            self._interval = step // self.every_steps
            self._write_interval(step)

    def on_training_part_end(self) -> None:
        """Writes the means of the remaining steps."""
        if self.every_steps:
            self._write_interval(self.model.step)

    def on_record(self, record: EpochRecord) -> None:
        """Writes the figures of both splits at the last step of the epoch."""
        values = {
            split: tagged(figures, record.weights)
            for split, figures in record.figures.items()
            if split != "train" or not self.every_steps  # then written by step, in the same chart
        }
        values["train"] = values.get("train", {}) | {
            "learning_rate": record.learning_rate,
            "images_per_second": record.images_per_second,
            **{f"{name}/learning_rate": rate for name, rate in record.learning_rates.items()},
        }
        for split, tags in values.items():
            self._summaries.scalars(split, tags, record.step)
            self._summaries.flush(split)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event files."""
        self._summaries.close()

    def _write_interval(self, step: int) -> None:
        # Layers may add metrics of other kinds.
        metrics = [each for each in self.model.metrics if isinstance(each, keras.metrics.Mean)]
        # Fetched together, since a fetch waits for the device. The sums of the model are float64,
        # whose differences are exact enough; those of layers are what they are.
        values = [value.value for each in metrics for value in (each.total, each.count)]
        sums = tf.stack([tf.cast(value, tf.float64) for value in values]).numpy().reshape(-1, 2)
        means = {}
        for metric, (total, count) in zip(metrics, sums.tolist(), strict=True):
            last_total, last_count = self._last_sums.get(metric.name, (0.0, 0.0))
            if count > last_count:
                means[metric.name] = (total - last_total) / (count - last_count)
            self._last_sums[metric.name] = total, count
        weights = {name: float(value) for name, value in self.model.term_weights().items()}
        if means:
            self._summaries.scalars("train", tagged(means, weights), step)
            self._summaries.flush("train")


def tagged(figures: dict[str, float], weights: dict[str, float]) -> dict[str, float]:
    """Returns the figures of one split under their TensorBoard tags.

    A contribution is the recorded one if there is one: the mean of the products if the weight
    changes with the step, or if the value of the term is not the logged one (`LossReport.logged`).
    Otherwise it is the constant weight times the value.

    >>> tagged({"loss": 3.0, "kl": 1.5}, {"kl": 2.0})
    {'loss': 3.0, 'weight/kl': 2.0, 'terms/kl': 1.5, 'contribution/kl': 3.0}
    """
    weights = weights | {"regularization": 1.0}
    tags = {}
    for name, value in figures.items():
        if name in weights:
            tags[f"weight/{name}"] = weights[name]
        of_all = name == "loss" or name in LARGER_IS_BETTER
        if of_all or "/" in name:  # a contribution, or a figure of a critic
            tags[name] = value
            continue
        tags[f"terms/{name}"] = value
        if name in weights:
            recorded = figures.get(f"contribution/{name}")
            tags[f"contribution/{name}"] = weights[name] * value if recorded is None else recorded
    return tags
