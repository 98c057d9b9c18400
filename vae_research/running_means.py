"""Running means of everything that is logged, over the examples of an epoch or evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.controllers import is_varying
from vae_research.distribution import present_strategy, scope_of, share, total
from vae_research.losses.term import LossTerm


class RunningMeans:
    """Means over examples since the epoch or the evaluation began, by name.

    Args:
        terms: the loss terms. There is a mean of `loss`, `elbo`, each term by its label, `kl` and
            `regularization`, and of `contribution/LABEL` for terms whose weight changes.
        more: names of further figures. Others get their mean when a step first has them.
    """

    def __init__(self, terms: Iterable[LossTerm], more: Iterable[str] = ()) -> None:
        self._strategy = present_strategy()
        terms = list(terms)
        labels = [term.label for term in terms]
        names = dict.fromkeys(["loss", "elbo", *labels, "kl", "regularization"])
        scheduled = [term.label for term in terms if is_varying(term.weight)]
        names |= dict.fromkeys([*(f"contribution/{label}" for label in scheduled), *more])
        self._means = {name: _mean(name) for name in names}
        # Which of them this model has values for is known once a step has been traced.
        self._reported = ["loss", *labels]
        self._unweighted = labels[0]

    def __contains__(self, name: str) -> bool:
        """Returns whether there is a mean of that name."""
        return name in self._means

    @property
    def count(self) -> tf.Variable:
        """Examples since the last reset, a scalar."""
        return self._means[self._unweighted].count

    @property
    def reported(self) -> list[keras.metrics.Metric]:
        """The means that appear in the logs: those that the last traced step had values for."""
        return [self._means[name] for name in self._reported]

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """All means, including those not logged yet."""
        return list(self._means.values())

    def update(
        self,
        figures: Mapping[str, tf.Tensor],
        count: tf.Tensor,
        weights: Mapping[str, tf.Tensor] | None = None,
    ) -> None:
        """Adds the figures of a batch.

        Args:
            figures: `[batch]` vectors or scalars by name.
            count: examples of the batch; a scalar figure counts for all of them.
            weights: of the examples, `[batch]`, by the name of a figure; others have equal ones.
        """
        weights = weights or {}
        if share() is not None:
            figures, weights = _of_all_replicas(figures, count, weights)
        for name, values in figures.items():
            weight = weights.get(name, count if values.shape.rank == 0 else None)
            self._mean(name).update_state(values, sample_weight=weight)
        self._reported = [name for name in self._means if name in figures]

    def add(self, figures: Mapping[str, tf.Tensor], count: tf.Tensor) -> None:
        """Adds figures to those that `update` was given of the same batch."""
        reported = self._reported
        self.update(figures, count)
        self._reported = [name for name in self._means if name in figures or name in reported]

    def _mean(self, name: str) -> keras.metrics.Mean:
        if name not in self._means:
            # The variables outlive the step that is being traced.
            with tf.init_scope(), scope_of(self._strategy):
                self._means[name] = _mean(name)
        return self._means[name]

    def reset(self) -> None:
        """Resets all means, including those of terms absent from the last step."""
        for mean in self._means.values():
            mean.reset_state()

    def restore(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        """Gives variables of means the values that they had within an epoch."""
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self._reported = [
            name for name, mean in self._means.items() if float(mean.count.numpy()) > 0
        ]


class _Mean(keras.metrics.Mean):
    """Keras' mean, of which all replicas have the same: they are given the sums over all."""

    def add_variable(
        self,
        shape: Any,
        initializer: Any,
        dtype: Any = None,
        aggregation: str | None = "only_first_replica",
        name: str | None = None,
    ) -> Any:
        variable = keras.Variable(
            keras.initializers.get(initializer),
            shape=shape,
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",
            name=name,
        )
        self._tracker.add_to_store("variables", variable)
        return variable


def _mean(name: str) -> keras.metrics.Mean:
    # In float32 the sum of an epoch keeps no digit of what a few steps have added to it.
    return _Mean(name=name, dtype="float64")


def _of_all_replicas(
    figures: Mapping[str, tf.Tensor], count: tf.Tensor, weights: Mapping[str, tf.Tensor]
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the means of figures over the global batch, scalars, and their weights, by name."""
    own = share()
    assert own is not None
    count = tf.cast(count, tf.float64)
    sums, counts = [], []
    for name, values in figures.items():
        values = tf.cast(values, tf.float64)
        weight = tf.cast(weights.get(name, 1.0), tf.float64) * tf.ones_like(values)
        if values.shape.rank == 0:  # of all rows of this replica
            weight = count
        sums.append(tf.reduce_sum(values * weight))
        counts.append(tf.reduce_sum(weight))
    sums, counts = tf.unstack(total(tf.stack([sums, counts])) / own.copies)
    means = tf.unstack(tf.math.divide_no_nan(sums, counts), len(figures))
    return dict(zip(figures, means, strict=True)), dict(
        zip(figures, tf.unstack(counts, len(figures)), strict=True)
    )
