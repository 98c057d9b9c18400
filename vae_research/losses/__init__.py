"""Loss terms. A new one subclasses `LossTerm`, in the file of the experiment that needs it."""

from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names

if TYPE_CHECKING:
    from vae_research.losses.aggregate import CovariancePenalty as CovariancePenalty
    from vae_research.losses.aggregate import TotalCorrelation as TotalCorrelation
    from vae_research.losses.discrete import Categorical as Categorical
    from vae_research.losses.discrete import DiscretizedLogistic as DiscretizedLogistic
    from vae_research.losses.discrete import (
        DiscretizedLogisticMixture as DiscretizedLogisticMixture,
    )
    from vae_research.losses.discrete import Poisson as Poisson
    from vae_research.losses.divergence import CapacityKL as CapacityKL
    from vae_research.losses.divergence import FreeBits as FreeBits
    from vae_research.losses.divergence import KLDivergence as KLDivergence
    from vae_research.losses.divergence import MonteCarloKL as MonteCarloKL
    from vae_research.losses.product import ProductLikelihood as ProductLikelihood
    from vae_research.losses.quantization import Commitment as Commitment
    from vae_research.losses.quantization import Perplexity as Perplexity
    from vae_research.losses.quantization import SquaredNorm as SquaredNorm
    from vae_research.losses.reconstruction import Bernoulli as Bernoulli
    from vae_research.losses.reconstruction import ContinuousBernoulli as ContinuousBernoulli
    from vae_research.losses.reconstruction import Gaussian as Gaussian
    from vae_research.losses.reconstruction import GaussianWithVariance as GaussianWithVariance
    from vae_research.losses.reconstruction import Laplace as Laplace
    from vae_research.losses.term import Likelihood as Likelihood
    from vae_research.losses.term import LossTerm as LossTerm

_MODULES = {
    "aggregate": ("CovariancePenalty", "TotalCorrelation"),
    "divergence": ("CapacityKL", "FreeBits", "KLDivergence", "MonteCarloKL"),
    "discrete": ("Categorical", "DiscretizedLogistic", "DiscretizedLogisticMixture", "Poisson"),
    "product": ("ProductLikelihood",),
    "quantization": (
        "Commitment",
        "Perplexity",
        "SquaredNorm",
    ),
    "reconstruction": (
        "Bernoulli",
        "ContinuousBernoulli",
        "Gaussian",
        "GaussianWithVariance",
        "Laplace",
    ),
    "term": ("Likelihood", "LossTerm"),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES)
