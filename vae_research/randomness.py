"""Stateless random numbers: the same key gives the same numbers, with XLA and without.

A key is two int64 words: the run's seed, and the place in the run (step, or position in an
evaluation). There is no generator state to lose. The first axis of what is drawn are the rows of a
batch: a replica gets the rows that one device would have drawn for them (`distribution`).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from vae_research.distribution import drawn_by_row

# The second word of a key: its purpose in the upper bits, then the position.
_TRAINING, _EVALUATION = 0, 1
_POSITION_BITS = 56

# The key with which TensorFlow's stateless generators scramble a seed.
_SCRAMBLER = 0x02461E293EC8F720


def training_key(seed: int, step: tf.Tensor | int) -> tf.Tensor:
    """Returns the key of an optimizer step, `[2]` int64."""
    return _key(seed, _TRAINING, step)


def evaluation_key(seed: int, position: tf.Tensor | int) -> tf.Tensor:
    """Returns the key of a position in every evaluation, `[2]` int64."""
    return _key(seed, _EVALUATION, position)


def _key(seed: int, purpose: int, position: tf.Tensor | int) -> tf.Tensor:
    place = tf.cast(position, tf.int64) + (purpose << _POSITION_BITS)
    return tf.stack([tf.constant(seed, tf.int64), place])


def fold_in(key: tf.Tensor, *parts: str | int | tf.Tensor) -> tf.Tensor:
    """Returns another key, `[2]` int64, derived from a key and each of the parts in turn.

    Args:
        key: `[2]` int64; with a string part it must come from `training_key` or `evaluation_key`.
        parts: a string is a purpose within the step; a number is a place, such as an epoch.
    """
    for part in parts:
        if isinstance(part, str):
            # The run's seed is below 2^32: the purpose has the upper half of the first word to
            # itself.
            offset = (zlib.crc32(part.encode()) >> 1) << 32
            key = tf.stack([key[0] + offset, key[1]])
        else:
            # Cast first: the same number as int32 gives another key.
            number = tf.cast(part, tf.int64)
            key = tf.random.experimental.stateless_fold_in(key, number, alg="philox")
    return key


def standard_normal(shape: Sequence[int] | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns float32 numbers from N(0, 1), none beyond 5.8 in size.

    `tf.random.stateless_normal` draws other numbers under XLA than without, also with Philox (as
    of TensorFlow 2.21). The bits of Philox agree, and Box and Muller 1958 turn them into normal
    numbers that agree to the rounding of sine and logarithm.

    Args:
        shape: of the result.
        seed: a key, `[2]`.
    """
    return drawn_by_row(functools.partial(_standard_normal, seed=seed), shape)


def _standard_normal(shape: Sequence[int] | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    shape = tf.convert_to_tensor(shape, tf.int32)
    known = tf.get_static_value(shape)
    count = tf.reduce_prod(shape) if known is None else math.prod(known.tolist())
    first, second = tf.unstack(_uniform([2, (count + 1) // 2], seed))
    radius = tf.sqrt(-2.0 * tf.math.log(first))
    angle = 2.0 * math.pi * second
    numbers = tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=0)
    return tf.reshape(numbers[:count], shape)


def uniform(shape: Sequence[int | tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
    """Returns float32 numbers between 0 and 1, neither of which occurs.

    `tf.random.stateless_uniform` draws other floats under XLA than without, also with Philox.

    Args:
        shape: of the result; integers or scalars.
        seed: a key, `[2]`.
    """
    return drawn_by_row(functools.partial(_uniform, seed=seed), shape)


def _uniform(shape: Sequence[int | tf.Tensor] | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    bits = philox_bits(shape, seed)
    # 23 bits and a half fit a float32 exactly; the half keeps a logarithm away from zero.
    upper = tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32)
    return (upper + 0.5) * 2.0**-23


# Proposals for each number: one is accepted with a probability above 0.95, so that none of them is
# with one below 1e-10; the first is taken then.
_PROPOSALS = 8
_TINY = 1e-30


def standard_gamma(concentration: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns float32 numbers from Gamma(concentration, 1), with a gradient by the concentration.

    Proposals of Marsaglia and Tsang 2000, A Simple Method for Generating Gamma Variables, for
    concentration + 1, and their step from there to the concentration. The gradient is that of
    implicit reparameterisation: Figurnov et al. 2018 (arXiv:1805.08498). As `standard_normal`, the
    numbers agree with XLA and without.

    Args:
        concentration: `[...]`, at least 0.1.
        seed: a key, `[2]`.
    """
    wanted = tf.stop_gradient(tf.cast(concentration, tf.float32))
    shape = tf.shape(wanted)
    each = tf.concat([[_PROPOSALS], shape], axis=0)
    scale = wanted + 2.0 / 3.0
    normal = functools.partial(_standard_normal, seed=fold_in(seed, 0))
    normal = drawn_by_row(normal, each, axis=1)

    def uniform_levels(shape: tf.Tensor) -> tf.Tensor:
        return tf.reshape(_uniform([tf.reduce_prod(shape)], fold_in(seed, 1)), shape)

    one_more = tf.concat([[_PROPOSALS + 1], shape], axis=0)
    levels = drawn_by_row(uniform_levels, one_more, axis=1)
    cubed = tf.maximum((1.0 + normal / tf.sqrt(9.0 * scale)) ** 3, _TINY)
    bound = 0.5 * tf.square(normal) + scale * (1.0 - cubed + tf.math.log(cubed))
    accepted = tf.cast(tf.math.log(levels[1:]) < bound, tf.float32)
    first = tf.one_hot(tf.argmax(accepted, axis=0), _PROPOSALS, axis=0)
    drawn = scale * tf.reduce_sum(first * cubed, axis=0) * levels[0] ** (1.0 / wanted)
    return _with_implicit_gradient(concentration, tf.maximum(drawn, _TINY))


@tf.custom_gradient
def _with_implicit_gradient(concentration: tf.Tensor, drawn: tf.Tensor) -> Any:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        slope = tf.raw_ops.RandomGammaGrad(alpha=tf.cast(concentration, tf.float32), sample=drawn)
        return upstream * slope, None

    return tf.identity(drawn), gradient


def gumbel(shape: Sequence[int] | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns numbers from the standard Gumbel distribution; `seed` is a stateless key, `[2]`."""
    return drawn_by_row(functools.partial(_gumbel, seed=seed), shape)


def _gumbel(shape: Sequence[int] | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    shape = tf.convert_to_tensor(shape, tf.int32)
    numbers = _uniform([tf.reduce_prod(shape)], seed)
    return -tf.math.log(-tf.math.log(tf.reshape(numbers, shape)))


def philox_bits(shape: Sequence[int | tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
    """Returns random uint32 words, those of `tf.random.stateless_uniform` with `alg="philox"`.

    That function adds 46 operations to a graph, most of them to scramble the seed; this one adds
    17, which are traced faster. Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3.

    Args:
        shape: of the result; integers or scalars.
        seed: a key, `[2]`.
    """
    draw = functools.partial(
        tf.raw_ops.StatelessRandomUniformFullIntV2,
        dtype=tf.uint32,
        alg=tf.random.Algorithm.PHILOX.value,
    )
    scrambled = draw(
        shape=[4], key=tf.constant([_SCRAMBLER], tf.uint64), counter=tf.cast(seed, tf.uint64)
    )
    words = tf.bitcast(tf.reshape(scrambled, [2, 2]), tf.uint64)
    # The lower word of the counter begins at zero. (tf.split would do the same, but not on a GPU.)
    counter = words * tf.constant([0, 1], tf.uint64)
    return draw(shape=shape, key=words[:1], counter=counter)
