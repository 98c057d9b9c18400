"""The file effects of a save, in their order: create, write, flush to disk, rename, remove.

Whatever has to survive a killed process or a full disk is written by these functions. Each effect
is announced to `before` first, so that a test can end the process, or fill the disk, at every one.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Bytes of a file that are written at once; a crash leaves a number of whole blocks, or less.
BLOCK = 2**22


class Written(NamedTuple):
    """What was written to a file: its size in bytes, and its checksum."""

    size: int
    sha256: str


def before(effect: str, path: Path) -> None:
    """Called before every effect: "create", "write", "fsync", "rename" or "remove" of a path."""


def write(path: Path, fill: Callable[[Any], None]) -> Written:
    """Makes a new file, has it filled, and flushes it to disk.

    Args:
        path: of a file that does not exist yet.
        fill: writes to the binary stream that it is given, from the beginning to the end.
    """
    before("create", path)
    with open(path, "xb", buffering=0) as file:
        stream = _Hashed(file, path)
        fill(stream)
        stream.end()
        before("fsync", path)
        os.fsync(file.fileno())
    return Written(stream.size, stream.digest.hexdigest())


def flush(path: Path) -> None:
    """Flushes to disk what was written to a file, or which names a folder holds.

    A folder is flushed after a rename; Windows has no handle for one.
    """
    if os.name == "nt" and path.is_dir():
        return
    before("fsync", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path) -> None:
    """Renames a file over another, or a folder to a name that is free, and flushes the parent."""
    before("rename", target)
    os.replace(source, target)
    flush(target.parent)


def replace(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replaces the content of a file, so that a reader sees all of the old or all of the new one.

    Args:
        path: the file, which need not exist.
        content: what it will hold.
        durable: flush file and folder to disk, so that the new content survives a power cut. What
            is only looked at, as TensorBoard's files are, does without.
    """
    aside = path.with_name(f".writing-{path.name}")
    if not durable:
        aside.write_bytes(content)
        os.replace(aside, path)
        return
    if aside.exists():
        remove(aside)
    write(aside, lambda stream: stream.write(content))
    rename(aside, path)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; links are removed, not followed."""
    if stat.S_ISDIR(path.lstat().st_mode):
        for inner in sorted(path.iterdir()):
            remove(inner)
        before("remove", path)
        path.rmdir()
    else:
        before("remove", path)
        path.unlink()


def sha256(path: Path) -> str:
    """Returns the checksum of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Hashed(io.RawIOBase):
    """A stream to a file in whole blocks, hashed on the way; it only goes forward."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self.size = 0
        self._file, self._path, self._pending = file, path, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        self._pending += data
        while len(self._pending) >= BLOCK:
            self._emit(BLOCK)
        return len(data)

    def end(self) -> None:
        if self._pending:
            self._emit(len(self._pending))

    def _emit(self, count: int) -> None:
        block = bytes(self._pending[:count])
        del self._pending[:count]
        before("write", self._path)
        self.digest.update(block)
        self.size += len(block)
        rest = memoryview(block)
        while rest:  # a disk that is nearly full takes a part
            rest = rest[self._file.write(rest) :]
