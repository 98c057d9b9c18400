"""Checks of arguments, with one message for each kind of mistake."""

from __future__ import annotations

import operator
import re
from typing import Any

LARGEST_SEED = 2**32 - 1


def checked_integer(
    name: str, value: Any, minimum: int, maximum: int | None = None, *, why: str = ""
) -> int:
    """Returns `value` as a Python integer of the given range.

    Args:
        name: of the argument, for the message.
        value: an integer of Python or NumPy; booleans are refused.
        minimum: smallest allowed value.
        maximum: largest allowed value.
        why: reason for the range, for the message.

    Raises:
        ValueError: `value` is not an integer of that range.

    >>> checked_integer("batch_size", 0, 1, 38, why="the rows of the split")
    Traceback (most recent call last):
    ...
    ValueError: batch_size must be an integer from 1 to 38 (the rows of the split), got 0.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum or (maximum is not None and number > maximum):
        wanted = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        reason = f" ({why})" if why else ""
        raise ValueError(f"{name} must be an integer {wanted}{reason}, got {value!r}.")
    return number


def checked_seed(value: Any) -> int:
    """Returns a seed, 0 to 2**32 - 1, as a Python integer.

    Raises:
        ValueError: it is not such an integer.
    """
    return checked_integer("seed", value, 0, LARGEST_SEED)


def checked_label(kind: str, label: str) -> str:
    """Returns the name of a loss term or critic.

    Args:
        kind: what has the name, for the message.
        label: the name.

    Raises:
        ValueError: it cannot be a TensorBoard tag and a key of metrics.jsonl.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", label):
        raise ValueError(
            f"{label!r} cannot be the name of a {kind}: it becomes a TensorBoard tag and a key of "
            "metrics.jsonl. Use letters, digits, '_', '-' and '.'."
        )
    if label.startswith("val_"):
        raise ValueError(
            f"{label!r} cannot be the name of a {kind}: Keras puts 'val_' before the figures of "
            "validation data."
        )
    return label
