"""Pictures from arrays. NumPy in, NumPy out: values in [0, 1], `[height, width, 1 or 3]`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# The projector shows thumbnails of a few pixels; the browser loads them all as one picture.
_LARGEST_THUMBNAIL = 64

# From black by violet and orange to light yellow: brighter is more, also without colours.
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
_SHADES = np.stack(  # 256 of them
    [np.interp(np.arange(256), np.linspace(0, 255, len(_HEAT)), c) for c in np.transpose(_HEAT)],
    axis=-1,
)


def tile(rows: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Returns images as one picture in [0, 1], `[height, width, 1 or 3]`, with white gaps.

    Values outside [0, 1] (standardised data) are brought in by their own minimum and maximum.

    Args:
        rows: groups of `[count, height, width, channels]`; each group starts on a new row.
        columns: images side by side.
        gap: pixels between images.
    """
    values = np.concatenate(rows)
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    height, width, channels = values.shape[1:]
    shown = channels if channels in (1, 3) else 1  # of other channel counts, the first is shown
    lines = []
    for group in rows:
        count = -(-len(group) // columns)
        cells = np.ones([count * columns, height + gap, width + gap, shown], np.float32)
        cells[: len(group), :height, :width] = (group[..., :shown] - low) / (high - low)
        cells = cells.reshape([count, columns, *cells.shape[1:]]).swapaxes(1, 2)
        lines.append(cells.reshape([count * (height + gap), columns * (width + gap), shown]))
    picture = np.concatenate(lines)
    return picture[: len(picture) - gap, : picture.shape[1] - gap]


def heat(values: np.ndarray) -> np.ndarray:
    """Returns `[..., 3]` colours of values in [0, 1], from black to light yellow.

    >>> heat(np.array([0.0, 1.0])).astype(float).round(2).tolist()
    [[0.0, 0.0, 0.02], [0.99, 1.0, 0.64]]
    """
    shade = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    return (_SHADES.astype(np.float32) / 255.0)[shade]


def over_time(values: np.ndarray, *, cell: int = 5, width: int = 400) -> np.ndarray:
    """Returns a picture of numbers that change: a row for each, time to the right.

    Black is 0, the brightest colour the largest finite value there is, and what is not finite.

    Args:
        values: `[times, count]`, none negative; of more than `width` times an even choice is shown.
        cell: pixels of a row; columns are as wide as they may be, at most twice that.
        width: pixels, at most.
    """
    values = np.maximum(np.asarray(values, np.float64), 0.0)
    if len(values) > width:
        values = values[np.linspace(0, len(values) - 1, width).round().astype(int)]
    finite = np.isfinite(values)
    largest = max(float(values.max(initial=0.0, where=finite)), 1e-12)
    scaled = np.where(finite, values, largest).T / largest
    wide = min(2 * cell, width // len(values))
    return np.repeat(np.repeat(heat(scaled), cell, axis=0), wide, axis=1)


def sprite(images: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns thumbnails as one square picture, and the width and height of one of them.

    They follow each other row by row, without gaps.

    Args:
        images: `[count, height, width, channels]`.
    """
    step = -(-max(images.shape[1:3]) // _LARGEST_THUMBNAIL)
    images = images[:, ::step, ::step]
    columns = math.ceil(math.sqrt(len(images)))
    height, width = images.shape[1:3]
    picture = tile([images], columns, gap=0)
    square = np.zeros([columns * height, columns * width, picture.shape[-1]], np.float32)
    square[: len(picture)] = picture
    return square, (width, height)
