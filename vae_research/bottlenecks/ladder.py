"""Two levels of normal latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.bottlenecks.bottleneck import Bottleneck
from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.priors.prior import REAL_NUMBERS, Prior, StandardNormalPrior
from vae_research.randomness import fold_in


@keras.saving.register_keras_serializable(package="vae_research")
class LadderBottleneck(Bottleneck):
    """Two normal latents: p(z_2) p(z_1|z_2), and the posterior q(z_2|x) q(z_1|x, z_2).

    The network `top_down` makes p(z_1|z_2), diagonal normal. The encoder writes an estimate of each
    level: `z_1_mean`, `z_1_log_var`, `z_2_mean` and `z_2_log_var`. That of z_2 is q(z_2|x); that of
    z_1 is multiplied by p(z_1|z_2): precisions add up, and means are weighted by them. Writes both
    latents with their densities, `kl_z_1`, and with the standard normal prior `kl_z_2`, of the
    shapes of the latents. The decoder reads `z_1`, `z_2` or both.
    Sonderby et al. 2016 (arXiv:1602.02282), section 2.1.

    `dense_encoder(..., outputs={"z_1_mean": 20, "z_1_log_var": 20, "z_2_mean": 5, ...})` writes
    what it reads.

    Args:
        top_down: a functional Keras model from z_2 to `z_mean` and `z_log_var` of z_1, which has
            the shapes of both: `dense_encoder((5,), 20)` for 20 and 5 values.
        prior: of z_2; by default the standard normal one.

    Raises:
        ValueError: `top_down` does not write these in one shape, or the prior is of other codes.
    """

    def __init__(self, top_down: Any, *, prior: Prior | None = None, **kwargs: Any) -> None:
        if isinstance(top_down, Mapping):  # of a saved configuration
            top_down = keras.saving.deserialize_keras_object(top_down)
        written = getattr(top_down, "output", None)
        if not isinstance(written, Mapping) or not {"z_mean", "z_log_var"} <= written.keys():
            raise ValueError(
                "top_down must be a functional model that writes z_mean and z_log_var, such as "
                f"dense_encoder((5,), 20), got {top_down!r}."
            )
        shapes = [tuple(written[name].shape[1:]) for name in ("z_mean", "z_log_var")]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"top_down writes z_mean with the shape {shapes[0]} for each row and z_log_var "
                f"with {shapes[1]}; each value of z_1 needs a variance."
            )
        super().__init__(**kwargs)
        self.top_down = top_down
        self.first = GaussianBottleneck(shapes[0])
        self.second = GaussianBottleneck(tuple(top_down.input.shape[1:]), prior=prior)
        for level in (self.first, self.second):
            level.built = True  # all there is to build is built; Keras would warn of it
        if self.second.prior.of != REAL_NUMBERS:
            raise ValueError(
                f"LadderBottleneck takes a prior of {REAL_NUMBERS}; "
                f"{type(self.second.prior).__name__} is a prior of {self.second.prior.of}."
            )

    @property
    def latents(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of a code of each latent, by name."""
        return {"z_1": self.first.latents["z"], "z_2": self.second.latents["z"]}

    def call(
        self,
        z_1_mean: tf.Tensor,
        z_1_log_var: tf.Tensor,
        z_2_mean: tf.Tensor,
        z_2_log_var: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Returns one sample of both latents for each row, with their densities."""
        self._check("z_2", z_2_mean=z_2_mean, z_2_log_var=z_2_log_var)
        second = self.second(z_2_mean, z_2_log_var, fold_in(seed, 2))
        # Identities, here and below, so that no tensor has more than two consumers.
        second["z"] = tf.identity(second["z"])
        mean, log_var, unit_mean, unit_log_var = self._ladder(second["z"], z_1_mean, z_1_log_var)
        first = self.first(unit_mean, unit_log_var, fold_in(seed, 1))
        first["z"] = mean + tf.exp(0.5 * log_var) * first["z"]
        of_units = 0.5 * probability.sum_over_event(log_var)
        first |= {name: first[name] - of_units for name in ("log_posterior", "log_prior")}
        levels = (("z_1", first), ("z_2", second))
        return {
            latent if name == "z" else f"{name}_{latent}": value
            for latent, level in levels
            for name, value in level.items()
        }

    def _ladder(
        self, z_2: tf.Tensor, z_1_mean: tf.Tensor, z_1_log_var: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of p(z_1|z_2), and those of q(z_1|x, z_2) in its units.

        In these units p(z_1|z_2) is standard normal, and the level is one like any other.
        """
        self._check("z_1", z_1_mean=z_1_mean, z_1_log_var=z_1_log_var)
        mean, log_var = self._first_prior(z_2)
        more_precise = log_var - tf.cast(z_1_log_var, tf.float32)
        of_gap = tf.identity(log_var)
        gap = (tf.cast(z_1_mean, tf.float32) - mean) * tf.exp(-0.5 * of_gap)
        unit_mean = tf.sigmoid(more_precise) * gap
        return mean, tf.identity(of_gap), unit_mean, -tf.nn.softplus(more_precise)

    def _check(self, latent: str, **written: tf.Tensor) -> None:
        for name, value in written.items():
            if not value.shape[1:].is_compatible_with(self.latents[latent]):
                raise ValueError(
                    f"The encoder writes {name!r} with shape {value.shape}; by top_down {latent} "
                    f"has the shape {self.latents[latent]} for each row."
                )

    def _first_prior(self, z_2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log-variance of p(z_1|z_2)."""
        made = self.top_down(z_2)
        return tf.cast(made["z_mean"], tf.float32), tf.cast(made["z_log_var"], tf.float32)

    def log_prob(
        self,
        z_1: tf.Tensor,
        z_2: tf.Tensor,
        z_1_mean: tf.Tensor,
        z_1_log_var: tf.Tensor,
        z_2_mean: tf.Tensor,
        z_2_log_var: tf.Tensor,
    ) -> tf.Tensor:
        """Returns log q(z_2|x) + log q(z_1|x, z_2) of given codes, `[rows]`, nats."""
        mean, log_var, *unit = self._ladder(z_2, z_1_mean, z_1_log_var)
        of_first = self.first.log_prob((z_1 - mean) * tf.exp(-0.5 * log_var), *unit)
        of_second = self.second.log_prob(z_2, z_2_mean, z_2_log_var)
        return of_first - 0.5 * probability.sum_over_event(log_var) + of_second

    def prior_log_prob(self, z_1: tf.Tensor, z_2: tf.Tensor) -> tf.Tensor:
        """Returns log p(z_2) + log p(z_1|z_2) of given codes, `[rows]`, nats."""
        mean, log_var = self._first_prior(z_2)
        of_first = probability.normal_log_density(z_1, mean, log_var)
        return probability.sum_over_event(of_first) + self.second.prior_log_prob(z_2)

    def center(  # type: ignore[override]  # it reads other tensors
        self, z_1_mean: tf.Tensor, z_1_log_var: tf.Tensor, z_2_mean: tf.Tensor
    ) -> Any:
        """Returns both codes without noise, by name: the means, of z_1 given that of z_2."""
        z_2 = tf.cast(z_2_mean, tf.float32)
        mean, log_var, unit_mean, _ = self._ladder(z_2, z_1_mean, z_1_log_var)
        return {"z_1": mean + tf.exp(0.5 * log_var) * unit_mean, "z_2": z_2}

    def sample_prior(self, count: int, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `[count, ...]` codes of both latents from the prior, by name."""
        z_2 = self.second.sample_prior(count, fold_in(seed, 2))
        unit = self.first.sample_prior(count, fold_in(seed, 1))
        mean, log_var = self._first_prior(z_2)
        return {"z_1": mean + tf.exp(0.5 * log_var) * unit, "z_2": z_2}

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        config = {"top_down": keras.saving.serialize_keras_object(self.top_down)}
        if type(self.second.prior) is not StandardNormalPrior:
            config["prior"] = keras.saving.serialize_keras_object(self.second.prior)
        return {**super().get_config(), **config}
