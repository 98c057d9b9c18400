"""The idx format of MNIST and similar data sets: one file, or a folder of them. NumPy only.

A file has two zero bytes, a type code, the rank, the sizes (32-bit big-endian) and the values.
"""

import dataclasses
import gzip
import io
import math
import os
import zlib
from itertools import product
from pathlib import Path

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.readers.file_checks import reason, refuse_too_large, regular_file, what_is_in

_TYPES: dict[int, np.dtype] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_PREFIXES = {"train": ("train",), "validation": ("validation",), "test": ("t10k", "test")}


def read_idx(path: str | os.PathLike, memory_limit: int | None = None) -> np.ndarray:
    """The array in an idx file, plain or gzipped (recognised by its first bytes, not its name).

    Args:
        path: of the file.
        memory_limit: bytes that may be used; None asks the system.

    Raises:
        DataError: no such file, not idx, more or fewer bytes than the header says, damaged gzip,
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
        raise DataError(
            f"{path}: shape {shape} of {dtype.name} needs {declared} bytes after the header, found "
            f"{found if found < declared else 'more'}; the file is truncated or damaged, fetch it "
            "again"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _read_header(stream: io.BufferedIOBase, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 32:
        raise DataError(
            f"{path} is not an idx file: begins with {magic!r}, expected two zero bytes, a type "
            f"code ({', '.join(f'0x{code:02x}' for code in _TYPES)}) and the rank"
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
    # A fixed list of names, not a search, so that a folder of a million files costs no time.
    spellings = product(_PREFIXES[split], "-.", (3, 1, 2, 4), ("", ".gz"))
    for prefix, separator, rank, suffix in spellings:
        path = folder / f"{prefix}-{content}{separator}idx{rank}-ubyte{suffix}"
        if path.exists():
            return path
    return None


def holds_idx(folder: Path) -> bool:
    """Whether a folder has training images in an idx file; whatever is beside it is not read."""
    return _find(folder, "train", "images") is not None


def load_idx_folder(
    folder: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    kind: str | None = None,
    name: str | None = None,
    memory_limit: int | None = None,
) -> Data:
    """A data set from a folder of idx files.

    It has train-images-idx3-ubyte and perhaps labels and other splits. The prefixes are train-,
    validation- and t10k- (or test-); labels are called train-labels-idx1-ubyte and so on. Each file
    may be plain or end in .gz (plain wins). Splits without a file are cut from train, see
    `Data.from_arrays`.

    Raises:
        DataError: no such folder, none of these files in it (lists what is), or a bad file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        regular_file(folder)  # raises with the reason, unless it is a file
        raise DataError(f"{folder} is a file; a folder of idx files, .npz or .npy is needed")
    found = {
        (split, content): path
        for split in _PREFIXES
        for content in ("images", "labels")
        if (path := _find(folder, split, content)) is not None
    }
    if ("train", "images") not in found:
        raise DataError(
            f"{folder} holds no train-images-idx3-ubyte (or .gz), but {what_is_in(folder)}; "
            "a folder of idx files or a .npz file is needed"
        )
    arrays = {key: read_idx(path, memory_limit) for key, path in found.items()}
    if kind is None and arrays["train", "images"].ndim == 3:
        kind = "images"  # as the name of the file says
    data = Data.from_arrays(
        arrays["train", "images"],
        arrays.get(("validation", "images")),
        arrays.get(("test", "images")),
        train_labels=arrays.get(("train", "labels")),
        validation_labels=arrays.get(("validation", "labels")),
        test_labels=arrays.get(("test", "labels")),
        rescale=rescale,
        binarize=binarize,
        kind=kind,
        name=name or folder.name or str(folder),
        leave_out_unfit=True,
    )
    read = {path.name for path in found.values()}
    others = what_is_in(folder, without=read)
    if others == "nothing":
        return data
    warning = f"{data.name}: beside the idx files, these are not read: {others}"
    return dataclasses.replace(data, warnings=(*data.warnings, warning))
