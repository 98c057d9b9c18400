"""Networks of a ladder of latents: a chain of features up, and a network down to each level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from vae_research.networks.heads import Kernels, check_sizes, dense_heads, heads


def ladder_encoder(
    input_shape: Sequence[int],
    latents: Sequence[Sequence[int]],
    blocks: Sequence[keras.layers.Layer],
    *,
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    name: str = "encoder",
) -> keras.Model:
    """Returns a functional Keras model from `inputs` to `z_1_mean`, `z_1_log_var`, `z_2_mean` ...

    The features of each level are made from those of the level below it: d_1 = block_1(inputs),
    d_2 = block_2(d_1), and so on. The estimate of z_l is linear in d_l: a convolution with kernels
    of one pixel if both are maps of one size, otherwise a dense layer.
    Sonderby et al. 2016 (arXiv:1602.02282), equation 11.

    Args:
        input_shape: shape of one example.
        latents: the shape of a code of each level, from z_1 up: `[(20,), (10,)]`.
        blocks: a layer or model for each level.
        kernel_initializer: of the estimates, as Keras has them: `"he_normal"`. Blocks bring theirs.
        kernel_regularizer: of the estimates, as Keras has them: `keras.regularizers.L2(1e-6)`.
        name: name of the model.

    Raises:
        ValueError: there is not one block for each latent, or a size is not a positive integer.
    """
    _check(latents, blocks, len(latents))
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    inputs = keras.Input(tuple(input_shape), name="inputs")
    features, made = inputs, dict[str, Any]()
    for number, (shape, block) in enumerate(zip(latents, blocks, strict=True), 1):
        features = block(features)
        names = [f"z_{number}_mean", f"z_{number}_log_var"]
        made |= _heads(names, shape, features, kernels)
    return keras.Model(inputs, made, name=name)


def ladder_top_down(
    latents: Sequence[Sequence[int]],
    blocks: Sequence[keras.layers.Layer],
    *,
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
) -> list[keras.Model]:
    """Returns functional Keras models from each latent but the first to the one below it.

    Each goes from `z_2` to `z_mean` and `z_log_var` of z_1, and so on, which are linear in what a
    block makes; see `ladder_encoder`. A block that enlarges a map goes before a larger map.

    Args:
        latents: the shape of a code of each level, from z_1 up: `[(20,), (10,)]`.
        blocks: a layer or model for each of the results.
        kernel_initializer, kernel_regularizer: as for `ladder_encoder`.

    Raises:
        ValueError: there is not one block less than there are latents, or a size is not a positive
            integer.
    """
    _check(latents, blocks, len(latents) - 1)
    kernels = Kernels(kernel_initializer, kernel_regularizer)
    networks = []
    for number, block in enumerate(blocks, 1):
        above = keras.Input(tuple(latents[number]), name=f"z_{number + 1}")
        names = ["z_mean", "z_log_var"]
        made = _heads(names, latents[number - 1], block(above), kernels)
        networks.append(keras.Model(above, made, name=f"top_down_{number}"))
    return networks


def _check(latents: Sequence[Sequence[int]], blocks: Sequence[Any], needed: int) -> None:
    if len(latents) < 2 or len(blocks) != needed:
        raise ValueError(
            f"A ladder needs two latents or more, got {len(latents)}, and for these {needed} "
            f"blocks, got {len(blocks)}."
        )
    for number, shape in enumerate(latents, 1):
        check_sizes(latent_dim=1, **{f"z_{number}_shape": tuple(shape)})


def _heads(
    names: Sequence[str], shape: Sequence[int], features: Any, kernels: Kernels
) -> dict[str, Any]:
    if len(shape) == 3 and tuple(features.shape[1:-1]) == tuple(shape[:-1]):
        return heads(
            dict.fromkeys(names, (shape[-1],)),
            lambda name: keras.layers.Conv2D(
                shape[-1], 1, dtype="float32", name=name, **kernels.settings()
            ),
            features,
        )
    flat = keras.layers.Flatten()(features) if len(features.shape) > 2 else features
    return dense_heads(names, tuple(shape), flat, kernels)
