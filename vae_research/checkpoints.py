"""Checkpoints: every variable of a model and its optimizer in a directory per saved step.

A checkpoint is whole or absent: it is written aside, flushed to disk, and renamed into place. Its
manifest has the checksum of the file with the values, which is compared before anything is loaded.
Values are plain arrays: reading a checkpoint runs no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
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
        keep: how many remain, this one among them, at least 1. Nothing is removed before the new
            one is in place.

    Raises:
        OSError: it could not be written; older checkpoints are as they were.
        ValueError: `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    step = int(model.optimizer.iterations)
    target = folder / f"{step:010d}"
    aside = folder / f".writing-{step:010d}"
    for left_behind in folder.glob(".writing-*"):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        variables = state_of(model)
        values = {_key(index): np.asarray(var.value) for index, var in enumerate(variables)}
        with open(aside / _VALUES, "wb") as stream:
            np.savez(stream, **values)
            _flush(stream)
        content = {
            "step": step,
            "epoch": epoch,
            "values_sha256": _sha256(aside / _VALUES),
            "optimizer": type(model.optimizer).__name__,
            "variables": [
                {"path": var.path, "shape": list(var.shape), "dtype": str(var.dtype)}
                for var in variables
            ],
        }
        with open(aside / _MANIFEST, "w", encoding="utf-8") as stream:
            json.dump({"content": content, "sha256": _sha256_of_content(content)}, stream, indent=1)
            _flush(stream)
        _move_into_place(aside, target)
        _flush_directory(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    others = [path for path in _candidates(folder) if path != target]
    for old in others[keep - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> Checkpoint | None:
    """Returns the newest whole checkpoint, by step, or None where there is none.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole.
    """
    problems = []
    for path in _candidates(folder):
        try:
            content = _verify(path)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return Checkpoint(path, content["step"], content["epoch"])
    if problems:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(problems))
    return None


def restore(model: Any, checkpoint: Checkpoint) -> None:
    """Puts the saved values into a compiled and built model of the same architecture.

    Raises:
        CheckpointError: it is damaged, or a variable or the optimizer differs; nothing is changed
            then.
    """
    content = _verify(checkpoint.path)
    variables = state_of(model)
    ours = [(var.path, tuple(var.shape)) for var in variables]
    theirs = [(var["path"], tuple(var["shape"])) for var in content["variables"]]
    for left, right in itertools.zip_longest(theirs, ours, fillvalue=("nothing", ())):
        # Names that Keras makes up (dense_3) change from model to model; shapes do not.
        if left[1] != right[1] or "nothing" in (left[0], right[0]):
            raise CheckpointError(
                f"{checkpoint.path} is of another architecture: it has {left[0]} {left[1]} where "
                f"the model has {right[0]} {right[1]}."
            )
    optimizer = type(model.optimizer).__name__
    if optimizer != content["optimizer"]:
        raise CheckpointError(
            f"{checkpoint.path} was trained with {content['optimizer']}, and the model has "
            f"{optimizer}."
        )
    try:
        with np.load(checkpoint.path / _VALUES, allow_pickle=False) as saved:
            values = [saved[_key(index)] for index in range(len(variables))]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.path}/{_VALUES} cannot be read ({error})") from error
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


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


def _move_into_place(aside: Path, target: Path) -> None:
    """Renames a directory. One that is there already, of the same step, makes room and may return.

    A directory can only be renamed onto an empty one.
    """
    if not target.exists():
        os.rename(aside, target)
        return
    before = target.with_name(f".replaced-{target.name}-{os.getpid()}")
    os.rename(target, before)
    try:
        os.rename(aside, target)
    except BaseException:  # a signal, too, may end the process here
        os.rename(before, target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _verify(path: Path) -> dict[str, Any]:
    """Returns the content of a manifest after comparing both checksums.

    Raises:
        CheckpointError: something is missing or has changed.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        content = manifest["content"]
        expected = manifest["sha256"], content["values_sha256"]
        found = _sha256_of_content(content), _sha256(path / _VALUES)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not whole ({error})") from error
    for name, wanted, is_now in zip((_MANIFEST, _VALUES), expected, found, strict=True):
        if wanted != is_now:
            raise CheckpointError(f"{path}/{name} has changed since it was written (checksum)")
    return content


def _key(index: int) -> str:
    return f"{index:05d}"


def _sha256_of_content(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
