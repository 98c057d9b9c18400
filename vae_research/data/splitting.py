"""Which axes are an image, how missing splits are cut from the training array, and what is odd.

NumPy only. All functions work on `{"train": array, "validation": array or None, "test": ...}`.
"""

import numpy as np

from vae_research.data.checks import DataError, count_constant_rows, count_shared_rows

SPLITS = ("train", "validation", "test")

# Key of the permutation that cuts a single array into three splits; it never changes.
_PERMUTATION_KEY = 0x5EED


def refuse_different_kinds(arrays: dict, name: str) -> None:
    """Raises DataError unless all arrays have the dtype and row shape of the training array."""
    train = arrays["train"]
    for key, array in arrays.items():
        if array is None:
            continue
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


def as_images(arrays: dict, is_image: bool | None, name: str) -> tuple[dict, bool, list[str]]:
    """Arrays with a channel axis if they are grey images, whether they are images, warnings.

    The rule looks at the rank alone: see `Data.from_arrays`.

    Raises:
        DataError: `is_image=True` for an array that the rule takes for no image.
    """
    shape = arrays["train"].shape
    by_rule = len(shape) == 3 or (len(shape) == 4 and 1 <= shape[-1] <= 4)
    if is_image and not by_rule:
        raise DataError(
            f"{name}: shape {shape} is no stack of images; [n, height, width] and "
            "[n, height, width, 1 to 4 channels] are"
        )
    warnings = []
    if len(shape) == 4 and not by_rule and shape[1] <= 4 and is_image is None:
        warnings.append(
            f"{name}: shape {shape} is taken as plain arrays; if these are images with the channel "
            "first, use numpy.moveaxis(array, 1, -1)"
        )
    image = by_rule if is_image is None else is_image
    if image and len(shape) == 3:
        arrays = {key: None if a is None else a[..., np.newaxis] for key, a in arrays.items()}
    return arrays, image, warnings


def cut_missing(arrays: dict, labels: dict, name: str) -> tuple[dict, dict, list[str]]:
    """Arrays and labels of all three splits, and warnings; see `Data.from_arrays` for the rule."""
    missing = [key for key in SPLITS if arrays[key] is None]
    if not missing:
        return arrays, labels, []
    train, numbers = arrays["train"], labels["train"]
    count = len(train)
    if (len(missing) == 2 and count < 3) or count < 2:
        everything = {key: train if key in missing else arrays[key] for key in SPLITS}
        all_labels = {key: numbers if key in missing else labels[key] for key in SPLITS}
        return (
            everything,
            all_labels,
            [
                f"{name}: {count} training row(s) cannot be split; {' and '.join(missing)} "
                "repeat the training split"
            ],
        )
    if len(missing) == 2:
        # Files are often sorted by class: the end of such a file is no sample of it.
        order = np.argsort(np.random.Philox(key=_PERMUTATION_KEY).random_raw(count), kind="stable")
        tenth = max(1, count // 10)
        parts = {
            "train": np.sort(order[: count - 2 * tenth]),
            "validation": order[count - 2 * tenth : count - tenth],
            "test": order[count - tenth :],
        }
        return (
            {key: train[rows] for key, rows in parts.items()},
            {key: None if numbers is None else numbers[rows] for key, rows in parts.items()},
            [],
        )
    (absent,) = missing
    (given,) = (key for key in SPLITS[1:] if key != absent)
    cut = count - max(1, min(len(arrays[given]), count // 5))
    arrays = {**arrays, "train": train[:cut], absent: train[cut:]}
    if numbers is None:
        return arrays, labels, []
    labels = {**labels, "train": numbers[:cut], absent: numbers[cut:]}
    lost = np.setdiff1d(labels["train"], labels[absent])
    new = np.setdiff1d(labels[absent], labels["train"])
    if not len(lost) and not len(new):
        return arrays, labels, []
    return (
        arrays,
        labels,
        [
            f"{name}: {absent} was cut from the end of train and holds other classes "
            f"({len(lost)} are in train only, {len(new)} in {absent} only); shuffle train first"
        ],
    )


def oddities(arrays: dict, is_image: bool, name: str) -> list[str]:
    """Warnings: one single row, blank images, constant data, rows shared between splits."""
    train, rows = arrays["train"], "images" if is_image else "rows"
    warnings = []
    if len(train) == 1:
        warnings.append(f"{name}: train holds one single {rows[:-1]}")
    if train.min() == train.max():
        warnings.append(f"{name}: every value of train is {train.flat[0]}; nothing can be learned")
    elif is_image:
        for key, array in arrays.items():
            if blank := count_constant_rows(array):
                warnings.append(
                    f"{name}: {blank} of {len(array)} {key} images are constant (one value in all "
                    "pixels)"
                )
    for seen, judged in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if shared := count_shared_rows(arrays[seen], arrays[judged]):
            warnings.append(
                f"{name}: {shared} of {len(arrays[judged])} {judged} {rows} are also in {seen}; "
                f"figures on {judged} are too good by that"
            )
    return warnings
