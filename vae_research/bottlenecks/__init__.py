"""Bottlenecks. A new one is a subclass of `Bottleneck`."""

from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names

if TYPE_CHECKING:
    from vae_research.bottlenecks.bottleneck import Bottleneck as Bottleneck
    from vae_research.bottlenecks.categorical import (
        RelaxedCategoricalBottleneck as RelaxedCategoricalBottleneck,
    )
    from vae_research.bottlenecks.deterministic import (
        DeterministicBottleneck as DeterministicBottleneck,
    )
    from vae_research.bottlenecks.flow import FlowBottleneck as FlowBottleneck
    from vae_research.bottlenecks.flows import Flow as Flow
    from vae_research.bottlenecks.flows import (
        InverseAutoregressiveFlow as InverseAutoregressiveFlow,
    )
    from vae_research.bottlenecks.flows import PlanarFlow as PlanarFlow
    from vae_research.bottlenecks.full_covariance import (
        FullCovarianceGaussianBottleneck as FullCovarianceGaussianBottleneck,
    )
    from vae_research.bottlenecks.gaussian import GaussianBottleneck as GaussianBottleneck
    from vae_research.bottlenecks.joint import JointBottleneck as JointBottleneck
    from vae_research.bottlenecks.ladder import LadderBottleneck as LadderBottleneck
    from vae_research.bottlenecks.posterior import PosteriorBottleneck as PosteriorBottleneck
    from vae_research.bottlenecks.power_spherical import (
        PowerSphericalBottleneck as PowerSphericalBottleneck,
    )
    from vae_research.bottlenecks.quantized import (
        FiniteScalarQuantizedBottleneck as FiniteScalarQuantizedBottleneck,
    )
    from vae_research.bottlenecks.quantized import QuantizedBottleneck as QuantizedBottleneck
    from vae_research.bottlenecks.vector_quantized import (
        VectorQuantizedBottleneck as VectorQuantizedBottleneck,
    )

_MODULES = {
    "bottleneck": ("Bottleneck",),
    "categorical": ("RelaxedCategoricalBottleneck",),
    "deterministic": ("DeterministicBottleneck",),
    "flow": ("FlowBottleneck",),
    "flows": ("Flow", "InverseAutoregressiveFlow", "PlanarFlow"),
    "full_covariance": ("FullCovarianceGaussianBottleneck",),
    "gaussian": ("GaussianBottleneck",),
    "joint": ("JointBottleneck",),
    "ladder": ("LadderBottleneck",),
    "posterior": ("PosteriorBottleneck",),
    "power_spherical": ("PowerSphericalBottleneck",),
    "quantized": (
        "QuantizedBottleneck",
        "FiniteScalarQuantizedBottleneck",
    ),
    "vector_quantized": ("VectorQuantizedBottleneck",),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES)
