"""Convolutional encoders and decoders for images of any size and number of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from vae_research.arguments import checked_integer
from vae_research.networks.heads import (
    Kernels,
    check_order,
    check_sizes,
    dense_heads,
    head_shapes,
    heads,
)
from vae_research.networks.kernels import narrow_convolution


def convolutional_encoder(
    input_shape: Sequence[int],
    latent_dim: int,
    *,
    filters: Sequence[int] = (32, 64),
    hidden_units: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str = "relu",
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
        filters: channels of the convolutions, each of which halves height and width (rounded up).
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
    check_order("convolutional_encoder", input_shape, latent_dim)
    check_image(input_shape, filters, kernel_size)
    check_sizes(
        latent_dim=latent_dim,
        input_shape=tuple(input_shape),
        filters=filters,
        hidden_units=hidden_units,
    )
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    inputs = keras.Input(tuple(input_shape), name="inputs")
    features = inputs
    for channels in filters:
        features = keras.layers.Conv2D(
            channels,
            kernel_size,
            strides=2,
            padding="same",
            activation=activation,
            **kernels.settings(),
        )(features)
    features = keras.layers.Flatten()(features)
    for units in hidden_units:
        features = keras.layers.Dense(units, activation=activation, **kernels.settings())(features)
    made = dense_heads(outputs, [latent_dim], features, kernels, output_bias)
    return keras.Model(inputs, made, name=name)


def convolutional_decoder(
    output_shape: Sequence[int],
    latent_dim: int,
    *,
    filters: Sequence[int] = (64, 32),
    hidden_units: Sequence[int] = (),
    kernel_size: int = 3,
    activation: str = "relu",
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    output_bias: Any = None,
    outputs: Sequence[str] | Mapping[str, int] = ("logits",),
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
        kernel_initializer: of all layers, as Keras has them: `"he_normal"`.
        kernel_regularizer: of all layers, as Keras has them: `keras.regularizers.L2(1e-6)`. Its
            losses are a term of the model, `regularization`.
        output_bias: where the biases of the heads begin, a number or one for each channel of the
            only head, or a dictionary by the names of heads.
            `logits_of_mean(data.train, axis=(0, 1, 2))` makes it of data.
        outputs: names of the heads: the parameters of the likelihood. A dictionary gives each head
            channels of its own.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer, or the shape is not that of an image.
    """
    check_order("convolutional_decoder", output_shape, latent_dim)
    check_image(output_shape, filters, kernel_size)
    check_sizes(
        latent_dim=latent_dim,
        output_shape=tuple(output_shape),
        filters=filters,
        hidden_units=hidden_units,
    )
    grid = *smallest_grid(output_shape, len(filters)), filters[0]
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    z = keras.Input((latent_dim,), name="z")
    features = z
    for units in (*hidden_units, grid[0] * grid[1] * grid[2]):
        features = keras.layers.Dense(units, activation=activation, **kernels.settings())(features)
    features = keras.layers.Reshape(grid)(features)
    for channels in filters:
        features = keras.layers.Conv2DTranspose(
            channels,
            kernel_size,
            strides=2,
            padding="same",
            activation=activation,
            **kernels.settings(),
        )(features)
    features = cropped(features, output_shape, len(filters))
    images = convolutional_heads(outputs, output_shape, features, kernel_size, kernels, output_bias)
    return keras.Model(z, images, name=name)


def convolutional_heads(
    outputs: Sequence[str] | Mapping[str, int],
    shape: Sequence[int],
    features: Any,
    kernel_size: int,
    kernels: Kernels,
    output_bias: Any,
) -> dict[str, Any]:
    """Returns linear convolutions as heads, on top of features of the size of the image."""
    channels = {name: each[-1:] for name, each in head_shapes(outputs, shape).items()}

    def make(name: str) -> keras.layers.Layer:
        return narrow_convolution(
            keras.layers.Conv2D(
                *channels[name],
                kernel_size,
                padding="same",
                dtype="float32",
                name=name,
                **kernels.settings(),
            )
        )

    return heads(channels, make, features, output_bias)


def smallest_grid(shape: Sequence[int], doublings: int) -> tuple[int, int]:
    """Returns height and width of the smallest grid that covers an image after doubling."""
    stride = 2**doublings
    return -(-shape[0] // stride), -(-shape[1] // stride)


def cropped(features: Any, shape: Sequence[int], doublings: int) -> Any:
    """Returns features without the surplus that doubling the smallest grid has left."""
    stride = 2**doublings
    surplus = [
        size * stride - wanted
        for size, wanted in zip(smallest_grid(shape, doublings), shape, strict=False)
    ]
    if not any(surplus):
        return features
    edges = tuple((extra // 2, extra - extra // 2) for extra in surplus)
    return keras.layers.Cropping2D(edges)(features)


def check_image(shape: Sequence[int], filters: Sequence[int], kernel_size: int) -> None:
    """Raises ValueError for a shape that is not that of an image, or without filters."""
    if len(shape) != 3:
        raise ValueError(
            "A convolutional network needs the shape of an image, (height, width, channels); got "
            f"{tuple(shape)}. Use a dense network for vectors."
        )
    if not filters:
        raise ValueError("A convolutional network needs filters, one number for each layer.")
    checked_integer("kernel_size", kernel_size, 1)
