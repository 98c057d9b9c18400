"""Loss terms that reproduce the objective of Keras recipes."""

from __future__ import annotations

from vae_research.arguments import checked_integer
from vae_research.losses.divergence import KLDivergence
from vae_research.losses.reconstruction import Bernoulli
from vae_research.losses.term import LossTerm


def pixel_mean_terms(*, factor: float, pixels: int, latent_dim: int) -> list[LossTerm]:
    """Returns the terms of many Keras recipes: a mean over pixels and a weighted mean over z.

    These recipes train `mean_pixels(BCE) - factor * mean_z(1 + v - m^2 - exp(v))`. In nats, this is
    the Bernoulli term with weight `1 / pixels` and the KL term with weight
    `2 * factor / latent_dim`: a beta of `2 * factor * pixels / latent_dim`, which changes with the
    size of the image. Values are logged in nats, whatever the weights.

    Args:
        factor: of the mean over latent dimensions.
        pixels: number of values of one example: height times width times channels.
        latent_dim: number of latent dimensions.

    Raises:
        ValueError: `pixels` or `latent_dim` is not a positive integer.

    >>> from vae_research.objective import Objective
    >>> terms = pixel_mean_terms(factor=6.5e-4, pixels=784, latent_dim=2)
    >>> round(Objective(terms).effective_beta(step=0), 2)
    0.51
    """
    pixels = checked_integer("pixels", pixels, 1)
    latent_dim = checked_integer("latent_dim", latent_dim, 1)
    return [
        Bernoulli(weight=1.0 / pixels),
        KLDivergence(weight=2.0 * factor / latent_dim),
    ]
