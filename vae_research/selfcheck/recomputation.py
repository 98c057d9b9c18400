"""Test figures computed a second time: in NumPy and float64, from the weights alone.

For networks of dense layers with the usual activations, a diagonal normal posterior with a standard
normal prior, and a Bernoulli or normal likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.evaluation.estimates import Estimate, estimate_arrays
from vae_research.losses.reconstruction import Bernoulli, Gaussian
from vae_research.losses.term import Likelihood
from vae_research.model import VAE
from vae_research.priors.prior import StandardNormalPrior
from vae_research.selfcheck.outcome import NotApplicableError

_Values = npt.NDArray[np.float64]

SAME_SAMPLES_TOLERANCE = 1e-5
"""By which share of the sum of its absolute parts the ELBO of the same samples may differ."""
OTHER_SAMPLES_TOLERANCE = 4.5
"""By how many standard errors a figure may differ that was computed from other samples."""

# Of a figure that has hardly any noise: rounding, as a share of its size.
_ROUNDING = 2e-6
_LOG_2_PI = math.log(2.0 * math.pi)

_ACTIVATIONS: dict[str, Callable[[_Values], _Values]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 0.5 * (1.0 + np.tanh(0.5 * x)),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "leaky_relu": lambda x: np.where(x > 0.0, x, 0.2 * x),
    "silu": lambda x: x * 0.5 * (1.0 + np.tanh(0.5 * x)),
}


def network_outputs(network: Any, inputs: _Values) -> dict[str, _Values]:
    """Returns the outputs by name of a network with one input.

    Raises:
        NotApplicableError: it has a layer that is not known here, or is not a functional model.
    """
    if not isinstance(network, keras.Model) or not isinstance(network.output, Mapping):
        raise NotApplicableError(f"{network.name!r} is not a functional model with named outputs")
    if len(network.inputs) != 1:
        raise NotApplicableError(f"{network.name!r} has several inputs")
    values: dict[int, _Values] = {id(network.inputs[0]): inputs}
    for layer in network.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            if id(layer.input) not in values:
                raise NotApplicableError(f"{network.name!r} is not a chain of layers")
            values[id(layer.output)] = _applied(layer, values[id(layer.input)])
    missing = [name for name, tensor in network.output.items() if id(tensor) not in values]
    if missing:
        raise NotApplicableError(f"{network.name!r} computes {missing[0]!r} outside of layers")
    return {name: values[id(tensor)] for name, tensor in network.output.items()}


def _applied(layer: Any, x: _Values) -> _Values:
    # By name: a subclass of a layer may compute anything.
    match type(layer).__name__ if type(layer).__module__.startswith("keras.") else "":
        case "Dense":
            kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
            return _activated(layer, x @ kernel + (bias[0] if bias else 0.0))
        case "Activation":
            return _activated(layer, x)
        case "ReLU" if layer.max_value is None and not layer.negative_slope and not layer.threshold:
            return np.maximum(x, 0.0)
        case "Rescaling":
            return x * np.asarray(layer.scale) + np.asarray(layer.offset)
        case "Flatten":
            return x.reshape(len(x), -1)
        case "Reshape":
            return x.reshape(len(x), *layer.target_shape)
        case "Dropout" | "GaussianNoise":
            return x
    raise NotApplicableError(f"NumPy does not compute the layer {type(layer).__name__} here")


def _activated(layer: Any, x: _Values) -> _Values:
    name = getattr(layer.activation, "__name__", "")
    if name not in _ACTIVATIONS:
        raise NotApplicableError(f"NumPy does not compute the activation {name or 'given'} here")
    return _ACTIVATIONS[name](x)


def log_likelihood(
    likelihood: Likelihood, x: _Values, written: Mapping[str, _Values]
) -> tuple[_Values, _Values]:
    """Returns log p(x|z) from what the decoder wrote, and the size of its parts, `[rows]`, nats.

    Raises:
        NotApplicableError: the likelihood is another one.
    """
    if likelihood.observed or likelihood.renamed():
        raise NotApplicableError("the likelihood renames or leaves out values")
    rows = len(x)
    if type(likelihood) is Bernoulli and "logits" in written:
        logits = written["logits"]
        of_values = x * logits - np.logaddexp(0.0, logits)
        parts = np.abs(x * logits) + np.logaddexp(0.0, logits)
    elif type(likelihood) is Gaussian and "x_mean" in written:
        deviation = likelihood.standard_deviation
        of_values = -0.5 * ((x - written["x_mean"]) / deviation) ** 2
        of_values = of_values - 0.5 * _LOG_2_PI - math.log(deviation)
        parts = _size_of_square(x, written["x_mean"], deviation**-2)
        parts = parts + 0.5 * _LOG_2_PI + abs(math.log(deviation))
    else:
        named = type(likelihood).__name__
        raise NotApplicableError(f"NumPy does not compute the likelihood {named} here")
    return of_values.reshape(rows, -1).sum(axis=1), parts.reshape(rows, -1).sum(axis=1)


def _size_of_square(x: _Values, mean: _Values, precision: _Values | float) -> _Values:
    """Returns what `0.5 * precision * (x - mean)**2` has the rounding errors of.

    The difference has those of x and of the mean, however small it is.
    """
    return precision * np.abs(x - mean) * (np.abs(x) + np.abs(mean))


class Recomputation:
    """A model in NumPy.

    Args:
        model: whose weights are used.

    Raises:
        NotApplicableError: its bottleneck is another one, or it has further modules.
    """

    def __init__(self, model: VAE) -> None:
        bottleneck = model.bottleneck
        if type(bottleneck) is not GaussianBottleneck:
            named = type(bottleneck).__name__
            raise NotApplicableError(f"NumPy does not compute the bottleneck {named} here")
        if type(bottleneck.prior) is not StandardNormalPrior or len(bottleneck.latents["z"]) > 1:
            raise NotApplicableError("the prior is not a standard normal one of a vector")
        for network in (model.encoder, model.decoder):
            if network.compute_dtype != "float32":
                raise NotApplicableError(f"the networks compute in {network.compute_dtype}")
        if model.further_modules:
            raise NotApplicableError("there are modules behind the decoder")
        self._model = model

    def heads(self, x: _Values) -> tuple[_Values, _Values]:
        """Returns mean and logarithm of the variance of q(z|x), `[rows, latent]`."""
        written = network_outputs(self._model.encoder, x)
        if not {"z_mean", "z_log_var"} <= written.keys():
            raise NotApplicableError("the encoder does not write z_mean and z_log_var")
        return written["z_mean"], written["z_log_var"]

    def log_weights(
        self, x: _Values, z: _Values, mean: _Values, log_var: _Values
    ) -> tuple[_Values, _Values, _Values]:
        """Returns log p(x|z), log p(z) - log q(z|x), and the size of their parts, `[rows]`, nats.

        Args:
            x, z: of the same rows.
            mean, log_var: of q(z|x).
        """
        decoded = network_outputs(self._model.decoder, z)
        precision = np.exp(-log_var)
        ratio = -0.5 * z**2 + 0.5 * ((z - mean) ** 2 * precision + log_var)
        parts = 0.5 * (z**2 + np.abs(log_var)) + _size_of_square(z, mean, precision)
        log_p, parts_of_log_p = log_likelihood(self._model.objective.likelihood, x, decoded)
        return log_p, ratio.sum(axis=1), parts_of_log_p + parts.sum(axis=1)

    def elbo_apart(self, data: Mapping[str, npt.ArrayLike]) -> float:
        """Returns by how much the ELBO of a forward pass differs, from its own samples.

        The largest difference of an example, over the sum of the absolute parts of its ELBO, which
        may nearly cancel.
        """
        tensors = self._model.forward(data, num_samples=1)
        report = self._model.objective(tensors) if self._has_one_sample else None
        if report is None or report.elbo is None:
            raise NotApplicableError("the model trains with several samples of z")
        x = np.asarray(data["inputs"], np.float64)
        mean, log_var = self.heads(x)
        z = tensors["z"].numpy().astype(np.float64)
        log_p, ratio, parts = self.log_weights(x, z, mean, log_var)
        if "kl" in tensors:
            ratio = -0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0).sum(axis=1)
        elbo = log_p + ratio
        return float(np.max(np.abs(report.elbo.numpy() - elbo) / np.maximum(parts, 1.0)))

    @property
    def _has_one_sample(self) -> bool:
        return self._model.objective.num_samples == 1

    def figures_apart(
        self, data: Mapping[str, npt.ArrayLike], num_samples: int, seed: int = 0
    ) -> dict[str, float]:
        """Returns how many standard errors the figures of `estimate` are from NumPy's own.

        The errors are those of the paired differences: examples are the same, samples are not.

        Args:
            data: arrays of examples by name.
            num_samples: samples of z for each example.
            seed: of NumPy's noise.
        """
        arrays = {name: np.asarray(values) for name, values in data.items()}
        theirs = estimate_arrays(self._model, arrays, num_samples=num_samples, per_example=True)
        x = arrays["inputs"].astype(np.float64)
        mean, log_var = self.heads(x)
        random, rows = np.random.default_rng(seed), len(x)
        weights = np.empty([rows, num_samples])
        elbo = np.empty([rows, num_samples])
        closed = "kl" in self._model.forward(arrays, num_samples=1)
        kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0).sum(axis=1)
        for sample in range(num_samples):
            z = mean + np.exp(0.5 * log_var) * random.standard_normal(mean.shape)
            log_p, ratio, _ = self.log_weights(x, z, mean, log_var)
            weights[:, sample] = log_p + ratio
            elbo[:, sample] = log_p - kl if closed else log_p + ratio
        largest = weights.max(axis=1)
        mean_weight = np.exp(weights - largest[:, np.newaxis]).mean(axis=1)
        ours = {
            "elbo": elbo.mean(axis=1),
            "negative_log_likelihood": -largest - np.log(mean_weight),
        }
        return {name: _standard_errors(theirs[name], values) for name, values in ours.items()}


def _standard_errors(theirs: Estimate, ours: _Values) -> float:
    assert theirs.values is not None
    apart = theirs.values.astype(np.float64) - ours
    error = apart.std(ddof=1) / math.sqrt(len(apart)) + _ROUNDING * abs(float(ours.mean()))
    return float(abs(apart.mean()) / error)
