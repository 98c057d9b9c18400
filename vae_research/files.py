"""The file effects of a save: create, write, flush to disk, rename, remove.

Everything that must survive a killed process or a full disk is written by these functions. They
call `before` ahead of each effect, so that a test can end the process or fill the disk at any of
them; only `replace(durable=False)`, for files that need not survive, does not.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Bytes that are written to a file at once.
BLOCK = 2**22


class Written(NamedTuple):
    """Size in bytes and checksum of a file that was written."""

    size: int
    sha256: str


def before(effect: str, path: Path) -> None:
    """Hook before each effect ("create", "write", "fsync", "rename", "remove"); does nothing."""


def write(path: Path, fill: Callable[[Any], None]) -> Written:
    """Creates a file, fills it and flushes it to disk.

    Args:
        path: the file, which must not exist.
        fill: writes the content to the binary stream that it is given, without seeking.
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
    """Flushes the content of a file, or the names in a folder, to disk.

    A folder is flushed after a rename. Windows cannot do so, and it is skipped there.
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
    """Renames a file, replacing another, or a folder to a free name; flushes the parent folder."""
    before("rename", target)
    os.replace(source, target)
    flush(target.parent)


def replace(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replaces the content of a file atomically: a reader sees all of the old or all of the new.

    Args:
        path: the file, which need not exist.
        content: its new content.
        durable: flush file and folder to disk, so that the new content survives a power cut. Files
            that are only displayed, such as TensorBoard's, do not need it.
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
    """Removes a file, or a folder with its contents; links are removed, not followed."""
    if stat.S_ISDIR(path.lstat().st_mode):
        for inner in sorted(path.iterdir()):
            remove(inner)
        before("remove", path)
        path.rmdir()
    else:
        before("remove", path)
        path.unlink()


def sha256(path: Path) -> str:
    """Returns the SHA-256 checksum of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Hashed(io.RawIOBase):
    """A stream that writes a file in whole blocks and hashes them; it cannot seek."""

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
        while rest:  # a disk that is nearly full accepts only a part
            rest = rest[self._file.write(rest) :]
