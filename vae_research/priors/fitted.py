"""Whether a prior that is not the bottleneck's own is one of the codes of a model."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from vae_research.codes import CodeLayout
from vae_research.priors.prior import INDICES, REAL_NUMBERS, SPHERE, Prior


def refuse_unfitted(prior: Any, bottleneck: Any) -> None:
    """Raises ValueError unless `prior` was fitted to codes like those of a bottleneck."""
    if not isinstance(prior, Prior):
        raise ValueError(
            f"prior={prior!r} is not a Prior: give what fit_prior(vae, data, MixturePrior(10)) "
            "returns."
        )
    if not prior.built:
        raise ValueError(
            f"{type(prior).__name__} {prior.name!r} is not fitted: give what "
            "fit_prior(vae, data, prior) returns."
        )
    layout = CodeLayout.of(bottleneck)
    zeros = {name: tf.zeros([1, *shape]) for name, shape in layout.shapes.items()}
    values = bottleneck.values_of_codes(layout.given(zeros))
    refuse_other_codes(prior, bottleneck, values)
    if not tf.TensorShape(prior.event_shape).is_compatible_with(values.shape[1:]):
        raise ValueError(
            f"{type(prior).__name__} {prior.name!r} is the prior of codes of shape "
            f"{prior.event_shape}; those of {type(bottleneck).__name__} have "
            f"{tuple(values.shape[1:])}: fit one to this model with fit_prior."
        )


def refuse_other_codes(prior: Prior, bottleneck: Any, values: Any) -> None:
    """Raises ValueError for a prior of something else than the codes of a bottleneck.

    Args:
        prior: whose class and settings are looked at.
        bottleneck: whose codes they are.
        values: what its `values_of_codes` makes of them, `[rows, ...]`.
    """
    kind = REAL_NUMBERS if tf.as_dtype(values.dtype).is_floating else INDICES
    name, takes = type(bottleneck).__name__, set(getattr(bottleneck, "takes", ()))
    if len(bottleneck.latents) > 1 and takes & {INDICES, SPHERE}:
        raise ValueError(
            f"The latents of {name} are {', '.join(sorted(takes))}: no prior is one of them side "
            "by side."
        )
    if SPHERE in takes:
        kind = SPHERE
    if prior.of != kind and {prior.of, kind} & {INDICES, SPHERE}:
        raise ValueError(
            f"The codes of {name} are {kind}; {type(prior).__name__} is a prior of {prior.of}. One "
            f"of your own says in its class what it is of: of = {kind!r}."
        )
    codes = getattr(bottleneck, "num_codes", None)
    of_prior = getattr(prior, "num_codes", codes)
    if codes is not None and of_prior != codes:
        raise ValueError(
            f"{name} has {codes} codes, and {type(prior).__name__}(num_codes={of_prior}) is the "
            "prior of another number of them."
        )
