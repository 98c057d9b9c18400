"""Discrete codes that are relaxed in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.bottlenecks.quantized import QuantizedBottleneck
from vae_research.priors.indices import UniformPrior
from vae_research.priors.prior import Prior
from vae_research.randomness import gumbel
from vae_research.schedules import Schedule, value_at
from vae_research.settings import from_config
from vae_research.tensors import RELAXED


def _checked_temperature(given: Any) -> float | Schedule:
    """Returns a temperature, also that of a saved configuration; raises ValueError if it is bad."""
    if isinstance(given, Mapping):
        given = from_config(given)
    found: float | Schedule = given if isinstance(given, Schedule) else float(given)
    # A length in epochs is not known yet; the first value does not depend on it.
    first = float(value_at(found.in_steps(1) if isinstance(found, Schedule) else found, 0))
    if not 0.0 < first < math.inf:
        raise ValueError(
            f"temperature must be above 0, got {found!r}, which is {first:g} at first."
        )
    return found


@keras.saving.register_keras_serializable(package="vae_research")
class RelaxedCategoricalBottleneck(QuantizedBottleneck):
    """Each variable is one of several classes; in training, all of them with weights.

    Reads `z_logits` `[rows, ..., classes]`, of the shape of a code, `seed` and `step`; writes `z`
    of this shape and `kl` `[rows, ...]`, the divergence of the categorical posterior from a uniform
    one, exact, for each variable. An evaluation draws one-hot codes, and writes their probabilities
    as `log_posterior` and `log_prior`. The code without noise has the most probable classes.

    In training z is relaxed, softmax((logits + Gumbel noise) / temperature), and has no such
    probability: neither is written. Likelihood and divergence are then of different codes, and
    their sum is not a bound of log p(x) (Maddison et al. 2017, appendix C.2): no ELBO of training
    steps is reported.
    Jang et al. 2017 (arXiv:1611.01144); Maddison et al. 2017 (arXiv:1611.00712).

    Args:
        latent_dim: `(30, 10)` for 30 variables of 10 classes; `10` for a single one.
        temperature: above 0, a number or a schedule; the smaller it is, the nearer codes are to
            one-hot ones, and the noisier are gradients.
        prior: by default, and no other one, a `UniformPrior` of as many classes. Another one is
            fitted after training, with `fit_prior`.

    Raises:
        ValueError: a number is out of its range, also the first value of a schedule, or the prior
            is not uniform.
    """

    one_hot = ("z",)
    note = (
        "Codes are relaxed in training, and its figures are not bounds of log p(x) (Maddison et "
        "al. 2017); validation and test draw one-hot codes."
    )

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        *,
        temperature: float | Schedule | Mapping[str, Any] = 0.5,
        prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        classes: Any = latent_dim[-1] if isinstance(latent_dim, (tuple, list)) else latent_dim
        super().__init__(latent_dim, classes, prior=prior, **kwargs)
        if type(self.prior) is not UniformPrior:
            raise ValueError(
                f"{type(self).__name__} takes a UniformPrior: relaxed codes have no probability "
                f"under {type(self.prior).__name__}. Fit it after training, with fit_prior."
            )
        self._declared_temperature = _checked_temperature(temperature)
        self.temperature = self._declared_temperature

    def set_steps_per_epoch(self, steps_per_epoch: int, ahead: float = 0.0) -> bool:
        """Converts lengths of the schedule in epochs to steps; returns whether it has changed."""
        before = self.temperature
        if isinstance(self._declared_temperature, Schedule):
            self.temperature = self._declared_temperature.in_steps(steps_per_epoch, ahead)
        return self.temperature != before

    def call(
        self, z_logits: tf.Tensor, seed: tf.Tensor, step: tf.Tensor, training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Returns a code for each row, relaxed in training, with divergence or probabilities."""
        self._check_latent_dim("z_logits", z_logits)
        log_p = tf.nn.log_softmax(tf.cast(z_logits, tf.float32))
        # Chained identities, so that no tensor has more than two consumers.
        of_kl = tf.identity(log_p)
        p = tf.exp(tf.identity(of_kl))
        kl = tf.reduce_sum(p * (of_kl + math.log(self.num_codes)), axis=-1)
        chosen = log_p + gumbel(tf.shape(log_p), seed)
        if training:
            z = tf.nn.softmax(chosen / value_at(self.temperature, step))
            return {"z": z, "kl": kl, RELAXED: tf.ones([])}
        indices = self.to_indices(chosen)
        z = self.from_indices(indices)
        return {
            "z": z,
            "kl": kl,
            "log_posterior": tf.reduce_sum(z * log_p, axis=list(range(1, z.shape.rank))),
            "log_prior": self.prior.log_prob(indices),
        }

    def center(self, z_logits: tf.Tensor) -> tf.Tensor:
        """Returns the one-hot codes of the most probable classes, `[rows, ...]`."""
        return self.from_indices(self.to_indices(z_logits))

    def to_indices(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the class of the largest weight in `z` `[rows, ..., classes]`, int32."""
        return tf.argmax(z, axis=-1, output_type=tf.int32)

    def from_indices(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns one-hot codes, `[rows, ..., classes]`."""
        return tf.one_hot(indices, self.num_codes)

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        given = self._declared_temperature
        temperature = given.to_config() if isinstance(given, Schedule) else given
        return {**super().get_config(), "temperature": temperature}
