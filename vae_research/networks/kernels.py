"""Another way to compute a layer of Keras: a faster one on a CPU.

The last convolution of a decoder has one output channel, or three. TensorFlow's CPU kernels take as
long for one channel as for many, and longest for the gradient of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

# The product takes 80 % of the time of the convolution for three channels, and 50 % for one.
_MOST_OUTPUTS = 3


def narrow_convolution(layer: keras.layers.Conv2D) -> keras.layers.Conv2D:
    """Makes a CPU compute a convolution with few output channels as a matrix product.

    The layer remains a Keras layer: its class, configuration and variables stay the same, and so
    does the saved file. Keras itself computes what the product does not support: more than three
    output channels, strides, dilation, groups, another padding, channels first, 16-bit types,
    images of unknown size, and everything if there is a GPU. Keras also computes copies of the
    layer and layers loaded from a file, which are made from the configuration alone; a `VAE` that
    is loaded computes as the one that was saved.

    Returns:
        The same layer.
    """
    if (
        layer.filters <= _MOST_OUTPUTS
        and tuple(layer.strides) == tuple(layer.dilation_rate) == (1, 1)
        and layer.groups == 1
        and layer.padding == "same"
        and layer.data_format == "channels_last"
    ):
        layer.convolution_op = _product_or(layer.convolution_op)
    return layer


def is_narrow(layer: keras.layers.Layer) -> bool:
    """Returns whether `narrow_convolution` has changed how a layer is computed."""
    return isinstance(layer, keras.layers.Conv2D) and "convolution_op" in vars(layer)


def _product_or(
    by_keras: Callable[[Any, Any], tf.Tensor],
) -> Callable[[Any, Any], tf.Tensor]:
    def convolution_op(inputs: Any, kernel: Any) -> tf.Tensor:
        x, weights = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
        exact = x.dtype == weights.dtype and x.dtype in (tf.float32, tf.float64)
        if exact and None not in x.shape[1:] and not tf.config.list_logical_devices("GPU"):
            return convolution_as_product(x, weights)
        return by_keras(x, weights)

    return convolution_op


@tf.custom_gradient
def convolution_as_product(
    inputs: tf.Tensor, kernel: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """Returns the convolution with stride 1 and padding "same", `[batch, height, width, outputs]`.

    One product multiplies every pixel by all weights; the output is the sum of the resulting maps,
    each shifted by the place of its weight in the kernel:

        maps[a, b, o, n, y, x] = sum_c kernel[a, b, c, o] inputs[n, y, x, c]
        output[n, y, x, o] = sum_ab maps[a, b, o, n, y + a - top, x + b - left]

    Args:
        inputs: `[batch, height, width, channels]`; all sizes but the first are known.
        kernel: `[kernel_height, kernel_width, channels, outputs]`.
    """
    height, width, channels = inputs.shape[1:]
    rows, columns, _, outputs = kernel.shape
    pixels = tf.reshape(inputs, [-1, channels])
    weights = tf.reshape(tf.transpose(kernel, [0, 1, 3, 2]), [-1, channels])

    maps = tf.matmul(weights, pixels, transpose_b=True)
    maps = tf.reshape(maps, [rows, columns, outputs, -1, height, width])
    above, left = (rows - 1) // 2, (columns - 1) // 2  # padding "same"
    below, right = rows - 1 - above, columns - 1 - left
    maps = tf.pad(maps, [[0, 0]] * 4 + [[above, below], [left, right]])
    # One axis after the other: 4 sums instead of 8 for 3 x 3 weights.
    maps = _sum([maps[:, b, ..., b : b + width] for b in range(columns)])
    maps = _sum([maps[a, ..., a : a + height, :] for a in range(rows)])

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shifted = tf.transpose(upstream, [3, 0, 1, 2])
        shifted = tf.pad(shifted, [[0, 0], [0, 0], [below, above], [right, left]])
        shifted = [shifted[..., columns - 1 - b :][..., :width] for b in range(columns)]
        shifted = tf.stack(shifted)
        shifted = [shifted[..., rows - 1 - a :, :][..., :height, :] for a in range(rows)]
        shifted = tf.reshape(tf.stack(shifted), [rows * columns * outputs, -1])
        to_inputs = tf.reshape(tf.matmul(shifted, weights, transpose_a=True), tf.shape(inputs))
        to_kernel = tf.reshape(tf.matmul(shifted, pixels), [rows, columns, outputs, channels])
        return to_inputs, tf.transpose(to_kernel, [0, 1, 3, 2])

    return tf.transpose(maps, [1, 2, 3, 0]), gradient


def _sum(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Returns the sum in the given order, which `tf.add_n` does not guarantee."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
