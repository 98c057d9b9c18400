"""The model, settings and training step of a run, shown in TensorBoard beside its curves."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.callbacks.tensorboard import event_protos
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.model import VAE
from vae_research.tables import markdown_table

# Custom Scalars: by category and title, the regular expressions of the tags in a chart.
_CHARTS = {
    "objective": {
        "reconstruction, KL and ELBO (nats)": ["terms/.*", "elbo$"],
        "contributions to the loss (nats)": ["contribution/.*", "loss$"],
    },
    "weights": {"weights of the terms": ["weight/.*"]},
    "latent health": {
        "dimensions in use": ["latent/active_units"],
        "information in z (nats)": [
            "latent/kl(_total|/.*)",
            "latent/mutual_information",
        ],
        # Hundreds of nats: in the chart above, nothing else could be seen.
        "cost of codes of other examples (nats)": ["latent/permuted_code_gap"],
    },
    "gradients": {
        "norms": ["gradients/total", "gradients/encoder/.*", "gradients/decoder/.*"],
        "cosine with the reconstruction's, in the encoder": ["gradients/cosine/.*"],
    },
}


class Overview(keras.callbacks.Callback):
    """Writes once, under `run`, what does not change while a model trains.

    - Text: `model/summary` (the layers of the networks), `model/terms` and `run/settings`.
    - Graphs: one training step, exported after the first epoch. (The compiled function may loop
      over many steps, which the dashboard shows as a single box.)
    - Custom Scalars: a layout with charts of the terms and the ELBO, of weights, of the health of
      the latent space, and of gradients.

    Args:
        log_dir: the run directory.
        data: `[count, ...]` a training batch, or a dictionary of such arrays; only shapes and types
            matter.
        settings: shown as a table, by name.
    """

    def __init__(
        self,
        log_dir: str | Path,
        data: np.ndarray | Mapping[str, np.ndarray],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.settings = dict(settings or {})
        self._summaries = Summaries(log_dir)
        self._has_graph = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Writes the layout and the texts."""
        step = self.model.step
        self._summaries.add("run", lambda: event_protos.layout(_CHARTS), step)
        self._summaries.text("run", "model/summary", summary_of(self.model), step)
        terms = {term.label: repr(term) for term in self.model.objective.terms}
        for critic in self.model.critics:
            terms |= {f"{critic.name}/{term.label}": repr(term) for term in critic.terms}
        self._summaries.text("run", "model/terms", table(terms, "term"), step)
        if self.settings:
            self._summaries.text("run", "run/settings", table(self.settings, "setting"), step)
        self._summaries.flush("run")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the graph after the first epoch: making it earlier would delay the first step."""
        if not self._has_graph:
            self._has_graph = True
            graph = self.model.graph_of_one_step or graph_of_one_step(self.model, self.data)
            if graph is not None:
                self._summaries.graph("run", graph)
                self._summaries.flush("run")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event file."""
        self._summaries.close()


class HParams(keras.callbacks.Callback):
    """Makes a run a row of TensorBoard's HParams table, in which runs can be sorted and filtered.

    Its columns are the settings and the figures of the last epoch: `trained/epochs`,
    `trained/train/...` and `trained/validation/...`. TensorBoard sorts them by name and shows the
    first five, which are test figures if there are any, and of the settings the first five that
    differ. All are written under `run`, not beside the curves, so that the table has no other
    columns. The plugin keeps the settings that it read first, so leave out those that may change
    when a run is resumed.

    Args:
        log_dir: the run directory; its path identifies the row.
        values: settings by name; anything but numbers, booleans and strings is shown as text.
    """

    def __init__(self, log_dir: str | Path, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.values = {name: _plain(value) for name, value in values.items()}
        self._summaries = Summaries(log_dir)
        self._epochs = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the row."""
        absolute = os.path.abspath(self._summaries.log_dir)
        relative = os.path.relpath(absolute)
        name = absolute if relative.startswith("..") else relative
        self._summaries.add("run", lambda: event_protos.session_start(self.values, name), 0)
        self._summaries.flush("run")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the epochs, since training may stop early."""
        self._epochs = epoch + 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Completes the row and closes the event file."""
        figures = final_figures(logs or {}) | {"trained/epochs": float(self._epochs)}
        self._summaries.scalars("run", figures, self.model.step)
        now = time.time()
        self._summaries.add("run", lambda: event_protos.session_end(now, success=True), 0)
        self._summaries.close()


def graph_of_one_step(model: VAE, data: Any) -> tf.Graph | None:
    """Returns the graph of `model.train_step` on one batch; warns and returns None if it has none.

    Args:
        model: a compiled model.
        data: arrays whose first axis is the batch.
    """
    data = data if isinstance(data, Mapping) else {"inputs": data}
    batch = {
        name: tf.TensorSpec([None, *np.shape(values)[1:]], tf.as_dtype(values.dtype))
        for name, values in data.items()
    }
    step = tf.function(model.train_step, autograph=False)
    try:
        return step.get_concrete_function(batch).graph
    # Any exception: a user's own step may be impossible to trace, and still trains eagerly.
    except Exception as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"TensorBoard will have no graph of the step: {reason}", stacklevel=2)
        return None


def summary_of(model: VAE) -> str:
    """Returns Keras' summaries of the networks as Markdown."""
    parts = []
    networks = [model.encoder, model.bottleneck, model.decoder, *model.further_modules]
    for network in (*networks, *(critic.layer for critic in model.critics)):
        parameters = sum(math.prod(variable.shape) for variable in network.variables)
        lines = [f"{type(network).__name__} {network.name!r}, {parameters:,} parameters"]
        network = getattr(network, "network", network)  # the network inside `named`
        if isinstance(network, keras.Model) and network.built:
            network.summary(print_fn=lines.append, line_length=110)
        parts.append("\n".join(lines))
    return "\n\n".join(f"```\n{part}\n```" for part in parts)


def final_figures(logs: Mapping[str, float]) -> dict[str, float]:
    """Returns the logs of an epoch under their tags in the HParams table.

    >>> final_figures({"elbo": -100.0, "val_elbo": -101.0})
    {'trained/train/elbo': -100.0, 'trained/validation/elbo': -101.0}
    """
    figures = {}
    for name, value in logs.items():
        split = "validation" if name.startswith("val_") else "train"
        figures[f"trained/{split}/{name.removeprefix('val_')}"] = float(value)
    return figures


def table(values: Mapping[str, Any], name: str) -> str:
    """Returns a Markdown table of values by name.

    >>> print(table({"epochs": 10, "text": "a|b"}, "setting"))
    | setting | value |
    | --- | --- |
    | epochs | 10 |
    | text | a&#124;b |
    """
    cells = {
        key: " ".join(str(value).split()).replace("|", "&#124;") for key, value in values.items()
    }
    return markdown_table([name, "value"], cells.items()).removesuffix("\n")


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
