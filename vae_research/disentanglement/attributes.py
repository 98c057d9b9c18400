"""The separated attribute predictability score, and the linear SVM of one feature that it needs."""

from __future__ import annotations

import numpy as np

from vae_research.disentanglement.checks import checked
from vae_research.disentanglement.gap import gap_of_best_two
from vae_research.disentanglement.scores import (
    REPEATS,
    Score,
    errors_over_groups,
    halves,
    score,
)


def sap(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    penalty: float = 0.01,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Score:
    """Returns the separated attribute predictability score, from 0 to 1.

    A linear support vector machine predicts each factor from each code alone. For each factor the
    score is the gap between the accuracies of the two best codes; the mean over factors. Kumar et
    al. 2018 (arXiv:1711.00848), section 3, with the machine of Locatello et al. 2019
    (arXiv:1811.12359): squared hinge loss, one class against the rest, C = 0.01, classes weighted
    by their frequency as in liblinear. It is fitted to a random half of the rows and tested on the
    other half (there: 10 000 and 5 000 rows). Codes are divided by their standard deviation first,
    so that the penalty does not depend on their scale.

    The largest score is below 1. A code that knows nothing is right as often as the most frequent
    value. And one class against the rest cannot cut an interval out of a line: of a factor with six
    or more ordered values only the two outermost are predicted, so that even its own values as a
    code have an accuracy of about 2 / values, and a gap of 1 / values.

    Args:
        codes: `[n, d]` real numbers, at least two codes.
        factors: `[n, k]` integers that name values. A value that occurs in the tested half only is
            never predicted.
        penalty: the C of the machine.
        repeats: disjoint groups of rows for the standard error; 1 for none.
        seed: of the halves and the groups.

    Returns:
        With `per_factor` and `matrix`, the accuracies.

    Raises:
        ValueError: codes or factors are unsuitable (see the message).
    """
    codes, factors = checked(codes, factors, metric="SAP", least_codes=2, least_rows=4)
    if not 0.0 < penalty < np.inf:
        raise ValueError(f"penalty must be a finite number above 0, got {penalty}.")

    def value(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
        return gap_of_best_two(accuracies(codes, factors, penalty, seed)).mean()

    error = errors_over_groups(value, codes, factors, repeats=repeats, seed=seed, least_rows=4)
    matrix = accuracies(codes, factors, penalty, seed)
    gaps = gap_of_best_two(matrix)
    return score(gaps.mean(), error, len(codes), repeats, per_factor=gaps, matrix=matrix)


def accuracies(codes: np.ndarray, factors: np.ndarray, penalty: float, seed: int) -> np.ndarray:
    """Returns how often each code predicts each factor in the half that is not fitted, `[d, k]`."""
    train, test = halves(len(codes), seed)
    found = np.empty((codes.shape[1], factors.shape[1]))
    for i, code in enumerate(codes.T):
        deviation = code[train].std()
        scaled = (code - code[train].mean()) / (deviation if deviation > 0.0 else 1.0)
        for j, factor in enumerate(factors.T):
            values, labels = np.unique(factor[train], return_inverse=True)
            slopes, offsets = linear_machines(scaled[train], labels.reshape(-1), penalty)
            margins = scaled[test, np.newaxis] * slopes + offsets
            found[i, j] = np.mean(values[margins.argmax(axis=1)] == factor[test])
    return found


def linear_machines(
    feature: np.ndarray, labels: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns slope w and offset b of the machine of each class against the rest, `[classes]` each.

    They minimise `(w^2 + b^2) / 2 + C sum_i c_i max(0, 1 - y_i (w x_i + b))^2`, as liblinear does
    (Fan et al. 2008): c_i is n / (classes * n_class) of the class, and 1 of the rest unless there
    are two classes. With one feature the rows with a loss are those on one side of a threshold, and
    sums over them are differences of cumulative sums. All classes are solved at once by Newton's
    method with halved steps (Mangasarian 2002, A finite Newton method for classification).

    Args:
        feature: `[n]`.
        labels: `[n]` integers from 0, all of which occur.
        penalty: C.
    """
    sums = _Sums(feature, labels)
    share = len(labels) / (len(sums.counts) * sums.counts)
    rest = share[::-1] if len(share) == 2 else np.ones_like(share)
    weights = 2.0 * penalty * share, 2.0 * penalty * rest
    point = np.zeros((2, len(share)))  # w and b
    loss, gradient, hessian = _loss(point, sums, weights)
    for _ in range(100):
        determinant = hessian[0] * hessian[2] - hessian[1] ** 2
        step = -np.stack(
            [
                hessian[2] * gradient[0] - hessian[1] * gradient[1],
                hessian[0] * gradient[1] - hessian[1] * gradient[0],
            ]
        )
        step /= determinant
        decrease = (gradient * step).sum(axis=0)
        for _ in range(40):
            found = _loss(point + step, sums, weights)
            too_long = found[0] > loss + 1e-4 * decrease + 1e-12 * loss
            if not too_long.any():
                break
            step[:, too_long] /= 2.0
            decrease[too_long] /= 2.0
        point = point + step
        loss, gradient, hessian = found
        if np.abs(step).max() < 1e-9:
            break
    return point[0], point[1]


class _Sums:
    """Number, sum and sum of squares of a feature below a rank, of all rows and of each class."""

    def __init__(self, feature: np.ndarray, labels: np.ndarray) -> None:
        order = np.argsort(feature, kind="stable")
        self.ordered = feature[order]
        labels = labels[order]
        self.counts = np.bincount(labels)
        by_class = np.argsort(labels, kind="stable")  # rows of a class together, in order
        self._count = len(feature)
        self._keys = labels[by_class] * self._count + by_class
        self._of_all = self._cumulated(self.ordered)
        self._of_classes = self._cumulated(self.ordered[by_class])
        self._first = np.arange(len(self.counts)) * self._count

    @staticmethod
    def _cumulated(values: np.ndarray) -> np.ndarray:
        powers = np.stack([np.ones_like(values), values, values**2])
        return np.concatenate([np.zeros((3, 1)), np.cumsum(powers, axis=1)], axis=1)

    def between(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns sums over the rows of ranks `low <= rank < high`, one pair for each class.

        Returns:
            `[3, classes]` of the rows of the class, and of all other rows.
        """
        everything = self._of_all[:, high] - self._of_all[:, low]
        from_, to = (np.searchsorted(self._keys, self._first + rank) for rank in (low, high))
        own = self._of_classes[:, to] - self._of_classes[:, from_]
        return own, everything - own


def _loss(
    point: np.ndarray, sums: _Sums, weights: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the loss `[classes]`, first derivatives `[2, classes]`, second `[3, classes]`."""
    slope, offset = point
    loss = (slope**2 + offset**2) / 2.0
    gradient = point.copy()
    hessian = np.stack([np.ones_like(slope), np.zeros_like(slope), np.ones_like(slope)])
    for sign, weight in zip((1.0, -1.0), weights, strict=True):
        # Rows with sign * (w x + b) < 1 have a loss.
        everything = np.where(sign * offset < 1.0, len(sums.ordered), 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            threshold = np.searchsorted(sums.ordered, (sign - offset) / slope)
        low = np.where(sign * slope < 0.0, threshold, 0)
        high = np.where(sign * slope > 0.0, threshold, len(sums.ordered))
        high = np.where(slope == 0.0, everything, high)
        own, others = sums.between(low, high)
        number, total, squares = own if sign > 0.0 else others
        loss += (
            weight
            / 2.0
            * (
                number
                - 2.0 * sign * (slope * total + offset * number)
                + slope**2 * squares
                + 2.0 * slope * offset * total
                + offset**2 * number
            )
        )
        gradient[0] += weight * (slope * squares + offset * total - sign * total)
        gradient[1] += weight * (slope * total + offset * number - sign * number)
        hessian += weight * np.stack([squares, total, number])
    return loss, gradient, hessian
