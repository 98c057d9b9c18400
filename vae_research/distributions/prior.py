"""Any distribution as a prior."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from vae_research.distributions.library import check_installed, checked, checked_continuous, key_of
from vae_research.priors.prior import INDICES, Prior
from vae_research.probability import sum_over_event


class DistributionPrior(Prior):
    """A prior p(z) from TensorFlow Probability; a subclass writes `distribution`.

    It returns a `tfp.distributions.Distribution` whose batch and event shape together are
    `event_shape`, that of a code. Its weights are made in `build`, after `super().build(...)`: by
    `add_weight`, or by Keras layers of `dtype="float32"` that are attributes and are built there.
    They are trained and saved with the model. Variables of the library, as those of its own
    networks, are refused. A discrete distribution is a prior of indices of codes, and the class
    says so: `of = "indices of codes"`.

        @keras.saving.register_keras_serializable(package="lab")
        class LaplacePrior(vr.DistributionPrior):
            def build(self, input_shape):
                super().build(input_shape)
                self.log_scale = self.add_weight(shape=self.event_shape, initializer="zeros")

            def distribution(self):
                return tfp.distributions.Laplace(0.0, tf.exp(self.log_scale))

    Raises:
        ImportError: TensorFlow Probability is not installed.
        ValueError: the distribution has another shape, variables that are not its weights, or
            discrete values for real codes.
    """

    def __init__(self, **kwargs: Any) -> None:
        check_installed(type(self).__name__)
        super().__init__(**kwargs)

    def distribution(self) -> Any:
        """Returns p(z), a `tfp.distributions.Distribution` of one code."""
        raise TypeError(f"{type(self).__name__} must define distribution(self).")

    def checked_distribution(self) -> Any:
        """Returns `distribution()`, if it is one of codes and has the weights of this layer."""
        part, shape = type(self).__name__, tf.TensorShape(self.event_shape)
        made = checked(part, self.distribution(), shape, self.variables)
        return made if self.of == INDICES else checked_continuous(part, made)

    def log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z), `[rows]`, nats."""
        made = self.checked_distribution()
        return sum_over_event(made.log_prob(tf.cast(z, made.dtype)))

    def sample(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        """Returns `[count, ...]`."""
        made = self.checked_distribution()
        return tf.cast(made.sample(count, seed=key_of(seed)), tf.float32)
