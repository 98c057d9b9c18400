"""Densities: whether they integrate to one, and whether samples are drawn from them.

An integral is a sum over a grid, which needs codes of one or two values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

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

# Points of an axis of a grid, and of a cell of it; how far an axis reaches beyond the samples, at
# least, and how many quantiles of the samples it is dense around.
_POINTS, _POINTS_OF_CELL, _FARTHEST, _CENTRES = 480, 10, 550.0, 32
# Values of the data at which a likelihood is summed up are sinh(t) for equally spaced t up to this.
_FARTHEST_OF_DATA = 7.0
# What a mean over a grid may have wrong beside the chance of the samples, in standard deviations.
_ON_GRID = 5e-4
# Points whose density is computed at once.
_BLOCK = 2**15
# Values of the data at which a likelihood is summed up.
_VALUES = 20_000


@dataclasses.dataclass(frozen=True)
class Grid:
    """Points at which a density is summed up, close together where samples are.

    Attributes:
        codes: the samples, `[draws, values of a code]`.
        points: `[count, values of a code]`.
        volumes: `[count]`, the length or area of each.
        edges: of the cells of `_POINTS_OF_CELL` points, along each axis.
        on_circle: the points are directions; the axis is the angle.
    """

    codes: _Values
    points: _Values
    volumes: _Values
    edges: Sequence[_Values]
    on_circle: bool = False

    @classmethod
    def of(cls, kind: str, values: int, sample: Callable[[], npt.ArrayLike]) -> Grid:
        """Returns a grid of codes.

        Args:
            kind: what the codes are, `Prior.of`.
            values: of a code.
            sample: draws codes, which is done if there is a grid of such codes.

        Raises:
            NotApplicableError: there is no grid of such codes.
            ValueError: a sample is not finite.
        """
        if kind == INDICES:
            raise NotApplicableError("the codes are integers, which have no density")
        if values > 2 or (kind == SPHERE and values != 2):
            raise NotApplicableError(f"a grid is for {_grids(kind)}, and codes have {values}")
        codes = np.reshape(np.asarray(sample(), np.float64), [-1, values])
        if not np.all(np.isfinite(codes)):
            raise ValueError("a sample is not finite")
        return cls.circle(codes) if kind == SPHERE else cls.real_numbers(codes)

    @classmethod
    def real_numbers(cls, codes: _Values) -> Grid:
        """Returns a grid of one or two real numbers, around samples `[draws, values]`."""
        axes = [_axis(column) for column in codes.T]
        points = np.stack(np.meshgrid(*[axis.points for axis in axes], indexing="ij"), -1)
        volumes = functools.reduce(np.multiply.outer, [axis.lengths for axis in axes])
        edges = [axis.edges for axis in axes]
        return cls(codes, points.reshape(-1, len(axes)), volumes.ravel(), edges)

    @classmethod
    def circle(cls, codes: _Values) -> Grid:
        """Returns directions in the plane, by their angle, around samples `[draws, 2]`."""
        centre = math.atan2(*codes.mean(axis=0)[::-1])
        axis = _axis(_angles(codes, centre - math.pi), (centre - math.pi, centre + math.pi))
        points = np.stack([np.cos(axis.points), np.sin(axis.points)], axis=1)
        return cls(codes, points, axis.lengths, [axis.edges], on_circle=True)

    def mass(self, log_prob: Callable[[tf.Tensor], tf.Tensor]) -> _Values:
        """Returns density times volume of each point; the sum is the integral.

        Args:
            log_prob: the log-density of codes `[count, values]`, nats.

        Raises:
            NotApplicableError: the sum is not 1 because the density differs too much from one
                point to the next.
        """
        mass = np.exp(_by_block(log_prob, self.points)) * self.volumes
        # Six times that of the midpoint rule: a peak between points has an error as large as it is.
        error, total = 6.0 * float(self._errors(mass).sum()), float(mass.sum())
        apart = abs(total - 1.0)
        unresolved = error >= min(apart, 0.2 * total)  # or peaks are missed, and the total is small
        if apart > MASS_TOLERANCE and unresolved and self._may_be_of(log_prob):
            raise NotApplicableError("the density has peaks that are narrower than the grid")
        return mass

    def _may_be_of(self, log_prob: Callable[[tf.Tensor], tf.Tensor]) -> bool:
        """Returns whether a density is at least as large at the samples as their spread allows.

        No density has a larger entropy than the normal one of the same covariance, or than the
        constant one on the circle.
        """
        entropy = math.log(2.0 * math.pi)
        if not self.on_circle:
            covariance = np.atleast_2d(np.cov(self.codes, rowvar=False))
            entropy = 0.5 * float(np.linalg.slogdet(2.0 * math.pi * math.e * covariance)[1])
        return float(_by_block(log_prob, self.codes).mean()) >= -entropy

    def _errors(self, mass: _Values) -> _Values:
        """Returns the error of the midpoint rule at each point, from second differences."""
        on_axes = mass.reshape([_POINTS] * len(self.edges))
        errors = np.zeros_like(on_axes)
        for axis in range(on_axes.ndim):
            inner = (slice(None),) * axis + (slice(1, -1),)
            errors[inner] += np.abs(np.diff(on_axes, 2, axis)) / 24.0
        return errors

    def moments_apart(self, mass: _Values) -> float:
        """Returns how many standard errors means and covariances of the samples are off, at most.

        Args:
            mass: of the density that they should be from.
        """
        # Around the mean: the square of a mean that is large would hide the variance.
        centre = self.codes.mean(axis=0)
        drawn, points = self.codes - centre, self.points - centre
        apart = []
        for values, on_grid in (
            (drawn, points),
            (drawn**2, points**2),
            (drawn.prod(axis=1)[:, np.newaxis], points.prod(axis=1)[:, np.newaxis]),
        ):
            error = values.std(axis=0) * (1.0 / math.sqrt(len(values)) + _ON_GRID)
            error = np.maximum(error, np.finfo(np.float64).tiny)
            apart.append(np.abs(values.mean(axis=0) - mass @ on_grid) / error)
        return float(np.max(np.concatenate(apart)))

    def cells_apart(self, mass: _Values) -> float:
        """Returns chi-squared of the hits of cells, less its mean, over its standard deviation.

        Only cells that should be hit more than 20 times count.

        Args:
            mass: of the density that the samples should be from.
        """
        axes = len(self.edges)
        drawn = self.codes
        if self.on_circle:
            drawn = _angles(drawn, self.edges[0][0])[:, np.newaxis]
        hits = np.histogramdd(drawn, bins=self.edges)[0]

        def of_cells(values: _Values) -> _Values:
            cells = values.reshape([_POINTS // _POINTS_OF_CELL, _POINTS_OF_CELL] * axes)
            return cells.sum(axis=tuple(range(1, 2 * axes, 2))) * len(drawn)

        wanted, errors = of_cells(mass), of_cells(self._errors(mass))
        often = wanted > 20
        count = int(often.sum())
        shares = (hits - wanted)[often] ** 2 / (wanted + errors**2)[often]
        return (float(shares.sum()) - count) / math.sqrt(2 * count) if count else math.inf


def _by_block(log_prob: Callable[[tf.Tensor], tf.Tensor], points: _Values) -> _Values:
    blocks = [
        log_prob(tf.constant(points[start : start + _BLOCK], tf.float32)).numpy()
        for start in range(0, len(points), _BLOCK)
    ]
    return np.concatenate(blocks).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Axis:
    points: _Values
    lengths: _Values
    edges: _Values


def _axis(samples: _Values, ends: tuple[float, float] | None = None) -> _Axis:
    """Returns points of a line that are close together where samples are.

    They are equally spaced in t(x), the mean of arcsinh((x - c) / s) over quantiles c of the
    samples, where s is the distance from c to the next quantile. So the spacing follows the
    samples, also those of several narrow modes, and grows with the distance from them.

    Args:
        samples: `[draws]`.
        ends: of the line; by default far away from the samples.
    """
    centres = np.quantile(samples, (np.arange(_CENTRES) + 0.5) / _CENTRES)
    gaps = np.concatenate([[math.inf], np.diff(centres), [math.inf]])
    # Codes are float32, whose digits end there.
    scales = np.maximum(np.minimum(gaps[1:], gaps[:-1]), 1e-6 * (1.0 + np.abs(centres)))
    if ends is None:
        far = _FARTHEST * max(1.0, float(centres[-1] - centres[0]))
        ends = float(centres[0]) - far, float(centres[-1]) + far

    def t(x: _Values) -> _Values:
        return np.arcsinh((x[:, np.newaxis] - centres) / scales).mean(axis=1)

    first, last = t(np.asarray(ends))
    step = (last - first) / _POINTS
    wanted = first + step * (0.5 * np.arange(2 * _POINTS + 1))  # edges, with the points between
    low, high = np.full_like(wanted, ends[0]), np.full_like(wanted, ends[1])
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = t(middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    edges, points = low[::2], low[1::2]
    slope = (1.0 / np.hypot(points[:, np.newaxis] - centres, scales)).mean(axis=1)
    edges[0], edges[-1] = ends
    return _Axis(points, step / slope, edges[::_POINTS_OF_CELL])


def _angles(codes: _Values, lowest: float) -> _Values:
    """Returns the angles of directions in the plane, from `lowest` to a turn above it."""
    return lowest + (np.arctan2(codes[:, 1], codes[:, 0]) - lowest) % (2.0 * math.pi)


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
    at = np.linspace(-_FARTHEST_OF_DATA, _FARTHEST_OF_DATA, _VALUES + 1)
    step = at[1] - at[0]
    middle = at[:-1] + step / 2
    points, volumes = centre + np.sinh(middle), np.cosh(middle) * step
    inside = (points >= low) & (points <= high)
    return points[inside], volumes[inside]
