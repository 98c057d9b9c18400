"""Recurrent encoders and decoders for sequences `[time, features]`.

Their layers are LSTMs: without XLA, the gradients of Keras' GRU are sums whose order is not fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from vae_research.networks.heads import (
    Kernels,
    check_order,
    check_sizes,
    dense_heads,
    head_shapes,
    heads,
)


def recurrent_encoder(
    input_shape: Sequence[int],
    latent_dim: int,
    *,
    units: Sequence[int] = (64,),
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    output_bias: Any = None,
    outputs: Sequence[str] | Mapping[str, int] = ("z_mean", "z_log_var"),
    name: str = "encoder",
) -> keras.Model:
    """Returns a functional Keras model from `inputs` to `[batch, latent_dim]` heads.

    The heads read the last output of the last LSTM.

    Args:
        input_shape: `(time, features)`.
        latent_dim: number of latent dimensions.
        units: sizes of the LSTMs, from the input to the heads.
        kernel_initializer: of all layers, as Keras has them: `"he_normal"`. Recurrent kernels begin
            orthogonal.
        kernel_regularizer: of all layers but the recurrent kernels, as Keras has them:
            `keras.regularizers.L2(1e-6)`. Its losses are a term of the model, `regularization`.
        output_bias: where the biases of the heads begin, a dictionary by the names of heads:
            `{"z_log_var": -2.0}`.
        outputs: names of the heads; `("z_mean",)` for a plain autoencoder. A dictionary gives each
            head a size of its own.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer, or the shape is not that of a sequence.
    """
    check_order("recurrent_encoder", input_shape, latent_dim)
    _check_sequence(input_shape, units)
    check_sizes(latent_dim=latent_dim, input_shape=tuple(input_shape), units=units)
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    inputs = keras.Input(tuple(input_shape), name="inputs")
    features = inputs
    for index, size in enumerate(units, start=1):
        features = keras.layers.LSTM(
            size, return_sequences=index < len(units), **kernels.settings()
        )(features)
    made = dense_heads(outputs, [latent_dim], features, kernels, output_bias)
    return keras.Model(inputs, made, name=name)


def recurrent_decoder(
    output_shape: Sequence[int],
    latent_dim: int,
    *,
    units: Sequence[int] = (64,),
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    output_bias: Any = None,
    outputs: Sequence[str] | Mapping[str, int] = ("x_mean",),
    name: str = "decoder",
) -> keras.Model:
    """Returns a functional Keras model from `z` to `[batch, time, features]` heads.

    The first LSTM reads z at every time; the values of a sequence are independent given z. A
    decoder that reads the values before is one that samples itself, as in
    `experiments/sequence_vae.py`.

    Args:
        output_shape: `(time, features)`.
        latent_dim: number of latent dimensions.
        units: sizes of the LSTMs, from z to the heads.
        kernel_initializer: of all layers, as Keras has them: `"he_normal"`. Recurrent kernels begin
            orthogonal.
        kernel_regularizer: of all layers but the recurrent kernels, as Keras has them:
            `keras.regularizers.L2(1e-6)`. Its losses are a term of the model, `regularization`.
        output_bias: where the biases of the heads begin, a number or one for each feature of the
            only head, or a dictionary by the names of heads.
        outputs: names of the heads: the parameters of the likelihood. A dictionary gives each head
            features of its own: `{"logits": classes}`.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer, or the shape is not that of a sequence.
    """
    check_order("recurrent_decoder", output_shape, latent_dim)
    _check_sequence(output_shape, units)
    check_sizes(latent_dim=latent_dim, output_shape=tuple(output_shape), units=units)
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    z = keras.Input((latent_dim,), name="z")
    features = keras.layers.RepeatVector(output_shape[0])(z)
    for size in units:
        features = keras.layers.LSTM(size, return_sequences=True, **kernels.settings())(features)
    shapes = {name: each[-1:] for name, each in head_shapes(outputs, output_shape).items()}

    def make(name: str) -> keras.layers.Layer:
        return keras.layers.Dense(*shapes[name], dtype="float32", name=name, **kernels.settings())

    return keras.Model(z, heads(shapes, make, features, output_bias), name=name)


def _check_sequence(shape: Sequence[int], units: Sequence[int]) -> None:
    if len(shape) != 2:
        raise ValueError(
            "A recurrent network needs the shape of a sequence, (time, features); got "
            f"{tuple(shape)}."
        )
    if not units:
        raise ValueError("A recurrent network needs units, one number for each layer.")
