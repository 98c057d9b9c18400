"""Distributions of TensorFlow Probability (the extra `probability`) as parts of a model.

A part is a named class, since a model is saved and loaded by the names of its parts: a method
`distribution` returns what TensorFlow Probability makes, from named tensors or from weights.

Not promised: that samples are the same with XLA and without, and that training without XLA repeats
to the last bit. Both depend on the library's own code. XLA repeats exactly.
"""

from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names

if TYPE_CHECKING:
    from vae_research.distributions.likelihood import (
        DistributionLikelihood as DistributionLikelihood,
    )
    from vae_research.distributions.posterior import (
        DistributionBottleneck as DistributionBottleneck,
    )
    from vae_research.distributions.prior import DistributionPrior as DistributionPrior

_MODULES = {
    "likelihood": ("DistributionLikelihood",),
    "posterior": ("DistributionBottleneck",),
    "prior": ("DistributionPrior",),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES)
