"""Normalising flows of a sample: invertible functions whose volume change is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer
from vae_research.bottlenecks.posterior import from_saved
from vae_research.tensors import sum_in_order


class Flow(keras.layers.Layer):
    """One step of a flow of codes `[rows, size]`; subclasses write `build_for` and `call`.

    A flow is a part of a bottleneck, `FlowBottleneck(20, [PlanarFlow()])`, which tells it the size
    of a code. It may depend on the example by a context that the encoder writes. `call(z, context)`
    returns the new codes and log |det dz'/dz|, `[rows]`, nats. One that can undo this sets
    `has_inverse` and writes `inverse`. All values are float32 under every precision policy.

    Attributes:
        has_inverse: whether there is a method `inverse`.
        context_dim: values of the context of an example, 0 for none.
        size: values of a code.
    """

    has_inverse: ClassVar[bool] = False
    built: bool
    context_dim: int
    size: int

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)

    def build_for(self, size: int, context_dim: int) -> None:
        """Makes the variables of a new flow; a subclass makes its own after this.

        Raises:
            ValueError: it is a part of another bottleneck already.
        """
        if self.built:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} is a part of a bottleneck already: each step "
                "of a flow needs one of its own."
            )
        self.size, self.context_dim, self.built = size, context_dim, True

    def call(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the codes behind this step, `[rows, size]`, and log |det dz'/dz|, `[rows]`.

        Args:
            z: `[rows, size]`.
            context: `[rows, context_dim]`; left out if there is none.
        """
        raise TypeError(f"{type(self).__name__} must define call(self, z, context).")

    def inverse(
        self, z: tf.Tensor, context: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the codes before this step, and log |det dz'/dz| there, `[rows]`."""
        raise TypeError(f"{type(self).__name__} has no inverse in closed form.")


def built_steps(flows: Any, size: int, context_dim: int) -> list[Flow]:
    """Returns the steps of a flow, or of its saved configuration, with their variables.

    Args:
        flows: one step or more.
        size: values of a code.
        context_dim: values of the context of an example, 0 for none.

    Raises:
        ValueError: one of these is not a step of a flow, or is a part of something already.
    """
    if not isinstance(flows, (list, tuple)) or not flows:
        raise ValueError(f"flows must be a list with one flow or more, got {flows!r}.")
    steps = [from_saved(flow) for flow in flows]
    for step in steps:
        if not isinstance(step, Flow):
            raise ValueError(
                f"flows must be a list of flows, such as InverseAutoregressiveFlow(), got {step!r} "
                "in it."
            )
        step.build_for(size, context_dim)
    return steps


def all_steps(
    flows: Sequence[Flow], z: tf.Tensor, context: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns codes `[rows, size]` behind all steps, and log |det dz'/dz|, `[rows]`."""
    log_determinants = []
    for flow in flows:
        # Chained identities, so that no tensor has more than two consumers.
        context = None if context is None else tf.identity(tf.cast(context, tf.float32))
        z, log_determinant = flow(z, context)
        log_determinants.append(log_determinant)
    return z, sum_in_order(log_determinants)


def undone_steps(
    flows: Sequence[Flow], z: tf.Tensor, context: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns codes `[rows, size]` before all steps, and log |det dz'/dz| of them, `[rows]`."""
    log_determinants = []
    for flow in reversed(flows):
        context = None if context is None else tf.identity(tf.cast(context, tf.float32))
        z, log_determinant = flow.inverse(z, context)
        log_determinants.append(log_determinant)
    return z, sum_in_order(log_determinants)


def without_inverse(flows: Sequence[Flow]) -> Flow | None:
    """Returns the first step that cannot be undone, or None."""
    return next((flow for flow in flows if not flow.has_inverse), None)


class MaskedDense(keras.layers.Dense):
    """A dense layer some of whose connections are cut.

    Germain et al. 2015 (arXiv:1502.03509), section 3.

    Args:
        mask: `[inputs, units]`, 1 for a connection and 0 for none.
    """

    def __init__(self, mask: np.ndarray, **kwargs: Any) -> None:
        super().__init__(mask.shape[1], dtype="float32", **kwargs)
        self.mask = np.asarray(mask, np.float32)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns `[rows, units]`."""
        outputs = tf.matmul(inputs, tf.convert_to_tensor(self.kernel) * self.mask) + self.bias
        return self.activation(outputs)


def autoregressive_masks(
    size: int, hidden_units: Sequence[int], context_dim: int, outputs: int
) -> list[np.ndarray]:
    """Returns the masks of the layers of a network whose output i depends on inputs before i.

    Each unit has a degree, how many of the first inputs it may depend on, and is connected with
    units of the layer before it whose degree is not larger. Germain et al. 2015 (arXiv:1502.03509),
    equations 8 and 9; the degrees are in turn, and not drawn. A layer with fewer units than inputs
    has degrees at equal distances up to the largest, so that the last output depends on all inputs.

    Args:
        size: number of inputs that have an order.
        hidden_units: sizes of the hidden layers.
        context_dim: number of further inputs behind them, which everything may depend on.
        outputs: how many there are of each input; the first `size` of them are the first one's.
    """
    # Units of degree 0 depend on the context alone: without one they would be constants.
    lowest = 0 if context_dim or size == 1 else 1
    below = np.concatenate([np.arange(1, size + 1), np.zeros(context_dim, int)])
    masks = []
    for units in hidden_units:
        degrees = lowest + np.arange(units) % (size - lowest)
        if units < size - lowest:
            degrees = np.linspace(size - 1, lowest, units).round().astype(int)
        masks.append(below[:, np.newaxis] <= degrees)
        below = degrees
    return [*masks, below[:, np.newaxis] < np.tile(np.arange(1, size + 1), outputs)]


@keras.saving.register_keras_serializable(package="vae_research")
class InverseAutoregressiveFlow(Flow):
    """z_i becomes a weighted mean of z_i and a number that depends on the values before it.

    z' = s z + (1 - s) m, with weights s and numbers m of a masked network (MADE) of z and context,
    whose value i depends on z_1 to z_(i-1). The order of the values is then reversed, so that the
    next step depends on the others. The inverse is exact and takes a step for each value.
    Kingma et al. 2016 (arXiv:1606.04934), section 4 and algorithm 1.

    Args:
        hidden_units: sizes of the hidden layers of the network.

    Raises:
        ValueError: a size is not a positive integer.
    """

    has_inverse = True

    def __init__(self, hidden_units: Sequence[int] = (320,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_units = [checked_integer("hidden_units", units, 1) for units in hidden_units]

    def build_for(self, size: int, context_dim: int) -> None:
        """Makes the network."""
        super().build_for(size, context_dim)
        masks = autoregressive_masks(size, self.hidden_units, context_dim, 2)
        layers = [MaskedDense(mask, activation="elu") for mask in masks[:-1]]
        # The weights begin near sigmoid(2) = 0.88: z hardly changes ("such as +1 or +2").
        bias = keras.initializers.Constant(np.repeat([0.0, 2.0], size))
        layers.append(MaskedDense(masks[-1], bias_initializer=bias))
        self.network = keras.Sequential(layers, name="network")
        self.network.build([None, size + context_dim])

    def call(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the codes behind this step, and log |det dz'/dz|."""
        number, logit = self._parameters(z, context)
        moved = number + tf.sigmoid(logit) * (z - number)
        return tf.reverse(moved, [1]), _log_weights(tf.identity(logit))

    def inverse(
        self, z: tf.Tensor, context: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the codes before this step, and log |det dz'/dz| there, value by value."""
        moved = tf.reverse(z, [1])

        def known(place: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            number, logit = self._parameters(found, context)
            values = number + (moved - number) * tf.exp(tf.nn.softplus(-logit))
            return place + 1, tf.where(tf.range(self.size) == place, values, found)

        first = tf.constant(0), tf.zeros_like(moved)
        _, found = tf.while_loop(
            lambda place, _: place < self.size, known, first, maximum_iterations=self.size
        )
        return found, _log_weights(self._parameters(found, context)[1])

    def _parameters(self, z: tf.Tensor, context: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        read = z if context is None else tf.concat([z, context], axis=1)
        number, logit = tf.split(self.network(read), 2, axis=1)
        return number, logit

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return {**super().get_config(), "hidden_units": self.hidden_units}


def _log_weights(logit: tf.Tensor) -> tf.Tensor:
    """Returns the sum of the logarithms of sigmoid(logit), `[rows]`."""
    return -tf.reduce_sum(tf.nn.softplus(-logit), axis=1)


@keras.saving.register_keras_serializable(package="vae_research")
class PlanarFlow(Flow):
    """Stretches codes along one direction: z' = z + u tanh(w.z + b), with w.u > -1.

    With a context, u, w and b are a linear function of it (amortised); otherwise all examples share
    them. There is no inverse in closed form. Rezende and Mohamed 2015 (arXiv:1505.05770),
    equations 10 to 12; for w.u > -1, appendix A.1.
    """

    def build_for(self, size: int, context_dim: int) -> None:
        """Makes the weights of u, w and b."""
        super().build_for(size, context_dim)
        # Small, so that z hardly changes before training; equal numbers would stay equal.
        make = {"initializer": keras.initializers.RandomNormal(stddev=0.05), "dtype": "float32"}
        self.bias = self.add_weight(shape=(2 * size + 1,), name="bias", **make)
        if context_dim:
            shape = (context_dim, 2 * size + 1)
            self.kernel = self.add_weight(shape=shape, name="kernel", **make)

    def call(self, z: tf.Tensor, context: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the codes behind this step, and log |det dz'/dz|."""
        values = tf.convert_to_tensor(self.bias)[tf.newaxis]
        if context is not None:
            values += tf.matmul(context, tf.convert_to_tensor(self.kernel))
        towards, normal, offset = tf.split(values, [self.size, self.size, 1], axis=1)
        # Chained identities, here and below, so that no tensor has more than two consumers.
        of_direction = tf.identity(normal)
        along = tf.reduce_sum(normal * z, axis=1, keepdims=True) + offset
        direction, slope = _invertible(towards, of_direction)
        bent = tf.tanh(along)
        squared = tf.square(tf.identity(bent))
        of_rest = tf.identity(squared)
        # 1 + w.u (1 - tanh^2), from 1 + w.u, which keeps its digits near zero.
        log_det = tf.math.log(slope * (1.0 - of_rest) + tf.identity(of_rest))[:, 0]
        return tf.identity(z) + direction * bent, log_det


def _invertible(towards: tf.Tensor, normal: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns u moved along w to where w.u is above -1, and 1 + w.u, `[rows, 1]`, above 0.

    Args:
        towards: u, `[rows, size]`.
        normal: w, of the same shape.
    """
    of_norm = tf.identity(normal)
    of_move = tf.identity(of_norm)
    product = tf.reduce_sum(tf.identity(towards) * normal, axis=1, keepdims=True)
    # The paper has softplus(x) - 1, by which u = 0 would move, without a limit as w goes to 0.
    allowed = tf.maximum(tf.nn.softplus(product + math.log(math.e - 1.0)), 1e-30)
    squared = tf.reduce_sum(tf.square(of_norm), axis=1, keepdims=True)
    move = tf.math.divide_no_nan(tf.identity(allowed) - 1.0 - tf.identity(product), squared)
    return towards + move * of_move, tf.identity(allowed)
