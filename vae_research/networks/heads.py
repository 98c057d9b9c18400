"""The last layers of encoders and decoders: one linear head for each name that is written.

Built from Keras' own layers alone, so that a saved network loads without this package.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras

# exp(20) is 5e8: far beyond any variance of use, far below the overflow of float32 at exp(88).
LOG_VAR_BOUND = 20.0


def check_sizes(*, latent_dim: int, **sequences: Sequence[int]) -> None:
    """Raises ValueError unless all sizes are positive integers."""
    if not _is_size(latent_dim):
        raise ValueError(f"latent_dim must be an integer >= 1, got {latent_dim!r}.")
    for name, sizes in sequences.items():
        if not isinstance(sizes, Sequence) or not all(map(_is_size, sizes)):
            raise ValueError(f"{name} must be a list of integers >= 1, got {sizes!r}.")
        if name.endswith("_shape") and not sizes:
            raise ValueError(f"{name} is empty; an example has at least one axis.")


def _is_size(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1


def heads(
    names: Sequence[str], make: Callable[[str], keras.layers.Layer], features: Any
) -> dict[str, Any]:
    """Returns one output by name; those called `..._log_var` are softly bounded.

    `bound * tanh(value / bound)` follows the value where variances are of use, and can neither
    overflow in `exp` nor lose its gradient at once as a hard clip does.

    Args:
        names: what to write.
        make: a name to the linear layer that computes it; the layer must be float32.
        features: the Keras tensor that the heads read.

    Raises:
        ValueError: `names` is no list of names.
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


def dense_heads(names: Sequence[str], shape: Sequence[int], features: Any) -> dict[str, Any]:
    """Returns linear heads of a given event shape over a vector of features."""
    flat = heads(
        names,
        lambda name: keras.layers.Dense(math.prod(shape), dtype="float32", name=name),
        features,
    )
    if len(shape) == 1:
        return flat
    return {name: keras.layers.Reshape(shape, dtype="float32")(flat[name]) for name in names}
