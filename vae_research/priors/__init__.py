"""Priors of a latent. A new one is a subclass of `Prior`."""

from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names

if TYPE_CHECKING:
    from vae_research.priors.flow import RealNVPPrior as RealNVPPrior
    from vae_research.priors.indices import AutoregressivePrior as AutoregressivePrior
    from vae_research.priors.indices import UniformPrior as UniformPrior
    from vae_research.priors.mixture import MixturePrior as MixturePrior
    from vae_research.priors.prior import Prior as Prior
    from vae_research.priors.prior import StandardNormalPrior as StandardNormalPrior
    from vae_research.priors.second_stage import SecondStagePrior as SecondStagePrior
    from vae_research.priors.sphere import SphericalUniformPrior as SphericalUniformPrior
    from vae_research.priors.vamp import VampPrior as VampPrior
    from vae_research.priors.whitened import WhitenedPrior as WhitenedPrior

_MODULES = {
    "flow": ("RealNVPPrior",),
    "indices": (
        "UniformPrior",
        "AutoregressivePrior",
    ),
    "mixture": ("MixturePrior",),
    "prior": ("Prior", "StandardNormalPrior"),
    "second_stage": ("SecondStagePrior",),
    "sphere": ("SphericalUniformPrior",),
    "vamp": ("VampPrior",),
    "whitened": ("WhitenedPrior",),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES)
