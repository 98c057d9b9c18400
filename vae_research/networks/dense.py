"""Fully connected encoders and decoders, for vectors, and for images as vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from vae_research.networks.heads import Kernels, check_order, check_sizes, dense_heads


def dense_encoder(
    input_shape: Sequence[int],
    latent_dim: int,
    *,
    hidden_units: Sequence[int] = (500,),
    activation: str = "relu",
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    output_bias: Any = None,
    outputs: Sequence[str] | Mapping[str, int] = ("z_mean", "z_log_var"),
    name: str = "encoder",
) -> keras.Model:
    """Returns a functional Keras model from `inputs` to `[batch, latent_dim]` heads.

    Args:
        input_shape: shape of one example, of any rank; it is flattened.
        latent_dim: number of latent dimensions.
        hidden_units: sizes of the hidden layers, from the input to the heads.
        activation: Keras name of the hidden layers' non-linearity.
        kernel_initializer: of all layers, as Keras has them: `"he_normal"`.
        kernel_regularizer: of all layers, as Keras has them: `keras.regularizers.L2(1e-6)`. Its
            losses are a term of the model, `regularization`.
        output_bias: where the biases of the heads begin, a dictionary by the names of heads:
            `{"z_log_var": -2.0}`.
        outputs: names of the heads; `("z_mean",)` for a plain autoencoder. A dictionary gives each
            head a size of its own.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer.
    """
    check_order("dense_encoder", input_shape, latent_dim)
    check_sizes(input_shape=tuple(input_shape), latent_dim=latent_dim, hidden_units=hidden_units)
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    inputs = keras.Input(tuple(input_shape), name="inputs")
    features = keras.layers.Flatten()(inputs) if len(input_shape) > 1 else inputs
    for units in hidden_units:
        features = keras.layers.Dense(units, activation=activation, **kernels.settings())(features)
    made = dense_heads(outputs, [latent_dim], features, kernels, output_bias)
    return keras.Model(inputs, made, name=name)


def dense_decoder(
    output_shape: Sequence[int],
    latent_dim: int,
    *,
    hidden_units: Sequence[int] = (500,),
    activation: str = "relu",
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    output_bias: Any = None,
    outputs: Sequence[str] | Mapping[str, int] = ("logits",),
    name: str = "decoder",
) -> keras.Model:
    """Returns a functional Keras model from `z` to `[batch, *output_shape]` heads.

    Args:
        output_shape: shape of one example, of any rank.
        latent_dim: number of latent dimensions.
        hidden_units: sizes of the hidden layers, from z to the heads.
        activation: Keras name of the hidden layers' non-linearity.
        kernel_initializer: of all layers, as Keras has them: `"he_normal"`.
        kernel_regularizer: of all layers, as Keras has them: `keras.regularizers.L2(1e-6)`. Its
            losses are a term of the model, `regularization`.
        output_bias: where the biases of the heads begin, broadcast to their shape: a value of the
            only head, or a dictionary by the names of heads. `logits_of_mean` makes it of data.
        outputs: names of the heads: the parameters of the likelihood. A dictionary gives each head
            a size of its own for the last axis.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer.
    """
    check_order("dense_decoder", output_shape, latent_dim)
    check_sizes(output_shape=tuple(output_shape), latent_dim=latent_dim, hidden_units=hidden_units)
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    z = keras.Input((latent_dim,), name="z")
    features = z
    for units in hidden_units:
        features = keras.layers.Dense(units, activation=activation, **kernels.settings())(features)
    made = dense_heads(outputs, tuple(output_shape), features, kernels, output_bias)
    return keras.Model(z, made, name=name)
