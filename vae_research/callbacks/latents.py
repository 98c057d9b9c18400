"""How much of the latent space is in use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from vae_research.callbacks.writers import Summaries
from vae_research.evaluation import active_units


class Latents(keras.callbacks.Callback):
    """Writes active units and the total KL divergence of validation data after every epoch.

    Tags, under `validation`: `latent/active_units`, the dimensions whose posterior mean has a
    variance above 0.01 (Burda et al. 2016, arXiv:1509.00519, section 5.2), and, where `fit`
    validates, `latent/kl_total`, nats per example.

    Args:
        log_dir: the run directory.
        data: `[count, ...]` validation data, or a dictionary of such arrays; the first 2000
            examples are used.
    """

    def __init__(self, log_dir: str | Path, data: np.ndarray | Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.data = keras.tree.map_structure(lambda values: values[:2000], data)
        self._summaries = Summaries(log_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Encodes the data and writes the figures."""
        logs = logs or {}
        values = {"latent/active_units": active_units(self.model.center(self.data).numpy()).value}
        if "val_elbo" in logs:
            values["latent/kl_total"] = float(logs["val_kl"])
        self._summaries.scalars("validation", values, self.model.step)
        self._summaries.flush("validation")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event files."""
        self._summaries.close()
