"""Gradient estimators: what is differentiated in place of the bound that is reported.

A sample z of the posterior depends on its parameters in two ways: z itself moves with them (the
path), and so does the density log q(z|x) of a z that stays (the score). Both reach the weights

    log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x)

of the K samples of an example. In expectation the score can be left out or written as a path, which
has less variance: Roeder et al. 2017 (arXiv:1703.09194), Tucker et al. 2019 (arXiv:1810.04152).

TensorFlow is imported where it is used: an experiment file may subclass `GradientEstimator` and
still have its flags checked before TensorFlow is loaded.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from vae_research.settings import Settings, declared_names

if TYPE_CHECKING:
    import tensorflow as tf

    from vae_research.tensors import Tensors

_READER = "gradient estimator"
# What a bottleneck needs for a gradient estimator: its densities, as functions of z.
_DENSITIES = {"log_prob": "log q(z|x)", "prior_log_prob": "log p(z)"}


@dataclasses.dataclass(frozen=True)
class WeightedSamples:
    """The K samples of each example of a batch, as a gradient estimator sees them.

    log w is the part of the loss that the estimator differentiates: minus the likelihood's term and
    the terms of log q(z|x) - log p(z), each with its weight. With weights of 1 it is the logarithm
    of the importance weight.

    Attributes:
        log_weight: `[batch, K]`, log w, nats, with all its derivatives.
        path_log_weight: `[batch, K]`, the same numbers without the score: log q(z|x) depends on the
            parameters of the posterior through z only.
        posterior_weight: scalar, the factor of -log q(z|x) in log w, 1 for the bound itself.
        importance_weighted: whether samples are joined by importance, or by their mean.
        path_derivative: returns zeros, `[batch, K]`, whose derivative by the parameters of the
            posterior is that of log w along the path, <d log w / dz, dz>. It costs a gradient of
            the decoder.
    """

    log_weight: tf.Tensor
    path_log_weight: tf.Tensor
    posterior_weight: tf.Tensor
    importance_weighted: bool
    path_derivative: Callable[[], tf.Tensor]

    def normalised(self) -> tf.Tensor:
        """Returns w_k / sum of w, `[batch, K]`, without a gradient."""
        import tensorflow as tf

        return tf.stop_gradient(tf.nn.softmax(self.path_log_weight, axis=1))

    def bound(self, log_weight: tf.Tensor) -> tf.Tensor:
        """Returns the bound of samples with these log-weights, `[batch]`, joined as is reported."""
        return join_samples(log_weight, self.importance_weighted)


def join_samples(log_weight: tf.Tensor, importance_weighted: bool) -> tf.Tensor:
    """Returns the log-mean-exp or the mean of `[batch, K]` over the samples, `[batch]`."""
    import tensorflow as tf

    from vae_research.probability import log_mean_exp

    if importance_weighted:
        return log_mean_exp(log_weight, axis=1)
    return tf.reduce_mean(log_weight, axis=1)


class GradientEstimator(Settings, abc.ABC):
    """Base of gradient estimators. A subclass says what is differentiated, and when it is unbiased.

    It changes gradients and nothing that is reported. Terms outside of log w, regularisation and
    critics have their ordinary gradients. It needs a bottleneck with the densities `log_prob` and
    `prior_log_prob`, and a decoder (with its modules) that computes every row by itself: under
    batch normalisation, log w of a sample depends on other rows, and d log w / dz is that of the
    sum.

    >>> class Standard(GradientEstimator):
    ...     '''The gradient of the bound itself, as without an estimator.'''
    ...
    ...     def surrogate(self, samples):
    ...         return -samples.bound(samples.log_weight)
    ...
    ...     def is_unbiased(self, num_samples, importance_weighted):
    ...         return True
    >>> Standard()
    Standard()

    `needs_importance_weighting = True` in the class means that it is for importance-weighted bounds
    only.
    """

    needs_importance_weighting: ClassVar[bool] = False

    @abc.abstractmethod
    def surrogate(self, samples: WeightedSamples) -> tf.Tensor:
        """Returns `[batch]`, whose gradient is minus the estimate of that of the bound.

        Its value has no meaning: what is reported does not depend on it.
        """

    @abc.abstractmethod
    def is_unbiased(self, num_samples: int, importance_weighted: bool) -> bool:
        """Returns whether its mean is the gradient of the bound of so many samples."""


class DReG(GradientEstimator):
    """Doubly reparameterised gradient of the importance-weighted bound; unbiased for every K.

    The score is written as a path, so that the encoder's gradient is the sum over samples of
    w_k^2 <d log w_k / dz_k, dz_k>, with normalised weights w_k. Its signal-to-noise ratio does not
    fall as K grows. The decoder's gradient is the ordinary one. Both come from one surrogate, with
    sg for a stopped gradient,

        sum_k sg(w_k) log w_k + sg(w_k^2 - w_k) <z_k, sg(d log w_k / dz_k)>.

    If log q(z|x) has the weight b in log w, as under a warm-up of the KL divergence, the factor is
    b (w_k^2 - w_k). Tucker et al. 2019 (arXiv:1810.04152), section 3.
    """

    needs_importance_weighting = True

    def surrogate(self, samples: WeightedSamples) -> tf.Tensor:
        import tensorflow as tf

        weight = samples.normalised()
        factor = samples.posterior_weight * (tf.square(weight) - weight)
        values = weight * samples.path_log_weight + factor * samples.path_derivative()
        return -tf.reduce_sum(values, axis=1)

    def is_unbiased(self, num_samples: int, importance_weighted: bool) -> bool:
        return True


class StickingTheLanding(GradientEstimator):
    """The gradient along the path alone: log q(z|x) with its parameters held fixed.

    The score has mean zero if samples are joined by their mean, or if K is 1, and leaving it out
    makes the gradient exactly zero at the exact posterior. Importance weights depend on z, and with
    K > 1 of them the score has another mean: the gradient is biased. Roeder et al. 2017
    (arXiv:1703.09194); for the bias, Tucker et al. 2019 (arXiv:1810.04152), section 3.
    """

    def surrogate(self, samples: WeightedSamples) -> tf.Tensor:
        return -samples.bound(samples.path_log_weight)

    def is_unbiased(self, num_samples: int, importance_weighted: bool) -> bool:
        return num_samples == 1 or not importance_weighted


def _defined_in(cls: type, name: str) -> type:
    return next(base for base in cls.__mro__ if name in vars(base))


def _why_not(bottleneck: Any, name: str) -> str:
    """Returns what a bottleneck says of a property that it does not have."""
    try:
        getattr(bottleneck, name)
    except AttributeError as error:
        return str(error).rstrip(".")
    return f"{type(bottleneck).__name__} has {name}"


def check_densities(estimator: GradientEstimator, bottleneck: Any) -> None:
    """Refuses a bottleneck whose densities are not known as functions of z.

    Raises:
        ValueError: it lacks `log_prob` or `prior_log_prob`, one of them does not read `z`, or both
            are inherited while `call` is not; or its latent is not `z` alone.
    """
    latents = list(bottleneck.latents)
    if latents != ["z"]:
        raise ValueError(
            f"{estimator!r} differentiates along the path of one latent, z; "
            f"{type(bottleneck).__name__} has {', '.join(latents)}. Train without a "
            "gradient_estimator."
        )
    for method, density in _DENSITIES.items():
        function = getattr(bottleneck, method, None)
        if function is None or "z" not in declared_names(function, written=()):
            lacks = f"{type(bottleneck).__name__} has no {method}(self, z, ...)"
            cure = (
                "Add this method to the bottleneck; its further parameters name the tensors that "
                "it reads. Or train"
            )
            if function is None and hasattr(type(bottleneck), method):  # a property
                lacks, cure = _why_not(bottleneck, method), "Train"
            raise ValueError(
                f"{estimator!r} needs {density} as a function of z, and {lacks}. {cure} without a "
                "gradient_estimator."
            )
    own = {_defined_in(type(bottleneck), name) for name in _DENSITIES}
    of_call = _defined_in(type(bottleneck), "call")
    if of_call not in own and all(issubclass(of_call, base) for base in own):
        raise ValueError(
            f"{of_call.__name__} has a `call` of its own and inherits {' and '.join(_DENSITIES)}, "
            "the densities of another bottleneck. Define them beside `call`."
        )


class SampledPath:
    """The sampled z of a forward pass, recorded so that what follows can be differentiated by it.

    Attributes:
        densities: `log_posterior` and `log_prior`, `[rows]`, as functions of z; the parameters of
            the posterior are held fixed.
    """

    def __init__(
        self, tape: tf.GradientTape, tensors: Tensors, densities: dict[str, tf.Tensor]
    ) -> None:
        self.densities = densities
        self._tape, self._tensors, self._z = tape, tensors, tensors["z"]

    @classmethod
    @contextmanager
    def recorded(cls, bottleneck: Any, tensors: Tensors) -> Iterator[SampledPath]:
        """Records what is computed from the `z` of a forward pass while the context is open.

        Args:
            bottleneck: has passed `check_densities`.
            tensors: of encoder and bottleneck, as `VAE.infer` returns them.

        Raises:
            ValueError: a density reads what the bottleneck computed from a sampled latent, or does
                not have the shape `[rows]`.
        """
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors.tap(_READER, "z"))
            path = cls(tape, tensors, {})
            path.densities["log_posterior"] = _path_log_posterior(bottleneck, tensors)
            path.densities["log_prior"] = _density(bottleneck, "prior_log_prob", tensors)
            yield path

    @contextmanager
    def densities_in(self, tensors: Tensors) -> Iterator[None]:
        """Puts `densities` in the place of those that the bottleneck wrote."""
        written = {name: tensors[name] for name in self.densities}
        tensors.update(self.densities)
        yield
        tensors.update(written)

    def derivative(self, values: tf.Tensor) -> tf.Tensor:
        """Returns zeros, `[rows]`, whose derivative by whatever moves z is that of the values.

        Args:
            values: one or more for each row, computed within the context. Their dependence on
                anything but z does not count.
        """
        gradient = self._tape.gradient(values, self._z, unconnected_gradients="zero")
        return _zeros_with_derivative(self._tensors.tap(_READER, "z"), gradient)


def _path_log_posterior(bottleneck: Any, tensors: Tensors) -> tf.Tensor:
    """Returns log q(z|x) as the bottleneck computed it, `[rows]`, with its derivative by z alone.

    A stopped gradient of the tensors that `log_prob` reads would not be enough: it may use weights
    of its own.
    """
    import tensorflow as tf

    z = tensors.tap(_READER, "z")
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        fixed_z = tf.stop_gradient(z)
        tape.watch(fixed_z)
        density = _density(bottleneck, "log_prob", tensors, z=fixed_z)
    score = tape.gradient(density, fixed_z, unconnected_gradients="zero")
    log_posterior = tf.stop_gradient(tensors.tap(_READER, "log_posterior"))
    return log_posterior + _zeros_with_derivative(z, score)


def _density(bottleneck: Any, method: str, tensors: Tensors, **replaced: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    from vae_research.tensors import bind

    function = getattr(bottleneck, method)
    name = type(bottleneck).__name__
    reader = f"{method} of {name}"
    arguments = bind(reader, function, tensors) | replaced
    for read in arguments.keys() - {"z"}:
        # Held fixed, it would hide a path. Bauer and Mnih 2021 (arXiv:2101.11046).
        if tensors.writers.get(read) == "bottleneck":
            raise ValueError(
                f"The {reader} reads {read!r}, which the bottleneck wrote itself. A gradient "
                f"estimator holds fixed what {method} reads, so it may not depend on a sampled "
                "latent, as the parameters of a second level do. Let it read what data and encoder "
                "wrote, and compute the density of the whole z from that."
            )
    density = tf.cast(function(**arguments), tf.float32)
    if density.shape.rank != 1:
        raise ValueError(
            f"The {reader} returned shape {density.shape}; it must return one value for each row, "
            "[rows] (sum_over_event adds up the other axes)."
        )
    return density


def _zeros_with_derivative(z: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Returns zeros, `[rows]`, whose derivative by z is the given one and has no other."""
    import tensorflow as tf

    from vae_research.probability import sum_over_event

    return sum_over_event((z - tf.stop_gradient(z)) * tf.stop_gradient(gradient))
