"""What an objective reports of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from vae_research.distribution import batch_mean

# Figures of a model of which the larger is the better one, the more telling one first.
LARGER_IS_BETTER = ("importance_weighted_bound", "elbo")


@dataclasses.dataclass(frozen=True)
class CriticReport:
    """The loss of a critic on a batch and its parts, float32 scalars, means over rows.

    Attributes:
        loss: what its optimizer minimises.
        values: unweighted values by name.
        weights: weights by name; terms that are only logged have none.
    """

    loss: tf.Tensor
    values: dict[str, tf.Tensor]
    weights: dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class LossReport:
    """The loss of a batch and its parts, in nats and float32.

    Attributes:
        loss: `[batch]`, what is minimised and reported.
        surrogate: `[batch]`, what is differentiated; the same tensor unless an estimator needs
            another.
        values: unweighted values by name, `[batch]` or a scalar, means over the samples.
        weights: weights by name, scalars; terms that are only logged have none.
        elbo: `[batch]`, log-likelihood minus KL divergence whatever is trained, or None if there is
            no posterior, or codes are relaxed.
        critics: the reports of the critics, by name.
        importance_weighted_bound: `[batch]`, the bound of log p(x) of K samples with all weights 1
            (Burda et al. 2016, equation 8), if such a bound is trained, otherwise None.
        logged: `[batch]` by name, shown in the logs instead of the value of that name. A divergence
            that a term estimates from samples is logged in closed form, as it is part of `elbo`.
    """

    loss: tf.Tensor
    surrogate: tf.Tensor
    values: dict[str, tf.Tensor]
    weights: dict[str, tf.Tensor]
    elbo: tf.Tensor | None
    critics: dict[str, CriticReport] = dataclasses.field(default_factory=dict)
    importance_weighted_bound: tf.Tensor | None = None
    logged: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)

    @property
    def contributions(self) -> dict[str, tf.Tensor]:
        """Weight times value of the trained terms, by name."""
        return {name: weight * self.values[name] for name, weight in self.weights.items()}

    def as_fields(self) -> dict[str, Any]:
        """Returns the attributes by name, as TensorFlow takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def observable(self) -> dict[str, tf.Tensor]:
        """Returns what a controller may read: means over the batch, by the names of the logs."""
        found = {name: batch_mean(value) for name, value in self.values.items()}
        for critic, report in self.critics.items():
            found |= {f"{critic}/{name}": value for name, value in report.values.items()}
        return found
