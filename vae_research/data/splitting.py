"""Rules for splits: which axes are an image, how missing splits are cut, what is worth a warning.

NumPy only. Splits are dictionaries, "train" first; those that are not given are not in them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vae_research.data.checks import DataError, count_constant_rows, count_shared_rows
from vae_research.data.sources import Rows

SPLITS = ("train", "validation", "test")
KINDS = ("images", "series", "table")

# Key of the permutation that cuts a single array into three splits. It must never change.
_PERMUTATION_KEY = 0x5EED


def refuse_different_kinds(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """Raises DataError unless all arrays have the dtype and row shape of the training array."""
    train = arrays["train"]
    for key, array in arrays.items():
        if array.shape[1:] != train.shape[1:]:
            raise DataError(
                f"{name}: rows of train have shape {train.shape[1:]}, rows of {key} "
                f"{array.shape[1:]}; all splits need the same"
            )
        if array.dtype != train.dtype:
            raise DataError(
                f"{name}: train is stored as {train.dtype}, {key} as {array.dtype}; store all "
                "splits as one type, otherwise they would be rescaled differently"
            )


def as_images(
    arrays: dict[str, np.ndarray], kind: str | None, name: str
) -> tuple[dict[str, np.ndarray], bool, list[str]]:
    """Arrays (grey images get a channel axis), whether they are images, and warnings.

    `Data.from_arrays` states the rule.

    Raises:
        DataError: the shape is not that of the `kind`, or of rank 3 and may be a series.
    """
    train = arrays["train"]
    shape = train.shape
    if kind is None and len(shape) == 3 and not _is_grey_stack(train):
        raise DataError(
            f"{name}: {train.dtype} of shape {shape} may be grey images [n, height, width] or "
            "series [n, time, features]; say which: --data_kind=images or --data_kind=series "
            "(kind= in Python)" + _ONE_PICTURE * (shape[-1] in (3, 4))
        )
    by_shape = len(shape) == 3 or (len(shape) == 4 and 1 <= shape[-1] <= 4)
    if kind == "images" and not by_shape:
        raise DataError(
            f"{name}: shape {shape} is not a stack of images; [n, height, width] and "
            "[n, height, width, 1 to 4 channels] are"
        )
    if kind == "series" and len(shape) > 3:
        raise DataError(
            f"{name}: shape {shape} is not that of series; [n, time] and [n, time, features] are"
        )
    warnings = []
    if kind is None and len(shape) == 4 and not by_shape and shape[1] <= 4:
        warnings.append(
            f"{name}: shape {shape} is taken as plain arrays; if these are images with the channel "
            "first, use numpy.moveaxis(array, 1, -1)"
        )
    image = by_shape if kind is None else kind == "images"
    if image and len(shape) == 3:
        arrays = {key: _with_channels(array) for key, array in arrays.items()}
    return arrays, image, warnings


_ONE_PICTURE = "; one colour picture is array[np.newaxis]"


def _is_grey_stack(array: np.ndarray) -> bool:
    """Whether an array of rank 3 is clearly [n, height, width] and not [n, time, features]."""
    height, width = array.shape[1:]
    return height == width or (width > 4 and array.dtype in (np.uint8, np.bool_, np.uint16))


def _with_channels(array: Any) -> Any:
    if isinstance(array, Rows):
        return array.with_row_shape((*array.shape[1:], 1))
    return array[..., np.newaxis]


def cut_missing(
    splits: dict[str, dict[str, np.ndarray]], name: str
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """All three splits, each with `inputs` and its further arrays by name, and warnings.

    All arrays of a split are cut by the same rows. `Data.from_arrays` states the rule.
    """
    missing = [key for key in SPLITS if key not in splits]
    if not missing:
        return splits, []
    train = splits["train"]
    count = len(train["inputs"])
    if (len(missing) == 2 and count < 3) or count < 2:
        warning = (
            f"{name}: {count} training row(s) cannot be split; {' and '.join(missing)} "
            "repeat the training split"
        )
        return {key: splits.get(key, train) for key in SPLITS}, [warning]
    if len(missing) == 2:
        # Files are often sorted by class: the end of such a file is not a fair sample of it.
        order = np.argsort(np.random.Philox(key=_PERMUTATION_KEY).random_raw(count), kind="stable")
        tenth = max(1, count // 10)
        parts = {
            "train": np.sort(order[: count - 2 * tenth]),
            "validation": order[count - 2 * tenth : count - tenth],
            "test": order[count - tenth :],
        }
        return {key: _rows_of(train, rows) for key, rows in parts.items()}, []
    (absent,) = missing
    (given,) = (key for key in SPLITS[1:] if key != absent)
    cut = count - max(1, min(len(splits[given]["inputs"]), count // 5))
    found = {
        "train": _rows_of(train, slice(cut)),
        given: splits[given],
        absent: _rows_of(train, slice(cut, None)),
    }
    found = {key: found[key] for key in SPLITS}
    return found, _other_classes(found["train"], found[absent], absent, name)


def _rows_of(arrays: Mapping[str, Any], rows: slice | np.ndarray) -> dict[str, Any]:
    return {
        key: array.subset(rows) if isinstance(array, Rows) else array[rows]
        for key, array in arrays.items()
    }


def _other_classes(
    train: Mapping[str, np.ndarray], cut: Mapping[str, np.ndarray], absent: str, name: str
) -> list[str]:
    """A warning if the end of train, which became the split `absent`, holds other classes."""
    if "labels" not in train:
        return []
    lost = np.setdiff1d(train["labels"], cut["labels"])
    new = np.setdiff1d(cut["labels"], train["labels"])
    if not len(lost) and not len(new):
        return []
    return [
        f"{name}: {absent} was cut from the end of train and holds other classes "
        f"({len(lost)} are in train only, {len(new)} in {absent} only); shuffle train first"
    ]


def oddities(arrays: Mapping[str, np.ndarray], is_image: bool, name: str) -> list[str]:
    """Warnings: a single row, blank images, constant data, rows shared between splits.

    Of rows that are not in memory some are looked at.
    """
    arrays = {
        key: array.sample() if isinstance(array, Rows) else array for key, array in arrays.items()
    }
    train, rows = arrays["train"], "images" if is_image else "rows"
    warnings = []
    if len(train) == 1:
        warnings.append(f"{name}: train holds a single {rows[:-1]}")
    if train.min() == train.max():
        warnings.append(f"{name}: every value of train is {train.flat[0]}; nothing can be learned")
    elif is_image:
        for key, array in arrays.items():
            if blank := count_constant_rows(array):
                warnings.append(
                    f"{name}: {blank} of {len(array)} {key} images are constant (one value in all "
                    "pixels)"
                )
    for seen, checked in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if shared := count_shared_rows(arrays[seen], arrays[checked]):
            warnings.append(
                f"{name}: {shared} of {len(arrays[checked])} {checked} {rows} are also in {seen}; "
                f"figures on {checked} will be too good"
            )
    return warnings
