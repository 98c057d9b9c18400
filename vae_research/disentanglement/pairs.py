"""The score of the beta-VAE paper: a linear classifier of differences in pairs."""

from __future__ import annotations

import numpy as np

from vae_research.arguments import checked_integer, checked_seed
from vae_research.disentanglement.checks import require_scikit_learn
from vae_research.disentanglement.regression import fitted
from vae_research.disentanglement.samplers import NOT_FIXED, Sampler
from vae_research.disentanglement.scores import REPEATS, Score, score, standard_errors

_POINTS_PER_DRAW = 500


def beta_vae_score(
    sampler: Sampler,
    *,
    train_points: int = 10_000,
    test_points: int = 5_000,
    pairs: int = 64,
    variance_images: int = 10_000,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Score:
    """Returns the accuracy of a linear classifier, from about 1 / k (chance) to 1.

    In each of 64 pairs of images one factor is equal, all others vary. The mean absolute difference
    of each code over the pairs is a point, and a logistic regression (scikit-learn, C = 1) tells
    from it which factor it was; the score is the accuracy for further points. Higgins et al. 2017
    (openreview Sy2fzU9gl), section 3; numbers as in Locatello et al. 2019 (arXiv:1811.12359).
    Differences are divided by the standard deviation of the code, so that the penalty of the
    regression does not depend on scale.

    It is easily 1: a linear classifier also finds a factor that is spread over several codes, so
    that rotated codes score nearly as high (Kim and Mnih 2018).

    Args:
        sampler: of codes, a `RowSampler` or a `FunctionSampler`.
        train_points, test_points: of the classifier; each takes `2 * pairs` images.
        pairs: that give one point.
        variance_images: from which the standard deviations are computed.
        repeats: disjoint groups of rows, or of draws, for the standard error, with so many times
            fewer points each; 1 for none.
        seed: of all draws.

    Returns:
        With `per_factor`, the accuracy of points with that factor fixed.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: an argument is out of range, or codes are not finite.
    """
    require_scikit_learn("beta_vae_score")
    checked_seed(seed)
    train_points = checked_integer("train_points", train_points, 1)
    test_points = checked_integer("test_points", test_points, 1)
    pairs = checked_integer("pairs", pairs, 1)
    variance_images = checked_integer("variance_images", variance_images, 2)

    def right(sampler: Sampler, share: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([seed, stream])
        deviations = sampler.draw(np.array([NOT_FIXED]), variance_images, random)[0].std(axis=0)
        scale = np.where(deviations > 0.0, deviations, 1.0)
        train, test = (
            _points(sampler, scale, max(number // share, 1), pairs, random)
            for number in (train_points, test_points)
        )
        return _predicted(*train, test[0]) == test[1], test[1]

    found, fixed = right(sampler, 1, 0)
    parts = sampler.parts(repeats, seed)
    errors = standard_errors(
        [right(part, len(parts), 1 + number)[0].mean() for number, part in enumerate(parts)]
    )
    counts = np.bincount(fixed, minlength=sampler.num_factors)
    drawn = variance_images + (train_points + test_points) * 2 * pairs
    return score(
        found.mean(),
        errors,
        sampler.rows or drawn,
        repeats,
        per_factor=np.bincount(fixed, found, sampler.num_factors) / np.maximum(counts, 1),
    )


def _points(
    sampler: Sampler, scale: np.ndarray, number: int, pairs: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns points `[number, d]` and the factor that was fixed for each, `[number]`."""
    fixed = random.integers(sampler.num_factors, size=number)
    points = []
    for start in range(0, number, _POINTS_PER_DRAW):
        now = np.repeat(fixed[start : start + _POINTS_PER_DRAW], pairs)
        codes = sampler.draw(now, 2, random)
        differences = np.abs(codes[:, 0] - codes[:, 1]) / scale
        points.append(differences.reshape(-1, pairs, len(scale)).mean(axis=1))
    return np.concatenate(points), fixed


def _predicted(points: np.ndarray, fixed: np.ndarray, others: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    if not np.ptp(fixed):
        return np.full(len(others), fixed[0])
    return fitted(LogisticRegression(max_iter=1000), points, fixed).predict(others)
