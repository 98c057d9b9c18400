"""MATLAB's files of arrays: text of zeros and ones (.amat), and .mat, which SciPy reads.

The binarised MNIST that papers compare on is published as three such texts.
"""

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.readers.arrays import choose_keys
from vae_research.data.readers.file_checks import reason, refuse_too_large, regular_file, what_is_in
from vae_research.data.split_names import split_and_content

SUFFIXES = (".amat", ".mat")

# SHA-256 of binarized_mnist_train.amat and its kin, as in the catalogue of TensorFlow Datasets
# (url_checksums/binarized_mnist.txt). Larochelle and Murray 2011, The Neural Autoregressive
# Distribution Estimator, after Salakhutdinov and Murray 2008.
PUBLISHED = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "validation": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
_NAME_OF_PUBLISHED = "the published static binarisation of MNIST (Larochelle and Murray 2011)"

_CONTENTS = ("inputs", "labels")
_ZERO, _ONE, _NEW_LINE = b"0"[0], b"1"[0], b"\n"[0]
_UNDERSTOOD = np.isin(np.arange(256), list(b"01 \t\r\n"))
# Peak bytes for each byte of a text: itself, two masks of it, and the numbers.
_COPIES_OF_TEXT = 4


def read_amat(path: str | os.PathLike, memory_limit: int | None = None) -> np.ndarray:
    """The numbers of a text of zeros and ones, uint8 `[lines, numbers]`.

    Each line has one row, its numbers separated by spaces, as `binarized_mnist_train.amat`.

    Args:
        path: of the file.
        memory_limit: bytes that may be used; None asks the system.

    Raises:
        DataError: no such file, anything but 0 and 1, lines that differ in length, or more data
            than memory.
    """
    path = regular_file(path)
    size = path.stat().st_size
    refuse_too_large(str(path), size, size, memory_limit, needed=_COPIES_OF_TEXT * size)
    try:
        text = np.frombuffer(path.read_bytes().rstrip(), np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    is_number = (text == _ZERO) | (text == _ONE)
    wrong = ~_UNDERSTOOD[text]
    # Two digits side by side are another number, 10 for example.
    wrong[1:] |= is_number[1:] & is_number[:-1]
    if not len(text) or wrong.any():
        raise DataError(f"{path}: {_first_wrong(text, wrong)}")
    starts = np.append(0, np.flatnonzero(text == _NEW_LINE) + 1)
    counts = np.add.reduceat(is_number.view(np.uint8), starts, dtype=np.int64)
    other = np.flatnonzero(counts != counts[0])
    if len(other):
        raise DataError(
            f"{path}: line {other[0] + 1} has {counts[other[0]]} numbers, line 1 has {counts[0]}; "
            "the file is truncated or damaged, fetch it again"
        )
    return (text[is_number] - _ZERO).reshape(len(counts), counts[0])


def _first_wrong(text: np.ndarray, wrong: np.ndarray) -> str:
    if not len(text):
        return "there is nothing but blanks; fetch it again"
    place = int(np.argmax(wrong))
    line = int(np.count_nonzero(text[:place] == _NEW_LINE)) + 1
    words = bytes(text[max(0, place - 20) : place + 20])
    begin = max(words.rfind(blank, 0, min(place, 20)) for blank in (b" ", b"\t", b"\n")) + 1
    word = words[begin:].split(maxsplit=1)[0].decode("ascii", "backslashreplace")
    return (
        f"line {line} has {word!r}; only 0 and 1 are read from .amat files. Other values: "
        "numpy.savez('data.npz', train=numpy.loadtxt('FILE'))"
    )


def read_mat(path: str | os.PathLike, memory_limit: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of numbers in a .mat file, by name.

    Raises:
        DataError: no such file, SciPy is missing, the file is damaged or of version 7.3 (HDF5), or
            more data than memory.
    """
    path = regular_file(path)
    try:
        from scipy import io
    except ImportError:
        raise DataError(
            f"{path}: .mat files are read by SciPy: pip install 'vae_research[matlab]'"
        ) from None
    try:
        declared = sum(8 * math.prod(shape) for _, shape, _ in io.whosmat(path, appendmat=False))
        refuse_too_large(str(path), declared, path.stat().st_size, memory_limit)
        found: dict[str, Any] = io.loadmat(path, appendmat=False)
    except DataError:
        raise
    except NotImplementedError as error:  # SciPy's word for HDF5
        raise DataError(
            f"{path} is of MATLAB's version 7.3, which is not read; in MATLAB: save('FILE', '-v7')"
        ) from error
    except Exception as error:  # of SciPy: a damaged file can raise anything
        raise DataError(f"{path} cannot be read as .mat: {reason(error)}") from error
    return {
        name: array
        for name, array in found.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "buif" and array.size
    }


def holds_matlab(folder: Path) -> bool:
    """Whether a folder has a file for training that `load_matlab` reads."""
    try:
        return "train" in _files(folder)
    except OSError:
        return False


def _files(folder: Path) -> dict[str, Path]:
    """The file of each split; raises DataError for two of one split."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        # binarized_mnist_train: what comes before the last part is the name of the data.
        split, content = split_and_content(path.stem.rpartition("_")[2]) or ("", "")
        if content != "inputs":
            continue
        if split in found:
            raise DataError(
                f"{folder}: {found[split].name} and {path.name} could both be {split}; keep one"
            )
        found[split] = path
    return found


def load_matlab(
    path: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    kind: str | None = None,
    memory_limit: int | None = None,
) -> Data:
    """A data set from a .mat file, or from a folder with a file for each split.

    The folder has for example `binarized_mnist_train.amat`, `binarized_mnist_valid.amat` and
    `binarized_mnist_test.amat`; a .mat file in it has one array. A single .mat file has the arrays
    of an .npz file, see `load_npz`. Missing splits are cut from train.

    Rows are examples; if the splits agree in their first axis alone, columns are. Rows of a text
    whose length is a square number are square images, unless `kind` is another; those of .mat are
    if `kind="images"`.

    Args:
        path: of the file or folder.
        rescale, binarize, kind: see `Data.from_arrays`.
        memory_limit: bytes that may be used; None asks the system.

    Raises:
        DataError: a file cannot be read, has none of the names, or arrays that cannot be used.
    """
    path = Path(path).expanduser()
    found = _in_folder(path, memory_limit) if path.is_dir() else _in_file(path, memory_limit)
    arrays = _rows_first(found.inputs)
    length = arrays["train"].shape[-1]
    is_square = arrays["train"].ndim == 2 and math.isqrt(length) ** 2 == length
    if is_square and (kind == "images" or (kind is None and found.are_texts)):
        sides = (-1, math.isqrt(length), math.isqrt(length))
        arrays = {split: array.reshape(sides) for split, array in arrays.items()}
    data = Data.from_arrays(
        arrays["train"],
        arrays.get("validation"),
        arrays.get("test"),
        train_labels=found.labels.get("train"),
        validation_labels=found.labels.get("validation"),
        test_labels=found.labels.get("test"),
        rescale=rescale,
        binarize=binarize,
        kind=kind,
        name=path.name or str(path),
        leave_out_unfit=True,
    )
    if found.not_read:
        warning = f"{data.name}: these are not read: {found.not_read}"
        data = dataclasses.replace(data, warnings=(*data.warnings, warning))
    return dataclasses.replace(data, notes=found.notes)


@dataclasses.dataclass(frozen=True)
class _Found:
    """The arrays of files by split, what else there is in words, and notes on the files."""

    inputs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    not_read: str
    notes: tuple[str, ...] = ()
    are_texts: bool = False


def _in_folder(folder: Path, memory_limit: int | None) -> _Found:
    files = _files(folder)
    others = what_is_in(folder, without={file.name for file in files.values()})
    if "train" not in files:
        raise DataError(
            f"{folder} has no .amat or .mat file whose name ends in train, but {others}"
        )
    arrays = {split: _only_array(file, memory_limit) for split, file in files.items()}
    texts = {split: file for split, file in files.items() if file.suffix.lower() == ".amat"}
    notes = (_whether_published(texts),) if texts else ()
    return _Found(arrays, {}, others if others != "nothing" else "", notes, bool(texts))


def _in_file(path: Path, memory_limit: int | None) -> _Found:
    found = read_mat(path, memory_limit)
    keys = {place: key for place, key in choose_keys(found, path).items() if place[1] in _CONTENTS}
    inputs, labels = (
        {split: found[key] for (split, name), key in keys.items() if name == content}
        for content in _CONTENTS
    )
    labels = {split: array.ravel() for split, array in labels.items()}  # [1, n] or [n, 1]
    return _Found(inputs, labels, ", ".join(sorted(found.keys() - set(keys.values()))))


def _only_array(path: Path, memory_limit: int | None) -> np.ndarray:
    if path.suffix.lower() == ".amat":
        return read_amat(path, memory_limit)
    found = read_mat(path, memory_limit)
    if len(found) != 1:
        raise DataError(
            f"{path} has the arrays {', '.join(found) or 'none'}; the file of a split has one"
        )
    return next(iter(found.values()))


def _rows_first(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays `[rows, ...]`, transposed if all have rank 2 and agree in their first axis alone."""
    if any(array.ndim != 2 for array in arrays.values()):
        return arrays
    rows, columns = (len({array.shape[axis] for array in arrays.values()}) for axis in (0, 1))
    if rows == 1 < columns:
        return {key: np.ascontiguousarray(array.T) for key, array in arrays.items()}
    return arrays


def _whether_published(files: dict[str, Path]) -> str:
    """A sentence that says which files are those of `PUBLISHED`."""
    same = []
    for split, path in files.items():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == PUBLISHED[split]:
                same.append(split)
    if set(same) == set(PUBLISHED):
        return f"All three files are those of {_NAME_OF_PUBLISHED}, by their SHA-256."
    others = [files[split].name for split in files if split not in same]
    missing = [split for split in PUBLISHED if split not in files]
    found = [f"{' and '.join(others)} differ in SHA-256"] if others else []
    found += [f"{' and '.join(missing)} missing"] if missing else []
    return f"This is not {_NAME_OF_PUBLISHED}: {'; '.join(found)}."
