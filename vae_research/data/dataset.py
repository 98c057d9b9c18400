"""The data of a run in memory: `Split` is one array with its labels, `Data` is the three splits.

    data = Data.from_arrays(images)              # uint8 [n, height, width]
    data.train.batches(batch_size=128, seed=0)   # endless tf.data.Dataset, shuffled
    data.test.prepare()                          # float32, as evaluation sees it

NumPy only, except for `Split.batches` and `Split.on_device`, which import TensorFlow when called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vae_research.data.checks import DataError, as_labels, as_values, row_blocks
from vae_research.data.scaling import (
    BINARIZATIONS,
    RESCALINGS,
    Scaling,
    fit_scaling,
    fixed_draw,
    one_of,
)
from vae_research.data.splitting import (
    SPLITS,
    as_images,
    cut_missing,
    oddities,
    refuse_different_kinds,
)

if TYPE_CHECKING:
    from vae_research.data.streams import Batches, DeviceDataset

__all__ = ["Data", "DataError", "Split"]


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One of the three parts of a data set.

    Attributes:
        name: "train", "validation" or "test".
        raw: the values as stored, [n, ...], native and C-ordered; images with a channel axis.
        labels: int64 [n], or None.
        scaling: how stored values become float32 (fitted to the training split).
        binarize: "none", "threshold", "static" or "dynamic".
    """

    name: str
    raw: np.ndarray
    labels: np.ndarray | None
    scaling: Scaling
    binarize: str

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

    @cached_property
    def fixed_draw(self) -> np.ndarray:
        """The Bernoulli draw used by "static" and by evaluation, uint8 0 or 1, [n, ...]."""
        return fixed_draw(self.raw, self.scaling, self.name)

    def prepare(self, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """The values as evaluation sees them, independent of any seed.

        Rescaled, and binarised if the data set is. For "static" and "dynamic" it is always the same
        draw, whichever rows are requested.

        Args:
            rows: a slice or an array of row numbers; None means all.

        Returns:
            A new float32 array [rows, ...].
        """
        rows = slice(None) if rows is None else rows
        if self.binarize in ("static", "dynamic"):
            return self._drawn(rows).astype(np.float32)
        values = self.scaling.apply(self.raw[rows])
        return (values > 0.5).astype(np.float32) if self.binarize == "threshold" else values

    def _drawn(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of the fixed draw; if they are the first ones, the others are not drawn."""
        if isinstance(rows, slice) and "fixed_draw" not in vars(self):
            start, stop, step = rows.indices(len(self))
            if start == 0 and stop < len(self) and step > 0:
                return fixed_draw(self.raw[:stop], self.scaling, self.name)[::step]
        return self.fixed_draw[rows]

    def steps(self, batch_size: int) -> int:
        """Number of batches in an epoch; the last one may be smaller."""
        return -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        seed: int,
        first_epoch: int | None = None,
        with_labels: bool = False,
    ) -> Batches:
        """Endless `tf.data.Dataset` for training; see `vae_research.data.streams.batches`."""
        from vae_research.data import streams  # here, so that loading data needs no TensorFlow

        return streams.batches(self, batch_size, seed, first_epoch, with_labels)

    def on_device(
        self,
        batch_size: int,
        seed: int | None = None,
        first_epoch: int | None = None,
        with_labels: bool = False,
        first_position: int = 0,
    ) -> DeviceDataset:
        """`DeviceDataset` for `fit` and `evaluate`; see `vae_research.data.streams`."""
        from vae_research.data import streams

        return streams.DeviceDataset(
            self, batch_size, seed, first_epoch, with_labels, first_position
        )


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set in three splits, made by `load_data` or `Data.from_arrays`.

    Attributes:
        name: of the data set, for messages and config.json.
        train, validation, test: the splits.
        is_image: whether rows are [height, width, channels].
        rescale: "none", "unit" or "standardize".
        binarize: "none", "threshold", "static" or "dynamic".
        warnings: one line for each oddity that is not an error. The caller prints them.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    is_image: bool
    rescale: str
    binarize: str
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """The name, the splits, and how values are rescaled and binarised."""
        counts = ", ".join(f"{split.name} {len(split)}" for split in self.splits)
        return (
            f"Data({self.name!r}, {counts}, shape {self.shape}, rescale={self.rescale!r}, "
            f"binarize={self.binarize!r})"
        )

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Train, validation, test."""
        return self.train, self.validation, self.test

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row; images: (height, width, channels)."""
        return self.train.shape

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over names, shapes, dtypes and bytes of all arrays as stored."""
        digest = hashlib.sha256()
        for split in self.splits:
            for array in (split.raw, split.labels):
                kind = "none" if array is None else f"{array.dtype.str} {array.shape}"
                digest.update(f"{split.name} {kind}\n".encode())
                if array is not None:
                    digest.update(array.data)
        return digest.hexdigest()

    @cached_property
    def grey_values(self) -> bool:
        """Whether a prepared value is neither 0 nor 1 (Bernoulli is then not normalised)."""
        if self.binarize != "none":
            return False
        for split in self.splits:
            for block in row_blocks(split.raw):
                values = split.scaling.apply(split.raw[block])
                if not np.all((values == 0) | (values == 1)):
                    return True
        return False

    def value_range(self) -> tuple[float, float]:
        """Smallest and largest prepared value of all splits; (0, 1) for binarised data."""
        if self.binarize != "none":
            return 0.0, 1.0
        return _scaled_range(self.splits)

    def summary(self) -> dict[str, Any]:
        """The description of the data in config.json; plain types only."""
        return {
            "name": self.name,
            "counts": {split.name: len(split) for split in self.splits},
            "shape": list(self.shape),
            "dtype": str(self.train.raw.dtype),
            "fingerprint": self.fingerprint,
            "rescale": self.rescale,
            "binarize": self.binarize,
        }

    @classmethod
    def from_arrays(
        cls,
        train: npt.ArrayLike,
        validation: npt.ArrayLike | None = None,
        test: npt.ArrayLike | None = None,
        *,
        train_labels: npt.ArrayLike | None = None,
        validation_labels: npt.ArrayLike | None = None,
        test_labels: npt.ArrayLike | None = None,
        rescale: str | None = None,
        binarize: str = "none",
        is_image: bool | None = None,
        name: str = "arrays",
    ) -> Data:
        """A data set from arrays of rank >= 2 whose first axis counts the rows.

        The rank alone decides what the axes mean: [n, d] is a table or mono sound; [n, h, w] are
        grey images and get a channel axis; [n, h, w, c] with c in 1..4 are images; anything else is
        a plain array. `is_image=False` keeps any array plain, for example sound [n, t, c].

        Missing splits are taken from `train`. If it is the only array, a fixed permutation of its
        rows is cut into 80 % training, 10 % validation and 10 % test, at least one row each; fewer
        than three rows serve as all three splits, with a warning. If either validation or test is
        given, the other is cut from the END of train: as many rows as the given one has, but at
        most a fifth (MNIST's 60 000 and 10 000 become 50 000, 10 000 and 10 000).

        Args:
            train, validation, test: bool, integers or floats (float64 is stored as float32); all
                with the same dtype and row shape.
            train_labels, validation_labels, test_labels: integers >= 0, one per row.
            rescale: see `vae_research.data.scaling.fit_scaling`; None is "unit" for uint8 and bool
                and "none" for everything else.
            binarize: "none", "threshold" (1 above 0.5), "static" (one Bernoulli draw that never
                changes), "dynamic" (training draws again in every epoch, evaluation sees the fixed
                draw).
            is_image: None follows the rule above; False keeps arrays plain; True refuses arrays
                that are not images by the rule.
            name: for messages and config.json.

        Raises:
            DataError: arrays that cannot be used, or that are to be binarised and have values
                outside [0, 1].
            ValueError: unknown `rescale` or `binarize`.
        """
        one_of(binarize, BINARIZATIONS, "binarize")
        if rescale is not None:
            one_of(rescale, RESCALINGS, "rescale")
        arrays: dict[str, np.ndarray] = {}
        labels: dict[str, np.ndarray] = {}
        given = zip(
            SPLITS,
            (train, validation, test),
            (train_labels, validation_labels, test_labels),
            strict=True,
        )
        for key, array, numbers in given:
            where = f"{name}: {key}"
            if array is None and numbers is not None:
                raise DataError(f"{where}: got labels but no values; give {key}= too")
            if array is None and key != "train":
                continue
            arrays[key] = as_values(array, where)
            if numbers is not None:
                labels[key] = as_labels(numbers, len(arrays[key]), where)
        refuse_different_kinds(arrays, name)
        arrays, is_image, warnings = as_images(arrays, is_image, name)
        arrays, labels, cut_warnings = cut_missing(arrays, labels, name)
        warnings += cut_warnings + oddities(arrays, is_image, name)

        if rescale is None:
            rescale = "unit" if arrays["train"].dtype in (np.uint8, np.bool_) else "none"
        scaling = fit_scaling(rescale, arrays["train"])
        splits = {
            key: Split(
                key,
                _read_only(arrays[key]),
                _read_only(labels[key]) if key in labels else None,
                scaling,
                binarize,
            )
            for key in SPLITS
        }
        if binarize != "none":
            _refuse_outside_unit_interval(splits.values(), name, rescale, binarize)
        return cls(
            name,
            **splits,
            is_image=is_image,
            rescale=rescale,
            binarize=binarize,
            warnings=tuple(warnings),
        )


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()  # a view, so that the caller's array stays writable
    view.flags.writeable = False
    return view


def _scaled_range(splits: Iterable[Split]) -> tuple[float, float]:
    ranges = [split.scaling.range_of(split.raw) for split in splits]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _refuse_outside_unit_interval(
    splits: Iterable[Split], name: str, rescale: str, binarize: str
) -> None:
    low, high = _scaled_range(splits)
    if low >= 0 and high <= 1:
        return
    advice = (
        "clip validation and test to the range of train, which --rescale=unit maps to [0, 1]"
        if rescale == "unit"
        else "use --rescale=unit"
    )
    raise DataError(
        f"{name}: --binarize={binarize} needs values in [0, 1], but with --rescale={rescale} they "
        f"lie in [{low:g}, {high:g}]; {advice}"
    )
