"""The last layers of encoders and decoders: one linear head for each output name.

Built from Keras layers only, so that a saved network loads without this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from vae_research.arguments import checked_integer
from vae_research.settings import did_you_mean

# exp(20) is 5e8: above any useful variance or rate, below the overflow of float32 at exp(88).
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


class Kernels:
    """How the kernels of a network begin and what is added to the loss for them.

    Args:
        kernel_initializer: as Keras has them: `"he_normal"`, `keras.initializers.HeNormal()`.
        kernel_regularizer: as Keras has them: `keras.regularizers.L2(1e-6)`. Its losses are a term
            of the model, `regularization`.
    """

    def __init__(self, kernel_initializer: Any, kernel_regularizer: Any) -> None:
        self._initializer, self._regularizer = kernel_initializer, kernel_regularizer

    def settings(self) -> dict[str, Any]:
        """Returns the keyword arguments of one layer.

        An initializer without a seed draws one when it is made, and the same values again in every
        layer of one shape: each layer gets a copy, which draws its own.
        """
        initializer = self._initializer
        if isinstance(initializer, keras.initializers.Initializer):
            initializer = type(initializer).from_config(initializer.get_config())
        return {"kernel_initializer": initializer, "kernel_regularizer": self._regularizer}


def head_shapes(
    outputs: Sequence[str] | Mapping[str, int], shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of an event of each head.

    Args:
        outputs: names of the heads; a dictionary gives each the size of its last axis.
        shape: of an event, unless `outputs` says otherwise.

    Raises:
        ValueError: `outputs` is neither a list of names nor a dictionary of positive integers.
    """
    if isinstance(outputs, str) or not outputs:
        raise ValueError(f"outputs must be a list of names, got {outputs!r}.")
    if not isinstance(outputs, Mapping):
        return dict.fromkeys(outputs, tuple(shape))
    return {
        name: (*shape[:-1], checked_integer(f"outputs[{name!r}]", size, 1))
        for name, size in outputs.items()
    }


def heads(
    shapes: Mapping[str, Sequence[int]],
    make: Callable[[str], keras.layers.Layer],
    features: Any,
    output_bias: Any = None,
) -> dict[str, Any]:
    """Returns the outputs by name; those called `..._log_var` or `..._log_rate` are bounded.

    `bound * tanh(value / bound)` is close to the value for useful variances and rates. It cannot
    overflow in `exp`, and its gradient does not drop to zero as that of a hard clip does.

    Args:
        shapes: of the biases of the heads, by name.
        make: returns the linear layer for a name; the layer must be float32.
        features: the Keras tensor that the heads read.
        output_bias: where the biases begin, broadcast to their shape: of the only head, or a
            dictionary by the names of heads; zero for those that are not named.

    Raises:
        ValueError: `output_bias` does not suit the heads.
    """
    given = _biases_by_head(output_bias, shapes)
    outputs = {}
    for name, copy in zip(shapes, copies(features, len(shapes)), strict=True):
        layer = make(name)
        output = layer(copy)
        if name in given:
            layer.bias.assign(np.reshape(given[name], layer.bias.shape))
        if name.endswith(("log_var", "log_rate")):
            scale = keras.layers.Rescaling(1.0 / LOG_VAR_BOUND, dtype="float32")
            squash = keras.layers.Activation("tanh", dtype="float32")
            restore = keras.layers.Rescaling(LOG_VAR_BOUND, dtype="float32", name=f"{name}_bounded")
            output = restore(squash(scale(output)))
        outputs[name] = output
    return outputs


def copies(features: Any, count: int) -> list[Any]:
    """Returns a Keras tensor once for each of the layers that read it.

    The gradient of a tensor that three or more layers read is a sum without a fixed order, see
    `tensors.sum_in_order`: two runs may differ in their last bits. That of a repeated tensor is a
    sum over an axis, which has an order.
    """
    if count <= 2:
        return [features] * count
    repeated = keras.ops.repeat(keras.ops.expand_dims(features, 1), count, axis=1)
    return [keras.ops.squeeze(part, 1) for part in keras.ops.split(repeated, count, axis=1)]


def _biases_by_head(output_bias: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    if output_bias is None:
        return {}
    if not isinstance(output_bias, Mapping):
        if len(shapes) > 1:
            raise ValueError(
                f"output_bias must say for which of the heads {', '.join(shapes)} it is: "
                f"{{{next(iter(shapes))!r}: value}}."
            )
        output_bias = dict.fromkeys(shapes, output_bias)
    given = {}
    for name, value in output_bias.items():
        if name not in shapes:
            raise ValueError(
                f"output_bias names a head {name!r}; there are {', '.join(shapes)}."
                f"{did_you_mean(name, shapes)}"
            )
        values, shape = np.asarray(value, np.float32), tuple(shapes[name])
        try:
            given[name] = np.broadcast_to(values, shape)
        except ValueError:
            raise ValueError(
                f"output_bias of the head {name!r} has shape {values.shape}; it needs a number or "
                f"an array that broadcasts to {shape}."
            ) from None
        if not np.all(np.isfinite(values)):
            raise ValueError(f"output_bias of the head {name!r} has values that are not finite.")
    return given


def dense_heads(
    outputs: Sequence[str] | Mapping[str, int],
    shape: Sequence[int],
    features: Any,
    kernels: Kernels,
    output_bias: Any = None,
) -> dict[str, Any]:
    """Returns linear heads of the given event shape on top of a vector of features."""
    shapes = head_shapes(outputs, shape)

    def make(name: str) -> keras.layers.Layer:
        size = math.prod(shapes[name])
        return keras.layers.Dense(size, dtype="float32", name=name, **kernels.settings())

    flat = heads(shapes, make, features, output_bias)
    if len(shape) == 1:
        return flat
    return {
        name: keras.layers.Reshape(shapes[name], dtype="float32")(flat[name]) for name in shapes
    }
