"""Data sets in one NumPy file: .npz with named arrays, .npy with one. NumPy only.

Headers are checked first: a bad file allocates no memory, and nothing is unpickled.
"""

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.readers.file_checks import fits, reason, refuse_too_large, regular_file
from vae_research.data.readers.published import with_factors_of_dsprites
from vae_research.data.sources import rows_of_array
from vae_research.data.split_names import UNDERSTOOD, by_split, split_and_own_name

# Keys of a file with one array, and of its labels.
_ONE_ARRAY = ("images", "imgs", "data", "x", "arr_0")
_ITS_LABELS = ("labels", "y")
_BROKEN = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, RuntimeError)


def load_npz(
    path: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    kind: str | None = None,
    memory_limit: int | None = None,
) -> Data:
    """A data set from an .npz file.

    Keys: train, validation, test with train_labels, ...; or x_train, y_train, x_test, y_test as
    Keras writes them, or their kin, see `split_names`; or one array images, imgs, data, x or arr_0
    with labels or y. Missing splits are cut from train, see `Data.from_arrays`. Further arrays are
    called train_NAME, validation_NAME and test_NAME (or NAME_train and so on); in a file with one
    array of values, any other array with as many rows is one, under its own name. What cannot be
    used is left out with a warning. The published file of dSprites is one of these; see
    `published`.

    Args:
        path: of the file.
        rescale, binarize, kind: see `Data.from_arrays`.
        memory_limit: bytes that may be used; None asks the system.

    Raises:
        DataError: no such file, not a zip file, truncated or damaged, none of the keys (lists those
            found), two keys for the same array, pickled objects, a decompression bomb, more data
            than memory, or arrays that cannot be used.
    """
    splits, unused = read_npz_splits(path, memory_limit)
    name = Path(path).name
    train, factors = with_factors_of_dsprites(splits["train"])
    data = Data.from_arrays(
        train,
        splits.get("validation"),
        splits.get("test"),
        rescale=rescale,
        binarize=binarize,
        kind=kind,
        name=name,
        leave_out_unfit=True,
        factors=factors,
    )
    if not unused:
        return data
    warning = f"{name}: these arrays are not used: {', '.join(unused)}"
    return dataclasses.replace(data, warnings=(*data.warnings, warning))


def read_npz_splits(
    path: str | os.PathLike, memory_limit: int | None = None
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """The arrays of an .npz file by split and name, `inputs` among them, and the keys not used.

    Raises:
        DataError: see `load_npz`.
    """
    path = regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            keys = choose_keys(members, path)
            values = [key for (_, name), key in keys.items() if name == "inputs"]
            headers = {key: _header(archive, members[key], f"{path}: {key}") for key in values}
            if len(values) == 1:
                keys |= {("train", key): key for key in members if key not in keys.values()}
            rows = {
                split: headers[key].rows for (split, name), key in keys.items() if name == "inputs"
            }
            for (split, name), key in list(keys.items()):
                if key not in headers:
                    header = _header_of_further(archive, members[key], f"{path}: {key}")
                    own_name = key == name and name != "labels"
                    if header is None or (own_name and header.rows != rows[split]):
                        del keys[split, name]
                    else:
                        headers[key] = header
            declared = sum(header.size for header in headers.values())
            refuse_too_large(str(path), declared, path.stat().st_size, memory_limit)
            splits: dict[str, dict[str, np.ndarray]] = {}
            for (split, name), key in keys.items():
                splits.setdefault(split, {})[name] = _read_member(archive, members[key])
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{path} cannot be read as .npz: {_why_not_zip(path) or reason(error)}; write it again "
            "with numpy.savez_compressed(path, train=array)"
        ) from error
    return splits, sorted(set(members) - set(keys.values()))


def load_npy(
    path: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    kind: str | None = None,
    memory_limit: int | None = None,
    stream: bool | None = None,
) -> Data:
    """A data set from an .npy file: one array, cut into three splits by `Data.from_arrays`.

    Args:
        path: of the file.
        rescale, binarize: see `Data.from_arrays`.
        memory_limit: bytes that may be used; None asks the system.
        stream: read rows from the file when they are needed; None does so if the array does not fit
            in memory.

    Raises:
        DataError: no such file, not .npy, truncated, pickled objects, more data than memory, or an
            array that cannot be used.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            declared = _read_header(file, str(path)).size
            _refuse_other_length(str(path), declared, path.stat().st_size - file.tell())
            file.seek(0)
            if stream or (stream is None and not fits(declared, memory_limit)):
                array: Any = rows_of_array(np.load(path, mmap_mode="r", allow_pickle=False))
            else:
                refuse_too_large(str(path), declared, path.stat().st_size, memory_limit)
                array = np.lib.format.read_array(file, allow_pickle=False)
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{path} cannot be read as .npy: {reason(error)}; write it again with "
            "numpy.save(path, array)"
        ) from error
    return Data.from_arrays(array, rescale=rescale, binarize=binarize, kind=kind, name=path.name)


def choose_keys(found: Collection[str], path: Path) -> dict[tuple[str, str], str]:
    """The key in the file for each split and name that it has an array for; see `load_npz`.

    Raises:
        DataError: there is none for training, or two for one array.
    """
    inputs = by_split(found, path)
    labels = by_split(found, path, content="labels")
    for chosen, spellings in ((inputs, _ONE_ARRAY), (labels, _ITS_LABELS)):
        alone = [key for key in sorted(found) if key.lower() in spellings]
        given = [chosen["train"], *alone] if "train" in chosen else alone
        if len(given) > 1:
            raise DataError(
                f"{path}: {given[0]} and {given[1]} could both be train"
                f"{'' if chosen is inputs else ' labels'}; keep one of them"
            )
        if given:
            chosen["train"] = given[0]
    keys = {(split, "inputs"): key for split, key in inputs.items()}
    keys |= {(split, "labels"): key for split, key in labels.items()}
    for key in sorted(set(found) - set(keys.values())):
        place = split_and_own_name(key)
        if place in keys:
            raise DataError(
                f"{path}: {keys[place]} and {key} could both be {'_'.join(place)}; keep one of them"
            )
        if place is not None:
            keys[place] = key
    if "train" not in inputs:
        raise DataError(
            f"{path}: no array for training; found the keys {', '.join(sorted(found)) or 'none'}; "
            f"understood are {UNDERSTOOD}, or one of {', '.join(_ONE_ARRAY)}"
        )
    for split, key in labels.items():
        if split not in inputs:
            raise DataError(f"{path}: got {key} but no values; add {split}")
    return {place: key for place, key in keys.items() if place[0] in inputs}


class _Header(NamedTuple):
    """What the .npy header of an array says: bytes of its values, and rows."""

    size: int
    rows: int


def _read_header(stream: IO[bytes], where: str) -> _Header:
    """What the .npy header at the beginning of `stream` says."""
    start = stream.read(len(np.lib.format.MAGIC_PREFIX) + 2)
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
        raise DataError(
            f"{where} is not a NumPy array: begins with {start!r}; write it with numpy.save or "
            "numpy.savez"
        )
    version = tuple(start[-2:])
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise DataError(
            f"{where}: .npy format {version} is for records with names; a plain array is needed"
        )
    try:
        shape, _, dtype = readers[version](stream)
    except Exception as error:  # NumPy passes on whatever Python's tokenizer raises
        raise DataError(f"{where}: damaged header ({reason(error)}); write it again") from error
    if dtype.hasobject:
        raise DataError(
            f"{where} holds pickled Python objects, which could run code and are not read; save a "
            "plain array: array.astype('float32')"
        )
    if any(size < 0 for size in shape):
        raise DataError(f"{where}: the header gives the shape {shape}; the file is damaged")
    return _Header(math.prod(shape) * dtype.itemsize, shape[0] if shape else 0)


def _refuse_other_length(where: str, declared: int, found: int) -> None:
    if found != declared:
        raise DataError(
            f"{where}: the header promises {declared} bytes of values, found {found}; the file is "
            f"{'truncated' if found < declared else 'damaged'}, write or fetch it again"
        )


def _header(archive: zipfile.ZipFile, member: str, where: str) -> _Header:
    with archive.open(member) as stream:
        header = _read_header(stream, where)
        found = archive.getinfo(member).file_size - stream.tell()
        _refuse_other_length(where, header.size, found)
    return header


def _header_of_further(archive: zipfile.ZipFile, member: str, where: str) -> _Header | None:
    """The header of an array that is left out if it cannot be used: then None."""
    try:
        return _header(archive, member, where)
    except DataError:
        return None


def _read_member(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as stream:
        # zipfile compares the checksum when the last byte is read.
        return np.lib.format.read_array(stream, allow_pickle=False)


def _why_not_zip(path: Path) -> str | None:
    with path.open("rb") as stream:
        start = stream.read(8)
    if not start.startswith(b"PK"):
        return f"not a zip file, begins with {start!r}"
    if not zipfile.is_zipfile(path):
        return f"truncated, {path.stat().st_size} bytes without the directory at the end of a zip"
    return None
