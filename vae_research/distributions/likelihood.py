"""Any distribution as a likelihood."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from vae_research.distributions.library import (
    check_installed,
    checked,
    is_discrete,
    key_of,
    typical,
)
from vae_research.losses.term import Likelihood
from vae_research.settings import declared_names, reads

if TYPE_CHECKING:
    import tensorflow as tf


class DistributionLikelihood(Likelihood):
    """A likelihood p(x|z) from TensorFlow Probability; a subclass writes `distribution`.

    The parameters of `distribution` name the tensors that it reads, of the decoder or of modules.
    It returns a `tfp.distributions.Distribution` whose batch and event shape together are the
    shape of `targets`. Densities are summed over all axes but the first. Settings are annotated
    attributes, as those of any loss term. The class sets `support` if values have bounds, `spacing`
    if they are discrete (1.0 for integers), and `event_rank` if those of last axes depend on each
    other. One of discrete values without `spacing` would count as a density, and is refused.

        class NegativeBinomial(vr.DistributionLikelihood):
            support = (0.0, math.inf)
            spacing = 1.0

            def distribution(self, log_count, logits):
                return tfp.distributions.NegativeBinomial(tf.exp(log_count), logits=logits)

    The reconstruction is the mean of the distribution, or its mode if no mean is known or finite,
    or if it is one of integers. If neither is known, the subclass writes `mean`, whose parameters
    name tensors.

    Raises:
        ImportError: TensorFlow Probability is not installed.
        ValueError: the distribution has another shape or variables of its own, is discrete and the
            class a density (`is_density`), or is one of integers and the targets are not, or
            neither mean nor mode are known; or values are missing (`observed`) and the distribution
            has more event axes than `event_rank`.
    """

    def __post_init__(self) -> None:
        check_installed(type(self).__name__)
        super().__post_init__()

    @abc.abstractmethod
    def distribution(self, *tensors: tf.Tensor) -> Any:
        """Returns p(x|z), a `tfp.distributions.Distribution` of the targets."""

    @reads(lambda self: ["targets", *declared_names(self.distribution)])
    def log_likelihood(self, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | tensors)`, `[rows]`, nats."""
        import tensorflow as tf

        from vae_research.probability import sum_over_event

        targets = tensors.pop("targets")
        made = checked(type(self).__name__, self.distribution(**tensors), targets.shape)
        if self.is_density and is_discrete(made):
            raise ValueError(
                f"{type(self).__name__}.distribution returned a {type(made).__name__}, whose "
                "values are discrete, and its class has no spacing: figures would be those of a "
                "density. Set the distance between values in the class, spacing = 1.0 for integers."
            )
        if made.dtype.is_integer and targets.dtype.is_floating:
            raise ValueError(
                f"{type(self).__name__}.distribution returned a {type(made).__name__} of integers, "
                f"and the targets are {targets.dtype.name}: give integers."
            )
        if self.observed and made.event_shape.rank not in range(self.event_rank + 1):
            raise ValueError(
                f"{type(self).__name__}.distribution returned a {type(made).__name__} with event "
                f"shape {made.event_shape}, and {self.observed!r} says which values are missing: "
                f"values of one event depend on each other. Set event_rank = "
                f"{made.event_shape.rank} in the class; if they are independent, leave "
                "Independent or Sample out."
            )
        return sum_over_event(made.log_prob(tf.cast(targets, made.dtype)))

    @reads(lambda self: declared_names(self.distribution))
    def mean(self, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns the mean of p(x|z), or its mode, shaped as the targets."""
        return typical(type(self).__name__, "mean(self, ...)", self.distribution(**tensors))

    @reads(lambda self: declared_names(self.distribution))
    def sample(self, seed: tf.Tensor, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns a draw from p(x|z), shaped as the targets, float32; `seed` is a key, `[2]`."""
        import tensorflow as tf

        return tf.cast(self.distribution(**tensors).sample(seed=key_of(seed)), tf.float32)
