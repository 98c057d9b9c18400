"""By which figure a model is called the better one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vae_research.objective import LARGER_IS_BETTER


def scored(figures: Mapping[str, Any], prefix: str) -> str | None:
    """Returns the name of the figure that decides which epoch is the best, None without any.

    It is the bound that an importance-weighted model is trained with, otherwise the ELBO, otherwise
    the loss. The weights of terms count in the loss only.

    Args:
        figures: of validation data, by name.
        prefix: of their names.
    """
    names = [f"{prefix}{name}" for name in (*LARGER_IS_BETTER, "loss")]
    return next((name for name in names if figures.get(name) is not None), None)


def score(figures: Mapping[str, Any], prefix: str) -> float | None:
    """Returns that figure, or the negative loss: larger is better. Arguments as for `scored`.

    >>> score({"val_loss": 3.0, "val_elbo": -4.0}, "val_")
    -4.0
    """
    name = scored(figures, prefix)
    if name is None:
        return None
    return -float(figures[name]) if name == f"{prefix}loss" else float(figures[name])
