"""Checks of codes and factors, with one message for each kind of mistake."""

from __future__ import annotations

import numpy as np

from vae_research.extras import require


def checked_codes(codes: np.ndarray, name: str = "codes") -> np.ndarray:
    """Returns codes as float64 `[n, d]`.

    Raises:
        ValueError: they have another shape, no rows or columns, or values that are not finite.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"{name} must have the shape [rows, codes], got {list(codes.shape)}.")
    if codes.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be real numbers, got {codes.dtype}.")
    codes = codes.astype(np.float64)
    wrong = ~np.isfinite(codes)
    if wrong.any():
        columns = np.flatnonzero(wrong.any(axis=0)).tolist()
        raise ValueError(
            f"{name} have values that are not finite in {int(wrong.any(axis=1).sum())} of "
            f"{len(codes)} rows, columns {columns}. Leave these rows out, or look for what went "
            "wrong in training."
        )
    return codes


def checked_factors(factors: np.ndarray) -> np.ndarray:
    """Returns factors as int64 `[n, k]`: in each column the index of a value among those there are.

    Raises:
        ValueError: they have another shape, no rows or columns, are not integers, or a factor has
            one value only.
    """
    factors = np.asarray(factors)
    if factors.ndim != 2 or 0 in factors.shape:
        raise ValueError(f"factors must have the shape [rows, factors], got {list(factors.shape)}.")
    if factors.dtype.kind not in "iu":
        raise ValueError(
            f"factors must be integers that name values, got {factors.dtype}. For a column of "
            "numbers that repeat: np.unique(column, return_inverse=True)[1]; for a continuous one: "
            "np.digitize."
        )
    indices = [np.unique(column, return_inverse=True)[1].reshape(-1) for column in factors.T]
    constant = [number for number, column in enumerate(indices) if not column.any()]
    if constant:
        raise ValueError(
            f"Factors in columns {constant} have one value in all {len(factors)} rows, about which "
            "a code can say nothing. Leave these columns out."
        )
    return np.stack(indices, axis=1)


def checked(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    metric: str,
    least_codes: int = 1,
    least_factors: int = 1,
    least_rows: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes as float64 `[n, d]` and factors as indices, int64 `[n, k]`.

    Args:
        codes, factors: of the same rows.
        metric: its name, for messages.
        least_codes, least_factors, least_rows: that it needs.

    Raises:
        ValueError: they do not suit the metric or each other.
    """
    codes = checked_codes(codes)
    rows = len(np.asarray(factors)) if np.ndim(factors) else 0
    if rows != len(codes):
        raise ValueError(f"There are {len(codes)} rows of codes and {rows} of factors.")
    if len(codes) < least_rows:
        raise ValueError(f"{metric} needs at least {least_rows} rows, got {len(codes)}.")
    factors = checked_factors(factors)
    if codes.shape[1] < least_codes:
        raise ValueError(f"{metric} needs at least {least_codes} codes, got {codes.shape[1]}.")
    if factors.shape[1] < least_factors:
        raise ValueError(
            f"{metric} compares factors and needs at least {least_factors}, got {factors.shape[1]}."
        )
    return codes, factors


def require_scikit_learn(metric: str) -> None:
    """Raises ImportError if scikit-learn is missing; imports nothing."""
    require(metric, "disentanglement", {"sklearn": "scikit-learn"})
