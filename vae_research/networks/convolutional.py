"""Convolutional encoders and decoders for images of any size and number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from vae_research.arguments import checked_integer
from vae_research.networks.heads import check_order, check_sizes, dense_heads, heads
from vae_research.networks.kernels import narrow_convolution


def convolutional_encoder(
    input_shape: Sequence[int],
    latent_dim: int,
    *,
    filters: Sequence[int] = (32, 64),
    hidden_units: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str = "relu",
    outputs: Sequence[str] = ("z_mean", "z_log_var"),
    name: str = "encoder",
) -> keras.Model:
    """Returns a functional Keras model from `inputs` to `[batch, latent_dim]` heads.

    Args:
        input_shape: `(height, width, channels)` in pixels.
        latent_dim: number of latent dimensions.
        filters: channels of the convolutions, each of which halves height and width (rounded up).
        hidden_units: sizes of the dense layers after the convolutions.
        kernel_size: height and width of a kernel in pixels.
        activation: Keras name of the non-linearity.
        outputs: names of the heads; `("z_mean",)` for a plain autoencoder.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer, or the shape is not that of an image.
    """
    check_order("convolutional_encoder", input_shape, latent_dim)
    _check_image(input_shape, filters, kernel_size)
    check_sizes(
        latent_dim=latent_dim,
        input_shape=tuple(input_shape),
        filters=filters,
        hidden_units=hidden_units,
    )
    inputs = keras.Input(tuple(input_shape), name="inputs")
    features = inputs
    for channels in filters:
        features = keras.layers.Conv2D(
            channels, kernel_size, strides=2, padding="same", activation=activation
        )(features)
    features = keras.layers.Flatten()(features)
    for units in hidden_units:
        features = keras.layers.Dense(units, activation=activation)(features)
    return keras.Model(inputs, dense_heads(outputs, [latent_dim], features), name=name)


def convolutional_decoder(
    output_shape: Sequence[int],
    latent_dim: int,
    *,
    filters: Sequence[int] = (64, 32),
    hidden_units: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str = "relu",
    kernel_regularizer: Any = None,
    outputs: Sequence[str] = ("logits",),
    name: str = "decoder",
) -> keras.Model:
    """Returns a functional Keras model from `z` to `[batch, height, width, channels]` heads.

    It starts from the smallest grid that covers the image after doubling, and crops the surplus.

    Args:
        output_shape: `(height, width, channels)` in pixels.
        latent_dim: number of latent dimensions.
        filters: channels of the transposed convolutions, each of which doubles height and width.
        hidden_units: sizes of the dense layers before the convolutions.
        kernel_size: height and width of a kernel in pixels.
        activation: Keras name of the non-linearity.
        kernel_regularizer: of all layers, as Keras has them: `keras.regularizers.L2(1e-6)`. Its
            losses are a term of the model, `regularization`.
        outputs: names of the heads: the parameters of the likelihood.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer, or the shape is not that of an image.
    """
    check_order("convolutional_decoder", output_shape, latent_dim)
    _check_image(output_shape, filters, kernel_size)
    check_sizes(
        latent_dim=latent_dim,
        output_shape=tuple(output_shape),
        filters=filters,
        hidden_units=hidden_units,
    )
    height, width, image_channels = output_shape
    stride = 2 ** len(filters)
    grid = -(-height // stride), -(-width // stride), filters[0]
    z = keras.Input((latent_dim,), name="z")
    features = z
    for units in (*hidden_units, grid[0] * grid[1] * grid[2]):
        features = keras.layers.Dense(
            units, activation=activation, kernel_regularizer=kernel_regularizer
        )(features)
    features = keras.layers.Reshape(grid)(features)
    for channels in filters:
        features = keras.layers.Conv2DTranspose(
            channels,
            kernel_size,
            strides=2,
            padding="same",
            activation=activation,
            kernel_regularizer=kernel_regularizer,
        )(features)
    surplus = grid[0] * stride - height, grid[1] * stride - width
    if any(surplus):
        edges = tuple((extra // 2, extra - extra // 2) for extra in surplus)
        features = keras.layers.Cropping2D(edges)(features)
    images = heads(
        outputs,
        lambda head: narrow_convolution(
            keras.layers.Conv2D(
                image_channels,
                kernel_size,
                padding="same",
                dtype="float32",
                name=head,
                kernel_regularizer=kernel_regularizer,
            )
        ),
        features,
    )
    return keras.Model(z, images, name=name)


def _check_image(shape: Sequence[int], filters: Sequence[int], kernel_size: int) -> None:
    if len(shape) != 3:
        raise ValueError(
            "A convolutional network needs the shape of an image, (height, width, channels); got "
            f"{tuple(shape)}. Use a dense network for vectors."
        )
    if not filters:
        raise ValueError("A convolutional network needs filters, one number for each layer.")
    checked_integer("kernel_size", kernel_size, 1)
