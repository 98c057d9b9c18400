"""What a point tells its sweep while it trains. Imports TensorFlow."""

from __future__ import annotations

import json
import socket
from typing import Any

import keras

from vae_research.runs.cli.errors import PrunedError
from vae_research.runs.session.scores import score


class Reporting(keras.callbacks.Callback):
    """Reports the validation score of every epoch to the sweep, and ends the run if it says so.

    Args:
        connection: to the sweep.
        ends: the answer, a byte, that ends the run.
    """

    def __init__(self, connection: socket.socket, ends: bytes) -> None:
        super().__init__()
        self._connection, self._ends = connection, ends

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports and waits for the answer."""
        report = {
            "epoch": epoch + 1,
            "epochs": self.params["epochs"],
            "score": score(logs or {}, "val_"),
        }
        try:
            self._connection.sendall(json.dumps(report).encode() + b"\n")
            answer = self._connection.recv(1)
        except OSError:  # the sweep has been killed, and a signal follows
            return
        if answer == self._ends:
            raise PrunedError(
                f"ended by the search after epoch {epoch + 1}: others were better by then. The "
                "state is saved."
            )
