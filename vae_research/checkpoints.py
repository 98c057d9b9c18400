"""Checkpoints: all variables of a model and its optimizer, in one directory per saved step.

    checkpoints.save(folder, model, epoch=3)
    found = checkpoints.newest(folder)
    checkpoints.restore(model, found)

A checkpoint is written under a temporary name, flushed to disk, renamed and read back; only then
are older ones removed. The newest is found by listing the folder and verifying what is there. See
`vae_research.manifests` for the format. Reading a checkpoint runs no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from vae_research import files, manifests
from vae_research.arguments import checked_integer
from vae_research.epochs import EpochClock
from vae_research.manifests import (
    Checkpoint,
    CheckpointError,
    FormatError,
    Search,
    best_in,
    search,
)
from vae_research.state import (
    CONTROLLERS,
    as_array,
    optimizers,
    saved_by_group,
    state_sha256,
    step_of,
    weights_sha256,
)
from vae_research.version import __version__

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "FormatError",
    "NotFiniteError",
    "Saver",
    "Search",
    "best_in",
    "load",
    "newest",
    "restore",
    "save",
    "search",
    "set_aside",
    "snapshot",
    "state_sha256",
    "weights_sha256",
]

KEPT = 3
"""How many of the newest checkpoints are kept; the best one is kept in addition."""


class NotFiniteError(CheckpointError):
    """A model cannot be saved because some of its values are not finite."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a model at a step; it does not change while training continues.

    Attributes:
        content: the content of its manifest, without the table of files.
        values: the variables' tensors in the order of `saved_variables`. Training replaces a
            variable's tensor and never changes it, so that nothing has to be copied.
    """

    content: dict[str, Any]
    values: list[Any]


def snapshot(
    model: Any,
    *,
    epoch: int,
    position: int = 0,
    score: float | None = None,
    progress: dict[str, Any] | None = None,
) -> Snapshot:
    """Returns the state of a compiled and built model.

    Args:
        model: a Keras model.
        epoch: epochs done.
        position: steps of the next epoch done.
        score: how good the model is, larger is better; the best checkpoint is kept.
        progress: whatever else is needed to resume, as JSON values.
    """
    with _trained_weights(model):
        variables = saved_by_group(model)
        values = [variable.value.read_value() for _, variable in variables]
    content = {
        "package": __version__,
        "step": step_of(model),
        "epoch": epoch,
        "position": position,
        "score": score,
        "optimizers": {name: type(found).__name__ for name, found in optimizers(model).items()},
        "variables": [
            {"path": var.path, "shape": list(var.shape), "dtype": str(var.dtype), "group": group}
            for group, var in variables
        ],
        "clock": dataclasses.astuple(model.epoch_clock) if hasattr(model, "epoch_clock") else None,
        "progress": progress or {},
    }
    return Snapshot(content, values)


def save(folder: Path, model: Any, *, epoch: int, keep: int = KEPT, **more: Any) -> Path:
    """Writes the state of a compiled model into `folder/STEP` and removes older ones.

    Args:
        folder: the folder of checkpoints; made if missing.
        model: a compiled and built Keras model.
        epoch: epochs done.
        keep: how many of the newest are kept, at least 1, including this one; the one with the best
            score is kept in addition. Nothing is removed until the new one has been read back.
        more: as for `snapshot`.

    Raises:
        OSError: the checkpoint could not be written; older ones are unchanged.
        NotFiniteError: there are values that are not finite; nothing is written.
        ValueError: `keep` is not an integer of at least 1.
    """
    return write(folder, snapshot(model, epoch=epoch, **more), keep)


def write(folder: Path, state: Snapshot, keep: int = KEPT) -> Path:
    """Writes a snapshot like `save`; returns the path of the checkpoint."""
    keep = checked_integer("keep", keep, 1)
    values = [as_array(value) for value in state.values]
    table = [dict(variable) for variable in state.content["variables"]]
    for variable, value in zip(table, values, strict=True):
        if not manifests.is_finite(value):
            raise NotFiniteError(f"{variable['path']} has values that are not finite; not saved.")
        if value.dtype.name != variable["dtype"] or manifests.stored(value) is not value:
            variable["stored"] = manifests.stored(value).dtype.name
    if not folder.is_dir():
        folder.mkdir(parents=True)
        files.flush(folder.parent)
    _remove_remains(folder)
    target = manifests.free_name(folder, state.content["step"])
    aside = folder / f"{manifests.ASIDE}{target.name}"
    try:
        files.before("create", aside)
        aside.mkdir()
        arrays = {manifests.key(at): manifests.stored(value) for at, value in enumerate(values)}
        written = files.write(
            aside / manifests.VALUES, lambda stream: np.savez(stream, allow_pickle=False, **arrays)
        )
        content = {
            **state.content,
            "variables": table,
            "files": {manifests.VALUES: written._asdict()},
        }
        text = manifests.manifest(content)
        files.write(aside / manifests.MANIFEST, lambda stream: stream.write(text))
        files.flush(aside)
        files.rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    manifests.verify(target)
    _remove_old(folder, target, keep)
    return target


class Saver:
    """Saves during training: `save` takes the state and returns; a thread writes it.

    Args:
        folder: the folder of checkpoints.
        keep: as for `save`.

    Attributes:
        seconds: duration of the last save, from the state in memory to a verified checkpoint.
    """

    def __init__(self, folder: Path, keep: int = KEPT) -> None:
        self.folder, self.keep = folder, keep
        self.seconds = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_writing(self) -> bool:
        """Whether the last save is not yet finished."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, model: Any, **more: Any) -> None:
        """Takes the state of the model and starts to write it; waits for an earlier save first.

        Args:
            model: a compiled and built Keras model.
            more: as for `snapshot`.

        Raises:
            OSError, NotFiniteError: an earlier checkpoint could not be written.
        """
        self.wait()
        state = snapshot(model, **more)
        self._thread = threading.Thread(target=self._write, args=(state,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            OSError, NotFiniteError: it could not be written; older checkpoints are unchanged.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, state: Snapshot) -> None:
        started = time.perf_counter()
        try:
            write(self.folder, state, self.keep)
        except BaseException as error:  # `wait` raises it in the thread that asked for the save
            self._error = error
        self.seconds = time.perf_counter() - started


def newest(folder: Path) -> Checkpoint | None:
    """Returns the newest intact checkpoint, by step, or None if there are no checkpoints.

    Raises:
        CheckpointError: there are checkpoints but none is intact, or the newest was written by a
            newer version of this package.
    """
    return search(folder).newest


def set_aside(found: Search) -> None:
    """Renames damaged checkpoints, so that they are kept but no longer considered."""
    for path, _ in found.damaged:
        target, number = path.with_name(path.name + manifests.DAMAGED), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{path.name}{manifests.DAMAGED}-{number}")
        files.rename(path, target)


def load(path: str | Path, model: Any) -> Checkpoint:
    """Restores a built model from the folder of a checkpoint; returns the checkpoint.

    Args:
        path: the folder of one checkpoint.
        model: a model of the same architecture. If it is compiled, its optimizer is restored too.

    Raises:
        CheckpointError: it is not a checkpoint, is damaged, or is of another model; the model is
            unchanged.
    """
    path = Path(path).expanduser()
    inside = [*manifests.listed(path), *manifests.listed(path / "checkpoints")]
    if inside and not (path / manifests.MANIFEST).exists():
        raise CheckpointError(f"{path} holds checkpoints; give one of them, as {inside[0]}")
    content = manifests.read_manifest(path)
    checkpoint = Checkpoint(path, content["step"], content["epoch"], content["position"])
    restore(model, checkpoint)
    return checkpoint


def restore(model: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """Puts the saved values into a built model of the same architecture; returns the progress.

    If the model is not compiled, the state of the optimizer is left out.

    Raises:
        CheckpointError: the checkpoint is damaged, or a variable or the optimizer differs; the
            model is unchanged.
    """
    content = manifests.verify(checkpoint.path)
    variables = saved_by_group(model)
    saved = list(enumerate(content["variables"]))
    ours_by_group = optimizers(model)
    if "optimizer" not in ours_by_group:
        saved = [(index, var) for index, var in saved if var["group"] != "optimizer"]
    ours = [(group, var.path, tuple(var.shape)) for group, var in variables]
    theirs = [(var["group"], var["path"], tuple(var["shape"])) for _, var in saved]
    difference = _first_difference(theirs, ours)
    if difference is not None:
        raise CheckpointError(
            f"{checkpoint.path} is of another architecture: it has {difference[0]} where the model "
            f"has {difference[1]}."
        )
    for group, optimizer in ours_by_group.items():
        trained_with = content["optimizers"].get(group)
        if type(optimizer).__name__ != trained_with:
            raise CheckpointError(
                f"{checkpoint.path}: the {group} was {trained_with}, and that of the model is "
                f"{type(optimizer).__name__}."
            )
    values = manifests.read_values(checkpoint.path, content)
    positions = {
        name: iter([at for at, var in saved if var["group"] == name]) for name, _, _ in ours
    }
    if hasattr(model, "averaging"):
        model.averaging.forget()
    for group, variable in variables:
        index = next(positions[group])
        value, described = values[index], content["variables"][index]
        if "stored" in described:
            value = value.view(as_array(variable.value).dtype)
        variable.assign(value)
    if hasattr(model, "epoch_clock"):
        if content["clock"] is not None:
            model.epoch_clock = EpochClock.from_values(content["clock"])
        model.data_epoch = checkpoint.epoch + (checkpoint.position > 0)
    return content["progress"]


def _trained_weights(model: Any) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which no averages are in the place of the weights."""
    averaging = getattr(model, "averaging", None)
    return contextlib.nullcontext() if averaging is None else averaging.weights()


def _first_difference(
    theirs: list[tuple[str, str, tuple[int, ...]]], ours: list[tuple[str, str, tuple[int, ...]]]
) -> tuple[str, str] | None:
    """Returns in words the first two variables that differ in their group or shape, or None.

    Args:
        theirs, ours: group, path and shape of each variable, in order.
    """
    names = [
        ", ".join(path for group, path, _ in each if group == CONTROLLERS) or "none"
        for each in (theirs, ours)
    ]
    if names[0] != names[1]:  # their shapes are all alike, and their names are ours
        return f"the controllers {names[0]}", f"the controllers {names[1]}"
    for name in dict.fromkeys(group for group, _, _ in (*theirs, *ours)):
        pairs = [
            [(path, shape) for group, path, shape in each if group == name]
            for each in (theirs, ours)
        ]
        for left, right in itertools.zip_longest(*pairs, fillvalue=("nothing", "")):
            # Names that Keras generates (dense_3) change from model to model; shapes do not.
            if left[1] != right[1]:
                return f"{left[0]} {left[1]}".strip(), f"{right[0]} {right[1]}".strip()
    return None


def _remove_remains(folder: Path) -> None:
    """Removes what interrupted saves have left. The run holds the lock of the folder."""
    for path in folder.iterdir():
        if path.name.startswith((manifests.ASIDE, manifests.REMOVED)):
            shutil.rmtree(path, ignore_errors=True)


def _remove_old(folder: Path, new: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best."""
    others = [path for path in manifests.listed(folder) if path != new]
    old = others[keep - 1 :]
    if not old:
        return
    contents = {}
    for path in (new, *others):
        with contextlib.suppress(CheckpointError):  # damaged checkpoints cannot be the best
            contents[path] = manifests.read_manifest(path)
    best = manifests.best(contents)
    for path in old:
        if path != best:
            # What has the name of a checkpoint is complete: rename it before removing it.
            removed = path.with_name(f"{manifests.REMOVED}{path.name}")
            files.rename(path, removed)
            files.remove(removed)
