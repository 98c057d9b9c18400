"""Pictures from arrays. NumPy in, NumPy out: `[height, width, 1 or 3]`, values in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Thumbnails are shown small, and the browser loads all of them as one picture.
_LARGEST_THUMBNAIL = 64

# Of the words around a picture, and the bar beside it: pixels.
_FONT_SIZE, _BAR_WIDTH, _GAP = 12, 12, 6

# From black through violet and orange to light yellow, with increasing luminance.
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
_SHADES = np.stack(  # [256, 3]
    [np.interp(np.arange(256), np.linspace(0, 255, len(_HEAT)), c) for c in np.transpose(_HEAT)],
    axis=-1,
)


def tile(rows: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Returns images as one picture in [0, 1], `[height, width, 1 or 3]`, with white gaps.

    If values are outside of [0, 1] (standardised data), all are scaled by their own range.

    Args:
        rows: groups of `[count, height, width, channels]`; each group starts on a new row.
        columns: images side by side.
        gap: pixels between images.
    """
    values = np.concatenate(rows)
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    height, width, channels = values.shape[1:]
    shown = channels if channels in (1, 3) else 1  # of 2, 4 or more channels, only the first
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
    """Returns a picture of numbers that change over time: a row for each, time to the right.

    Black is 0; the brightest colour is the largest finite value, and marks non-finite ones.

    Args:
        values: `[times, count]`, none negative; if there are more than `width` times, evenly spaced
            ones are shown.
        cell: height of a row in pixels; columns are at most twice as wide.
        width: maximum width of the picture in pixels.
    """
    values = np.maximum(np.asarray(values, np.float64), 0.0)
    if len(values) > width:
        values = values[np.linspace(0, len(values) - 1, width).round().astype(int)]
    finite = np.isfinite(values)
    largest = max(float(values.max(initial=0.0, where=finite)), 1e-12)
    scaled = np.where(finite, values, largest).T / largest
    wide = min(2 * cell, width // len(values))
    return np.repeat(np.repeat(heat(scaled), cell, axis=0), wide, axis=1)


def framed(
    picture: np.ndarray,
    largest: float,
    unit: str,
    *,
    left: tuple[str, str] = ("", ""),
    below: tuple[str, str] = ("", ""),
) -> np.ndarray:
    """Returns a picture of `heat` with its scale beside it, and words at the ends of its axes.

    Args:
        picture: `[height, width, 3]`.
        largest: the value that the brightest colour stands for; black is 0.
        unit: of the value.
        left: words for the first and the last row.
        below: words for the first and the last column.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    height, width = picture.shape[:2]
    high = f"{largest:.3g} {unit}"
    measured = [font.getlength(words) for words in (*left, high)]
    margin = math.ceil(max(measured[:2])) + (_GAP if any(left) else 0)
    across = max(width, math.ceil(sum(map(font.getlength, below))) + 2 * _GAP)
    bar = margin + across + 2 * _GAP
    canvas = Image.new(
        "RGB",
        (
            bar + _BAR_WIDTH + _GAP + math.ceil(measured[2]),
            max(height, 3 * _FONT_SIZE) + 2 * _FONT_SIZE,
        ),
        "white",
    )
    shades = heat(np.linspace(1.0, 0.0, height))[:, np.newaxis].repeat(_BAR_WIDTH, axis=1)
    for values, column in ((picture, margin), (shades, bar)):
        pixels = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
        canvas.paste(Image.fromarray(pixels), (column, 0))
    draw = ImageDraw.Draw(canvas)
    bottom, end = max(height, 2 * _FONT_SIZE), margin + width
    for words, place, anchor in (
        (left[0], (margin - _GAP, 0), "ra"),
        (left[1], (margin - _GAP, bottom), "rd"),
        (below[0], (margin, height + _GAP), "la"),
        (below[1], (max(end, margin + across), height + _GAP), "ra"),
        (high, (bar + _BAR_WIDTH + _GAP, 0), "la"),
        ("0", (bar + _BAR_WIDTH + _GAP, bottom), "ld"),
    ):
        draw.text(place, words, fill="black", font=font, anchor=anchor)
    return np.asarray(canvas, np.float32) / 255.0


def sprite(images: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns thumbnails as one square picture, and the width and height of one thumbnail.

    The thumbnails follow each other row by row, without gaps.

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
