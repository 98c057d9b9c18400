"""The variational mixture of posteriors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.priors.mixture import mixture_log_density, mixture_sample
from vae_research.priors.prior import DIAGONAL_POSTERIORS, Prior

_Posterior: TypeAlias = "Callable[[tf.Tensor], dict[str, tf.Tensor]]"


@keras.saving.register_keras_serializable(package="vae_research")
class VampPrior(Prior):
    """A mixture of the posteriors of inputs that are trained.

    The components are what the encoder makes of `pseudo_inputs` examples, all of equal weight. The
    model hands its encoder over; it must write `z_mean` and `z_log_var` and read nothing but
    `inputs`. Tomczak and Welling 2018 (arXiv:1705.07120), equation 9.

    Args:
        data_shape: shape of an example, `data.shape`.
        pseudo_inputs: their number; 500 in the paper.
        low, high: range of the values of an example.
        examples: `[pseudo_inputs, ...]` with which they begin, such as rows of the training data;
            by default they are drawn around the middle of the range.

    Raises:
        ValueError: `pseudo_inputs` is not a positive integer, or `examples` have another shape.
    """

    of = DIAGONAL_POSTERIORS

    def __init__(
        self,
        data_shape: Sequence[int],
        pseudo_inputs: int = 500,
        *,
        low: float = 0.0,
        high: float = 1.0,
        examples: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_shape = tuple(int(size) for size in data_shape)
        self.pseudo_inputs = checked_integer("pseudo_inputs", pseudo_inputs, 1)
        self.low, self.high = float(low), float(high)
        shape = (self.pseudo_inputs, *self.data_shape)
        if examples is not None and tuple(examples.shape) != shape:
            raise ValueError(
                f"VampPrior: examples have shape {tuple(examples.shape)}; {shape} is needed."
            )
        self._examples = examples
        self._posterior: Callable[[], _Posterior | None] = lambda: None

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the pseudo-inputs."""
        super().build(input_shape)
        if self._examples is None:
            spread = 0.05 * (self.high - self.low)
            middle = 0.5 * (self.low + self.high)
            initializer = keras.initializers.RandomNormal(middle, spread)
        else:
            initializer = keras.initializers.Constant(self._examples)
        self.inputs_of_components = self.add_weight(
            shape=(self.pseudo_inputs, *self.data_shape),
            initializer=initializer,
            name="pseudo_inputs",
            dtype="float32",
        )

    def use_encoder(self, posterior: _Posterior) -> None:
        """Takes the function from inputs to `z_mean` and `z_log_var`; the model calls this.

        A method is not kept: whoever keeps the prior would keep the whole model alive.
        """
        is_method = hasattr(posterior, "__self__")
        self._posterior = weakref.WeakMethod(posterior) if is_method else lambda: posterior

    def _components(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        posterior = self._posterior()
        if posterior is None:
            raise ValueError("A VampPrior needs the encoder of a model: vr.VAE hands it over.")
        inputs = tf.clip_by_value(self.inputs_of_components, self.low, self.high)
        found = posterior(inputs)
        mean, log_var = (
            tf.reshape(tf.cast(found[name], tf.float32), [self.pseudo_inputs, self.size])
            for name in ("z_mean", "z_log_var")
        )
        return tf.zeros([self.pseudo_inputs]), mean, log_var

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats."""
        return mixture_log_density(tf.reshape(z, [-1, self.size]), *self._components())

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]`."""
        values = mixture_sample(count, seed, *self._components())
        return tf.reshape(values, [-1, *self.event_shape])

    def get_config(self) -> dict[str, Any]:
        """Returns the settings, without `examples`: their values are in the weights."""
        settings = {"data_shape": self.data_shape, "pseudo_inputs": self.pseudo_inputs}
        return {**super().get_config(), **settings, "low": self.low, "high": self.high}
