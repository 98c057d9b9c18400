"""Research on variational autoencoders with TensorFlow.

Every public name is loaded on first use, so that an experiment can refuse a bad flag before
TensorFlow is imported.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names
from vae_research.version import __version__ as __version__

# Public names, twice: for type checkers and editors, and for the import on first use.
if TYPE_CHECKING:
    from vae_research import bottlenecks as bottlenecks
    from vae_research import callbacks as callbacks
    from vae_research import controllers as controllers
    from vae_research import disentanglement as disentanglement
    from vae_research import distributions as distributions
    from vae_research import losses as losses
    from vae_research import networks as networks
    from vae_research import priors as priors
    from vae_research import schedules as schedules
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
    from vae_research.callbacks.console import Console as Console
    from vae_research.callbacks.disentanglement import Disentanglement as Disentanglement
    from vae_research.callbacks.gradients import Gradients as Gradients
    from vae_research.callbacks.latents import Latents as Latents
    from vae_research.callbacks.metrics_file import MetricsFile as MetricsFile
    from vae_research.callbacks.overview import HParams as HParams
    from vae_research.callbacks.overview import Overview as Overview
    from vae_research.callbacks.pictures import Pictures as Pictures
    from vae_research.callbacks.pictures import decoded_plane as decoded_plane
    from vae_research.callbacks.profile import Profile as Profile
    from vae_research.callbacks.projector import Projector as Projector
    from vae_research.callbacks.scalars import Scalars as Scalars
    from vae_research.callbacks.tensorboard.summaries import Summaries as Summaries
    from vae_research.controllers import GECO as GECO
    from vae_research.controllers import Controller as Controller
    from vae_research.controllers import KLTarget as KLTarget
    from vae_research.controllers import PIDControl as PIDControl
    from vae_research.critics import Critic as Critic
    from vae_research.data import Data as Data
    from vae_research.data import DataError as DataError
    from vae_research.data import load_data as load_data
    from vae_research.data.augment import mirrored as mirrored
    from vae_research.data.means import logits_of_mean as logits_of_mean
    from vae_research.distributions.likelihood import (
        DistributionLikelihood as DistributionLikelihood,
    )
    from vae_research.distributions.posterior import (
        DistributionBottleneck as DistributionBottleneck,
    )
    from vae_research.distributions.prior import DistributionPrior as DistributionPrior
    from vae_research.evaluation.batch_statistics import kl_decomposition as kl_decomposition
    from vae_research.evaluation.diagnosis import diagnose as diagnose
    from vae_research.evaluation.diagnosis import mutual_information as mutual_information
    from vae_research.evaluation.estimates import Estimate as Estimate
    from vae_research.evaluation.fitted_priors import fit_prior as fit_prior
    from vae_research.evaluation.latent_space import neighbour_accuracy as neighbour_accuracy
    from vae_research.evaluation.latent_space import occupied_area as occupied_area
    from vae_research.evaluation.latent_space import t_sne as t_sne
    from vae_research.evaluation.marginal_likelihood import (
        annealed_importance_sampling as annealed_importance_sampling,
    )
    from vae_research.evaluation.marginal_likelihood import (
        bidirectional_monte_carlo as bidirectional_monte_carlo,
    )
    from vae_research.evaluation.simulation import Simulated as Simulated
    from vae_research.evaluation.simulation import simulate as simulate
    from vae_research.evaluation.test_figures import estimate as estimate
    from vae_research.evaluation.test_figures import notes_on_figures as notes_on_figures
    from vae_research.gradient_estimators import DReG as DReG
    from vae_research.gradient_estimators import GradientEstimator as GradientEstimator
    from vae_research.gradient_estimators import StickingTheLanding as StickingTheLanding
    from vae_research.gradient_estimators import WeightedSamples as WeightedSamples
    from vae_research.keras_inputs import unpack as unpack
    from vae_research.keras_losses.layers import AddLossModel as AddLossModel
    from vae_research.keras_losses.layers import KLLossLayer as KLLossLayer
    from vae_research.keras_losses.layers import SamplingLayer as SamplingLayer
    from vae_research.keras_losses.layers import VAELossLayer as VAELossLayer
    from vae_research.keras_losses.layers import latent_mean_kl as latent_mean_kl
    from vae_research.keras_losses.layers import (
        pixel_mean_cross_entropy as pixel_mean_cross_entropy,
    )
    from vae_research.keras_losses.recipes import pixel_mean_terms as pixel_mean_terms
    from vae_research.keras_losses.report_losses import ReportLosses as ReportLosses
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
    from vae_research.model import VAE as VAE
    from vae_research.networks.adapters import ProbabilitiesToLogits as ProbabilitiesToLogits
    from vae_research.networks.convolutional import convolutional_decoder as convolutional_decoder
    from vae_research.networks.convolutional import convolutional_encoder as convolutional_encoder
    from vae_research.networks.dense import dense_decoder as dense_decoder
    from vae_research.networks.dense import dense_encoder as dense_encoder
    from vae_research.networks.ladder import ladder_encoder as ladder_encoder
    from vae_research.networks.ladder import ladder_top_down as ladder_top_down
    from vae_research.networks.recurrent import recurrent_decoder as recurrent_decoder
    from vae_research.networks.recurrent import recurrent_encoder as recurrent_encoder
    from vae_research.networks.residual import residual_decoder as residual_decoder
    from vae_research.networks.residual import residual_encoder as residual_encoder
    from vae_research.objective import LossReport as LossReport
    from vae_research.objective import Objective as Objective
    from vae_research.plots import save_bars as save_bars
    from vae_research.plots import save_plane as save_plane
    from vae_research.plots import save_scatter as save_scatter
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
    from vae_research.probability import log_mean_exp as log_mean_exp
    from vae_research.probability import normal_kl_divergence as normal_kl_divergence
    from vae_research.probability import normal_log_density as normal_log_density
    from vae_research.probability import sum_over_event as sum_over_event
    from vae_research.randomness import fold_in as fold_in
    from vae_research.randomness import standard_normal as standard_normal
    from vae_research.randomness import uniform as uniform
    from vae_research.runs.cli.flags import configure as configure
    from vae_research.runs.compare.records import load_runs as load_runs
    from vae_research.runs.report.comparison import paired_difference as paired_difference
    from vae_research.runs.session.loading import load_run as load_run
    from vae_research.schedules import Constant as Constant
    from vae_research.schedules import Cosine as Cosine
    from vae_research.schedules import Cyclical as Cyclical
    from vae_research.schedules import LinearWarmup as LinearWarmup
    from vae_research.schedules import Schedule as Schedule
    from vae_research.schedules import value_at as value_at
    from vae_research.tensors import named as named

_NAMESPACES = (
    *("bottlenecks", "callbacks", "controllers", "disentanglement", "distributions", "losses"),
    *("networks", "priors", "schedules"),
)
_MODULES = {
    "bottlenecks.bottleneck": ("Bottleneck",),
    "bottlenecks.categorical": ("RelaxedCategoricalBottleneck",),
    "bottlenecks.deterministic": ("DeterministicBottleneck",),
    "bottlenecks.flow": ("FlowBottleneck",),
    "bottlenecks.flows": ("Flow", "InverseAutoregressiveFlow", "PlanarFlow"),
    "bottlenecks.full_covariance": ("FullCovarianceGaussianBottleneck",),
    "bottlenecks.gaussian": ("GaussianBottleneck",),
    "bottlenecks.joint": ("JointBottleneck",),
    "bottlenecks.ladder": ("LadderBottleneck",),
    "bottlenecks.posterior": ("PosteriorBottleneck",),
    "bottlenecks.power_spherical": ("PowerSphericalBottleneck",),
    "bottlenecks.quantized": (
        "QuantizedBottleneck",
        "FiniteScalarQuantizedBottleneck",
    ),
    "bottlenecks.vector_quantized": ("VectorQuantizedBottleneck",),
    "callbacks.console": ("Console",),
    "callbacks.disentanglement": ("Disentanglement",),
    "callbacks.gradients": ("Gradients",),
    "callbacks.latents": ("Latents",),
    "callbacks.metrics_file": ("MetricsFile",),
    "callbacks.overview": ("HParams", "Overview"),
    "callbacks.pictures": ("Pictures", "decoded_plane"),
    "callbacks.profile": ("Profile",),
    "callbacks.projector": ("Projector",),
    "callbacks.scalars": ("Scalars",),
    "callbacks.tensorboard.summaries": ("Summaries",),
    "controllers": ("GECO", "Controller", "KLTarget", "PIDControl"),
    "critics": ("Critic",),
    "data": ("Data", "DataError", "load_data"),
    "data.augment": ("mirrored",),
    "data.means": ("logits_of_mean",),
    "distributions.likelihood": ("DistributionLikelihood",),
    "distributions.posterior": ("DistributionBottleneck",),
    "distributions.prior": ("DistributionPrior",),
    "evaluation.diagnosis": ("diagnose", "mutual_information"),
    "evaluation.estimates": ("Estimate",),
    "evaluation.fitted_priors": ("fit_prior",),
    "evaluation.latent_space": ("neighbour_accuracy", "occupied_area", "t_sne"),
    "evaluation.batch_statistics": ("kl_decomposition",),
    "evaluation.test_figures": ("estimate", "notes_on_figures"),
    "evaluation.marginal_likelihood": (
        "annealed_importance_sampling",
        "bidirectional_monte_carlo",
    ),
    "evaluation.simulation": ("Simulated", "simulate"),
    "gradient_estimators": (
        "DReG",
        "GradientEstimator",
        "StickingTheLanding",
        "WeightedSamples",
    ),
    "keras_inputs": ("unpack",),
    "keras_losses.layers": (
        "AddLossModel",
        "KLLossLayer",
        "SamplingLayer",
        "VAELossLayer",
        "latent_mean_kl",
        "pixel_mean_cross_entropy",
    ),
    "keras_losses.recipes": ("pixel_mean_terms",),
    "keras_losses.report_losses": ("ReportLosses",),
    "losses.aggregate": ("CovariancePenalty", "TotalCorrelation"),
    "losses.divergence": ("CapacityKL", "FreeBits", "KLDivergence", "MonteCarloKL"),
    "losses.discrete": (
        "Categorical",
        "DiscretizedLogistic",
        "DiscretizedLogisticMixture",
        "Poisson",
    ),
    "losses.product": ("ProductLikelihood",),
    "losses.quantization": (
        "Commitment",
        "Perplexity",
        "SquaredNorm",
    ),
    "losses.reconstruction": (
        "Bernoulli",
        "ContinuousBernoulli",
        "Gaussian",
        "GaussianWithVariance",
        "Laplace",
    ),
    "losses.term": ("Likelihood", "LossTerm"),
    "model": ("VAE",),
    "networks.adapters": ("ProbabilitiesToLogits",),
    "networks.convolutional": ("convolutional_decoder", "convolutional_encoder"),
    "networks.dense": ("dense_decoder", "dense_encoder"),
    "networks.recurrent": ("recurrent_decoder", "recurrent_encoder"),
    "networks.residual": ("residual_decoder", "residual_encoder"),
    "networks.ladder": ("ladder_encoder", "ladder_top_down"),
    "objective": ("LossReport", "Objective"),
    "plots": ("save_bars", "save_plane", "save_scatter"),
    "priors.flow": ("RealNVPPrior",),
    "priors.indices": (
        "UniformPrior",
        "AutoregressivePrior",
    ),
    "priors.mixture": ("MixturePrior",),
    "priors.prior": ("Prior", "StandardNormalPrior"),
    "priors.second_stage": ("SecondStagePrior",),
    "priors.sphere": ("SphericalUniformPrior",),
    "priors.vamp": ("VampPrior",),
    "priors.whitened": ("WhitenedPrior",),
    "probability": (
        "log_mean_exp",
        "normal_kl_divergence",
        "normal_log_density",
        "sum_over_event",
    ),
    "randomness": ("fold_in", "standard_normal", "uniform"),
    "runs.cli.flags": ("configure",),
    "runs.compare.records": ("load_runs",),
    "runs.report.comparison": ("paired_difference",),
    "runs.session.loading": ("load_run",),
    "schedules": ("Constant", "Cosine", "Cyclical", "LinearWarmup", "Schedule", "value_at"),
    "tensors": ("named",),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES, _NAMESPACES)
    __all__ += ["__version__"]

if "keras" in sys.modules or "tensorflow" in sys.modules:
    # Importing later would gain nothing, and keras.models.load_model finds only imported classes.
    for _module in sorted(_MODULES):
        importlib.import_module(f"{__name__}.{_module}")
