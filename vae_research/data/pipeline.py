"""From row numbers to a batch: order of an epoch, scaling, binarisation, augmentation.

Nothing here has a state. The order of an epoch is a function of (seed, epoch), and the noise of
binarisation, dequantisation and augmentation is one of (seed, epoch, position of the batch). All
draws name Philox, which gives the same numbers on every device, with XLA and without.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import tensorflow as tf

from vae_research.data.checks import DataError
from vae_research.data.scaling import Scaling
from vae_research.data.sources import Rows
from vae_research.data.threads import for_threads
from vae_research.distribution import drawn_by_row, own_rows, whole_batch
from vae_research.randomness import fold_in, philox_bits

# Purposes of a random key: draws of the same seed must not be correlated.
_ORDER, _NOISE, _AUGMENT, _CORRUPT, _FIXED, _DEQUANTIZE = range(6)

# Rows whose fixed corruption is drawn together.
_BLOCK = 500

# A further array is an argument of a compiled program under this and its name.
_FURTHER = "array "


Change: TypeAlias = Callable[[dict[str, tf.Tensor], tf.Tensor], Mapping[str, tf.Tensor]]


class StoredRows(Protocol):
    """What this module reads of a `Split`; it does not import the class, which imports it."""

    @property
    def name(self) -> str: ...

    @property
    def raw(self) -> Any: ...  # an array, or `Rows`

    @property
    def scaling(self) -> Scaling: ...

    @property
    def binarize(self) -> str: ...

    @property
    def dequantize(self) -> str: ...

    @property
    def fixed_draw(self) -> np.ndarray: ...

    def drawn(self, rows: slice | np.ndarray) -> np.ndarray: ...

    def prepare(self, rows: slice | np.ndarray | None = None) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int: ...

    def array(self, name: str) -> Any: ...  # an array, or `Rows`

    @property
    def augment(self) -> Change | None: ...

    @property
    def corrupt(self) -> Change | None: ...

    def tensors(
        self, rows: slice | np.ndarray | None = None, names: Iterable[str] = ()
    ) -> dict[str, np.ndarray]: ...

    def clean_tensors(
        self, rows: slice | np.ndarray, names: Iterable[str]
    ) -> dict[str, np.ndarray]: ...


class Reader:
    """From row numbers to a batch: gathers stored rows, scales, binarises and augments them.

    Args:
        split: what to read.
        seed: of binarisation, dequantisation and augmentation; None reads what evaluation sees, as
            `Split.tensors` does.
        names: further arrays to be added, as stored.

    Attributes:
        tensors: the data by name, as stored (one byte per grey value), without those that are
            streamed.
        streamed: type and shape of a row, flat, of what is read when it is needed, by name.
        failure: the error of a thread that read rows, or None.
        steps_alike: readers for which this is equal can share a compiled program.

    Raises:
        DataError: the split has no such array, or it has values that are not finite.
    """

    def __init__(self, split: StoredRows, seed: int | None, names: Sequence[str] = ()) -> None:
        further = {name: split.array(name) for name in names}
        is_streamed = isinstance(split.raw, Rows)
        if is_streamed and seed is None and split.corrupt:
            raise DataError(
                f"split {split.name!r} is streamed, and corrupt= of held-out data needs them in "
                "memory; give Data.from_arrays an array for it, for example rows[:]"
            )
        # Corrupted by the draw that never changes, on the host, and stored like any other values.
        corrupted = split.tensors(None, names) if seed is None and split.corrupt else None
        drawn = (
            corrupted is not None
            or split.binarize == "static"
            or (split.binarize == "dynamic" and seed is None)
            or (split.dequantize == "uniform" and seed is None)
        )
        as_evaluated = split.dequantize == "uniform" and seed is None
        self.binarize = "none" if drawn else split.binarize
        self.is_scaled = not (drawn or split.scaling.is_identity)
        stored: Any = split.raw
        if corrupted is not None:
            stored = corrupted.pop("inputs")
            further = corrupted
        elif drawn and not is_streamed:
            stored = split.prepare() if as_evaluated else split.fixed_draw
        self.shape = split.raw.shape[1:]
        self.shapes = {name: array.shape[1:] for name, array in further.items()}
        self.failure: Exception | None = None
        self.tensors: dict[str, tf.Tensor] = {}
        self.streamed: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._sources: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        for name, array in {
            "stored": stored,
            **{_FURTHER + n: a for n, a in further.items()},
        }.items():
            if not isinstance(array, Rows):
                self.tensors[name] = _flat(array)
                continue
            is_drawn = drawn and name == "stored"
            row = () if array.ndim == 1 else (math.prod(array.shape[1:]),)
            source: Callable[[np.ndarray], np.ndarray] = array.__getitem__
            dtype = array.dtype
            if is_drawn and as_evaluated:
                dtype, source = np.dtype(np.float32), split.prepare
            elif is_drawn:
                dtype, source = np.dtype(np.uint8), split.drawn
            self.streamed[name], self._sources[name] = (dtype, row), source
        if self.is_scaled:
            self.tensors["offset"] = tf.constant(split.scaling.offset)
            self.tensors["divisor"] = tf.constant(split.scaling.divisor)
        if self.binarize == "dynamic":
            self.tensors["key"] = tf.constant([seed, _NOISE], tf.int64)
        self.is_dequantized = split.dequantize == "uniform" and seed is not None
        if self.is_dequantized:
            self.tensors["dequantize"] = tf.constant([seed, _DEQUANTIZE], tf.int64)
        self.augment = None if seed is None else split.augment
        self.corrupt = None if seed is None else split.corrupt
        if self.augment is not None:
            self.tensors["augment"] = tf.constant([seed, _AUGMENT], tf.int64)
        if self.corrupt is not None:
            self.tensors["corrupt"] = tf.constant([seed, _CORRUPT], tf.int64)
        self.steps_alike: tuple[Any, ...] = (*self.streamed, self.binarize, self.shape)
        self.steps_alike += (
            *sorted(self.tensors),
            *self.shapes.items(),
            self.augment,
            self.corrupt,
        )

    @property
    def reads_by_row(self) -> bool:
        """Whether a row can be read without the others: changes may draw noise in any shape."""
        return self.augment is None and self.corrupt is None

    def read_streamed(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads rows of what is streamed, by name, each row flat.

        Whatever goes wrong is kept in `failure`: TensorFlow passes on only words of it.
        """
        try:
            return {
                name: read(rows).reshape(len(rows), *self.streamed[name][1])
                for name, read in self._sources.items()
            }
        except Exception as error:
            self.failure = error
            raise

    def read(self, epoch: tf.Tensor, position: tf.Tensor, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns a batch as a call does, from wherever the rows are."""
        if not self.streamed:
            return self(self.tensors, epoch, position, rows)
        found = self.as_tensors(self.read_streamed, [rows], None)
        places = tf.range(tf.size(rows))
        return self({**self.tensors, **found}, epoch, position, rows, places)

    def as_tensors(
        self, read: Callable[..., dict[str, np.ndarray]], arguments: list[Any], count: int | None
    ) -> dict[str, tf.Tensor]:
        """Returns what a function in Python reads of the streamed arrays, by name.

        Args:
            read: returns rows of each array, as `read_streamed`.
            arguments: its tensors.
            count: number of rows that it returns; None if it differs.
        """
        kinds = [dtype for dtype, _ in self.streamed.values()]
        in_thread = for_threads(lambda *given: [*read(*given).values()])
        found = tf.numpy_function(in_thread, arguments, kinds)
        return {
            name: tf.ensure_shape(tensor, [count, *row])
            for tensor, (name, (_, row)) in zip(
                tf.nest.flatten(found),  # of one array a tensor, or a list of it
                self.streamed.items(),
                strict=True,
            )
        }

    def __call__(
        self,
        tensors: dict[str, tf.Tensor],
        epoch: tf.Tensor,
        position: tf.Tensor,
        rows: tf.Tensor,
        places: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Returns {"inputs": float32 [rows, ...]} and the further arrays [rows, ...] by name.

        If the inputs are corrupted, `targets` are the clean ones.

        Args:
            tensors: `self.tensors`, an argument so that a compiled program does not contain them.
            epoch: epoch of the batch, counted from 0.
            position: index of the batch in its epoch, counted from 0.
            rows: row numbers, integers [rows].
            places: where these rows are in streamed tensors; the others have all rows of the split.

        A replica is given the row numbers of the global batch, and gets its own rows.
        """
        if self.reads_by_row:
            own_places = None if places is None else own_rows(places)
            return self._read(tensors, epoch, position, own_rows(rows), own_places)
        with whole_batch():
            batch = self._read(tensors, epoch, position, rows, places)
        return {name: own_rows(values) for name, values in batch.items()}

    def _read(
        self,
        tensors: dict[str, tf.Tensor],
        epoch: tf.Tensor,
        position: tf.Tensor,
        rows: tf.Tensor,
        places: tf.Tensor | None,
    ) -> dict[str, tf.Tensor]:
        stored = self.gathered(tensors, rows, places)
        values = tf.cast(stored.pop("inputs"), tf.float32)
        values = tf.reshape(values, [-1, *self.shape])
        if self.is_dequantized:
            values += cell_noise(tf.shape(values), fold_in(tensors["dequantize"], epoch, position))
        if self.is_scaled:
            # Subtract, then divide, as `Scaling.apply` does: equal to the last bit.
            values = (values - tensors["offset"]) / tensors["divisor"]
        if self.binarize == "threshold":
            values = tf.cast(values > 0.5, tf.float32)
        elif self.binarize == "dynamic":
            values = bernoulli(values, fold_in(tensors["key"], epoch, position))
        further = {
            name: tf.reshape(array, [-1, *shape]) if len(shape) > 1 else array
            for (name, array), shape in zip(stored.items(), self.shapes.values(), strict=True)
        }
        batch = {"inputs": values, **further}
        if self.augment is not None:
            key = fold_in(tensors["augment"], epoch, position)
            batch = changed("augmentation", self.augment, batch, key)
        if self.corrupt is not None:
            key = fold_in(tensors["corrupt"], epoch, position)
            batch = corrupted_batch(self.corrupt, batch, key)
        return batch

    def gathered(
        self, tensors: Mapping[str, tf.Tensor], rows: tf.Tensor, places: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """Returns what is read by row number: `inputs` and the further arrays, as stored and flat.

        Args:
            tensors, rows, places: as for a call.
        """

        def of(name: str) -> tf.Tensor:
            return tf.gather(tensors[name], places if name in self.streamed else rows)

        return {"inputs": of("stored"), **{name: of(_FURTHER + name) for name in self.shapes}}


def changed(
    what: str, function: Change, batch: Mapping[str, tf.Tensor], key: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns a batch as `function` changed it.

    Args:
        what: it is, for messages.
        function: from a batch and a key to a batch.
        batch: named tensors, of which none is lost.
        key: a stateless key, `[2]`.

    Raises:
        ValueError: it reads a name that is not there, or returns no dictionary, or inputs of
            another shape or type.
    """
    try:
        result = function(dict(batch), key)
    except KeyError as error:
        raise ValueError(
            f"the {what} reads {error}; it gets inputs and what the model reads: {', '.join(batch)}"
        ) from error
    if not isinstance(result, Mapping):
        raise ValueError(
            f"the {what} returned {type(result).__name__}; it must return the batch, a dictionary"
        )
    found = {name: tf.convert_to_tensor(value) for name, value in result.items()}
    before, after = batch["inputs"], found.get("inputs", batch["inputs"])
    if (after.shape[1:], after.dtype) != (before.shape[1:], before.dtype):
        raise ValueError(
            f"the {what} made inputs {after.dtype.name} {after.shape[1:]} of {before.dtype.name} "
            f"{before.shape[1:]}; it must keep them"
        )
    return {**batch, **found}


def corrupted_batch(
    function: Change, batch: Mapping[str, tf.Tensor], key: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns a batch with corrupted inputs; `targets` are the clean ones unless they are given."""
    return changed("corruption", function, {"targets": batch["inputs"], **batch}, key)


def fixed_corruption(
    split: StoredRows, function: Change, rows: slice | np.ndarray, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Returns rows of a split, corrupted by a draw that depends on nothing but the split's name.

    It is drawn for blocks of rows, so that a row is the same whichever rows are asked for.
    """
    names, numbers = tuple(names), np.arange(len(split))[rows]
    key = tf.constant([int.from_bytes(split.name.encode()[:4], "little"), _FIXED], tf.int64)
    parts, order = [], []
    with tf.device("/cpu:0"):
        for block in np.unique(numbers // _BLOCK):
            whole = slice(block * _BLOCK, min((block + 1) * _BLOCK, len(split)))
            clean = split.clean_tensors(whole, names)
            batch = {name: tf.constant(array) for name, array in clean.items()}
            batch = corrupted_batch(function, batch, fold_in(key, int(block)))
            at = np.flatnonzero(numbers // _BLOCK == block)
            order.append(at)
            parts.append({k: v.numpy()[numbers[at] - whole.start] for k, v in batch.items()})
    place = np.argsort(np.concatenate(order), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[place] for name in parts[0]}


def _flat(array: np.ndarray) -> tf.Tensor:
    """Rows as one vector each: XLA gathers them several times as fast as images."""
    return tf.constant(array if array.ndim == 1 else array.reshape(len(array), -1))


def epoch_order(rows: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """A permutation of 0..rows-1, int64, that depends on seed and epoch only."""
    key = fold_in(tf.constant([seed, _ORDER], tf.int64), epoch)
    # 63 random bits per row: ties, whose order the sort would decide, are practically impossible.
    draw = tf.random.stateless_uniform(
        [rows], key, maxval=np.iinfo(np.int64).max, dtype=tf.int64, alg="philox"
    )
    return tf.argsort(draw)


def bernoulli(probability: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Float32 0 and 1, drawn with a stateless `key` [2]; probabilities 0 and 1 are exact.

    Probabilities are rounded to multiples of 2**-16, an error below 8e-6. This halves the number of
    random bits, which are most of the cost of a batch.
    """
    # n + 1/2 < 2**16 p for round(2**16 p) of the numbers n in 0..65535; exact in float32.
    noise = _integers_of_16_bits(tf.shape(probability), key) + 0.5
    return tf.cast(noise < probability * 2.0**16, tf.float32)


def cell_noise(shape: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Float32 multiples of 2**-16 from [-1/2, 1/2), drawn with a stateless `key` [2].

    Added to integers below 256 they are exact, and none reaches the cell of the next integer.
    """
    return _integers_of_16_bits(shape, key) * 2.0**-16 - 0.5


def _integers_of_16_bits(shape: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Float32 numbers 0 to 65535, two from each random word; a replica has those of its rows."""
    return drawn_by_row(functools.partial(_drawn_16_bits, key=key), shape)


def _drawn_16_bits(shape: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    size = tf.reduce_prod(shape)
    words = philox_bits([(size + 1) // 2], key)
    halves = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size]
    return tf.reshape(tf.cast(halves, tf.float32), shape)
