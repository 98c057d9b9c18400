"""Pictures with words beside every row and above every column. NumPy in, NumPy out.

Pictures are `[height, width, 3]` with values in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vae_research.callbacks.tensorboard.drawing import framed, heat, tile

_FONT_SIZE, _GAP = 12, 8  # pixels
_ROW, _NARROWEST = 20, 44  # pixels: height of a cell with a number, and its least width
_SMALLEST_IMAGE = 48  # pixels; smaller images are enlarged by a whole number
_DARK = 0.5  # luminance of a cell below which its number is white


def heat_table(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str
) -> np.ndarray:
    """Returns a table as a heat map: a number in each cell, names at both axes, and a scale.

    Args:
        values: `[rows, columns]`, none negative; what is not finite stays white, with a dash.
        rows: the name of each row, on the left.
        columns: the name of each column, above; a line break gives it several lines.
        unit: of the values, which stands at the scale.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    finite = np.isfinite(values)
    largest = float(values.max(initial=0.0, where=finite))
    scaled = np.where(finite, values, 0.0) / (largest or 1.0)
    lines = [line for column in columns for line in column.split("\n")]
    wide = max(_NARROWEST, *(math.ceil(font.getlength(line)) + _GAP for line in lines))
    colours = heat(scaled)
    colours[~finite] = 1.0
    cells = np.repeat(np.repeat(colours, _ROW, axis=0), wide, axis=1)
    canvas = Image.fromarray(np.rint(cells * 255.0).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    luminance = colours @ np.array([0.299, 0.587, 0.114])
    for row, column in np.ndindex(*values.shape):
        number = f"{values[row, column]:.2f}" if finite[row, column] else "-"
        ink = "white" if luminance[row, column] < _DARK else "black"
        place = (column + 0.5) * wide, (row + 0.5) * _ROW
        draw.text(place, number, fill=ink, font=font, anchor="mm")
    picture = framed(np.asarray(canvas, np.float32) / 255.0, largest, unit)
    heads = [((at + 0.5) * wide, name) for at, name in enumerate(columns)]
    return _with_words(picture, [(at + 0.5) * _ROW for at in range(len(rows))], rows, heads)


def labelled_rows(rows: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Returns rows of images, each with its label on the left.

    Args:
        rows: `[count, height, width, channels]` for each row; the counts may differ.
        labels: of the rows.
    """
    height, width = rows[0].shape[1:3]
    picture, gap = tile(rows, max(map(len, rows))), 2
    times = -(-_SMALLEST_IMAGE // max(height, width))
    picture = np.repeat(np.repeat(picture, times, axis=0), times, axis=1)
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    middles = [(at * (height + gap) + height / 2) * times for at in range(len(rows))]
    return _with_words(picture, middles, labels, [])


def _with_words(
    picture: np.ndarray,
    middles: Sequence[float],
    labels: Sequence[str],
    heads: Sequence[tuple[float, str]],
) -> np.ndarray:
    """Returns a picture with labels on the left of it and heads above.

    Args:
        picture: `[height, width, 3]`.
        middles: pixel rows of the labels.
        labels: as many.
        heads: pixel column and text of each.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    left = math.ceil(max(map(font.getlength, labels))) + 2 * _GAP
    most = max((text.count("\n") + 1 for _, text in heads), default=0)
    top = most * (_FONT_SIZE + 4) + _GAP
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (left + width + _GAP, top + height), "white")
    pixels = np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
    canvas.paste(Image.fromarray(pixels), (left, top))
    draw = ImageDraw.Draw(canvas)
    for middle, label in zip(middles, labels, strict=True):
        draw.text((left - _GAP, top + middle), label, fill="black", font=font, anchor="rm")
    for middle, text in heads:
        for at, line in enumerate(reversed(text.split("\n"))):
            place = left + middle, top - _GAP / 2 - at * (_FONT_SIZE + 4)
            draw.text(place, line, fill="black", font=font, anchor="md")
    return np.asarray(canvas, np.float32) / 255.0
