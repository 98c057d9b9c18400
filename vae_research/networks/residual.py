"""Residual convolutional encoders and decoders with group normalisation.

For images of 32 to 128 pixels: one number of filters for each halving of height and width. Blocks
are those of He et al. 2016 (arXiv:1603.05027), normalised as by Wu and He 2018 (arXiv:1803.08494),
which does not depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from vae_research.arguments import checked_integer
from vae_research.networks.convolutional import (
    check_image,
    convolutional_heads,
    cropped,
    smallest_grid,
)
from vae_research.networks.heads import Kernels, check_order, check_sizes, dense_heads


def residual_encoder(
    input_shape: Sequence[int],
    latent_dim: int,
    *,
    filters: Sequence[int] = (32, 64, 128),
    blocks: int = 1,
    groups: int = 8,
    hidden_units: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str = "swish",
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    output_bias: Any = None,
    outputs: Sequence[str] | Mapping[str, int] = ("z_mean", "z_log_var"),
    name: str = "encoder",
) -> keras.Model:
    """Returns a functional Keras model from `inputs` to `[batch, latent_dim]` heads.

    Args:
        input_shape: `(height, width, channels)` in pixels.
        latent_dim: number of latent dimensions.
        filters: channels of the levels, each of which begins with a convolution that halves height
            and width (rounded up).
        blocks: residual blocks of two convolutions in each level.
        groups: of channels, each of which is normalised by itself; the greatest common divisor of
            this and the channels.
        hidden_units: sizes of the dense layers after the convolutions.
        kernel_size: height and width of a kernel in pixels.
        activation: Keras name of the non-linearity.
        kernel_initializer: of all layers, as Keras has them: `"he_normal"`.
        kernel_regularizer: of all layers, as Keras has them: `keras.regularizers.L2(1e-6)`. Its
            losses are a term of the model, `regularization`.
        output_bias: where the biases of the heads begin, a dictionary by the names of heads:
            `{"z_log_var": -2.0}`.
        outputs: names of the heads; `("z_mean",)` for a plain autoencoder. A dictionary gives each
            head a size of its own.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer, or the shape is not that of an image.
    """
    check_order("residual_encoder", input_shape, latent_dim)
    check_image(input_shape, filters, kernel_size)
    check_sizes(
        latent_dim=latent_dim,
        input_shape=tuple(input_shape),
        filters=filters,
        hidden_units=hidden_units,
    )
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    level = _Level(blocks, groups, kernel_size, activation, kernels)
    inputs = keras.Input(tuple(input_shape), name="inputs")
    features = inputs
    for channels in filters:
        features = keras.layers.Conv2D(
            channels, kernel_size, strides=2, padding="same", **kernels.settings()
        )(features)
        features = level.blocks_on(features)
    features = keras.layers.Flatten()(level.normalised(features))
    for units in hidden_units:
        features = keras.layers.Dense(units, activation=activation, **kernels.settings())(features)
    made = dense_heads(outputs, [latent_dim], features, kernels, output_bias)
    return keras.Model(inputs, made, name=name)


def residual_decoder(
    output_shape: Sequence[int],
    latent_dim: int,
    *,
    filters: Sequence[int] = (128, 64, 32),
    blocks: int = 1,
    groups: int = 8,
    hidden_units: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str = "swish",
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    output_bias: Any = None,
    outputs: Sequence[str] | Mapping[str, int] = ("logits",),
    name: str = "decoder",
) -> keras.Model:
    """Returns a functional Keras model from `z` to `[batch, height, width, channels]` heads.

    It starts from the smallest grid that covers the image after doubling, and crops the surplus.
    The heads are linear in the features of their pixel.

    Args:
        output_shape: `(height, width, channels)` in pixels.
        latent_dim: number of latent dimensions.
        filters: channels of the levels, each of which begins with a convolution whose result is
            doubled in height and width.
        blocks: residual blocks of two convolutions in each level.
        groups: of channels, each of which is normalised by itself; the greatest common divisor of
            this and the channels.
        hidden_units: sizes of the dense layers before the convolutions.
        kernel_size: height and width of a kernel in pixels.
        activation: Keras name of the non-linearity.
        kernel_initializer: of all layers, as Keras has them: `"he_normal"`.
        kernel_regularizer: of all layers, as Keras has them: `keras.regularizers.L2(1e-6)`. Its
            losses are a term of the model, `regularization`.
        output_bias: where the biases of the heads begin, a number or one for each channel of the
            only head, or a dictionary by the names of heads.
            `logits_of_mean(data.train, axis=(0, 1, 2))` makes it of data.
        outputs: names of the heads: the parameters of the likelihood. A dictionary gives each head
            channels of its own: `{"x_mixture": 10 * components}`.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer, or the shape is not that of an image.
    """
    check_order("residual_decoder", output_shape, latent_dim)
    check_image(output_shape, filters, kernel_size)
    check_sizes(
        latent_dim=latent_dim,
        output_shape=tuple(output_shape),
        filters=filters,
        hidden_units=hidden_units,
    )
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    level = _Level(blocks, groups, kernel_size, activation, kernels)
    grid = *smallest_grid(output_shape, len(filters)), filters[0]
    z = keras.Input((latent_dim,), name="z")
    features = z
    for units in hidden_units:
        features = keras.layers.Dense(units, activation=activation, **kernels.settings())(features)
    features = keras.layers.Dense(math.prod(grid), **kernels.settings())(features)
    features = keras.layers.Reshape(grid)(features)
    for channels in filters:
        features = keras.layers.Conv2D(channels, kernel_size, padding="same", **kernels.settings())(
            features
        )
        # A transposed convolution would leave the pattern of its strides in every image: Odena et
        # al. 2016, Deconvolution and Checkerboard Artifacts (doi:10.23915/distill.00003).
        features = level.blocks_on(keras.layers.UpSampling2D(2)(features))
    features = cropped(level.normalised(features), output_shape, len(filters))
    images = convolutional_heads(outputs, output_shape, features, 1, kernels, output_bias)
    return keras.Model(z, images, name=name)


class _Level:
    """What is done at one size of the image."""

    def __init__(
        self, blocks: int, groups: int, kernel_size: int, activation: str, kernels: Kernels
    ) -> None:
        self._blocks = checked_integer("blocks", blocks, 1)
        self._groups = checked_integer("groups", groups, 1)
        self._kernel_size, self._activation, self._kernels = kernel_size, activation, kernels

    def normalised(self, features: Any) -> Any:
        """Returns normalised features behind the non-linearity."""
        groups = math.gcd(self._groups, features.shape[-1])
        normalised = keras.layers.GroupNormalization(groups)(features)
        return keras.layers.Activation(self._activation)(normalised)

    def blocks_on(self, features: Any) -> Any:
        """Returns features behind the residual blocks, of the same shape."""
        for _ in range(self._blocks):
            change = features
            for _ in range(2):
                change = keras.layers.Conv2D(
                    features.shape[-1],
                    self._kernel_size,
                    padding="same",
                    **self._kernels.settings(),
                )(self.normalised(change))
            features = keras.layers.Add()([features, change])
        return features
