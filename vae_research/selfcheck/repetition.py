"""Whether training that is interrupted continues as if it had not been: to the last bit."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vae_research import checkpoints
from vae_research.data.split import Split
from vae_research.model import VAE
from vae_research.state import as_array, saved_variables

# Batches of an epoch of the repetition; it has two epochs.
_STEPS = 2


def resumed_apart(
    fresh: Callable[[], VAE],
    train: Split,
    batch_size: int,
    seed: int,
    names: Sequence[str] = (),
    checkpoint: Path | None = None,
) -> float:
    """Returns the largest difference of any value after an interruption; it must be 0.

    A model is trained for two short epochs of a few batches, and saved after the first one. Another
    model continues from that checkpoint. Compared is everything that a checkpoint holds.

    Args:
        fresh: makes the model, compiled and built.
        train: the training split.
        batch_size, seed: of the batches.
        names: further arrays that the model reads.
        checkpoint: where the first one begins; by default with the values that `fresh` gives.
    """
    rows = min(_STEPS * batch_size, len(train))
    arrays = {name: train.arrays[name][:rows] for name in names}
    few = dataclasses.replace(train, raw=train.raw[:rows], arrays=arrays)
    batches = few.on_device(min(batch_size, rows), seed, names=names)

    def begun(path: Path | None) -> VAE:
        model = fresh()
        model.jit_compile = False  # the numbers are those of XLA, and it takes seconds to compile
        if path is not None:
            checkpoints.load(path, model)
        return model

    unbroken = begun(checkpoint)
    unbroken.fit(batches, epochs=1, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoints.save(Path(folder), unbroken, epoch=unbroken.data_epoch)
        resumed = begun(saved)
    unbroken.fit(batches, epochs=1, verbose=0)
    resumed.fit(batches, epochs=1, verbose=0)
    return _apart(unbroken, resumed)


def _apart(one: VAE, other: VAE) -> float:
    ours, theirs = saved_variables(one), saved_variables(other)
    largest = 0.0
    for first, second in zip(ours, theirs, strict=True):
        value, again = as_array(first.value), as_array(second.value)
        if value.tobytes() != again.tobytes():
            apart = np.abs(value.astype(np.float64) - again.astype(np.float64))
            # Of equal numbers the bits differ: 0 and -0, or not a number.
            largest = max(largest, float(apart.max()) or float(np.finfo(np.float64).tiny))
    return largest
