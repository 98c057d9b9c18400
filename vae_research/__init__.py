"""Research on variational autoencoders with TensorFlow.

Every public name is loaded on first use, so that an experiment can refuse a bad flag before
TensorFlow is imported.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from vae_research.version import __version__ as __version__

# Public name -> module. A name in this table is part of the interface; others are not.
_MODULES = {
    "VAE": "model",
    "Objective": "objective",
    "LossReport": "objective",
    "named": "tensors",
    "LossTerm": "losses.term",
    "Likelihood": "losses.term",
    "Bernoulli": "losses.reconstruction",
    "ContinuousBernoulli": "losses.reconstruction",
    "Gaussian": "losses.reconstruction",
    "GaussianWithVariance": "losses.reconstruction",
    "Laplace": "losses.reconstruction",
    "KLDivergence": "losses.divergence",
    "MonteCarloKL": "losses.divergence",
    "FreeBits": "losses.divergence",
    "CapacityKL": "losses.divergence",
    "pixel_mean_terms": "keras_losses.recipes",
    "Schedule": "schedules",
    "Constant": "schedules",
    "LinearWarmup": "schedules",
    "Cosine": "schedules",
    "Cyclical": "schedules",
    "value_at": "schedules",
    "Bottleneck": "bottlenecks.bottleneck",
    "GaussianBottleneck": "bottlenecks.gaussian",
    "DeterministicBottleneck": "bottlenecks.deterministic",
    "dense_encoder": "networks.dense",
    "dense_decoder": "networks.dense",
    "convolutional_encoder": "networks.convolutional",
    "convolutional_decoder": "networks.convolutional",
    "ProbabilitiesToLogits": "networks.adapters",
    "SamplingLayer": "keras_losses.layers",
    "VAELossLayer": "keras_losses.layers",
    "KLLossLayer": "keras_losses.layers",
    "AddLossModel": "keras_losses.layers",
    "pixel_mean_cross_entropy": "keras_losses.layers",
    "latent_mean_kl": "keras_losses.layers",
    "Data": "data",
    "DataError": "data",
    "load_data": "data",
    "estimate": "evaluation.estimates",
    "Estimate": "evaluation.estimates",
    "occupied_area": "evaluation.latent_space",
    "neighbour_accuracy": "evaluation.latent_space",
    "t_sne": "evaluation.latent_space",
    "save_scatter": "plots",
    "save_plane": "plots",
    "save_bars": "plots",
    "Summaries": "callbacks.tensorboard.summaries",
    "decoded_plane": "callbacks.pictures",
    "ReportLosses": "keras_losses.report_losses",
    "Scalars": "callbacks.scalars",
    "Latents": "callbacks.latents",
    "Pictures": "callbacks.pictures",
    "Gradients": "callbacks.gradients",
    "Projector": "callbacks.projector",
    "Overview": "callbacks.overview",
    "HParams": "callbacks.overview",
    "Profile": "callbacks.profile",
    "diagnose": "evaluation.diagnosis",
    "mutual_information": "evaluation.diagnosis",
    "MetricsFile": "callbacks.metrics_file",
    "Console": "callbacks.console",
    "configure": "runs.cli.flags",
    "load_run": "runs.session.loading",
    "log_mean_exp": "probability",
    "sum_over_event": "probability",
}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


if "keras" in sys.modules or "tensorflow" in sys.modules:
    # Nothing is saved by waiting, and keras.models.load_model finds only what has been imported.
    for _module in sorted(set(_MODULES.values())):
        importlib.import_module(f"{__name__}.{_module}")
