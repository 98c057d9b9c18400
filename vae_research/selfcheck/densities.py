"""Densities: whether they integrate to one, and whether samples are drawn from them.

An integral is a sum over a grid, which needs codes of one or two values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vae_research.losses.reconstruction import Bernoulli
from vae_research.losses.term import Likelihood, of_single_values
from vae_research.priors.prior import INDICES, SPHERE
from vae_research.selfcheck.outcome import NotApplicableError
from vae_research.tensors import Tensors, bind

_Values = npt.NDArray[np.float64]

MASS_TOLERANCE = 2e-3
"""By how much an integral may differ from 1."""
MOMENTS_TOLERANCE = 4.0
CELLS_TOLERANCE = 5.0
DRAWS = 100_000

# Points of an axis of a grid, and of a cell of it. The axis is sinh(t) for equally spaced t, which
# is dense near 0 and reaches far out.
_POINTS, _POINTS_OF_CELL, _FARTHEST = 480, 10, 7.0
# What an integral over a grid may have wrong, beside the chance of the samples.
_ON_GRID = 5e-4
# Points whose density is computed at once.
_BLOCK = 2**15
# Values of the data at which a likelihood is summed up.
_VALUES = 20_000


@dataclasses.dataclass(frozen=True)
class Grid:
    """Points at which a density is summed up.

    Attributes:
        points: `[count, values of a code]`.
        volumes: `[count]`, the length or area of each.
        edges: of the cells of `_POINTS_OF_CELL` points along each axis.
        on_circle: the points are directions; the axis is the angle.
    """

    points: _Values
    volumes: _Values
    edges: _Values
    on_circle: bool = False

    @classmethod
    def of(cls, kind: str, values: int) -> Grid:
        """Returns a grid of codes.

        Args:
            kind: what the codes are, `Prior.of`.
            values: of a code.

        Raises:
            NotApplicableError: there is no grid of such codes.
        """
        if kind == INDICES:
            raise NotApplicableError("the codes are integers, which have no density")
        if kind == SPHERE and values == 2:
            return cls.circle()
        if kind == SPHERE or values > 2:
            raise NotApplicableError(f"a grid is for {_grids(kind)}, and codes have {values}")
        return cls.real_numbers(values)

    @classmethod
    def real_numbers(cls, values: int) -> Grid:
        """Returns a grid of one or two real numbers, from about -550 to 550."""
        at = np.linspace(-_FARTHEST, _FARTHEST, _POINTS + 1)
        step = at[1] - at[0]
        middle = at[:-1] + step / 2
        axis, lengths = np.sinh(middle), np.cosh(middle) * step
        points = np.stack(np.meshgrid(*[axis] * values, indexing="ij"), -1).reshape(-1, values)
        volumes = lengths if values == 1 else np.outer(lengths, lengths).ravel()
        return cls(points, volumes, np.sinh(at[::_POINTS_OF_CELL]))

    @classmethod
    def circle(cls) -> Grid:
        """Returns directions in the plane, by their angle."""
        edges = np.linspace(-math.pi, math.pi, _POINTS + 1)
        angles = edges[:-1] + math.pi / _POINTS
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        volumes = np.full(_POINTS, 2 * math.pi / _POINTS)
        return cls(points, volumes, edges[::_POINTS_OF_CELL], on_circle=True)

    def mass(self, log_prob: Callable[[tf.Tensor], tf.Tensor]) -> _Values:
        """Returns density times volume of each point; the sum is the integral.

        Args:
            log_prob: the log-density of codes `[count, values]`, nats.
        """
        blocks = [
            log_prob(tf.constant(self.points[start : start + _BLOCK], tf.float32)).numpy()
            for start in range(0, len(self.points), _BLOCK)
        ]
        return np.exp(np.concatenate(blocks).astype(np.float64)) * self.volumes

    def moments_apart(self, codes: npt.ArrayLike, mass: _Values) -> float:
        """Returns how many standard errors first and second moments of samples are off, at most.

        Args:
            codes: samples, `[draws, values]`.
            mass: of the density that they should be from.
        """
        drawn = np.asarray(codes, np.float64)
        apart = []
        for values, on_grid in (
            (drawn, self.points),
            (drawn**2, self.points**2),
            (drawn.prod(axis=1)[:, np.newaxis], self.points.prod(axis=1)[:, np.newaxis]),
        ):
            error = values.std(axis=0) / math.sqrt(len(values)) + _ON_GRID
            apart.append(np.abs(values.mean(axis=0) - mass @ on_grid) / error)
        return float(np.max(np.concatenate(apart)))

    def cells_apart(self, codes: npt.ArrayLike, mass: _Values) -> float:
        """Returns chi-squared of the hits of cells, less its mean, over its standard deviation.

        Only cells that should be hit more than 20 times count.

        Args:
            codes: samples, `[draws, values]`.
            mass: of the density that they should be from.
        """
        drawn = np.asarray(codes, np.float64)
        if self.on_circle:
            drawn = np.arctan2(drawn[:, 1], drawn[:, 0])[:, np.newaxis]
        axes = drawn.shape[1]
        hits = np.histogramdd(drawn, bins=[self.edges] * axes)[0]
        cells = mass.reshape([_POINTS // _POINTS_OF_CELL, _POINTS_OF_CELL] * axes)
        wanted = cells.sum(axis=tuple(range(1, 2 * axes, 2))) * len(drawn)
        often = wanted > 20
        count = int(often.sum())
        chi_squared = float(np.sum((hits - wanted)[often] ** 2 / wanted[often]))
        return (chi_squared - count) / math.sqrt(2 * count) if count else math.inf


def _grids(kind: str) -> str:
    return "directions in the plane" if kind == SPHERE else "one or two values"


def mass_of_single_values(likelihood: Likelihood, tensors: Tensors, *, places: int = 4) -> _Values:
    """Returns the integral of p(x|z), or its sum, over each of a few values of the data.

    Each value is taken as data of its own, `[places]`.

    Args:
        likelihood: a single one; a product is checked factor by factor.
        tensors: of a forward pass.
        places: how many values are looked at.

    Raises:
        NotApplicableError: values cannot be looked at one by one.
    """
    targets = tensors[likelihood.target]
    if likelihood.event_rank:
        raise NotApplicableError("groups of values depend on each other, and have no small grid")
    given = bind("selfcheck", likelihood.log_likelihood, tensors, rename=likelihood.renamed())
    try:
        rows = {
            name: of_single_values(likelihood.label, name, value, targets, targets.shape.rank)
            for name, value in given.items()
        }
    except ValueError as error:
        raise NotApplicableError(str(error)) from error
    if "targets" not in rows:
        raise NotApplicableError("log_likelihood reads no targets")
    centres = tf.reshape(likelihood.reconstruction(tensors), [-1]).numpy()
    found = []
    for place in np.linspace(0, int(tf.size(targets)) - 1, places).astype(int):
        points, volumes = _values_of_data(likelihood, float(centres[place]))
        one = {
            name: value
            if name in ("step", "seed")
            else tf.repeat(value[place : place + 1], len(points), axis=0)
            for name, value in rows.items()
        }
        one["targets"] = tf.cast(points[:, np.newaxis], targets.dtype)
        log_density = likelihood.log_likelihood(**one).numpy().astype(np.float64)
        found.append(float(np.sum(np.exp(log_density) * volumes)))
    return np.asarray(found)


def _values_of_data(likelihood: Likelihood, centre: float) -> tuple[_Values, _Values]:
    """Returns the values that one value of the data may have, and the volume of each."""
    low, high = likelihood.support
    # The cross-entropy is defined between 0 and 1, and is a probability of those two alone.
    spacing = 1.0 if isinstance(likelihood, Bernoulli) else likelihood.spacing
    if spacing is not None:
        if not math.isfinite(low):
            raise NotApplicableError("the values of the data have no smallest one to begin with")
        count = _VALUES if math.isinf(high) else round((high - low) / spacing) + 1
        levels: _Values = low + spacing * np.arange(count, dtype=np.float64)
        return levels, np.ones_like(levels)
    if math.isfinite(low) and math.isfinite(high):
        edges = np.linspace(low, high, _VALUES + 1)
        return (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    at = np.linspace(-_FARTHEST, _FARTHEST, _VALUES + 1)
    step = at[1] - at[0]
    middle = at[:-1] + step / 2
    points, volumes = centre + np.sinh(middle), np.cosh(middle) * step
    inside = (points >= low) & (points <= high)
    return points[inside], volumes[inside]
