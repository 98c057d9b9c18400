"""Likelihoods p(x|z) of integers and of levels."""

from __future__ import annotations

import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_integer
from vae_research.losses.term import Likelihood


class Categorical(Likelihood):
    """Independent values that are each one of several classes.

    Reads `targets` `[rows, ...]`, integers from 0 to `classes - 1`, and `logits`
    `[rows, ..., classes]`. For labels: `Categorical(classes=10, rename={"targets": "labels",
    "logits": "label_logits"})`.
    """

    classes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("Categorical.classes", self.classes, 2)
        object.__setattr__(self, "support", (0.0, self.classes - 1.0))

    def log_likelihood(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | logits)`, `[rows]`, nats."""
        wanted = targets.shape.concatenate([self.classes])
        if targets.dtype.is_floating or not wanted.is_compatible_with(logits.shape):
            raise ValueError(
                f"Loss term {self.label!r} compares targets of shape {targets.shape} and type "
                f"{targets.dtype.name} with 'logits' of shape {logits.shape}; it needs integers "
                f"and logits of shape {wanted}."
            )
        log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        chosen = tf.one_hot(targets, self.classes) * log_p
        return probability.sum_over_event(tf.reduce_sum(chosen, axis=-1))

    def mean(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the most probable class as float32: classes have no mean."""
        return tf.cast(tf.argmax(logits, axis=-1), tf.float32)
