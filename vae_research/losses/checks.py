"""Checks of what likelihoods are given."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from vae_research.losses.term import Likelihood


def check_positive(term: Likelihood, setting: str) -> None:
    """Refuses a scale that is not positive."""
    value = getattr(term, setting)
    if value <= 0:
        raise ValueError(f"{type(term).__name__}.{setting} must be positive, got {value}.")


def check_shapes(term: Likelihood, targets: tf.Tensor, **parameters: Any) -> None:
    """Refuses parameters of another shape, which would broadcast to a meaningless number."""
    for name, value in parameters.items():
        if not targets.shape.is_compatible_with(value.shape):
            raise ValueError(
                f"Loss term {term.label!r} compares targets of shape {targets.shape} with {name!r} "
                f"of shape {value.shape}; they must have the same shape. The decoder writes "
                f"{name!r}."
            )


def check_broadcasts(term: Likelihood, targets: tf.Tensor, **parameters: Any) -> None:
    """Refuses a parameter with more values than the data: pixels would count several times."""
    for name, value in parameters.items():
        try:
            together = tf.broadcast_static_shape(targets.shape, value.shape)
        except ValueError:
            together = None
        if together is None or not together.is_compatible_with(targets.shape):
            raise ValueError(
                f"Loss term {term.label!r}: {name!r} has shape {value.shape}, which does not "
                f"broadcast to the targets of shape {targets.shape}."
            )
