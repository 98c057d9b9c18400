"""The data of a run: `Split` has the arrays of one part, `Data` is the three splits.

    data = Data.from_arrays(images)              # uint8 [n, height, width]
    data.train.batches(batch_size=128, seed=0)   # endless tf.data.Dataset, shuffled
    data.test.prepare()                          # float32, as evaluation sees it

NumPy only; see `vae_research.data.split` for what imports TensorFlow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vae_research.data.checks import DataError, as_values
from vae_research.data.factors import Factors, find_factors
from vae_research.data.further_arrays import checked_further, unpacked
from vae_research.data.scaling import (
    BINARIZATIONS,
    DEQUANTIZATIONS,
    RESCALINGS,
    fit_scaling,
    one_of,
)
from vae_research.data.sources import Rows
from vae_research.data.split import Change, Split
from vae_research.data.splitting import (
    KINDS,
    SPLITS,
    as_images,
    cut_missing,
    oddities,
    refuse_different_kinds,
)

__all__ = ["Data", "DataError", "Split"]

ArraysOfSplit: TypeAlias = "npt.ArrayLike | Mapping[str, npt.ArrayLike]"
"""The values of a split, or a dictionary with them as `inputs` and further arrays by name."""


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
        notes: sentences for a reader of figures that are about no oddity.
        left_out: why a further array was left out, by its name; see `from_arrays`.
        made_by: file and name of the experiment's function that made this data set, with which a
            run finds it again; None if the flags name it.
        factors: names and sizes of the known causes of the rows, whose numbers are the further
            array `factors`, int64 [n, k], of each split; None if there are none.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    is_image: bool
    rescale: str
    binarize: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    made_by: tuple[str, str] | None = None
    factors: Factors | None = None

    def __repr__(self) -> str:
        """The name, the splits, and how values are rescaled and binarised."""
        counts = ", ".join(f"{split.name} {len(split)}" for split in self.splits)
        return (
            f"Data({self.name!r}, {counts}, shape {self.shape}, rescale={self.rescale!r} "
            f"({self.train.scaling}), binarize={self.binarize!r})"
        )

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Train, validation, test."""
        return self.train, self.validation, self.test

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row; images: (height, width, channels)."""
        return self.train.shape

    @property
    def dequantize(self) -> str:
        """ "none" or "uniform"; see `dequantized`."""
        return self.train.dequantize

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the further arrays that all splits have; a model may read these."""
        return tuple(
            name for name in self.train.arrays if all(name in split.arrays for split in self.splits)
        )

    def augmented(self, function: Change) -> Data:
        """This data set with another view of each training batch: flipped, shifted, ...

        Validation, test and figures of the training split stay as they are. In a run, `function` is
        part of the experiment's `data`.

        Args:
            function: from named tensors of a batch, `inputs` float32 [rows, ...] as the model would
                be given them and the further arrays that it reads, and a key [2] to the same names.
                It keeps the shape of `inputs`, has no state, and draws from the key alone:
                `vr.standard_normal(shape, key)`, or `vr.uniform(shape, key)`. The key is that of
                (seed, epoch, position of the batch).
        """
        return replace(self, train=replace(self.train, augment=function))

    def corrupted(self, function: Change) -> Data:
        """This data set with corrupted inputs, of which a model reconstructs the clean ones.

        `targets` are the inputs as they were, after augmentation. Training draws again in every
        epoch; evaluation sees the same draw always. Vincent et al. 2008, Extracting and Composing
        Robust Features with Denoising Autoencoders; Im et al. 2017 (arXiv:1511.06406) for the VAE.

        Args:
            function: as for `augmented`; it may also write names of its own, such as a mask.
        """
        train, validation, test = (replace(split, corrupt=function) for split in self.splits)
        return replace(self, train=train, validation=validation, test=test)

    def dequantized(self) -> Data:
        """This data set of integers with uniform noise from [-1/2, 1/2) added to each value.

        A density of integers has no upper bound. With the noise, which is drawn again in every
        epoch, -log p(x + u) is at least the code length of the integers on average over u. Theis et
        al. 2016 (arXiv:1511.01844), section 3.1. Evaluation sees the same draw always. Values are
        rescaled afterwards: "unit" maps the cells of all levels together to [0, 1].

        Raises:
            DataError: the values are not integers, or they are binarised.
        """
        dtype = self.train.raw.dtype
        if dtype.kind not in "bui":
            raise DataError(
                f"{self.name}: --dequantize=uniform adds noise to integers, whose levels are 1 "
                f"apart, and these values are {dtype}: store them as integers, or leave it out"
            )
        if self.binarize != "none":
            raise DataError(
                f"{self.name}: --dequantize=uniform adds noise to the levels of grey values, and "
                f"--binarize={self.binarize} makes them 0 or 1: add --binarize=none"
            )
        if self.train.dequantize == "uniform":
            return self
        scaling = self.train.scaling.of_dequantized(self.rescale)
        train, validation, test = (
            replace(split, scaling=scaling, dequantize="uniform") for split in self.splits
        )
        return replace(self, train=train, validation=validation, test=test)

    def with_train_rows(self, count: int) -> Data:
        """This data set with the first `count` rows of its training split, at most all of them.

        Values are rescaled as before. Sprites, and splits that were cut from one array of a file in
        no order, have a fair sample of all rows there.

        Raises:
            ValueError: `count` is not positive.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")

        def first(array: Any) -> Any:
            return array.subset(slice(count)) if isinstance(array, Rows) else array[:count]

        arrays = {name: first(array) for name, array in self.train.arrays.items()}
        return replace(self, train=replace(self.train, raw=first(self.train.raw), arrays=arrays))

    def why_missing(self, name: str) -> str | None:
        """Why no model can read the further array `name`, or None if nothing is known of it."""
        if name in self.left_out:
            return self.left_out[name]
        without = [split.name for split in self.splits if name not in split.arrays]
        if not 0 < len(without) < len(self.splits):
            return None
        return f"{self.name}: {' and '.join(without)} has no {name}; give it for every split"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over names, shapes, dtypes and bytes of all arrays as stored.

        Of rows that are not in memory it has the bytes of up to 1000, and none of a pipeline.
        """
        digest = hashlib.sha256()

        def add(what: str, array: Any) -> None:
            kind = "none" if array is None else f"{array.dtype.str} {array.shape}"
            digest.update(f"{what} {kind}\n".encode())
            if isinstance(array, Rows):
                array = array.sample() if array.is_repeatable else None
            if array is not None:
                digest.update(array.data)

        for split in self.splits:
            add(split.name, split.raw)
            add(split.name, split.labels)
            for name in sorted(split.arrays.keys() - {"labels"}):
                add(f"{split.name} {name}", split.arrays[name])
        return digest.hexdigest()

    @cached_property
    def grey_values(self) -> bool:
        """Whether a prepared value is neither 0 nor 1 (Bernoulli is then not normalised)."""
        return any(split.grey_values for split in self.splits)

    def value_range(self) -> tuple[float, float]:
        """Smallest and largest prepared value of all splits; (0, 1) for binarised data."""
        ranges = [split.value_range() for split in self.splits]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def summary(self) -> dict[str, Any]:
        """The description of the data in config.json; plain types only."""
        return {
            "name": self.name,
            "counts": {split.name: len(split) for split in self.splits},
            "shape": list(self.shape),
            "dtype": str(self.train.raw.dtype),
            "fingerprint": self.fingerprint,
            "streamed": self.train.is_streamed,
            "rescale": self.rescale,
            "scaling": str(self.train.scaling),
            "binarize": self.binarize,
            "dequantize": self.dequantize,
            "arrays": {
                name: f"{array.dtype} {list(array.shape[1:])}"
                for name, array in self.train.arrays.items()
            },
            "made_by": None if self.made_by is None else list(self.made_by),
        }

    @classmethod
    def from_arrays(
        cls,
        train: ArraysOfSplit,
        validation: ArraysOfSplit | None = None,
        test: ArraysOfSplit | None = None,
        *,
        train_labels: npt.ArrayLike | None = None,
        validation_labels: npt.ArrayLike | None = None,
        test_labels: npt.ArrayLike | None = None,
        rescale: str | None = None,
        binarize: str = "none",
        kind: str | None = None,
        name: str = "arrays",
        leave_out_unfit: bool = False,
        dequantize: str = "none",
        factors: Factors | Sequence[str] | None = None,
    ) -> Data:
        """A data set from arrays of rank >= 2 whose first axis counts the rows.

        A dictionary gives further arrays with a row for each row of `inputs`, of any rank >= 1 and
        any type of bool, integers and floats, which encoder, decoder, bottleneck and terms read by
        name: `{"inputs": images, "labels": classes, "mask": pixels}`. They are kept as stored; only
        float64 becomes float32. `labels` are class numbers. `factors`, if they are integers [n, k],
        are the known causes of the rows, each numbered from 0; see `Data.factors`.

        The shape decides what the axes mean: [n, d] is a table or mono sound; [n, h, w] are grey
        images and get a channel axis; [n, h, w, c] with c in 1..4 are images; anything else is a
        plain array. [n, time, features] has the rank of grey images: of rank 3, only squares, and
        bool, uint8 and uint16 with w > 4, are taken for images; `kind` must be given for others.

        Missing splits are taken from `train`. If it is the only array, a fixed permutation of its
        rows is cut into 80 % training, 10 % validation and 10 % test, at least one row each; fewer
        than three rows serve as all three splits, with a warning. If either validation or test is
        given, the other is cut from the END of train: as many rows as the given one has, but at
        most a fifth (MNIST's 60 000 and 10 000 become 50 000, 10 000 and 10 000).

        Args:
            train, validation, test: bool, integers or floats (float64 is stored as float32); all
                with the same dtype and row shape. Or a dictionary, with these as `inputs`.
            train_labels, validation_labels, test_labels: one per row, [n] or [n, 1]: integers, -1
                for a row without a label; or strings, which are numbered in sorted order. The same
                as `labels` in the dictionary.
            rescale: see `vae_research.data.scaling.fit_scaling`; None is "unit" for uint8, bool and
                images of uint16, and "none" for everything else.
            binarize: "none", "threshold" (1 above 0.5), "static" (one Bernoulli draw that never
                changes), "dynamic" (training draws again in every epoch, evaluation sees the fixed
                draw).
            kind: "images", "series" ([n, time] or [n, time, features], plain) or "table" (plain,
                whatever the rank); None follows the rule above.
            name: for messages and config.json.
            leave_out_unfit: leave out a further array that cannot be used, with a warning, instead
                of raising an error: a model may not read it.
            dequantize: "none", or "uniform" for noise that is added to integers; see `dequantized`.
            factors: names of the columns of the further array `factors`, or names and sizes; by
                default factor_0, factor_1, ... with the sizes that the values show.

        Raises:
            DataError: arrays or names that cannot be used, or values outside [0, 1] that are to be
                binarised.
            ValueError: unknown `rescale`, `binarize`, `dequantize` or `kind`.
        """
        one_of(binarize, BINARIZATIONS, "binarize")
        one_of(dequantize, DEQUANTIZATIONS, "dequantize")
        if kind is not None:
            one_of(kind, KINDS, "kind")
        if rescale is not None:
            one_of(rescale, RESCALINGS, "rescale")
        arrays: dict[str, Any] = {}
        further: dict[str, dict[str, Any]] = {}
        given = zip(
            SPLITS,
            (train, validation, test),
            (train_labels, validation_labels, test_labels),
            strict=True,
        )
        for key, values, numbers in given:
            where = f"{name}: {key}"
            if values is None and numbers is not None:
                raise DataError(f"{where}: got labels but no values; give {key}= too")
            if values is None and key != "train":
                continue
            inputs, further[key] = unpacked(values, numbers, where)
            arrays[key] = inputs if isinstance(inputs, Rows) else as_values(inputs, where)
        if not all(key in arrays for key in SPLITS) and any(
            isinstance(array, Rows) and not array.is_repeatable for array in arrays.values()
        ):
            raise DataError(
                f"{name}: no split can be cut from a pipeline; give validation and test as arrays"
            )
        refuse_different_kinds(arrays, name)
        arrays, is_image, warnings = as_images(arrays, kind, name)
        checked, left_out = checked_further(further, arrays, name)
        if left_out and not leave_out_unfit:
            raise DataError(next(iter(left_out.values())))
        warnings += [f"{reason} ({label!r} is left out)" for label, reason in left_out.items()]
        splits, cut_warnings = cut_missing(
            {key: {"inputs": array, **checked[key]} for key, array in arrays.items()}, name
        )
        arrays = {key: found["inputs"] for key, found in splits.items()}
        known, factor_warnings = find_factors(splits, factors, name)
        warnings += cut_warnings + oddities(arrays, is_image, name) + factor_warnings

        if rescale is None:
            pixels = arrays["train"].dtype in (np.uint8, np.bool_)
            pixels = pixels or (is_image and arrays["train"].dtype == np.uint16)
            rescale = "unit" if pixels else "none"
        scaling = fit_scaling(rescale, arrays["train"], (arrays["validation"], arrays["test"]))
        warnings += [f"{name}: {note}" for note in [scaling.note] if note]
        parts = [
            Split(
                key,
                _read_only(arrays[key]),
                {n: _read_only(array) for n, array in found.items() if n != "inputs"},
                scaling,
                binarize,
            )
            for key, found in splits.items()
        ]
        if binarize != "none":
            _refuse_outside_unit_interval(parts, name, rescale, binarize)
        data = cls(
            name,
            parts[0],
            parts[1],
            parts[2],
            is_image=is_image,
            rescale=rescale,
            binarize=binarize,
            warnings=tuple(warnings),
            left_out=left_out,
            factors=known,
        )
        return data.dequantized() if dequantize == "uniform" else data


def _read_only(array: Any) -> Any:
    if isinstance(array, Rows):
        return array
    view = array.view()  # a view, so that the caller's array stays writable
    view.flags.writeable = False
    return view


def _refuse_outside_unit_interval(
    splits: Iterable[Split], name: str, rescale: str, binarize: str
) -> None:
    ranges = [split.scaling.range_of(split.raw) for split in splits]
    low, high = min(each[0] for each in ranges), max(each[1] for each in ranges)
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
