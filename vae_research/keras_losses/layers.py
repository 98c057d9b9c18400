"""Three of the four formulations in `keras_losses`, as Keras layers and models.

Both losses are computed by `vae_research.probability`, from logits, in float32 under every
precision policy.

A loss that a layer adds cannot use `y`, which Keras passes only to the loss of `compile`, and is
not weighted by `sample_weight`, which Keras applies only to that loss: use `VAE` for weighted
examples. Regularisers of the networks are part of Keras' `loss` and of no other figure. In an
evaluation, `SamplingLayer` draws the same noise for every batch; `VAE` draws other noise for each.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_seed
from vae_research.captured_tensors import without_captured_tensors
from vae_research.randomness import evaluation_key, fold_in, standard_normal, training_key


def pixel_mean_cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns `[rows]`: the binary cross-entropy in nats per pixel, averaged over pixels.

    Args:
        targets: `[rows, ...]` in [0, 1].
        logits: of the same shape, `log(p / (1 - p))`.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(targets=targets, logits=logits)
    return -_mean_over_event(probability.bernoulli_log_density(targets, logits))


def latent_mean_kl(z_mean: tf.Tensor, z_log_var: tf.Tensor) -> tf.Tensor:
    """Returns `[rows]`: the KL divergence from N(0, 1) in nats, averaged over latent dimensions.

    The `-(1 + log_var - mean^2 - var)` of many recipes, averaged in the same way, is twice this.

    Args:
        z_mean: `[rows, latent]`.
        z_log_var: of the same shape, logarithm of the variance.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(z_mean=z_mean, z_log_var=z_log_var)
    return _mean_over_event(probability.normal_kl_divergence(z_mean, z_log_var))


def _check_same_shape(**tensors: tf.Tensor) -> None:
    (first, a), (second, b) = ((name, value.shape) for name, value in tensors.items())
    if not tf.TensorShape(a).is_compatible_with(b):
        raise ValueError(
            f"{first} of shape {a} and {second} of shape {b} must have the same shape."
        )


def _mean_over_event(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


@keras.saving.register_keras_serializable(package="vae_research")
class SamplingLayer(keras.layers.Layer):
    """`z = mean + exp(log_var / 2) * noise`, with noise that depends only on seed and step.

    The layer counts its training steps in a variable, `counter`, which is saved with the model and
    may be set. At each step it draws the same noise as the bottleneck of a `VAE` with this seed.
    Outside of training it draws the same noise for every batch, so that two evaluations can be
    compared. Kingma and Welling 2014 (arXiv:1312.6114), section 2.4.

    Args:
        seed: 0 to 2**32 - 1. Layers with the same seed draw the same noise: give each layer of a
            model its own.

    Raises:
        ValueError: `seed` is not an integer of that range.
    """

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.seed = checked_seed(seed)
        self.counter = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False, name="counter"
        )

    def call(self, z_mean: tf.Tensor, z_log_var: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns one sample of z for each row, `[rows, latent]`."""
        if training:
            key = training_key(self.seed, tf.convert_to_tensor(self.counter))
            self.counter.assign_add(1)
        else:
            key = evaluation_key(self.seed, 0)
        # The purpose under which the bottleneck of a `VAE` gets its key.
        noise = standard_normal(tf.shape(z_mean), fold_in(key, "bottleneck"))
        return z_mean + tf.exp(0.5 * z_log_var) * noise

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="vae_research")
class VAELossLayer(keras.layers.Layer):
    """A layer on top of encoder and decoder that adds the whole loss: "Solution I".

    Everything that the loss depends on is an argument of `call`. The layer also reports
    `total_loss`, `reco_loss` and `kl_loss`, means over the examples of an epoch.

    >>> from vae_research import convolutional_decoder, convolutional_encoder
    >>> inputs = keras.Input((28, 28, 1))
    >>> codes = convolutional_encoder((28, 28, 1), 2)(inputs)
    >>> z = SamplingLayer()(codes["z_mean"], codes["z_log_var"])
    >>> logits = convolutional_decoder((28, 28, 1), 2)(z)["logits"]
    >>> loss = VAELossLayer(factor=6.5e-4)
    >>> vae = keras.Model(inputs, loss(codes["z_mean"], codes["z_log_var"], inputs, logits))
    >>> vae.compile("adam", loss=None)
    >>> history = vae.fit(tf.zeros([8, 28, 28, 1]), verbose=0)
    >>> sorted(history.history)
    ['kl_loss', 'loss', 'reco_loss', 'total_loss']

    Args:
        factor: in front of the latent mean; 2 * factor * pixels / latent_dim is the beta in nats.

    Raises:
        ValueError: `factor` is not a finite number >= 0.
    """

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.factor = _checked_factor(factor)
        self.loss_means = _loss_means()

    def call(
        self, z_mean: tf.Tensor, z_log_var: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor
    ) -> tf.Tensor:
        """Adds the loss; returns the logits."""
        reconstruction = pixel_mean_cross_entropy(targets, logits)
        kl = 2.0 * self.factor * latent_mean_kl(z_mean, z_log_var)
        self.add_loss(tf.reduce_mean(_record(self.loss_means, reconstruction, kl)))
        return logits

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="vae_research")
class KLLossLayer(keras.layers.Layer):
    """A layer of the encoder, after mean and log-variance, that adds the KL loss: strategy 1.

    It returns its inputs unchanged. Keras computes the reconstruction loss:
    `compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))` and `fit(x, x)`.
    (`loss="binary_crossentropy"` is for a model that ends in a sigmoid, and would take logits for
    probabilities.) The layer reports `kl_loss`, a mean over the examples of an epoch; the total is
    Keras' own `loss`, and `ReportLosses` adds all three names to the logs.

    >>> from vae_research import convolutional_decoder, convolutional_encoder
    >>> inputs = keras.Input((28, 28, 1))
    >>> codes = convolutional_encoder((28, 28, 1), 2)(inputs)
    >>> z_mean, z_log_var = KLLossLayer(factor=6.5e-4)(codes["z_mean"], codes["z_log_var"])
    >>> encoder = keras.Model(inputs, SamplingLayer()(z_mean, z_log_var))
    >>> vae = keras.Model(
    ...     inputs, convolutional_decoder((28, 28, 1), 2)(encoder(inputs))["logits"]
    ... )
    >>> vae.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    >>> images = tf.zeros([8, 28, 28, 1])
    >>> sorted(vae.fit(images, images, verbose=0).history)
    ['kl_loss', 'loss']

    Args:
        factor: in front of the latent mean.

    Raises:
        ValueError: `factor` is not a finite number >= 0.
    """

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.factor = _checked_factor(factor)
        self.kl_mean = keras.metrics.Mean(name="kl_loss")

    def call(self, z_mean: tf.Tensor, z_log_var: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Adds the loss; returns `z_mean` and `z_log_var` unchanged."""
        kl = 2.0 * self.factor * latent_mean_kl(z_mean, z_log_var)
        self.kl_mean.update_state(kl)
        self.add_loss(tf.reduce_mean(kl))
        return z_mean, z_log_var

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="vae_research")
class AddLossModel(keras.Model):
    """A model of encoder, sampling and decoder that adds the loss in its `call`: strategy 2.

    In Keras 3, a functional model has no `add_loss` for symbolic tensors. The `call` of a subclass
    gets tensors that have values, and trains what it passes to `add_loss`. The model also reports
    `total_loss`, `reco_loss` and `kl_loss`, means over the examples of an epoch.

    >>> from vae_research import convolutional_decoder, convolutional_encoder
    >>> vae = AddLossModel(
    ...     convolutional_encoder((28, 28, 1), 2),
    ...     convolutional_decoder((28, 28, 1), 2),
    ...     factor=6.5e-4,
    ... )
    >>> vae.compile("adam", loss=None)
    >>> sorted(vae.fit(tf.zeros([8, 28, 28, 1]), verbose=0).history)
    ['kl_loss', 'loss', 'reco_loss', 'total_loss']

    Args:
        encoder: writes `z_mean` and `z_log_var`, `[rows, latent]`.
        decoder: writes `logits`, shaped as the data.
        factor: in front of the latent mean.
        seed: of the noise.

    Raises:
        ValueError: `factor` is not a finite number >= 0, or `seed` is out of range.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        factor: float,
        *,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.encoder = encoder
        self.decoder = decoder
        self.factor = _checked_factor(factor)
        self.sampling = SamplingLayer(seed)
        self.loss_means = _loss_means()

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Adds the loss; returns the logits."""
        codes = without_captured_tensors("encoder", self.encoder, inputs, training=training)
        z_mean, z_log_var = _named(codes, "z_mean", "z_log_var")
        z = self.sampling(z_mean, z_log_var, training=training)
        outputs = without_captured_tensors("decoder", self.decoder, z, training=training)
        (logits,) = _named(outputs, "logits")
        reconstruction = pixel_mean_cross_entropy(inputs, logits)
        kl = 2.0 * self.factor * latent_mean_kl(z_mean, z_log_var)
        self.add_loss(tf.reduce_mean(_record(self.loss_means, reconstruction, kl)))
        return logits

    def get_config(self) -> dict[str, Any]:
        """Returns the settings and both networks, as `from_config` needs them."""
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "factor": self.factor,
            "seed": self.sampling.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AddLossModel:
        """Returns the model that `get_config` described."""
        config = copy.deepcopy(config)  # deserialisation changes it
        networks = {
            name: keras.saving.deserialize_keras_object(config.pop(name))
            for name in ("encoder", "decoder")
        }
        return cls(**networks, **config)


def _loss_means() -> list[keras.metrics.Mean]:
    # Keras 3 has no `add_metric`. A layer owns its running means and updates them in `call`; Keras
    # finds them, resets them at every epoch and adds them to the logs.
    return [keras.metrics.Mean(name=name) for name in ("total_loss", "reco_loss", "kl_loss")]


def _record(means: list[keras.metrics.Mean], reconstruction: tf.Tensor, kl: tf.Tensor) -> tf.Tensor:
    """Updates the means with `[rows]` values; returns the total, `[rows]`."""
    total = reconstruction + kl
    for mean, values in zip(means, (total, reconstruction, kl), strict=True):
        mean.update_state(values)  # one value per example, so that a short batch counts less
    return total


def _checked_factor(factor: Any) -> float:
    is_number = isinstance(factor, numbers.Real) and not isinstance(factor, bool)
    if not is_number or not math.isfinite(factor) or factor < 0.0:
        raise ValueError(f"factor must be a finite number >= 0, got {factor!r}.")
    return float(factor)


def _named(outputs: Any, *names: str) -> list[tf.Tensor]:
    if not isinstance(outputs, Mapping) or not set(names) <= set(outputs):
        got = ", ".join(outputs) if isinstance(outputs, Mapping) else "outputs without names"
        raise ValueError(
            f"A network must write {' and '.join(names)}; got {got}. vae_research.named gives "
            "names to the outputs of a network."
        )
    return [outputs[name] for name in names]
