"""A normal posterior whose samples go through a flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.bottlenecks.flows import (
    Flow,
    all_steps,
    built_steps,
    undone_steps,
    without_inverse,
)
from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.bottlenecks.posterior import PosteriorBottleneck
from vae_research.priors.prior import Prior


@keras.saving.register_keras_serializable(package="vae_research")
class FlowBottleneck(PosteriorBottleneck):
    """Posterior of a diagonal normal sample that goes through the steps of a flow.

    Reads `z_mean`, `z_log_var` `[rows, ...]`, of the shape of a code, `seed`, and, if the steps
    depend on the example, `z_context` `[rows, context_dim]`; writes `z`, `log_posterior` and
    `log_prior`. The divergence has no closed form with any prior: train with `MonteCarloKL()`. The
    code without noise is what the flow makes of `z_mean`. `log_prob` needs the inverse of every
    step; gradient estimators and whatever else needs it refuse a flow with a step that has none.
    Rezende and Mohamed 2015 (arXiv:1505.05770), section 4; Kingma et al. 2016 (arXiv:1606.04934).

    `dense_encoder(..., outputs={"z_mean": 20, "z_log_var": 20, "z_context": 64})` writes what it
    reads.

    Args:
        latent_dim: number of latent dimensions, at least 1, or the shape of a code.
        flows: the steps, each of its own: `[InverseAutoregressiveFlow() for _ in range(4)]`.
        context_dim: values of `z_context`; 0 for steps that are the same for all examples.
        prior: a `Prior`; by default the standard normal one.

    Raises:
        ValueError: a number is out of its range, `flows` is not a list of flows, or the prior is of
            other codes.
    """

    compared_codes = 16  # of inverse autoregressive steps: 128 take 20 seconds of a processor

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        flows: Sequence[Flow],
        *,
        context_dim: int = 0,
        prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_dim, prior=prior, **kwargs)
        self.context_dim = checked_integer("context_dim", context_dim, 0)
        self.base = GaussianBottleneck(self.latents["z"])
        self.base.built = True  # all there is to build is built; Keras would warn of it
        self.flows = built_steps(flows, self.latent_dim, self.context_dim)

    def call(
        self,
        z_mean: tf.Tensor,
        z_log_var: tf.Tensor,
        seed: tf.Tensor,
        z_context: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Returns one sample of z for each row, with its densities."""
        base = self.base(z_mean, z_log_var, seed)
        z, log_determinant = self._transformed(base["z"], z_context)
        return {
            "z": z,
            "log_posterior": base["log_posterior"] - log_determinant,
            "log_prior": self.prior.log_prob(z),
        }

    def center(self, z_mean: tf.Tensor, z_context: tf.Tensor | None = None) -> tf.Tensor:
        """Returns what the flow makes of the mean of the normal distribution, `[rows, ...]`."""
        return self._transformed(self.base.center(z_mean), z_context)[0]

    @property
    def log_prob(self) -> Callable[..., tf.Tensor]:
        """The method that returns log q(z|x) of given codes, `[rows]`, nats.

        Raises:
            AttributeError: a step of the flow has no inverse in closed form.
        """
        if (step := without_inverse(self.flows)) is not None:
            raise AttributeError(
                f"{type(self).__name__} has no log_prob with {type(step).__name__}, which has no "
                "inverse in closed form; InverseAutoregressiveFlow has one."
            )
        return self._log_prob

    def _log_prob(
        self,
        z: tf.Tensor,
        z_mean: tf.Tensor,
        z_log_var: tf.Tensor,
        z_context: tf.Tensor | None = None,
    ) -> tf.Tensor:
        flat = tf.reshape(tf.cast(z, tf.float32), [-1, self.latent_dim])
        values, log_determinant = undone_steps(self.flows, flat, self._checked(z_context))
        values = tf.reshape(values, tf.shape(z))
        return self.base.log_prob(values, z_mean, z_log_var) - log_determinant

    def _transformed(
        self, z: tf.Tensor, z_context: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns codes behind all steps, and log |det dz'/dz|, `[rows]`."""
        flat = tf.reshape(z, [-1, self.latent_dim])
        values, log_determinant = all_steps(self.flows, flat, self._checked(z_context))
        return tf.reshape(values, tf.shape(z)), log_determinant

    def _checked(self, z_context: tf.Tensor | None) -> tf.Tensor | None:
        given = 0 if z_context is None else z_context.shape[-1]
        if given != self.context_dim:
            raise ValueError(
                f"The encoder writes {given or 'no'} values of 'z_context', and "
                f"{type(self).__name__}(context_dim={self.context_dim}) reads "
                f"{self.context_dim or 'none'}. Both must have the same number."
            )
        return z_context

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        flows = [keras.saving.serialize_keras_object(flow) for flow in self.flows]
        return {**super().get_config(), "flows": flows, "context_dim": self.context_dim}
