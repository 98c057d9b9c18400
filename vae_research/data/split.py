"""One part of a data set: its arrays, prepared for evaluation or in batches.

NumPy only, except for `Split.batches` and `Split.on_device`, which import TensorFlow when called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from vae_research.data.checks import DataError, refuse_non_finite, row_blocks
from vae_research.data.scaling import Scaling, fixed_dequantization, fixed_draw
from vae_research.data.sources import Rows

if TYPE_CHECKING:
    import tensorflow as tf

    from vae_research.data.streams import Batches, DeviceDataset

Change: TypeAlias = "Callable[[dict[str, tf.Tensor], tf.Tensor], Mapping[str, tf.Tensor]]"
"""A function of a batch, named tensors, and a stateless key, `[2]` int64; returns the batch."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One of the three parts of a data set.

    Attributes:
        name: "train", "validation" or "test".
        raw: the values as stored, [n, ...], native and C-ordered; images with a channel axis. A
            split that is streamed has `Rows` here, which are read when they are needed.
        arrays: further arrays [n, ...] by name, as stored: `labels` and names of your own. They may
            be `Rows`, too.
        scaling: how stored values become float32 (fitted to the training split).
        binarize: "none", "threshold", "static" or "dynamic".
        augment, corrupt: see `Data.augmented` and `Data.corrupted`.
        dequantize: "none" or "uniform"; see `Data.dequantized`.
        draw: number of the draw of that noise which evaluation sees, from 0.
    """

    name: str
    raw: np.ndarray | Rows
    arrays: Mapping[str, Any]
    scaling: Scaling
    binarize: str
    augment: Change | None = None
    corrupt: Change | None = None
    dequantize: str = "none"
    draw: int = 0

    def __repr__(self) -> str:
        """The name and the shape; `prepare()` gives the values."""
        return f"Split({self.name!r}, {len(self)} rows of shape {self.shape})"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.raw)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row; images: (height, width, channels)."""
        return self.raw.shape[1:]

    @property
    def is_streamed(self) -> bool:
        """Whether rows are read when they are needed."""
        return isinstance(self.raw, Rows)

    @property
    def is_repeatable(self) -> bool:
        """Whether a row number always gives the same row; see `sources.rows_of_pipeline`."""
        return not isinstance(self.raw, Rows) or self.raw.is_repeatable

    @property
    def labels(self) -> Any:
        """The class numbers, int64 [n], or None."""
        return self.arrays.get("labels")

    def array(self, name: str) -> Any:
        """The further array `name`, or its `Rows`, to be read by a model.

        Raises:
            DataError: there is no such array, or it has values that are not finite.
        """
        if name not in self.arrays:
            there = f"it has {', '.join(self.arrays)}" if self.arrays else "it has no further array"
            raise DataError(
                f"split {self.name!r} has no {name}, {there}; give it to Data.from_arrays"
            )
        array = self.arrays[name]
        if array.dtype.kind == "f" and name not in self._finite and not isinstance(array, Rows):
            advice = "a model that reads it needs finite values, and a mask where one is missing"
            refuse_non_finite(array, f"{name} of split {self.name!r}", advice)
            self._finite.add(name)
        return array

    @cached_property
    def _finite(self) -> set[str]:
        """Names of the arrays that were checked for NaN and infinity."""
        return set()

    @cached_property
    def fixed_draw(self) -> np.ndarray:
        """The Bernoulli draw used by "static" and by evaluation, uint8 0 or 1, [n, ...]."""
        return fixed_draw(self.raw, self.scaling, self.name)

    def prepare(self, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """The values as evaluation sees them, independent of any seed.

        Rescaled, and binarised or dequantised if the data set is. For "static", "dynamic" and
        "uniform" it is always the same draw, whichever rows are requested.

        Args:
            rows: a slice or an array of row numbers; None means all.

        Returns:
            A new float32 array [rows, ...].
        """
        rows = slice(None) if rows is None else rows
        if self.binarize in ("static", "dynamic"):
            return self.drawn(rows).astype(np.float32)
        if self.dequantize == "uniform":
            numbers = np.arange(len(self))[rows]
            noisy = fixed_dequantization(self.raw, self.name, self.draw, numbers)
            return self.scaling.apply(noisy)
        values = self.scaling.apply(self.raw[rows])
        return (values > 0.5).astype(np.float32) if self.binarize == "threshold" else values

    def tensors(
        self, rows: slice | np.ndarray | None = None, names: Iterable[str] = ()
    ) -> dict[str, np.ndarray]:
        """What a model is given in an evaluation: `inputs`, and further arrays by name.

        If the data are corrupted, always by the same draw, `targets` are the clean values.

        Args:
            rows: as for `prepare`.
            names: further arrays to be added, as stored.
        """
        rows = slice(None) if rows is None else rows
        if self.corrupt is not None:
            from vae_research.data import pipeline

            return pipeline.fixed_corruption(self, self.corrupt, rows, names)
        return self.clean_tensors(rows, names)

    def clean_tensors(
        self, rows: slice | np.ndarray, names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """As `tensors`, before they are corrupted."""
        return {"inputs": self.prepare(rows), **{name: self.arrays[name][rows] for name in names}}

    def tensors_by_block(self, names: Iterable[str] = ()) -> dict[str, Any]:
        """Returns `tensors` of all rows, whose `inputs` are prepared when a slice is asked for.

        Corrupted data are prepared at once: other tensors than the inputs may differ, too.
        """
        if self.corrupt is not None:
            return self.tensors(None, names)
        return {"inputs": PreparedRows(self), **{name: self.arrays[name] for name in names}}

    def drawn(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of the fixed draw, uint8 0 or 1; the others are not drawn for them."""
        numbers = np.arange(len(self))[rows]
        if "fixed_draw" in vars(self) or (len(numbers) == len(self) and not self.is_streamed):
            return self.fixed_draw[rows]
        return fixed_draw(self.raw, self.scaling, self.name, numbers)

    @cached_property
    def grey_values(self) -> bool:
        """Whether a prepared value is neither 0 nor 1."""
        if self.binarize != "none" or self.dequantize != "none":
            return self.binarize == "none"
        if isinstance(self.raw, Rows) and self.raw.dtype.kind in "bu" and self.raw.bounds == (0, 1):
            return set(self.scaling.apply(np.arange(2)).flat) != {0.0, 1.0}
        for block in row_blocks(self.raw):
            values = self.scaling.apply(self.raw[block])
            if not np.all((values == 0) | (values == 1)):
                return True
        return False

    def value_range(self) -> tuple[float, float]:
        """Smallest and largest prepared value that there may be; (0, 1) for binarised data."""
        if self.binarize != "none":
            return 0.0, 1.0
        return self.scaling.range_of(self.raw, 0.5 if self.dequantize == "uniform" else 0.0)

    def steps(self, batch_size: int) -> int:
        """Number of batches in an epoch; the last one may be smaller."""
        return -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        seed: int,
        first_epoch: int | None = None,
        names: Sequence[str] = (),
    ) -> Batches:
        """Endless `tf.data.Dataset` for training; see `vae_research.data.streams.batches`."""
        from vae_research.data import streams  # here, so that loading data needs no TensorFlow

        return streams.batches(self, batch_size, seed, first_epoch, names)

    def on_device(
        self,
        batch_size: int,
        seed: int | None = None,
        first_epoch: int | None = None,
        names: Sequence[str] = (),
        first_position: int = 0,
    ) -> DeviceDataset:
        """`DeviceDataset` for `fit` and `evaluate`; see `vae_research.data.streams`."""
        from vae_research.data import streams

        return streams.DeviceDataset(self, batch_size, seed, first_epoch, names, first_position)


class PreparedRows:
    """The values of a split as evaluation sees them, indexed like an array by rows.

    They are prepared when they are asked for, so that they are never all in memory.

    Attributes:
        shape: as an array would have it.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self.shape = split.raw.shape

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._split)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """See `Split.prepare`."""
        return self._split.prepare(rows)
