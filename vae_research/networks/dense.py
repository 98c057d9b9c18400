"""Fully connected encoders and decoders, for vectors, and for images as vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from vae_research.arguments import checked_integer
from vae_research.networks.heads import check_order, check_sizes, dense_heads


def dense_encoder(
    input_shape: Sequence[int],
    latent_dim: int,
    *,
    hidden_units: Sequence[int] = (500,),
    activation: str = "relu",
    outputs: Sequence[str] | Mapping[str, int] = ("z_mean", "z_log_var"),
    name: str = "encoder",
) -> keras.Model:
    """Returns a functional Keras model from `inputs` to `[batch, latent_dim]` heads.

    Args:
        input_shape: shape of one example, of any rank; it is flattened.
        latent_dim: number of latent dimensions.
        hidden_units: sizes of the hidden layers, from the input to the heads.
        activation: Keras name of the hidden layers' non-linearity.
        outputs: names of the heads; `("z_mean",)` for a plain autoencoder. A dictionary gives each
            head a size of its own.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer.
    """
    check_order("dense_encoder", input_shape, latent_dim)
    check_sizes(input_shape=tuple(input_shape), latent_dim=latent_dim, hidden_units=hidden_units)
    inputs = keras.Input(tuple(input_shape), name="inputs")
    features = keras.layers.Flatten()(inputs) if len(input_shape) > 1 else inputs
    for units in hidden_units:
        features = keras.layers.Dense(units, activation=activation)(features)
    if isinstance(outputs, Mapping):
        made: dict[str, Any] = {}
        for head, size in outputs.items():
            made |= dense_heads([head], [checked_integer(f"outputs[{head!r}]", size, 1)], features)
    else:
        made = dense_heads(outputs, [latent_dim], features)
    return keras.Model(inputs, made, name=name)


def dense_decoder(
    output_shape: Sequence[int],
    latent_dim: int,
    *,
    hidden_units: Sequence[int] = (500,),
    activation: str = "relu",
    kernel_regularizer: Any = None,
    outputs: Sequence[str] = ("logits",),
    name: str = "decoder",
) -> keras.Model:
    """Returns a functional Keras model from `z` to `[batch, *output_shape]` heads.

    Args:
        output_shape: shape of one example, of any rank.
        latent_dim: number of latent dimensions.
        hidden_units: sizes of the hidden layers, from z to the heads.
        activation: Keras name of the hidden layers' non-linearity.
        kernel_regularizer: of all layers, as Keras has them: `keras.regularizers.L2(1e-6)`. Its
            losses are a term of the model, `regularization`.
        outputs: names of the heads: the parameters of the likelihood.
        name: name of the model.

    Raises:
        ValueError: a size is not a positive integer.
    """
    check_order("dense_decoder", output_shape, latent_dim)
    check_sizes(output_shape=tuple(output_shape), latent_dim=latent_dim, hidden_units=hidden_units)
    z = keras.Input((latent_dim,), name="z")
    features = z
    for units in hidden_units:
        features = keras.layers.Dense(
            units, activation=activation, kernel_regularizer=kernel_regularizer
        )(features)
    made = dense_heads(outputs, tuple(output_shape), features, kernel_regularizer)
    return keras.Model(z, made, name=name)
