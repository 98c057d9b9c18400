"""The last layers of encoders and decoders: one linear head for each output name.

Built from Keras layers only, so that a saved network loads without this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from vae_research.arguments import checked_integer

# exp(20) is 5e8: far above any useful variance, far below the overflow of float32 at exp(88).
LOG_VAR_BOUND = 20.0


def check_sizes(*, latent_dim: int, **sequences: Sequence[int]) -> None:
    """Raises ValueError unless all sizes are positive integers."""
    checked_integer("latent_dim", latent_dim, 1)
    for name, sizes in sequences.items():
        if not isinstance(sizes, Sequence):
            raise ValueError(f"{name} must be a list of integers >= 1, got {sizes!r}.")
        for index, size in enumerate(sizes):
            checked_integer(f"{name}[{index}]", size, 1)
        if name.endswith("_shape") and not sizes:
            raise ValueError(f"{name} is empty; an example has at least one axis.")


def check_order(function: str, shape: Any, latent_dim: Any) -> None:
    """Raises ValueError if the first two arguments of a network are in the wrong order."""
    if isinstance(shape, int) and isinstance(latent_dim, Sequence):
        raise ValueError(
            f"{function} takes the shape of one example, then latent_dim: "
            f"{function}({latent_dim!r}, {shape!r})."
        )


def heads(
    names: Sequence[str], make: Callable[[str], keras.layers.Layer], features: Any
) -> dict[str, Any]:
    """Returns the outputs by name; those called `..._log_var` are softly bounded.

    `bound * tanh(value / bound)` is close to the value for useful variances. It cannot overflow in
    `exp`, and its gradient does not drop to zero as that of a hard clip does.

    Args:
        names: of the outputs.
        make: returns the linear layer for a name; the layer must be float32.
        features: the Keras tensor that the heads read.

    Raises:
        ValueError: `names` is not a list of names.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"outputs must be a list of names, got {names!r}.")
    outputs = {}
    for name in names:
        output = make(name)(features)
        if name.endswith("log_var"):
            scale = keras.layers.Rescaling(1.0 / LOG_VAR_BOUND, dtype="float32")
            squash = keras.layers.Activation("tanh", dtype="float32")
            restore = keras.layers.Rescaling(LOG_VAR_BOUND, dtype="float32", name=f"{name}_bounded")
            output = restore(squash(scale(output)))
        outputs[name] = output
    return outputs


def dense_heads(
    names: Sequence[str], shape: Sequence[int], features: Any, kernel_regularizer: Any = None
) -> dict[str, Any]:
    """Returns linear heads of the given event shape on top of a vector of features."""
    flat = heads(
        names,
        lambda name: keras.layers.Dense(
            math.prod(shape), dtype="float32", name=name, kernel_regularizer=kernel_regularizer
        ),
        features,
    )
    if len(shape) == 1:
        return flat
    return {name: keras.layers.Reshape(shape, dtype="float32")(flat[name]) for name in names}
