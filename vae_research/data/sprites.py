"""Sprites: binary images of which every cause is known, rendered when they are asked for.

    data = load_data("sprites_32", correlated="scale,x,0.2")
    data.factors.names                  # ("shape", "scale", "orientation", "x", "y")

The factors, their values and the order of the rows are those of dSprites (Matthey et al. 2017,
github.com/google-deepmind/dsprites-dataset, used by Higgins et al. 2017). The shapes are drawn by
formulas of our own, so that pixels differ from those of the published file. NumPy only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.factors import FACTORS, Factors
from vae_research.data.sources import Rows

SHAPES = ("square", "ellipse", "heart")

HUES = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))
"""Red, yellow, green, cyan, blue, magenta: hues 0, 60, ... 300 degrees, whose channels are 0 or 1,
so that a Bernoulli likelihood of them is normalised."""

VALUES: Mapping[str, np.ndarray] = {
    "shape": np.arange(1.0, 4.0),
    "scale": np.linspace(0.5, 1.0, 6),
    "orientation": np.linspace(0.0, 2 * np.pi, 40),
    "x": np.linspace(0.0, 1.0, 32),
    "y": np.linspace(0.0, 1.0, 32),
}
"""The value of each number of a factor, as `latents_values` of dSprites; orientation in radians,
against the clock. The last orientation is the first one again. x runs to the right, y down."""

HELD_OUT = 10_000
"""Images of the test split, and of the validation split."""

# Side of the image in the units of this module, in which a step of x or y is one.
_SIDE = 64
# A sprite of scale 1 is within this radius around its centre.
_RADIUS = 16.0
# Keys of the draws that choose held-out rows, and rows with correlated factors. They must never
# change.
_SPLIT_KEY, _CORRELATION_KEY = 0xD5B1, 0xD5B2


def is_inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points are within a shape that is upright, v pointing up.

    All shapes are within the unit circle. The square looks the same after a quarter turn, the
    ellipse after half a turn, the heart after a whole one only.
    """
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.7
    if shape == "ellipse":
        return (u / 0.98) ** 2 + (v / 0.49) ** 2 <= 1.0
    # The curve (x^2 + y^2 - 1)^3 = x^2 y^3 is within a circle of radius 1.25 around (0, 0.25).
    x, y = u / 0.78, v / 0.78 + 0.25
    return (x**2 + y**2 - 1.0) ** 3 <= x**2 * y**3


class Sprites:
    """Images by row number, and their factors.

    A pixel is 1 if its centre is inside of the shape. The images of half the side show the same
    shapes at the same places, with pixels twice as large.

    Args:
        side: of the images in pixels, 64 or 32.
        colour: add hue as the first factor, which changes most slowly; images have 3 channels.

    Attributes:
        factors: their names and sizes, the last one changes most quickly.
        row_shape: of an image, `(side, side, channels)`.
        count: of all images.
    """

    def __init__(self, side: int, *, colour: bool = False) -> None:
        hue = {"hue": len(HUES)} if colour else {}
        sizes = hue | {name: len(values) for name, values in VALUES.items()}
        self.factors = Factors(tuple(sizes), tuple(sizes.values()))
        self.row_shape = (side, side, 3 if colour else 1)
        self.count = math.prod(self.factors.sizes)

    def numbers_of(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the factors, int64 `[n, k]`, of rows, int64 `[n]`."""
        return np.stack(np.unravel_index(rows, self.factors.sizes), axis=1).astype(np.int64)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """The rows, int64 `[n]`, of numbers of the factors, integers `[n, k]`.

        Raises:
            ValueError: a number is not one of its factor.
        """
        return np.ravel_multi_index(tuple(np.asarray(numbers).T), self.factors.sizes)

    def images_of(self, rows: np.ndarray) -> np.ndarray:
        """The images, uint8 0 or 1 `[n, side, side, channels]`, of rows, int64 `[n]`."""
        *hue, shape, scale, orientation, x, y = self.numbers_of(rows).T
        side, _, channels = self.row_shape
        pixel = _SIDE // side  # steps of x in a pixel
        masks = _masks(pixel)[shape, scale, orientation, y % pixel, x % pixel]
        images = np.zeros((len(rows), *self.row_shape), np.uint8)
        for channel in range(channels):
            # A view of every place that a mask can have.
            places = np.lib.stride_tricks.sliding_window_view(
                images[..., channel], masks.shape[1:], axis=(1, 2), writeable=True
            )
            ink = np.array(HUES, np.uint8)[hue[0], channel, None, None] if hue else np.uint8(1)
            places[np.arange(len(rows)), y // pixel, x // pixel] = masks * ink
        return images


@functools.cache
def _masks(pixel: int) -> np.ndarray:
    """Sprites alone, uint8 `[shape, scale, orientation, phase of y, phase of x, height, width]`.

    Args:
        pixel: side of a pixel in steps of x and y. A phase is what is left of a step in it.
    """
    reach = _SIDE - len(VALUES["x"]) + 1  # what a sprite needs for itself, in steps
    centres = (np.arange(-(-reach // pixel)) + 0.5) * pixel
    offsets = centres - (reach / 2 + np.arange(pixel))[:, None]  # of pixels from a sprite, by phase
    down, right = offsets[:, None, :, None], offsets[None, :, None, :]
    angle = VALUES["orientation"][:, None, None, None, None]
    radius = _RADIUS * VALUES["scale"][:, None, None, None, None, None]
    u = (np.cos(angle) * right - np.sin(angle) * down) / radius
    v = (-np.cos(angle) * down - np.sin(angle) * right) / radius
    return np.stack([is_inside(shape, u, v) for shape in SHAPES]).astype(np.uint8)


def load_sprites(
    side: int,
    rescale: str | None = None,
    binarize: str = "none",
    correlated: str | None = None,
    *,
    colour: bool = False,
    name: str = "sprites",
) -> Data:
    """Sprites in three splits, streamed: no image is stored, and each is a function of its number.

    A permutation of all rows that never changes is cut into 10 000 rows for testing, 10 000 for
    validation, and the rest for training: 717 280, with colour 4 403 680. No combination of factors
    is in two splits, but the same picture may be, because the square repeats itself after a quarter
    turn, and the last orientation of every shape is the first one: of the test images, 10 % have an
    equal one in training, 13 % at half the side.

    Args:
        side: of the images in pixels, 64 or 32.
        rescale, binarize: see `Data.from_arrays`. The values are 0 and 1 as they are.
        correlated: two factors and sigma, "scale,x,0.2". Training and validation images then have
            them with p(a, b) proportional to exp(-(a - b)^2 / (2 sigma^2)), their numbers divided
            by the largest one (Träuble et al. 2021, arXiv:2006.07886, section 3): each row is kept
            with the probability exp(...). The test images are the same as without it.
        colour: with hue as a further factor.
        name: of the data set.

    Raises:
        DataError: no such factors, sigma is not a positive number, or too small.
    """
    sprites = Sprites(side, colour=colour)
    # Of 64 bits, so that ties, whose order the sort would decide, are practically impossible.
    order = np.argsort(np.random.Philox(key=_SPLIT_KEY).random_raw(sprites.count))
    test, others = order[:HELD_OUT], order[HELD_OUT:]
    if correlated is not None:
        draws = np.random.Generator(np.random.Philox(key=_CORRELATION_KEY)).random(sprites.count)
        others = others[draws[others] < _chance(sprites, others, correlated, name)]
        if len(others) < 2 * HELD_OUT:
            raise DataError(
                f"{name}: correlated factors {correlated!r} leave {len(others)} images; with a "
                "larger sigma there are more"
            )
    splits = {"train": others[HELD_OUT:], "validation": others[:HELD_OUT], "test": test}
    images = Rows(sprites.images_of, sprites.count, sprites.row_shape, np.uint8, bounds=(0, 1))
    numbers = Rows(sprites.numbers_of, sprites.count, (len(sprites.factors.names),), np.int64)
    parts: dict[str, Any] = {
        split: {"inputs": images.subset(rows), FACTORS: numbers.subset(rows)}
        for split, rows in splits.items()
    }
    data = Data.from_arrays(
        **parts,
        rescale=rescale,
        binarize=binarize,
        kind="images",
        name=name,
        factors=sprites.factors,
    )
    # Equal pictures of other factors, which are warned of, are what symmetry means.
    return dataclasses.replace(data, warnings=())


def _chance(sprites: Sprites, rows: np.ndarray, correlated: str, name: str) -> np.ndarray:
    """The probability with which each row is kept, so that two factors are correlated."""
    names = sprites.factors.names
    first, second, sigma = _parsed(correlated, names, name)
    numbers = np.unravel_index(rows, sprites.factors.sizes)
    a, b = (numbers[names.index(each)] for each in (first, second))
    sizes = dict(zip(names, sprites.factors.sizes, strict=True))
    distance = a / (sizes[first] - 1) - b / (sizes[second] - 1)
    return np.exp(-(distance**2) / (2 * sigma**2))


def _parsed(correlated: str, names: tuple[str, ...], name: str) -> tuple[str, str, float]:
    try:
        first, second, sigma = correlated.split(",")
        found = first.strip(), second.strip(), float(sigma)
    except ValueError:
        found = "", "", 0.0
    if not ({*found[:2]} <= {*names} and found[0] != found[1] and 0 < found[2] < math.inf):
        raise DataError(
            f"{name}: correlated factors {correlated!r} are not two different ones of "
            f"{', '.join(names)} and a positive sigma, for example scale,x,0.2"
        )
    return found
