"""Data that are not in memory: rows that are read by their numbers, as steps need them.

A streamed split has `Rows` where another one has an array. A source is whatever has a length and
gives rows by number: a memory-mapped array, the files of a folder, a data set of another library.

NumPy only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vae_research.data.checks import DataError

# Rows from which a stream is identified; reading all of them could take hours.
_IDENTIFYING_ROWS = 1000

# Rows of a pipeline that are kept until all of their arrays have been asked for.
_PULLS_KEPT = 32


class Rows:
    """Rows that are read when they are asked for, indexed like an array by slices and numbers.

    Args:
        read: returns the rows `[count, ...]` of the given numbers, int64 `[count]`, at least one.
            It is called from several threads.
        count: the number of rows.
        row_shape: of one row as it is to be seen; what is read is reshaped to it.
        dtype: what is read is converted to it.
        bounds: smallest and largest value that there can be, if they are known beforehand;
            otherwise all rows are read where they are needed.
        numbers: the rows that these are, in their order; None is all of the source.
        is_repeatable: whether a number always gives the same row.

    Attributes:
        shape: `(count, *row_shape)`.
        dtype: of every value.
        bounds, is_repeatable: as given.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        count: int,
        row_shape: tuple[int, ...],
        dtype: Any,
        bounds: tuple[float, float] | None = None,
        numbers: np.ndarray | None = None,
        *,
        is_repeatable: bool = True,
    ) -> None:
        self._read, self._count, self.bounds, self._numbers = read, count, bounds, numbers
        self.is_repeatable = is_repeatable
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.shape = (count if numbers is None else len(numbers), *row_shape)

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """The rank, with the axis of the rows."""
        return len(self.shape)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads rows.

        Raises:
            DataError: the source gives other rows than it promised.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)), dtype=np.int64)
        numbers = np.asarray(rows, np.int64)
        if self._numbers is not None:
            numbers = self._numbers[numbers]
        wanted = (len(numbers), *self.shape[1:])
        if not len(numbers):
            return np.empty(wanted, self.dtype)
        values = np.asarray(self._read(numbers))
        if values.size != np.prod(wanted, dtype=np.int64) or len(values) != len(numbers):
            raise DataError(
                f"rows {numbers[:3].tolist()}... were read as an array of shape {values.shape}; "
                f"{wanted} was promised"
            )
        return np.ascontiguousarray(values.reshape(wanted), self.dtype)

    def subset(self, rows: slice | np.ndarray) -> Rows:
        """Returns some of these rows, without reading them."""
        numbers = np.arange(self._count) if self._numbers is None else self._numbers
        return self._changed(self.shape[1:], numbers[rows])

    def with_row_shape(self, row_shape: tuple[int, ...]) -> Rows:
        """Returns the same rows in another shape, for example with an axis of channels."""
        return self._changed(row_shape, self._numbers)

    def _changed(self, row_shape: tuple[int, ...], numbers: np.ndarray | None) -> Rows:
        return Rows(
            self._read,
            self._count,
            row_shape,
            self.dtype,
            self.bounds,
            numbers,
            is_repeatable=self.is_repeatable,
        )

    def sample(self) -> np.ndarray:
        """Reads up to 1000 rows that are spread evenly over all of them."""
        count = min(len(self), _IDENTIFYING_ROWS)
        return self[np.linspace(0, len(self) - 1, count).astype(np.int64)]


def rows_of_array(array: np.ndarray) -> Rows:
    """Returns the rows of an array, usually a memory map; float64 is read as float32."""
    dtype = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize > 4 else array.dtype
    return Rows(lambda numbers: array[numbers], len(array), array.shape[1:], dtype)


def rows_of_sequence(sequence: Any, name: str | None = None) -> Rows:
    """Returns the rows of what is indexed by one number at a time.

    These are data sets of HuggingFace and data sources of TensorFlow Datasets, which give a
    dictionary for a row, or a list of dictionaries for several (`__getitems__`), among others.

    Args:
        sequence: has a length, and gives an array or a dictionary of arrays for a number.
        name: the key in that dictionary.

    Raises:
        DataError: it is empty, or a row has no such key.
    """
    if not len(sequence):
        raise DataError(f"{type(sequence).__name__} has no rows; at least one is needed")

    def value_of(row: Any) -> np.ndarray:
        if name is None:
            return np.asarray(row)
        if name not in row:
            raise DataError(f"a row has no {name!r}; it has {', '.join(map(str, row))}")
        return np.asarray(row[name])

    def read(numbers: np.ndarray) -> np.ndarray:
        wanted = numbers.tolist()
        if hasattr(sequence, "__getitems__"):
            rows = sequence.__getitems__(wanted)
        else:
            rows = [sequence[number] for number in wanted]
        return np.stack([value_of(row) for row in rows])

    first = read(np.zeros(1, np.int64))
    return Rows(read, len(sequence), first.shape[1:], first.dtype)


def rows_of_batches(batches: Any, name: str | int | None = None) -> Rows:
    """Returns the rows of what gives a batch for a number, such as a `keras.utils.PyDataset`.

    A row is read with its whole batch. All batches but the last have as many rows as the first.

    Args:
        batches: has a length, and gives for a number a batch: an array, or a tuple or dictionary of
            arrays.
        name: the key or the place in that dictionary or tuple.
    """

    def batch(number: int) -> np.ndarray:
        found = batches[number]
        return np.asarray(found if name is None else found[name])

    if not len(batches):
        raise DataError(f"{type(batches).__name__} has no batches; at least one is needed")
    first = batch(0)
    size = len(first)
    count = (len(batches) - 1) * size + len(batch(len(batches) - 1))

    def read(numbers: np.ndarray) -> np.ndarray:
        values = np.empty((len(numbers), *first.shape[1:]), first.dtype)
        for number in np.unique(numbers // size):
            here = numbers // size == number
            values[here] = batch(int(number))[numbers[here] % size]
        return values

    return Rows(read, count, first.shape[1:], first.dtype)


def rows_of_pipeline(
    batches: Any, count: int, bounds: tuple[float, float] | None = None
) -> dict[str, Rows]:
    """Returns the rows of a `tf.data.Dataset`, in the order in which it gives them, by name.

    For training data that cannot be read by number, such as files of records:

        train = rows_of_pipeline(dataset.shuffle(10_000).batch(256), count=60_000)
        Data.from_arrays(train, validation, test)

    It begins again when it ends. A run on it says "not bit-exact": rows have no numbers of their
    own, and a run that is resumed begins with the first ones.

    Args:
        batches: a dataset of batches as a model is given them: arrays `[rows, ...]` as the other
            splits store them, or a dictionary of `inputs` and further names. They are put together
            to batches of `--batch_size`.
        count: rows of an epoch.
        bounds: smallest and largest value of `inputs`; None reads the rows of an epoch to see.

    Raises:
        DataError: it gives something else, or nothing.
    """
    pipeline = _Pipeline(batches)
    return {
        name: Rows(
            pipeline.reader_of(name),
            count,
            first.shape[1:],
            first.dtype,
            bounds if name == "inputs" else None,
            is_repeatable=False,
        )
        for name, first in pipeline.first.items()
    }


class _Pipeline:
    """Rows of a dataset of batches, one after another.

    Attributes:
        first: its first batch.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self._iterator: Iterator[Any] = iter(())
        self._lock = threading.Lock()
        self._pulled: dict[bytes, dict[str, np.ndarray]] = {}
        self.first = self._left = self._next()

    def reader_of(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """Returns the function that reads one array of the next rows.

        Arrays that are asked for by the same numbers belong together.
        """

        def read(numbers: np.ndarray) -> np.ndarray:
            key = numbers.tobytes()
            with self._lock:
                if name not in self._pulled.get(key, {}):
                    self._pulled[key] = self._pull(len(numbers))
                    while len(self._pulled) > _PULLS_KEPT:
                        del self._pulled[next(iter(self._pulled))]
                return self._pulled[key].pop(name)

        return read

    def _pull(self, count: int) -> dict[str, np.ndarray]:
        parts, found = [self._left], len(self._left["inputs"])
        while found < count:
            parts.append(self._next())
            found += len(parts[-1]["inputs"])
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self._left}
        self._left = {name: array[count:] for name, array in rows.items()}
        return {name: array[:count] for name, array in rows.items()}

    def _next(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = iter(self._batches.as_numpy_iterator())
            batch = next(self._iterator, None)
        if batch is None:
            raise DataError("the tf.data pipeline gives no batch; at least one is needed")
        if isinstance(batch, tuple | list):
            raise DataError(
                f"the tf.data pipeline gives a {type(batch).__name__} of {len(batch)}; give names: "
                'dataset.map(lambda x, y: {"inputs": x, "labels": y})'
            )
        arrays = dict(batch) if isinstance(batch, Mapping) else {"inputs": batch}
        if "inputs" not in arrays:
            raise DataError(f"the tf.data pipeline gives {', '.join(arrays)}, and no 'inputs'")
        arrays = {name: _stored(name, np.asarray(value)) for name, value in arrays.items()}
        sizes = {name: array.shape[:1] for name, array in arrays.items()}
        if len(set(sizes.values())) > 1 or arrays["inputs"].ndim < 2:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise DataError(
                f"the tf.data pipeline gives shapes {shapes}; batches [rows, ...] are needed: "
                "dataset.batch(256)"
            )
        return arrays


def _stored(name: str, values: np.ndarray) -> np.ndarray:
    if name == "labels" and values.dtype.kind in "ui":
        return values.astype(np.int64)
    return values.astype(np.float32) if values.dtype == np.float64 else values
