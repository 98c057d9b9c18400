"""Whether a latent space is in use: estimates, and a diagnosis in words. NumPy in and out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vae_research.evaluation.estimates import ACTIVE_VARIANCE, Estimate

HEALTHY = "healthy"
DEAD_DIMENSIONS = "dead dimensions"
POSTERIOR_COLLAPSE = "posterior collapse"
DECODER_IGNORES_Z = "decoder ignores z"
WARM_UP_NEVER_ENDED = "warm-up never ended"

# Nats per example. Below this permuted code gap, the decoder ignores its codes.
LEAST_PERMUTED_CODE_GAP = 0.1

# A KL divergence below this many nats per example, at so many evaluations in a row, is a collapse.
COLLAPSED_KL, COLLAPSED_EVALUATIONS = 0.01, 3


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """One finding: its name, which is one of the constants above, and a sentence with numbers."""

    name: str
    reason: str

    def __str__(self) -> str:
        """The name and the sentence."""
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """A weight that is still growing when training ends.

    Attributes:
        term: name of the loss term.
        ends_at: the optimizer step from which its weight no longer changes.
        training_ends_at: the last optimizer step.
        reached: the weight at the last step.
        peak: the weight from `ends_at` on.
    """

    term: str
    ends_at: int
    training_ends_at: int
    reached: float
    peak: float


def diagnose(
    variances: np.ndarray,
    permuted_code_gap: Estimate,
    *,
    has_posterior: bool = True,
    unfinished: list[WarmUp] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Diagnosis]:
    """Returns what is wrong with a latent space, or that it is healthy; never an empty list.

    - Dead dimensions: the variance of their posterior mean over the data is at most 0.01, the
      threshold of active units (Burda et al. 2016, arXiv:1509.00519, section 5.2).
    - Posterior collapse: all dimensions are dead.
    - The decoder ignores z: not all dimensions are dead, and decoding codes of other examples costs
      less than 0.1 nats, by a margin of two standard errors.
    - The warm-up never ended: training ends while a weight is still growing.

    Args:
        variances: `[latent]`, variances of the posterior means over the data.
        permuted_code_gap: log-likelihood with the example's own code minus that with the code of
            another example, nats; see `permuted_code_gap`.
        has_posterior: True compares variances with a prior of variance about 1. False is for a
            plain autoencoder, whose codes have any scale: variances are compared with the largest.
        unfinished: weights that are still growing when training ends.
        labels: names of the dimensions, `VAE.code_layout.labels`; by default their numbers.
    """
    variances = np.asarray(variances, np.float64)
    names = labels or [str(number) for number in range(len(variances))]
    scale = 1.0 if has_posterior else float(variances.max())
    dead = np.flatnonzero(variances <= ACTIVE_VARIANCE * scale)
    found = []
    if len(dead) == len(variances):
        advice = " A smaller weight of the KL divergence or a warm-up may help."
        found.append(
            Diagnosis(
                POSTERIOR_COLLAPSE,
                f"none of {len(variances)} dimensions is in use; the codes do not depend on the "
                f"data.{advice if has_posterior else ''}",
            )
        )
    else:
        if len(dead):
            found.append(
                Diagnosis(
                    DEAD_DIMENSIONS,
                    f"{len(dead)} of {len(variances)} are not in use: "
                    f"{_listed([names[number] for number in dead.tolist()])}.",
                )
            )
        cost, error = permuted_code_gap.value, permuted_code_gap.standard_error or 0.0
        if cost + 2.0 * error < LEAST_PERMUTED_CODE_GAP:
            found.append(
                Diagnosis(
                    DECODER_IGNORES_Z,
                    f"codes of other examples cost {cost:.3g} nats, less than "
                    f"{LEAST_PERMUTED_CODE_GAP}. The decoder reconstructs without them.",
                )
            )
    for each in unfinished or []:
        found.append(
            Diagnosis(
                WARM_UP_NEVER_ENDED,
                f"training ends at step {each.training_ends_at} with weight {each.reached:.3g} of "
                f"{each.term!r}, which reaches {each.peak:.3g} at step {each.ends_at}.",
            )
        )
    if found:
        return found
    active = len(variances) - len(dead)
    reason = (
        f"{active} of {len(variances)} dimensions in use, and codes of other examples cost "
        f"{permuted_code_gap.value:.3g} nats."
    )
    return [Diagnosis(HEALTHY, reason)]


def collapse_in_training(kl: Sequence[float]) -> Diagnosis | None:
    """Returns a posterior collapse if the KL divergence of the last evaluations is near zero.

    That is below 0.01 nats at 3 evaluations in a row.

    Args:
        kl: mean KL divergence at each evaluation so far, nats per example, the latest last.
    """
    last = kl[-COLLAPSED_EVALUATIONS:]
    if len(last) < COLLAPSED_EVALUATIONS or not all(value < COLLAPSED_KL for value in last):
        return None
    return Diagnosis(
        POSTERIOR_COLLAPSE,
        f"the KL divergence was below {COLLAPSED_KL} nats at {COLLAPSED_EVALUATIONS} evaluations "
        "in a row; z carries no information about x. A smaller weight of the KL divergence at the "
        "beginning, or free bits, may help.",
    )


def permuted_code_gap(own: np.ndarray, permuted: np.ndarray) -> Estimate:
    """Returns the cost of decoding codes of other examples, nats per example.

    Args:
        own: `[count]`, log p(x|z) with the example's own code.
        permuted: `[count]`, log p(x|z) with the code of another example.
    """
    return Estimate.mean_of(np.asarray(own, np.float64) - np.asarray(permuted, np.float64))


@np.errstate(over="ignore", invalid="ignore")
def mutual_information(
    z: np.ndarray, z_mean: np.ndarray, z_log_var: np.ndarray, *, rows: int = 128
) -> float:
    """Returns a lower bound of the mutual information between x and z, nats, at most log(count).

    The mean over examples i of `log q(z_i|x_i) - log(1/count * sum_j q(z_i|x_j))`, for diagonal
    normal posteriors. Its expectation is at most the mutual information of x and z under the
    encoder, which is at most the mean KL divergence from the prior. A value near log(count) means
    that the information may be larger. Poole et al. 2019, On Variational Bounds of Mutual
    Information (arXiv:1905.06922), the bound with known conditional density. It is NaN if variances
    overflow or underflow.

    Args:
        z: `[count, latent]`, one sample for each example.
        z_mean: `[count, latent]`.
        z_log_var: `[count, latent]`.
        rows: number of examples i; the sum over j has all examples.
    """
    z = np.asarray(z[:rows], np.float64)
    mean, log_var = np.asarray(z_mean, np.float64), np.asarray(z_log_var, np.float64)
    precision = np.exp(-log_var)
    # sum_d (z - mean)^2 / var as three matrix products, without an array [rows, count, latent]; by
    # einsum, because the threads of `@` keep spinning for 0.1 s and slow down the training.
    squares = (
        np.einsum("id,jd->ij", z**2, precision)
        - 2.0 * np.einsum("id,jd->ij", z, mean * precision)
        + (mean**2 * precision).sum(1)
    )
    return information_of_densities(-0.5 * (squares + log_var.sum(1)))  # log(2 pi) cancels


@np.errstate(over="ignore", invalid="ignore")
def information_of_densities(log_density: np.ndarray) -> float:
    """Returns the bound of `mutual_information` for any posterior, nats.

    Args:
        log_density: log q(z_i|x_j), `[rows i, count j]`; i are the first of the examples j.
    """
    log_density = np.asarray(log_density, np.float64)
    rows, count = log_density.shape
    own = log_density[np.arange(rows), np.arange(rows)]
    highest = log_density.max(axis=1)
    # float32 is enough for numbers of which the largest is 1.
    relative = np.exp((log_density - highest[:, np.newaxis]).astype(np.float32))
    log_mixture = highest + np.log(relative.mean(axis=1, dtype=np.float64))
    return min(float((own - log_mixture).mean()), math.log(count))


def _listed(names: Sequence[object], at_most: int = 12) -> str:
    """Returns the names in words, or the first of them if there are many.

    >>> _listed(range(14))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, and 2 more'
    """
    shown = ", ".join(str(name) for name in names[:at_most])
    return shown if len(names) <= at_most else f"{shown}, and {len(names) - at_most} more"
