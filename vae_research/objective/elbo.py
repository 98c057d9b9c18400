"""What a forward pass has of the ELBO: divergences and densities of all latents."""

from __future__ import annotations

import tensorflow as tf

from vae_research.levels import levels
from vae_research.probability import sum_over_event
from vae_research.tensors import Tensors, density, sum_in_order


def divergences(tensors: Tensors) -> dict[str, tf.Tensor]:
    """Returns the KL divergences in the ELBO by latent, `[rows]`, in closed form if it is known."""
    found = {}
    for latent, level in levels(tensors).items():
        if "kl" in level:
            found[latent] = sum_over_event(tensors.tap("ELBO", level["kl"]))
        else:
            log_posterior = density("ELBO", level["log_posterior"], tensors)
            found[latent] = log_posterior - density("ELBO", level["log_prior"], tensors)
    return found


def log_prior_ratio(reader: str, tensors: Tensors) -> tf.Tensor | None:
    """Returns log p(z) - log q(z|x) of all latents, `[rows]`, nats, or None if one lacks a density.

    Args:
        reader: what to call the reader in a message.
        tensors: of a forward pass.
    """
    found = levels(tensors).values()
    if not found or any(not {"log_posterior", "log_prior"} <= level.keys() for level in found):
        return None
    ratios = []
    for level in found:
        log_prior = density(reader, level["log_prior"], tensors)
        ratios.append(log_prior - density(reader, level["log_posterior"], tensors))
    return sum_in_order(ratios)
