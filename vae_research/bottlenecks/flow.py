"""A normal posterior whose samples go through a flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.bottlenecks.flows import Flow
from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.bottlenecks.posterior import PosteriorBottleneck, from_saved
from vae_research.priors.prior import Prior
from vae_research.tensors import sum_in_order


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
        if not isinstance(flows, (list, tuple)) or not flows:
            raise ValueError(f"flows must be a list with one flow or more, got {flows!r}.")
        self.flows = [from_saved(flow) for flow in flows]
        for flow in self.flows:
            if not isinstance(flow, Flow):
                raise ValueError(
                    f"flows must be a list of flows, such as InverseAutoregressiveFlow(), got "
                    f"{flow!r} in it."
                )
            flow.build_for(self.latent_dim, self.context_dim)

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
        for flow in self.flows:
            if not flow.has_inverse:
                raise AttributeError(
                    f"{type(self).__name__} has no log_prob with {type(flow).__name__}, which has "
                    "no inverse in closed form; InverseAutoregressiveFlow has one."
                )
        return self._log_prob

    def _log_prob(
        self,
        z: tf.Tensor,
        z_mean: tf.Tensor,
        z_log_var: tf.Tensor,
        z_context: tf.Tensor | None = None,
    ) -> tf.Tensor:
        values = tf.reshape(tf.cast(z, tf.float32), [-1, self.latent_dim])
        total = tf.zeros(tf.shape(values)[:1])
        steps = list(zip(self.flows, self._contexts(z_context), strict=True))
        for flow, context in reversed(steps):
            values, log_determinant = flow.inverse(values, context)
            total += log_determinant
        values = tf.reshape(values, tf.shape(z))
        return self.base.log_prob(values, z_mean, z_log_var) - total

    def _transformed(
        self, z: tf.Tensor, z_context: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns codes behind all steps, and log |det dz'/dz|, `[rows]`."""
        values = tf.reshape(z, [-1, self.latent_dim])
        log_determinants = []
        for flow, context in zip(self.flows, self._contexts(z_context), strict=True):
            values, log_determinant = flow(values, context)
            log_determinants.append(log_determinant)
        return tf.reshape(values, tf.shape(z)), sum_in_order(log_determinants)

    def _contexts(self, z_context: tf.Tensor | None) -> list[tf.Tensor | None]:
        """Returns the context for each step; raises ValueError if it is not as was declared."""
        given = 0 if z_context is None else z_context.shape[-1]
        if given != self.context_dim:
            raise ValueError(
                f"The encoder writes {given or 'no'} values of 'z_context', and "
                f"{type(self).__name__}(context_dim={self.context_dim}) reads "
                f"{self.context_dim or 'none'}. Both must have the same number."
            )
        if z_context is None:
            return [None] * len(self.flows)
        contexts = []
        for _ in self.flows:
            # Chained identities, so that no tensor has more than two consumers.
            z_context = tf.identity(tf.cast(z_context, tf.float32))
            contexts.append(z_context)
        return contexts

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        flows = [keras.saving.serialize_keras_object(flow) for flow in self.flows]
        return {**super().get_config(), "flows": flows, "context_dim": self.context_dim}
