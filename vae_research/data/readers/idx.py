"""The idx format of MNIST and its relatives: one file, or a folder of them. NumPy only.

A file is: two zero bytes, a type code, the rank, the sizes (32-bit big-endian), the values.
"""

import gzip
import math
import os
import zlib
from itertools import product
from pathlib import Path

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.readers.file_checks import reason, refuse_too_large, regular_file, what_is_in

_TYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_PREFIXES = {"train": ("train",), "validation": ("validation",), "test": ("t10k", "test")}


def read_idx(path: str | os.PathLike, memory_limit: int | None = None) -> np.ndarray:
    """The array in an idx file, plain or gzipped (seen by its first bytes, not by its name).

    Args:
        path: the file.
        memory_limit: bytes that may be used; None asks the system.

    Raises:
        DataError: no such file, not idx, more or fewer bytes than the header says, broken gzip,
            or more data than memory.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            dtype, shape = _read_header(stream, path)
            declared = math.prod(shape) * dtype.itemsize
            refuse_too_large(str(path), declared, path.stat().st_size, memory_limit)
            content = stream.read(declared)
            found = len(content) + len(stream.read(1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}; fetch it again") from error
    if found != declared:
        found = f"{found}" if found < declared else "more"
        raise DataError(
            f"{path}: shape {shape} of {dtype.name} needs {declared} bytes after the header, found "
            f"{found}; the file is truncated or damaged, fetch it again"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _read_header(stream, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 32:
        raise DataError(
            f"{path} is no idx file: begins with {magic!r}, expected two zero bytes, a type code "
            f"({', '.join(f'0x{code:02x}' for code in _TYPES)}) and the rank"
        )
    rank = magic[3]
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(
            f"{path}: rank {rank} needs {4 * rank} bytes of sizes, found {len(sizes)}; the file "
            "is truncated, fetch it again"
        )
    return _TYPES[magic[2]], tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _find(folder: Path, split: str, content: str) -> Path | None:
    # A fixed list of names rather than a search: a folder of a million files costs no time.
    spellings = product(_PREFIXES[split], "-.", (3, 1, 2, 4), ("", ".gz"))
    for prefix, separator, rank, suffix in spellings:
        path = folder / f"{prefix}-{content}{separator}idx{rank}-ubyte{suffix}"
        if path.exists():
            return path
    return None


def load_idx_folder(
    folder: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    name: str | None = None,
    memory_limit: int | None = None,
) -> Data:
    """A folder with train-images-idx3-ubyte and, where they exist, labels and other splits.

    The prefixes are train-, validation- and t10k- (or test-); labels are called
    train-labels-idx1-ubyte and so on; each plain or with .gz (plain wins). Splits without a file
    are cut from train, see `Data.from_arrays`.

    Raises:
        DataError: no such folder, none of these files in it (says what is), or a bad file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        regular_file(folder)  # says in detail why there is no folder
        raise DataError(f"{folder} is a file; a folder of idx files, .npz or .npy is needed")
    found = {
        (split, content): _find(folder, split, content)
        for split in _PREFIXES
        for content in ("images", "labels")
    }
    if found["train", "images"] is None:
        raise DataError(
            f"{folder} holds no train-images-idx3-ubyte (or .gz), but {what_is_in(folder)}; "
            "a folder of idx files or a .npz file is needed"
        )
    arrays = {
        key: None if path is None else read_idx(path, memory_limit) for key, path in found.items()
    }
    return Data.from_arrays(
        *(arrays[split, "images"] for split in _PREFIXES),
        **{f"{split}_labels": arrays[split, "labels"] for split in _PREFIXES},
        rescale=rescale,
        binarize=binarize,
        name=name or folder.name or str(folder),
    )
