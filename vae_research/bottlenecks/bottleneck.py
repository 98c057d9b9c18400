"""The base of bottlenecks: the layer between encoder and decoder, with posterior and prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.codes import CodeLayout


class Bottleneck(keras.layers.Layer):
    """Turns the encoder's tensors into codes; subclasses write `call`, `center`, `sample_prior`.

    The parameters of `call` name the tensors that it reads. It returns a dictionary with `z`
    `[rows, latent]`; a stochastic bottleneck adds `log_posterior` and `log_prior`, `[rows]`, nats,
    and, if there is a closed form, `kl`, `[rows, ...]`, nats. All are float32 under every precision
    policy.

    A code of another shape, or several latents, are declared in the class:
    `latents = {"z": (7, 7, 16)}` or `latents = {"z_1": (16,), "z_2": (4,)}`; a property may compute
    it. With several, `call` writes each by its name, its densities and divergence as
    `log_posterior_NAME`, `log_prior_NAME` and `kl_NAME`, and `center` and `sample_prior` return
    dictionaries. Like that of `call`, these may have more that the decoder reads.

    For gradient estimators, a stochastic bottleneck has two more methods, which return `[rows]`,
    nats: `log_prob(self, z, ...)`, log q(z|x), and `prior_log_prob(self, z, ...)`, log p(z). Their
    further parameters name tensors of data and encoder.

    Args:
        latent_dim: number of latent dimensions, at least 1, or the shape of a code. Left out by a
            class that declares `latents`.

    Raises:
        ValueError: `latent_dim` is not a positive integer, nor a shape.
    """

    has_prior = True
    one_hot: tuple[str, ...] = ()
    """The latents whose codes are one-hot in the last axis: pictures show each class."""
    compared_codes: int = 128
    """How many codes `latent/mutual_information` evaluates `log_prob` of; fewer if it is slow."""
    note: str | None = None
    """A remark that must accompany the figures of a run with this bottleneck."""

    def __init__(self, latent_dim: int | Sequence[int] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        declares = type(self).latents is not Bottleneck.latents
        self._event_shape: tuple[int, ...] | None = None
        if isinstance(latent_dim, (tuple, list)) and latent_dim:
            self._event_shape = tuple(checked_integer("latent_dim", n, 1) for n in latent_dim)
        elif not declares or latent_dim is not None:
            self._event_shape = (checked_integer("latent_dim", latent_dim, 1),)

    @property
    def latents(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of a code of each latent, by name."""
        return {"z": tuple(self._event_shape or ())}

    @property
    def latent_dim(self) -> int:
        """The number of values of a code, of all latents."""
        return CodeLayout.of(self).size

    def center(self, z_mean: tf.Tensor) -> Any:
        """Returns the code of each example without noise, `[rows, ...]`, or codes by name."""
        return tf.cast(z_mean, tf.float32)

    def sample_prior(self, count: int, seed: tf.Tensor) -> Any:
        """Returns codes from the prior, `[count, ...]`, or codes by name.

        Args:
            count: number of codes.
            seed: a stateless key, `[2]`.
        """
        raise TypeError(f"{type(self).__name__} must define sample_prior(self, count, seed).")

    def set_steps_per_epoch(self, steps_per_epoch: int, ahead: float = 0.0) -> bool:
        """Converts lengths of schedules in epochs to steps; returns whether one has changed.

        Args:
            steps_per_epoch, ahead: as for `Settings.in_steps`.
        """
        return False

    def values_of_codes(self, codes: Any) -> tf.Tensor:
        """Returns what a prior is fitted to after training, `[rows, ...]`.

        By default the codes themselves, and columns of all if there are several latents. A
        bottleneck whose codes are entries of a codebook returns their numbers, integers.

        Args:
            codes: `[rows, ...]`, or codes by name.
        """
        layout = CodeLayout.of(self)
        return layout.flatten(codes) if layout.only is None else codes

    def codes_of_values(self, values: tf.Tensor) -> Any:
        """Returns the codes of which `values_of_codes` makes these values."""
        layout = CodeLayout.of(self)
        return layout.unflatten(values) if layout.only is None else values

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        config = super().get_config()
        if (shape := self._event_shape) is not None:
            config["latent_dim"] = shape[0] if len(shape) == 1 else list(shape)
        return config

    def _check_latent_dim(self, name: str, tensor: tf.Tensor) -> None:
        shape = self.latents["z"]
        if tensor.shape[1:].is_compatible_with(shape):
            return
        given = shape[0] if len(shape) == 1 else shape
        needed = f"the shape {shape} for each row"
        if tensor.shape.rank == 2 and len(shape) == 1:
            needed = f"{given} in the last axis"
        raise ValueError(
            f"The encoder writes {name!r} with shape {tensor.shape}; "
            f"{type(self).__name__}(latent_dim={given}) needs {needed}. What the encoder writes "
            f"belongs to codes of shape {tuple(tensor.shape[1:])}."
        )
