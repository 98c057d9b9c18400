"""Augmentations of training batches, for `Data.augmented`."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from vae_research.randomness import philox_bits


def mirrored(batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns a batch of which half of the images, drawn one by one, are mirrored left to right.

        data.augmented(vr.mirrored)

    Args:
        batch: `inputs` `[rows, height, width, channels]`; other tensors stay as they are.
        key: stateless, `[2]`.
    """
    images = batch["inputs"]
    words = philox_bits([tf.shape(images)[0], 1, 1, 1], key)
    # Whether `tf.random.stateless_uniform` is below 0.5, which draws other numbers with XLA.
    mirror = tf.bitwise.bitwise_and(words, tf.constant(2**22, tf.uint32)) == 0
    return {**batch, "inputs": tf.where(mirror, images[:, :, ::-1], images)}
