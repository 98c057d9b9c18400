"""Names that people give to splits: one table, for folders, keys of .npz files and columns."""

import re
from collections.abc import Iterable
from pathlib import Path

from vae_research.data.checks import DataError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_CONTENTS = {
    "inputs": ("x", "image", "images", "img", "imgs", "inputs", "data", "set", "dataset"),
    "labels": ("y", "label", "labels", "target", "targets"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_CONTENT_OF = {"": "inputs"} | {w: content for content, words in _CONTENTS.items() for w in words}
_SPLIT = "|".join(sorted(_SPLIT_OF, key=len, reverse=True))
_CONTENT = "|".join(sorted(_CONTENT_OF, key=len, reverse=True))
_NAME = re.compile(
    rf"(?P<before>{_CONTENT})[-_. ]*(?P<split>{_SPLIT})[-_. ]*(?P<after>{_CONTENT})[-_. ]*\d*"
)

UNDERSTOOD = "train, training, valid, val, validation, test, x_train, train_images and their kin"


def split_and_content(name: str) -> tuple[str, str] | None:
    """Split and content ("inputs" or "labels") that a name says, or None; any case.

    >>> split_and_content("X_train"), split_and_content("val-images"), split_and_content("y_valid")
    (('train', 'inputs'), ('validation', 'inputs'), ('validation', 'labels'))
    >>> split_and_content("Testing"), split_and_content("train2017"), split_and_content("trains")
    (('test', 'inputs'), ('train', 'inputs'), None)
    """
    found = _NAME.fullmatch(name.lower())
    if found is None or (found["before"] and found["after"]):
        return None
    return _SPLIT_OF[found["split"]], _CONTENT_OF[found["before"] or found["after"]]


def split_and_own_name(name: str) -> tuple[str, str] | None:
    """Split and own name of a further array, or None; own names keep their case.

    >>> split_and_own_name("train_mask"), split_and_own_name("Mask_valid")
    (('train', 'mask'), ('validation', 'Mask'))
    """
    for word, split in _SPLIT_OF.items():
        before, after = name[: len(word) + 1].lower(), name[-len(word) - 1 :].lower()
        own = name[len(word) + 1 :] if before == f"{word}_" else name[: -len(word) - 1]
        if (before == f"{word}_" or after == f"_{word}") and own not in ("", "inputs"):
            return split, own
    return None


def by_split(names: Iterable[str], where: str | Path, content: str = "inputs") -> dict[str, str]:
    """The name for each split, of those that are a split's.

    Raises:
        DataError: two names for one split.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        split, kind = split_and_content(name) or ("", "")
        if kind != content:
            continue
        if split in found:
            raise DataError(
                f"{where}: {found[split]} and {name} could both be {split}; keep or rename one"
            )
        found[split] = name
    return found
