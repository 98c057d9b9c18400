"""The base of bottlenecks that hold their prior as a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from vae_research.bottlenecks.bottleneck import Bottleneck
from vae_research.priors.prior import REAL_NUMBERS, Prior, StandardNormalPrior


def from_saved(part: Any) -> Any:
    """Returns a part that a bottleneck is given: an object, or the saved configuration of one."""
    return keras.saving.deserialize_keras_object(part) if isinstance(part, Mapping) else part


class PosteriorBottleneck(Bottleneck):
    """A posterior family with a `Prior`, which the model trains; subclasses write `call`.

    `call` reads what the encoder wrote, and `seed`, and writes `z` and its densities; see
    `Bottleneck`. `self.prior.log_prob(z)` is `log_prior`, whatever the prior is. A subclass writes
    `kl` if the two have a closed form, and `log_prob` for gradient estimators.

    Args:
        latent_dim: number of latent dimensions, at least 1, or the shape of a code, `(7, 7, 16)`.
            Left out by a class that declares `latents`.
        prior: of z; by default a `default_prior`.

    Attributes:
        takes: what the priors that suit this posterior are distributions of (`Prior.of`).
        default_prior: the class of the prior if none is given.

    Raises:
        ValueError: `latent_dim` is not a positive integer, nor a shape, or the prior is of other
            codes or has no density.
    """

    takes: ClassVar[tuple[str, ...]] = (REAL_NUMBERS,)
    default_prior: ClassVar[type[Prior]] = StandardNormalPrior

    def __init__(
        self,
        latent_dim: int | Sequence[int] | None = None,
        *,
        prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(latent_dim, **kwargs)
        prior = from_saved(prior)
        if prior is not None and not isinstance(prior, Prior):
            raise ValueError(f"prior must be a Prior, for example MixturePrior(10), got {prior!r}.")
        self._has_default_prior = prior is None
        self.prior: Prior = self.default_prior() if prior is None else prior
        if self.prior.of not in self.takes:
            raise ValueError(
                f"{type(self).__name__} takes a prior of {' or '.join(self.takes)}; "
                f"{type(self.prior).__name__} is a prior of {self.prior.of}."
            )
        if not self.prior.has_density:
            raise ValueError(
                f"{type(self.prior).__name__} has no density and cannot be trained with a model: "
                "fit it to a trained one with fit_prior."
            )
        self.prior.build_for(self._prior_shape)

    @property
    def _prior_shape(self) -> tuple[int, ...]:
        *_, shape = self.latents.values()
        return shape

    def prior_log_prob(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log p(z) of given codes, `[rows]`, nats."""
        return self.prior.log_prob(z)

    def sample_prior(self, count: int, seed: tf.Tensor) -> Any:
        """Returns `[count, ...]` codes from the prior."""
        return self.prior.sample(count, seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the settings; the default prior is none, which a subclass need not take."""
        if self._has_default_prior:
            return super().get_config()
        prior = keras.saving.serialize_keras_object(self.prior)
        return {**super().get_config(), "prior": prior}
