"""What a bottleneck writes: its divergence and its densities, against each other and its samples.

Closed forms are compared with Monte Carlo in codes of any size, and with an integral in codes of
one or two values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vae_research.codes import CodeLayout
from vae_research.levels import levels
from vae_research.selfcheck.outcome import NotApplicableError
from vae_research.tensors import Tensors, of_all_levels

_Values = npt.NDArray[np.float64]

STANDARD_ERRORS = 5.0
"""How far a mean over samples may be from what it should be."""
AGAIN_TOLERANCE = 2e-3
"""By how many nats a density may differ if it is computed a second time."""

# Values of the samples of one example, which bounds the memory.
_VALUES = 2**20
_MOST_DRAWS = 20_000
# A mean without spread is compared up to rounding.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a bottleneck writes of many equal examples.

    Attributes:
        tensors: as written, of all levels joined for `log_posterior` and `log_prior`, `[draws]`.
        codes: `[draws, values]`.
        ratio: `log_posterior - log_prior`, `[draws]`, nats.
        gradients: of the ratio of each draw, by what the encoder wrote, `[draws, ...]`.
    """

    tensors: Tensors
    codes: tf.Tensor
    ratio: tf.Tensor
    gradients: Mapping[str, tf.Tensor]


def of_rows(heads: Mapping[str, tf.Tensor], count: int) -> dict[str, tf.Tensor]:
    """Returns what the encoder wrote of one example, so many times."""
    return {name: tf.repeat(value, count, axis=0) for name, value in heads.items()}


def named_codes(bottleneck: Any, columns: npt.ArrayLike) -> dict[str, tf.Tensor]:
    """Returns codes by the name of their latent, of columns `[rows, values]`."""
    layout = CodeLayout.of(bottleneck)
    columns = tf.convert_to_tensor(columns, tf.float32)
    return dict(layout.named("selfcheck", layout.unflatten(columns)))


def draws_of(bottleneck: Any) -> int:
    """Returns how many samples of one example are drawn."""
    return max(500, min(_MOST_DRAWS, _VALUES // CodeLayout.of(bottleneck).size))


def drawn(bottleneck: Any, heads: Mapping[str, tf.Tensor], count: int, seed: tf.Tensor) -> Drawn:
    """Returns what a bottleneck writes of equal examples.

    Args:
        bottleneck: a built one.
        heads: what `call` reads, of one example `[1, ...]`.
        count: number of samples.
        seed: a stateless key, `[2]`.

    Raises:
        NotApplicableError: it writes no densities.
    """
    rows = of_rows(heads, count)
    with tf.GradientTape() as tape:
        tape.watch(rows)
        found = Tensors(bottleneck(**rows, seed=seed))
        if not all("log_prior" in level for level in levels(found).values()) or not levels(found):
            raise NotApplicableError("the bottleneck writes no log_posterior and log_prior")
        densities = {
            name: of_all_levels("selfcheck", name, found) for name in ("log_posterior", "log_prior")
        }
        ratio = densities["log_posterior"] - densities["log_prior"]
    gradients = tape.gradient(ratio, rows, unconnected_gradients="zero")
    codes = CodeLayout.of(bottleneck).flatten(found)
    return Drawn(Tensors({**found, **densities}), codes, ratio, gradients)


def codes_of(
    bottleneck: Any, heads: Mapping[str, tf.Tensor], count: int, seed: tf.Tensor
) -> tf.Tensor:
    """Returns samples of one example, `[draws, values]`; the arguments are those of `drawn`."""
    return CodeLayout.of(bottleneck).flatten(bottleneck(**of_rows(heads, count), seed=seed))


def errors_of(values: npt.ArrayLike, wanted: npt.ArrayLike) -> _Values:
    """Returns how many standard errors the means of columns are from what they should be.

    Args:
        values: `[draws, ...]`.
        wanted: one for each column.
    """
    found = np.asarray(values, np.float64)
    found = found.reshape(len(found), -1)
    error = np.maximum(found.std(axis=0) / math.sqrt(len(found)), _ROUNDING)
    return np.abs(found.mean(axis=0) - np.ravel(wanted)) / error


def closed_form(
    bottleneck: Any, heads: Mapping[str, tf.Tensor], seed: tf.Tensor
) -> tuple[float, dict[str, _Values]]:
    """Returns the KL divergence that a bottleneck writes of one example, and its gradient.

    Raises:
        NotApplicableError: there is no closed form, or that of a level depends on a sample of
            another.
    """
    with tf.GradientTape() as tape:
        tape.watch(heads)
        found = Tensors(bottleneck(**heads, seed=seed))
        if not levels(found) or not all("kl" in level for level in levels(found).values()):
            raise NotApplicableError("posterior and prior have no divergence in closed form")
        if len(levels(found)) > 1:
            raise NotApplicableError("the divergence of a level depends on the samples of others")
        value = tf.reduce_sum(of_all_levels("selfcheck", "kl", found))
    gradients = tape.gradient(value, heads, unconnected_gradients="zero")
    return float(value), {name: np.asarray(g, np.float64) for name, g in gradients.items()}


def densities_again(
    bottleneck: Any, heads: Mapping[str, tf.Tensor], found: Drawn
) -> tuple[float, float]:
    """Returns by how many nats written densities of samples differ from `log_prob` of these codes.

    The first number is about the posterior, the second about the prior; both are the largest of
    all samples, over the size of the density if that is above 1.

    Raises:
        NotApplicableError: the bottleneck has no `log_prob`, `prior_log_prob`.
    """
    if not hasattr(bottleneck, "log_prob") or not hasattr(bottleneck, "prior_log_prob"):
        raise NotApplicableError("the bottleneck has no log_prob and prior_log_prob")
    codes = named_codes(bottleneck, found.codes)
    posterior = bottleneck.log_prob(**codes, **of_rows(heads, len(found.codes)))
    prior = bottleneck.prior_log_prob(**codes)
    return (
        _apart(found.tensors["log_posterior"], posterior),
        _apart(found.tensors["log_prior"], prior),
    )


def _apart(written: tf.Tensor, again: tf.Tensor) -> float:
    first, second = np.asarray(written, np.float64), np.asarray(again, np.float64)
    return float(np.max(np.abs(first - second) / np.maximum(np.abs(second), 1.0)))
