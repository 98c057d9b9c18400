"""Lists of terms that are known by a name of their own."""

from __future__ import annotations

from vae_research.losses.divergence import KLDivergence
from vae_research.losses.reconstruction import Bernoulli
from vae_research.losses.term import LossTerm


def pixel_mean_terms(*, factor: float, pixels: int, latent_dim: int) -> list[LossTerm]:
    """Returns the terms of many Keras recipes: a mean over pixels, and a factor on a mean over z.

    Those recipes train `mean_pixels(BCE) - factor * mean_z(1 + v - m^2 - exp(v))`. In nats that is
    the Bernoulli term with weight `1 / pixels` and the KL term with weight
    `2 * factor / latent_dim`: a beta of `2 * factor * pixels / latent_dim`, which changes with the
    size of the image. Values are logged in nats whatever the weights.

    Args:
        factor: the number in front of the latent mean.
        pixels: values of one example, height times width times channels.
        latent_dim: number of latent dimensions.

    Raises:
        ValueError: `pixels` or `latent_dim` is below 1.

    >>> from vae_research.objective import Objective
    >>> terms = pixel_mean_terms(factor=6.5e-4, pixels=784, latent_dim=2)
    >>> round(Objective(terms).effective_beta(step=0), 2)
    0.51
    """
    if pixels < 1 or latent_dim < 1:
        raise ValueError(
            f"pixels and latent_dim must be at least 1, got pixels={pixels}, "
            f"latent_dim={latent_dim}."
        )
    return [
        Bernoulli(weight=1.0 / pixels),
        KLDivergence(weight=2.0 * factor / latent_dim),
    ]
