"""Examples that a model makes, with the codes of which it makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer, checked_seed
from vae_research.levels import level_of
from vae_research.model import VAE
from vae_research.priors.fitted import refuse_unfitted
from vae_research.priors.prior import DIAGONAL_POSTERIORS, REAL_NUMBERS, Prior
from vae_research.randomness import evaluation_key, fold_in


@dataclasses.dataclass(frozen=True)
class Simulated:
    """Examples that a model has made, with their codes, which are exact posterior samples.

    Attributes:
        data: arrays by name, among them `inputs`, as `estimate` takes them.
        z: `[count, ...]`.
    """

    data: dict[str, np.ndarray]
    z: np.ndarray


def simulate(
    model: VAE,
    count: int = 100,
    *,
    seed: int | None = None,
    prior: Prior | None = None,
    **tensors: np.ndarray,
) -> Simulated:
    """Returns examples drawn from the model: z from the prior, and x from p(x|z).

    Args:
        model: a VAE whose variables exist.
        count: of the examples.
        seed: 0 to 2**32 - 1; by default that of the model.
        prior: one that `fit_prior` has fitted; by default that of the bottleneck.
        tensors: further arrays `[count, ...]` that the decoder reads, for example `labels`.

    Raises:
        ValueError: an argument is not valid, there is no prior with a density of real codes, or the
            likelihood does not compare `targets`.
        TypeError: the likelihood does not define `sample`.
    """
    count = checked_integer("count", count, 1)
    seed = checked_seed(model.seed if seed is None else seed)
    prior = checked_prior(model, prior)
    if "targets" not in (compared := [each.target for each in model.objective.likelihood.factors]):
        raise ValueError(f"simulate needs a likelihood of 'targets'; this is one of {compared}.")
    key = fold_in(evaluation_key(seed, 0), "codes of simulated examples")
    z = prior.sample(count, key)
    given = {name: tf.convert_to_tensor(values) for name, values in tensors.items()}
    drawn = {name: each.numpy() for name, each in model.draw(z, seed=seed, **given).items()}
    inputs = drawn.pop("targets")
    return Simulated({"inputs": inputs, **drawn, **tensors}, z.numpy())


def checked_prior(model: VAE, prior: Prior | None) -> Prior:
    """Returns the prior whose density is annealed; raises ValueError if there is none."""
    bottleneck = model.bottleneck
    if prior is not None:
        refuse_unfitted(prior, bottleneck)
    found = getattr(bottleneck, "prior", None) if prior is None else prior
    name, needs = type(bottleneck).__name__, "annealed importance sampling needs"
    if model.code_layout.only is None:
        latents = ", ".join(model.code_layout.shapes)
        raise ValueError(f"{name} has several latents ({latents}); {needs} a single one.")
    if not isinstance(found, Prior):
        raise ValueError(
            f"{name} has no prior with a density, which {needs}: give one that "
            "fit_prior has fitted."
        )
    if found.of not in (REAL_NUMBERS, DIAGONAL_POSTERIORS):
        raise ValueError(
            f"{type(found).__name__}, the prior of {name}, is one of {found.of}; {needs} one of "
            "real numbers."
        )
    if not found.has_density:
        raise ValueError(f"{type(found).__name__} has no density, which {needs}.")
    return found


def refuse_other_latents(model: VAE, tensors: Mapping[str, tf.Tensor], z: tf.Tensor) -> None:
    """Raises ValueError unless p(x|z) is a function of the code and the data alone.

    Noise, or a further level of latents behind the bottleneck, would have to be integrated out too.

    Args:
        model: a VAE whose variables exist.
        tensors: the named tensors of some examples, with `seed` and `step`.
        z: one code for each example.

    Raises:
        ValueError: the decoder or a module that log p(x|z) needs writes a density or a divergence
            of a latent, or one of them or the likelihood reads `seed`.
    """
    found = model.decoded_for_likelihood(tensors, z)
    needs = "annealed importance sampling needs a p(x|z) without other latents or noise."
    for name, writer in found.writers.items():
        if level_of(name) is not None:
            raise ValueError(
                f"The {writer} writes {name!r}, part of a level of latents behind the bottleneck; "
                f"{needs}"
            )
    likelihood = model.objective.likelihood
    if "seed" in found.read | likelihood.reads():
        networks = ", ".join(repr(each.name) for each in (model.decoder, *model.further_modules))
        raise ValueError(
            f"log p(x|z) is random: one of {networks} and {type(likelihood).__name__} reads "
            f"'seed'; {needs}"
        )
