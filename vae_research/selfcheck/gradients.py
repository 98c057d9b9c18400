"""Loss terms: their gradients against differences in float64, and whether weights leave the ELBO.

A term computes in float32, whatever it is given. For a difference quotient its graph is made anew
with float64 in place of float32: the same operations on the same constants, with the digits that a
difference of nearly equal numbers needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vae_research.levels import OF_LEVELS, level_of
from vae_research.losses.term import LossTerm
from vae_research.objective import Objective
from vae_research.selfcheck.outcome import NotApplicableError
from vae_research.tensors import Tensors

_Values = npt.NDArray[np.float64]
_Function = Callable[[Mapping[str, _Values]], float]

GRADIENT_TOLERANCE = 1e-3
"""By which share of its length a gradient may differ from the difference quotient."""

# Half of the step of a difference quotient, over the size of the values.
_STEP = 1e-5
_TO_FLOAT64 = {tf.float32.as_datatype_enum: tf.float64.as_datatype_enum}


def in_float64(
    function: Callable[[Mapping[str, tf.Tensor]], tf.Tensor], values: Mapping[str, tf.Tensor]
) -> _Function:
    """Returns a function of float32 tensors that computes in float64.

    Args:
        function: from named tensors to a scalar; its operations are known for float64.
        values: an example of the tensors.

    Raises:
        NotApplicableError: its graph cannot be made with float64.
    """
    names = sorted(values)
    specs = [tf.TensorSpec(values[name].shape, values[name].dtype) for name in names]
    traced = tf.function(
        lambda *given: function(dict(zip(names, given, strict=True))), autograph=False
    ).get_concrete_function(*specs)
    graph = traced.graph.as_graph_def(add_shapes=False)
    for node in [*graph.node, *(node for each in graph.library.function for node in each.node_def)]:
        _convert(node)
    for each in graph.library.function:
        for argument in [*each.signature.input_arg, *each.signature.output_arg]:
            argument.type = _TO_FLOAT64.get(argument.type, argument.type)
    inputs = [tensor.name for tensor in traced.inputs]
    constants = [_wide(tensor.numpy()) for tensor in traced.captured_inputs]
    (output,) = traced.outputs

    def imported(*given: tf.Tensor) -> tf.Tensor:
        mapped = dict(zip(inputs, given, strict=True))
        return tf.graph_util.import_graph_def(
            graph, input_map=mapped, return_elements=[output.name]
        )[0]

    wide = [
        tf.TensorSpec(tensor.shape, tf.as_dtype(_TO_FLOAT64.get(t, t)))
        for tensor in traced.inputs
        for t in [tensor.dtype.as_datatype_enum]
    ]
    try:
        wrapped = tf.compat.v1.wrap_function(imported, wide)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        why = " ".join(str(error).split())[:120]
        raise NotApplicableError(f"its operations are not known for float64: {why}") from error

    def call(given: Mapping[str, _Values]) -> float:
        return float(wrapped(*[tf.constant(given[name]) for name in names], *constants))

    return call


def _convert(node: Any) -> None:
    """Makes the types and the constants of a node float64 where they are float32."""
    for attribute in node.attr.values():
        if attribute.type in _TO_FLOAT64:
            attribute.type = _TO_FLOAT64[attribute.type]
        for index, each in enumerate(attribute.list.type):
            attribute.list.type[index] = _TO_FLOAT64.get(each, each)
        if attribute.tensor.dtype in _TO_FLOAT64:
            array = tf.make_ndarray(attribute.tensor).astype(np.float64)
            attribute.tensor.CopyFrom(tf.make_tensor_proto(array))


def _wide(array: Any) -> Any:
    array = np.asarray(array)
    return array.astype(np.float64) if array.dtype == np.float32 else array


def gradient_apart(term: LossTerm, tensors: Tensors, name: str, *, seed: int = 0) -> float:
    """Returns by how much the gradient of a term by one tensor differs from a difference quotient.

    Both are taken along two directions: a random one, and that of the gradient. The difference is
    relative to the longer of the two along the gradient.

    Args:
        term: of the objective of the forward pass.
        tensors: of a forward pass over a few examples.
        name: of the tensor, float32.
        seed: of the random direction.

    Raises:
        NotApplicableError: the term cannot be computed in float64.
    """
    at = {name: tf.cast(tensors[name], tf.float32)}

    def total(values: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_sum(term(Tensors({**tensors, **values})))

    with tf.GradientTape() as tape:
        tape.watch(at)
        value = total(at)
    gradient = tape.gradient(value, at, unconnected_gradients="zero")[name].numpy()
    gradient = gradient.astype(np.float64)
    function = in_float64(total, at)
    start = at[name].numpy().astype(np.float64)
    step = _STEP * max(1.0, float(np.sqrt(np.mean(start**2))))
    random = np.random.default_rng(seed).standard_normal(start.shape)
    random /= np.linalg.norm(random)
    length = float(np.linalg.norm(gradient))
    directions = [random] if length == 0.0 else [random, gradient / length]
    quotients = [
        (function({name: start + step * to}) - function({name: start - step * to})) / (2.0 * step)
        for to in directions
    ]
    apart = max(
        abs(quotient - float(np.sum(gradient * to)))
        for quotient, to in zip(quotients, directions, strict=True)
    )
    scale = max(length, *(abs(each) for each in quotients))
    return apart / scale if scale > 0.0 else 0.0


def tensors_differentiated(term: LossTerm, tensors: Tensors, given: set[str]) -> list[str]:
    """Returns the names of the tensors by which a term is differentiated, in training.

    Args:
        term: of the objective of the forward pass.
        tensors: of the forward pass.
        given: names that are not computed: data, `step` and `seed`.
    """
    reads = term.reads()
    parts = {part for part in OF_LEVELS if part in reads and part not in tensors}
    found = []
    for name, value in tensors.items():
        level = level_of(name)
        is_read = name in reads or (level is not None and level[0] in parts)
        if is_read and name not in given and value.dtype.is_floating:
            found.append(name)
    renamed = {old: new for new, old in term.renamed_in(tensors).items()}
    return [name for name in found if renamed.get(name, name) not in term.not_differentiated]


def elbo_apart(objective: Objective, tensors: Tensors, weight: float = 3.7) -> float:
    """Returns by how many nats the ELBO changes at most if all weights do; it must not change.

    Args:
        objective: of the model.
        tensors: of a forward pass.
        weight: that all trained terms get.

    Raises:
        NotApplicableError: there is no ELBO.
    """
    first, second = (
        Objective(
            [
                term if term.weight is None else dataclasses.replace(term, weight=each)
                for term in objective.terms
            ],
            num_samples=objective.num_samples,
            importance_weighted=objective.importance_weighted,
        )(tensors).elbo
        for each in (1.0, weight)
    )
    if first is None or second is None:
        raise NotApplicableError("there is no posterior, or its codes are relaxed")
    return float(tf.reduce_max(tf.abs(first - second)))
