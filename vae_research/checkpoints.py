"""Checkpoints: every variable of a model and its optimizer in a directory per saved step.

A checkpoint is whole or absent: it is written aside, flushed to disk, and renamed into place. Its
manifest has the checksum of the file with the values, which is compared before anything is loaded.
Values are plain arrays: reading a checkpoint runs no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_VALUES, _MANIFEST = "variables.npz", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another model."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk: where it is, and the step and epoch at which it was saved."""

    path: Path
    step: int
    epoch: int


def save(folder: Path, model: Any, *, epoch: int, keep: int = 1) -> Path:
    """Writes the state of a compiled model into `folder/STEP` and removes older ones.

    Args:
        folder: where checkpoints are collected; made if missing.
        model: a compiled and built Keras model.
        epoch: epochs that are finished.
        keep: how many of the newest remain. Nothing is removed before the new one is in place.

    Raises:
        OSError: it could not be written; older checkpoints are as they were.
    """
    step = int(model.optimizer.iterations)
    target = folder / f"{step:010d}"
    aside = folder / f".writing-{step:010d}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        variables = state_of(model)
        values = {f"{index:05d}": np.asarray(var.value) for index, var in enumerate(variables)}
        with open(aside / _VALUES, "wb") as stream:
            np.savez(stream, **values)
            _flush(stream)
        manifest = {
            "step": step,
            "epoch": epoch,
            "sha256": _sha256(aside / _VALUES),
            "variables": [
                {"path": var.path, "shape": list(var.shape), "dtype": str(var.dtype)}
                for var in variables
            ],
        }
        with open(aside / _MANIFEST, "w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=1)
            _flush(stream)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
        _flush_directory(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in _candidates(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> Checkpoint | None:
    """Returns the newest checkpoint, by step, or None where there is none.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole.
    """
    problems = []
    for path in _candidates(folder):
        try:
            manifest = _verify(path)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return Checkpoint(path, manifest["step"], manifest["epoch"])
    if problems:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(problems))
    return None


def restore(model: Any, checkpoint: Checkpoint) -> None:
    """Puts the saved values into a compiled and built model of the same architecture.

    Raises:
        CheckpointError: it is damaged, or a variable differs in shape; nothing is changed then.
    """
    manifest = _verify(checkpoint.path)
    variables = state_of(model)
    saved = manifest["variables"]
    for index in range(max(len(variables), len(saved))):
        ours = _describe(variables, index)
        theirs = (
            f"{saved[index]['path']} {tuple(saved[index]['shape'])}"
            if index < len(saved)
            else "nothing"
        )
        if index >= min(len(variables), len(saved)) or tuple(saved[index]["shape"]) != tuple(
            variables[index].shape
        ):
            raise CheckpointError(
                f"{checkpoint.path} is of another architecture: it has {theirs} where the model "
                f"has {ours}."
            )
    with np.load(checkpoint.path / _VALUES, allow_pickle=False) as values:
        for index, variable in enumerate(variables):
            variable.assign(values[f"{index:05d}"])


def weights_sha256(model: Any) -> str:
    """Returns a hash over all variables of model and optimizer: equal for equal runs alone."""
    digest = hashlib.sha256()
    for variable in state_of(model):
        digest.update(np.ascontiguousarray(np.asarray(variable.value)).tobytes())
    return digest.hexdigest()


def state_of(model: Any) -> list[Any]:
    """Returns the variables of a model and its optimizer, in a fixed order, without metrics."""
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    metrics |= {id(variable) for variable in model.metrics_variables}
    own = [variable for variable in model.variables if id(variable) not in metrics]
    return own + list(model.optimizer.variables)


def _candidates(folder: Path) -> list[Path]:
    """Returns the directories that may be checkpoints, newest step first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _verify(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        expected, found = manifest["sha256"], _sha256(path / _VALUES)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not whole ({error})") from error
    if expected != found:
        raise CheckpointError(f"{path}/{_VALUES} has changed since it was written (checksum)")
    return manifest


def _describe(variables: list[Any], index: int) -> str:
    if index >= len(variables):
        return "nothing"
    return f"{variables[index].path} {tuple(variables[index].shape)}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _flush_directory(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows has no handle for a directory
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
