"""Any distribution as a likelihood."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from vae_research.distributions.library import check_installed, checked, key_of, typical
from vae_research.losses.term import Likelihood
from vae_research.settings import declared_names, reads

if TYPE_CHECKING:
    import tensorflow as tf


class DistributionLikelihood(Likelihood):
    """A likelihood p(x|z) from TensorFlow Probability; a subclass writes `distribution`.

    The parameters of `distribution` name the tensors that it reads, of the decoder or of modules.
    It returns a `tfp.distributions.Distribution` whose batch and event shape together are the
    shape of `targets`. Densities are summed over all axes but the first. Settings are annotated
    attributes, as those of any loss term; if values have bounds, set `support` in the class.

        class NegativeBinomial(vr.DistributionLikelihood):
            support = (0.0, math.inf)

            def distribution(self, log_count, logits):
                return tfp.distributions.NegativeBinomial(tf.exp(log_count), logits=logits)

    The reconstruction is the mean of the distribution, or its mode if no mean is known or if it is
    one of integers. If neither is known, the subclass writes `mean`, whose parameters name tensors.

    Raises:
        ImportError: TensorFlow Probability is not installed.
        ValueError: the distribution has another shape or variables of its own, or is one of
            integers and the targets are not, or neither mean nor mode are known.
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
        if made.dtype.is_integer and targets.dtype.is_floating:
            raise ValueError(
                f"{type(self).__name__}.distribution returned a {type(made).__name__} of integers, "
                f"and the targets are {targets.dtype.name}: give integers."
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
