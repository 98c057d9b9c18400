"""A callback that gives the losses of all formulations the same names."""

from __future__ import annotations

from typing import Any

import keras


class ReportLosses(keras.callbacks.Callback):
    """Adds `total_loss`, `reco_loss` and `kl_loss` to the logs of a model that has other names.

    Keras calls the total `loss`, and a `VAE` reports its terms in nats. With this callback the logs
    of `fit` have the same three names in every formulation; `reco_loss` is the total minus the KL
    loss.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the losses of training and, as `val_...`, those of validation."""
        logs = {} if logs is None else logs
        for prefix in ("", "val_"):
            if f"{prefix}loss" in logs and f"{prefix}total_loss" not in logs:
                self._add(logs, prefix)

    def _add(self, logs: dict[str, Any], prefix: str) -> None:
        if f"{prefix}kl_loss" not in logs:  # a `VAE`: in nats, unweighted
            weight = self.model.term_weights()["kl"]
            logs[f"{prefix}kl_loss"] = float(logs[f"{prefix}kl"]) * float(weight)
        total = float(logs[f"{prefix}loss"])
        logs[f"{prefix}total_loss"] = total
        logs[f"{prefix}reco_loss"] = total - float(logs[f"{prefix}kl_loss"])
