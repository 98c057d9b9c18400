"""The score of the FactorVAE paper: a vote of the code that varies least."""

from __future__ import annotations

import numpy as np

from vae_research.arguments import checked_integer, checked_seed
from vae_research.disentanglement.samplers import NOT_FIXED, Sampler
from vae_research.disentanglement.scores import REPEATS, Score, score, standard_errors

_VOTES_PER_DRAW = 500


def factor_vae_score(
    sampler: Sampler,
    *,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    images: int = 64,
    variance_images: int = 10_000,
    least_deviation: float = 0.0,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Score:
    """Returns the accuracy of a vote, from about 1 / k (chance) to 1.

    One factor is fixed in a number of images, all others vary. The code with the least variance,
    divided by its variance over all images, votes for the factor. A classifier by majority knows
    for each code the factor that was fixed most often when that code won; the score is how often it
    is right in further votes. Kim and Mnih 2018 (arXiv:1802.05983), section 4; numbers of votes and
    images as in Locatello et al. 2019 (arXiv:1811.12359).

    Constant codes do not take part: their variance of zero would win every vote. If all codes are
    constant, the score is 0.

    Args:
        sampler: of codes, a `RowSampler` or a `FunctionSampler`.
        train_votes, test_votes: of the classifier; each takes `images` images.
        images: that share a factor, at least 2.
        variance_images: from which the variance over all images is computed.
        least_deviation: codes take part if their standard deviation is above it. Locatello et al.
            leave out codes below 0.05, where the prior is N(0, 1).
        repeats: disjoint groups of rows, or of draws, for the standard error, with so many times
            fewer votes each; 1 for none.
        seed: of all draws.

    Returns:
        With `per_factor`, the accuracy if that factor is fixed, and `matrix`, the votes of each
        code for each factor when the classifier was made.

    Raises:
        ValueError: an argument is out of range, or codes are not finite.
    """
    checked_seed(seed)
    train_votes = checked_integer("train_votes", train_votes, 1)
    test_votes = checked_integer("test_votes", test_votes, 1)
    images = checked_integer("images", images, 2)
    variance_images = checked_integer("variance_images", variance_images, 2)
    votes = train_votes, test_votes

    def tables(sampler: Sampler, share: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([seed, stream])
        deviations = np.std(
            sampler.draw(np.array([NOT_FIXED]), variance_images, random)[0], axis=0, ddof=1
        )
        scale = np.where(deviations > least_deviation, deviations, 0.0)
        train, test = (
            _votes(sampler, scale, max(number // share, 1), images, random) for number in votes
        )
        return train, test

    train, test = tables(sampler, 1, 0)
    parts = sampler.parts(repeats, seed)
    found = [tables(part, len(parts), 1 + number) for number, part in enumerate(parts)]
    errors = standard_errors([np.array(_accuracy(*each)[0]) for each in found])
    value, per_factor = _accuracy(train, test)
    drawn = variance_images + sum(votes) * images
    return score(
        value,
        errors,
        sampler.rows or drawn,
        repeats,
        per_factor=per_factor,
        matrix=train,
    )


def _votes(
    sampler: Sampler, scale: np.ndarray, number: int, images: int, random: np.random.Generator
) -> np.ndarray:
    """Returns how often each code won while each factor was fixed, `[d, k]`.

    Args:
        sampler: of codes.
        scale: standard deviation of each code; 0 of those that do not take part.
        number: of votes.
        images: for one vote.
        random: all draws come from it.
    """
    table = np.zeros((len(scale), sampler.num_factors), np.int64)
    if not scale.any():
        return table
    fixed = random.integers(sampler.num_factors, size=number)
    for start in range(0, number, _VOTES_PER_DRAW):
        now = fixed[start : start + _VOTES_PER_DRAW]
        local = sampler.draw(now, images, random).std(axis=1, ddof=1)
        ratio = np.divide(local, scale, out=np.full(local.shape, np.inf), where=scale > 0.0)
        np.add.at(table, (ratio.argmin(axis=1), now), 1)
    return table


def _accuracy(train: np.ndarray, test: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the accuracy of the majority of `train` in `test`, and that of each factor."""
    right = np.zeros_like(test)
    codes = np.flatnonzero(train.any(axis=1))  # a code that never won knows no factor
    right[codes, train.argmax(axis=1)[codes]] = test[codes, train.argmax(axis=1)[codes]]
    return (
        float(right.sum() / max(test.sum(), 1)),
        right.sum(axis=0) / np.maximum(test.sum(axis=0), 1),
    )
