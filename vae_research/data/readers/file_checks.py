"""Checks of a file before anything is read from it."""

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from vae_research.data.checks import DataError

# A header that promises more than this many times the size of the compressed file, and more than
# this many bytes, is taken for a decompression bomb. Deflate reaches at most 1032 times; dSprites,
# mostly black, has 116.
_BOMB_RATIO = 500
_BOMB_BYTES = 100_000_000

# Messages do not list a folder of a million files to its end.
_MOST_ENTRIES_COUNTED = 10_000


def regular_file(path: str | os.PathLike) -> Path:
    """`path` with ~ expanded, if it is a regular, non-empty, readable file.

    Raises:
        DataError: it does not exist (names the nearest folder that does), or is a folder, a pipe or
            device, an empty file, a file without permission, or a loop of symbolic links.
    """
    path = Path(path).expanduser()
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        nearest = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
        raise DataError(f"{path} does not exist; the nearest folder there is {nearest}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be reached: {reason(error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder, not a file; it holds {what_is_in(path)}")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a pipe, socket or device; a regular file is needed")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); fetch or write it again")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} cannot be read: permission denied; chmod +r, or another user")
    return path


def reason(error: Exception) -> str:
    """One line with the reason of an error of the operating system or of a decoder."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "symbolic links in a loop"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def what_is_in(folder: Path, without: Collection[str] = ()) -> str:
    """Numbers of files by suffix: "3 .png, 1 .txt, 2 folders"; hidden names are ignored.

    Args:
        folder: that is listed.
        without: names that are not counted.

    Raises:
        DataError: the folder cannot be listed.
    """
    counts: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= _MOST_ENTRIES_COUNTED:
                    counts["more"] = 1
                    break
                if entry.name.startswith(".") or entry.name in without:
                    continue
                kind = Path(entry.name).suffix.lower() or "files without suffix"
                kind = "folders" if entry.is_dir(follow_symlinks=False) else kind
                counts[kind] = counts.get(kind, 0) + 1
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {reason(error)}") from error
    if not counts:
        return "nothing"
    more = " and more" if counts.pop("more", 0) else ""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) + more


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None if the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def fits(needed: int, memory_limit: int | None = None) -> bool:
    """Whether so many bytes can be used; `memory_limit` None asks the system."""
    limit = available_memory() if memory_limit is None else memory_limit
    return limit is None or needed <= limit


def refuse_too_large(
    where: str,
    declared: int,
    stored: int,
    memory_limit: int | None = None,
    *,
    needed: int | None = None,
    advice: str = "store fewer rows or a smaller type (uint8)",
) -> None:
    """Raises DataError if a file needs too much memory, judged before anything is allocated.

    Args:
        where: file (and array) for the message.
        declared: bytes that the header promises.
        stored: bytes in the file.
        memory_limit: bytes that may be used; None asks the system.
        needed: peak number of bytes, copies included; None means `declared`.
        advice: what would need less memory.

    Raises:
        DataError: a decompression bomb, or more data than memory.
    """
    if declared > _BOMB_BYTES and declared > _BOMB_RATIO * stored:
        raise DataError(
            f"{where}: {stored} bytes claim to unpack to {declared}, {declared // stored} times as "
            "much; refused as a decompression bomb (store it uncompressed if it is genuine)"
        )
    needed = declared if needed is None else needed
    if not fits(needed, memory_limit):
        limit = available_memory() if memory_limit is None else memory_limit
        raise DataError(f"{where}: needs {needed} bytes of memory, {limit} are available; {advice}")
