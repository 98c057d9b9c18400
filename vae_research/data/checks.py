"""Checks of arrays and labels; each refusal is an error of one line.

NumPy only, so that a bad data file is reported without waiting for TensorFlow.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# Rows are checked in blocks of about this many values, so that no check needs a temporary array of
# the size of the data set.
_BLOCK_VALUES = 2**21


class HasRows(Protocol):
    """An array, or rows that are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...


class DataError(ValueError):
    """Data that cannot be used. The message is one line; a run ends with exit code 3."""


def rows_in_block(array: HasRows) -> int:
    """The number of rows in a block of a few megabytes."""
    return max(1, _BLOCK_VALUES // max(1, math.prod(array.shape[1:])))


def row_blocks(array: HasRows) -> Iterator[slice]:
    """Slices that cover the rows [n] of `array` in order, a few megabytes at a time."""
    step = rows_in_block(array)
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))


def _first(array: np.ndarray, index: tuple[int, ...]) -> str:
    return f"first {array[index]!s} at index {index}"


def refuse_non_finite(array: np.ndarray, where: str, advice: str) -> None:
    """Raises DataError, with their number and the first index, if values are NaN or infinite."""
    count = 0
    first: tuple[int, ...] | None = None
    for block in row_blocks(array):
        bad = ~np.isfinite(array[block])
        found = int(np.count_nonzero(bad))
        if found and first is None:
            row, *rest = map(int, np.unravel_index(int(np.argmax(bad)), bad.shape))
            first = (row + block.start, *rest)
        count += found
    if first is not None:
        raise DataError(
            f"{where}: {count} of {array.size} values are not finite, {_first(array, first)}; "
            f"{advice}"
        )


def _as_array(values: object, where: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(
            f"{where}: the rows do not form one array ({error}); all rows need the same shape"
        ) from error


def as_values(values: object, where: str) -> np.ndarray:
    """The values as a checked array in native byte order and C order; float64 becomes float32.

    Big-endian, Fortran-order and memory-mapped arrays are converted; bool and integer dtypes stay
    unchanged. An array that needs no conversion is not copied.

    Args:
        values: an array [n, ...] of rank >= 2; bool, integers or floats.
        where: prefix of every message, the name of data set and split.

    Raises:
        DataError: another dtype, a masked array, a rank below 2, no rows or no values in a row,
            NaN or infinity (the message has their number and the first index).
    """
    if isinstance(values, np.ma.MaskedArray):
        raise DataError(f"{where}: got a masked array; fill it first, e.g. array.filled(0)")
    memory_mapped = isinstance(values, np.memmap)
    array = _as_array(values, where)
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{where}: dtype {array.dtype} is not understood; bool, integers and floats are "
            "(array.astype('float32'))"
        )
    if array.ndim < 2:
        raise DataError(
            f"{where}: got shape {array.shape}; the first axis counts the rows and at least one "
            "more axis is needed (array.reshape(n, -1))"
        )
    if array.size == 0:
        raise DataError(f"{where}: is empty, shape {array.shape}; at least one row is needed")
    if array.dtype.kind == "f":
        refuse_non_finite(array, where, "clean or drop these rows before loading")
        if array.dtype.itemsize > 4:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32, order="C")
            refuse_non_finite(array, where, "they exceed float32 (3.4e38); divide them first")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    # The file of a memory map may change or be deleted during a run.
    return array.copy() if memory_mapped and array.base is not None else array


def as_labels(class_numbers: npt.ArrayLike, count: int, where: str) -> np.ndarray:
    """Class numbers as int64 [count]; -1 stands for a row without a label.

    Args:
        class_numbers: integers [count] or [count, 1]; see `number_names` for strings.
        count: number of rows.
        where: prefix of every message.

    Raises:
        DataError: they are not integers (floats are refused even if they are whole), not one per
            row, below -1, or beyond 64 bits.
    """
    labels = np.asarray(class_numbers)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "ui":
        raise DataError(
            f"{where}: labels have dtype {labels.dtype}; class numbers are integers >= 0, -1 for "
            "none (labels.astype('int64') if they are whole numbers), or strings"
        )
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {labels.shape}; one number per row is needed: "
            "labels.argmax(axis=-1) for one-hot rows"
        )
    if len(labels) != count:
        raise DataError(f"{where}: {len(labels)} labels for {count} rows; one per row is needed")
    if count and labels.min() < -1:
        raise DataError(
            f"{where}: {np.count_nonzero(labels < -1)} labels are below -1, "
            f"{_first(labels, (int(np.argmax(labels < -1)),))}; class numbers start at 0, and -1 "
            "is a row without a label"
        )
    if count and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where}: label {labels.max()} exceeds 64 bits; renumber the classes")
    return np.ascontiguousarray(labels, dtype=np.int64)


def as_further_array(values: object, count: int, where: str) -> np.ndarray:
    """A further array of a split as stored: native byte order, C order; float64 becomes float32.

    NaN and infinity are allowed here: `refuse_non_finite` checks what is read.

    Args:
        values: an array [count, ...] of rank >= 1; bool, integers or floats.
        count: number of rows.
        where: prefix of every message: data set, split and name.

    Raises:
        DataError: another dtype, rows that form no array, or another number of rows.
    """
    array = _as_array(values, where)
    if array.dtype.kind not in "buif" or isinstance(values, np.ma.MaskedArray):
        kind = "a masked array" if isinstance(values, np.ma.MaskedArray) else f"dtype {array.dtype}"
        raise DataError(f"{where}: got {kind}; bool, integers and floats are understood")
    if array.ndim == 0 or len(array) != count:
        raise DataError(
            f"{where}: has shape {array.shape} for {count} rows; the first axis counts the rows"
        )
    dtype = np.dtype(np.float32) if array.dtype.itemsize > 4 and array.dtype.kind == "f" else None
    with np.errstate(over="ignore"):
        own = np.ascontiguousarray(array, dtype=dtype or array.dtype.newbyteorder("="))
    # The file of a memory map may change or be deleted during a run.
    return own.copy() if isinstance(values, np.memmap) and own.base is not None else own


def as_further_rows(rows: Any, count: int, where: str) -> Any:
    """`Rows` of a further array, checked as far as it can be without reading them.

    Raises:
        DataError: another dtype, or another number of rows.
    """
    if rows.dtype.kind not in "buif" or len(rows) != count:
        raise DataError(
            f"{where}: got {len(rows)} rows of {rows.dtype}; {count} of bool, integers or floats "
            "are needed"
        )
    return rows


def number_names(labels: Mapping[str, npt.ArrayLike], where: str) -> dict[str, npt.ArrayLike]:
    """The labels of all splits, with strings as numbers in the sorted order of their names.

    An empty string is -1, a row without a label. Labels that are not strings are returned as given.

    Raises:
        DataError: strings in one split and numbers in another.
    """
    arrays = {split: np.asarray(given) for split, given in labels.items()}
    texts = {
        split: text for split, array in arrays.items() if (text := _as_text(array)) is not None
    }
    if not texts:
        return dict(labels)
    for split in arrays.keys() - texts.keys():
        raise DataError(
            f"{where}: labels are strings in {next(iter(texts))} and {arrays[split].dtype} in "
            f"{split}; use one kind"
        )
    names = np.unique(np.concatenate([text.reshape(-1) for text in texts.values()]))
    names = names[names != ""]
    return {
        split: np.where(text == "", -1, np.searchsorted(names, text))
        for split, text in texts.items()
    }


def _as_text(array: np.ndarray) -> np.ndarray | None:
    """An array of strings as such, also of bytes or of Python's strings; None for others."""
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat):
        return array.astype(str)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    return array if array.dtype.kind == "U" else None


def _row_hashes(array: np.ndarray) -> np.ndarray:
    """One uint64 per row: a weighted sum of the row's mixed 8-byte words, modulo 2**64."""
    bytes_per_row = array[0].nbytes
    words = -(-bytes_per_row // 8)
    weights = np.random.Philox(key=words).random_raw(words) | np.uint64(1)
    hashes = np.empty(len(array), np.uint64)
    for block in row_blocks(array):
        rows = np.ascontiguousarray(array[block]).view(np.uint8).reshape(-1, bytes_per_row)
        padded = np.zeros((len(rows), words * 8), np.uint8)
        padded[:, :bytes_per_row] = rows
        mixed = padded.view(np.uint64)
        # Without this, words that differ only in their highest bits would cancel in the sum.
        mixed ^= mixed >> np.uint64(29)
        hashes[block] = (mixed * weights).sum(axis=1, dtype=np.uint64)
    return hashes


def count_shared_rows(first: np.ndarray, second: np.ndarray) -> int:
    """Number of rows of `second` that also occur, bit for bit, in `first`."""
    if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
        return 0
    known = _row_hashes(first)
    order = np.argsort(known, kind="stable")
    asked = _row_hashes(second)
    place = np.minimum(np.searchsorted(known, asked, sorter=order), len(known) - 1)
    candidates = np.flatnonzero(known[order[place]] == asked)
    return sum(np.array_equal(first[order[place[row]]], second[row]) for row in candidates)


def count_constant_rows(array: np.ndarray) -> int:
    """Number of rows in which all values are equal (blank images)."""
    count = 0
    for block in row_blocks(array):
        rows = array[block].reshape(len(array[block]), -1)
        count += int(np.count_nonzero((rows == rows[:, :1]).all(axis=1)))
    return count
