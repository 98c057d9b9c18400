"""The format of a checkpoint on disk: a folder with files and a manifest that describes them.

    checkpoints/0000003910/
      manifest.json    format, step, epoch, size and sha256 of every file, table of variables
      variables.npz    the values, plain arrays

A checkpoint is verified before anything is read from it; a damaged one is not used. There is no
file that points at the newest: the folder is listed, and a name gives the step. Nothing here
imports TensorFlow, and reading a checkpoint cannot run code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vae_research import files
from vae_research.schemas import NUMBER, mismatch

MANIFEST, VALUES = "manifest.json", "variables.npz"
FORMAT, VERSION = "vae_research checkpoint", 3

# Prefixes of what an interrupted save leaves; it is never read.
ASIDE, REMOVED = ".writing-", ".removing-"
DAMAGED = ".damaged"
# A second save of the same step gets a number: no checkpoint is ever replaced.
_NAME = re.compile(r"(\d+)(?:-(\d+))?")
_LARGEST_MANIFEST = 2**26
_VARIABLE = {"path": str, "shape": [int], "dtype": str, "group": str, "stored?": str}
_SCHEMA = {
    "step": int,
    "epoch": int,
    "position": int,
    "score": (*NUMBER, type(None)),
    "optimizers": {str: str},
    "variables": [_VARIABLE],
    "clock": (list, type(None)),
    "progress": dict,
    "files": {str: {"size": int, "sha256": str}},
}


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another model."""


class FormatError(CheckpointError):
    """A checkpoint has the format of another version of this package."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        epoch: epochs done.
        position: steps of the next epoch done.
    """

    path: Path
    step: int
    epoch: int
    position: int = 0


@dataclasses.dataclass(frozen=True)
class Search:
    """The checkpoints in a folder.

    Attributes:
        newest: the newest intact one, None if there is none.
        damaged: newer ones that cannot be used, each with what is wrong with it.
    """

    newest: Checkpoint | None
    damaged: tuple[tuple[Path, str], ...] = ()


def search(folder: Path) -> Search:
    """Returns the newest intact checkpoint, by step, and the damaged ones that are newer.

    Raises:
        CheckpointError: there are checkpoints but none is intact, or the newest has the format
            of another version of this package.
    """
    damaged = []
    for path in listed(folder):
        try:
            content = verify(path)
        except FormatError:
            raise
        except CheckpointError as error:
            damaged.append((path, str(error)))
        else:
            found = Checkpoint(path, content["step"], content["epoch"], content["position"])
            return Search(found, tuple(damaged))
    if damaged:
        problems = "; ".join(problem for _, problem in damaged)
        raise CheckpointError(f"no checkpoint can be used: {problems}")
    return Search(None)


def listed(folder: Path) -> list[Path]:
    """Returns folders named like checkpoints, newest first, by the step in the name."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_order, reverse=True)


def free_name(folder: Path, step: int) -> Path:
    """Returns the path for a new checkpoint of a step, which does not exist yet."""
    path, number = folder / f"{step:010d}", 1
    while path.exists():
        number += 1
        path = folder / f"{step:010d}-{number}"
    return path


def manifest(content: dict[str, Any]) -> bytes:
    """Returns the bytes of a manifest, which include a checksum of its content."""
    content = {"format": FORMAT, "version": VERSION, **content}
    return json.dumps({"content": content, "sha256": _sha256(content)}, indent=1).encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint's manifest, without verifying the other files.

    Raises:
        CheckpointError: it is not a checkpoint, or its manifest is damaged.
        FormatError: it has the format of another version of this package.
    """
    _refuse_other_than(path, stat.S_ISDIR, "folder with a manifest.json, as this package writes")
    file = path / MANIFEST
    size = _refuse_other_than(file, stat.S_ISREG, "regular file").st_size
    try:
        if size > _LARGEST_MANIFEST:
            raise ValueError(f"{size} bytes are too many for a manifest")
        found = json.loads(file.read_text(encoding="utf-8"))
        content, expected = found["content"], found["sha256"]
        if content.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a checkpoint of this package: unknown format")
        version = content["version"]
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if _sha256(content) != expected:
        raise CheckpointError(f"{file} has changed since it was written (checksum)")
    if version != VERSION:
        advice = "that or a newer one" if version > VERSION else "that to resume it, or start again"
        raise FormatError(
            f"{path} has format {version}, and this vae_research reads format {VERSION}. It was "
            f"written by vae_research {content.get('package')}: install {advice}."
        )
    problem = mismatch(content, _SCHEMA)
    if problem is not None:
        raise CheckpointError(f"{file} is no manifest: {problem}")
    return content


def verify(path: Path) -> dict[str, Any]:
    """Returns the content of a manifest after verifying every file against it.

    Raises:
        CheckpointError: a file is missing, has changed or is a symbolic link, or a value is not
            finite.
    """
    content = read_manifest(path)
    for name, expected in content["files"].items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{path}/{MANIFEST} names the file {name!r}, outside its folder")
        file = path / name
        found = _refuse_other_than(file, stat.S_ISREG, "regular file")
        try:
            same = found.st_size == expected["size"] and files.sha256(file) == expected["sha256"]
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error})") from error
        if not same:
            raise CheckpointError(f"{file} has changed since it was written (checksum)")
    for variable, value in zip(content["variables"], _values(path, content), strict=True):
        if not is_finite(value):
            raise CheckpointError(f"{path}: {variable['path']} has values that are not finite")
    return content


def read_values(path: Path, content: dict[str, Any]) -> list[np.ndarray]:
    """Returns the values of a verified checkpoint, in the order of its table of variables.

    Raises:
        CheckpointError: they cannot be read, or shapes or types are not those of the table.
    """
    return list(_values(path, content))


def is_finite(value: np.ndarray) -> bool:
    """Returns whether an array has no NaN and no infinity, which is always so for integers."""
    return value.dtype.kind in "biu" or bool(np.isfinite(value).all())


def key(index: int) -> str:
    """Returns the name of a variable's array in the file of values."""
    return f"{index:05d}"


def stored(value: np.ndarray) -> np.ndarray:
    """Returns an array in a type that NumPy's format can hold: the bits of a bfloat16."""
    return value if value.dtype.kind in "biuf" else value.view(f"u{value.dtype.itemsize}")


def best(contents: Mapping[Path, Mapping[str, Any]]) -> Path | None:
    """Returns the path with the largest score, the first of equal ones; None if none has a score.

    Args:
        contents: the contents of manifests, by the path of the checkpoint.
    """
    scores = {
        path: content["score"] for path, content in contents.items() if content["score"] is not None
    }
    return max(scores, key=lambda path: scores[path]) if scores else None


def best_in(folder: Path) -> Checkpoint | None:
    """Returns the intact checkpoint in a folder with the largest score, None if none has one."""
    contents = {}
    for path in listed(folder):
        with contextlib.suppress(CheckpointError):
            contents[path] = read_manifest(path)
    while (found := best(contents)) is not None:
        content = contents.pop(found)
        with contextlib.suppress(CheckpointError):
            verify(found)
            return Checkpoint(found, content["step"], content["epoch"], content["position"])
    return None


def _values(path: Path, content: dict[str, Any]) -> Iterator[np.ndarray]:
    file = path / VALUES
    try:
        with np.load(file, allow_pickle=False) as saved:
            for index, variable in enumerate(content["variables"]):
                value, dtype = saved[key(index)], variable.get("stored", variable["dtype"])
                if list(value.shape) != variable["shape"] or value.dtype.name != dtype:
                    raise CheckpointError(
                        f"{file} has {value.dtype} {value.shape} where the manifest has "
                        f"{variable['path']}, {dtype} {tuple(variable['shape'])}"
                    )
                yield value
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from error


def _refuse_other_than(path: Path, kind: Callable[[int], bool], wanted: str) -> os.stat_result:
    """Returns the status of a path; raises CheckpointError unless `kind` accepts its mode."""
    try:
        status = path.lstat()
    except OSError as error:
        raise CheckpointError(f"{path} is missing ({error.strerror})") from error
    if stat.S_ISLNK(status.st_mode):
        raise CheckpointError(f"{path} is a symbolic link, which a checkpoint never contains")
    if not kind(status.st_mode):
        raise CheckpointError(
            f"{path} is not a {wanted}; other formats can run code and are not read"
        )
    return status


def _order(path: Path) -> tuple[int, int]:
    step, _, number = path.name.partition("-")
    return int(step), int(number or 1)


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
