"""What is not finite in a training step, found by repeating it in Python. Imports TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from vae_research.critics import Critic
from vae_research.model import VAE
from vae_research.objective import LossReport
from vae_research.state import optimizers, training_state, undone
from vae_research.tensors import Tensors


def causes(model: VAE, data: Mapping[str, tf.Tensor]) -> list[str]:
    """Returns what is not finite in the next training step on a batch, in words; [] if nothing is.

    The step is repeated in its order, up to the first of these that is not finite:

    - values and weights of loss terms, with the first tensor of the forward pass;
    - gradients of loss terms, with the tensor of the forward pass at which the gradient, on its way
      back from the loss, is not finite for the first time;
    - variables, after their update.

    Updates that critics make alone are repeated one by one. Afterwards, all variables have the
    values that they had before.
    """
    with undone(model):
        found = _before_the_update(model, data)
    if found:
        return found
    with undone(model):
        model.training_step(data)
        return failed_update(model)


def failed_update(model: VAE) -> list[str]:
    """Returns in words which variables are not finite after a step; [] if all are."""
    groups = training_state(model)
    # Optimizers first: a weight that is not finite may have been moved by a slot that is not.
    for group in (*optimizers(model), *groups):
        if found := not_finite(groups[group]):
            return [f"the update of {_first_and_number(found)} ({group})"]
    return []


def not_finite(variables: Sequence[Any]) -> list[str]:
    """Returns the paths of variables with values that are not finite."""
    return [variable.path for variable in variables if not _is_finite(variable.value)]


def _before_the_update(model: VAE, data: Mapping[str, tf.Tensor]) -> list[str]:
    """Returns what is not finite before the last update of a step; makes those before it."""
    alone = model.updates_of_critics()
    for number, (critics, key) in enumerate(alone, start=1):
        with undone(model):  # a forward pass changes what layers keep
            found = _in_losses(model, data, critics, key)
        if not found:
            model.train_critics(critics, data, key)
            found = failed_update(model)
        if found:
            return [f"{cause} in update {number} of {len(alone) + 1}" for cause in found]
    return _in_losses(model, data, [model, *model.critics], model.step_key())


@dataclasses.dataclass(frozen=True)
class _Loss:
    """A loss, its parts, and what it trains.

    Attributes:
        name: in messages.
        total: scalar, what is differentiated.
        values: unweighted values by the names of the logs.
        weights: weights of the trained terms, by the same names.
        contributions: scalars, weight times value, by the same names.
        variables: what is trained.
        tensors: of the forward pass, between the variables and the loss, as they were written.
    """

    name: str
    total: tf.Tensor
    values: dict[str, tf.Tensor]
    weights: dict[str, tf.Tensor]
    contributions: dict[str, tf.Tensor]
    variables: list[Any]
    tensors: dict[str, tf.Tensor]


def _loss_of(trained: VAE | Critic, tensors: Tensors, report: LossReport) -> _Loss:
    written = {
        name: tensor
        for name, tensor in tensors.written.items()
        if tf.is_tensor(tensor) and tensor.dtype.is_floating
    }
    if isinstance(trained, Critic):
        own = report.critics[trained.name]
        name, total, prefix = f"the loss of {trained.role}", own.loss, f"{trained.name}/"
        values, weights = own.values, own.weights
        # A gradient does not leave the critic on its way to the critic's variables.
        written = {name: t for name, t in written.items() if tensors.writers[name] == trained.role}
    else:
        name = "the loss" if report.surrogate is report.loss else "the surrogate"
        total, prefix = tf.reduce_mean(report.surrogate), ""
        values, weights = report.values, report.weights
    return _Loss(
        name,
        total,
        {prefix + term: value for term, value in values.items()},
        {prefix + term: weight for term, weight in weights.items()},
        {prefix + term: tf.reduce_mean(w * values[term]) for term, w in weights.items()},
        list(trained.trainable_variables),
        written,
    )


def _in_losses(
    model: VAE, data: Mapping[str, tf.Tensor], trained: Sequence[VAE | Critic], key: tf.Tensor
) -> list[str]:
    """Returns what is not finite in the losses of an update, and in their gradients."""
    with tf.GradientTape(persistent=True) as tape:
        tensors, report = model.report(data, training=True, seed=key)
        losses = [_loss_of(each, tensors, report) for each in trained]
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    origin = f" (first of all {bad[0]})" if bad else ""
    found = [
        cause
        for loss in losses
        for cause in (
            *(f"term {name!r}{origin}" for name in _not_finite_in(loss.values)),
            *(f"the weight of term {name!r}" for name in _not_finite_in(loss.weights)),
        )
    ]
    return found or [cause for loss in losses for cause in _in_gradients(tape, loss)]


def _in_gradients(tape: tf.GradientTape, loss: _Loss) -> list[str]:
    """Returns the terms of a loss whose gradients are not finite, and where that begins.

    If only the gradient of the whole loss is not finite, the loss is named: a sum of gradients may
    overflow, and an importance-weighted bound is not the sum of its terms.
    """
    whole = _place(tape, loss.total, loss)
    if whole is None:
        return []
    parts = {f"term {name!r}": value for name, value in loss.contributions.items()}
    places = {name: _place(tape, part, loss) for name, part in parts.items()}
    found = {name: place for name, place in places.items() if place is not None}
    found = found or {loss.name: whole}
    return [f"the gradient of {name} at {place}" for name, place in found.items()]


def _place(tape: tf.GradientTape, part: tf.Tensor, loss: _Loss) -> str | None:
    """Returns in words where the gradient of a part of a loss is not finite.

    It is None if the gradients of all variables are finite.
    """
    paths = [variable.path for variable in loss.variables]
    variables = _not_finite_gradients(tape, part, paths, loss.variables)
    if not variables:
        return None
    named = _first_and_number(variables)
    tensors = _not_finite_gradients(tape, part, list(loss.tensors), list(loss.tensors.values()))
    # What was written last comes first on the way back.
    return f"{tensors[-1]} (and of {named})" if tensors else named


def _not_finite_gradients(
    tape: tf.GradientTape, part: tf.Tensor, names: list[str], sources: list[Any]
) -> list[str]:
    return [
        name
        for name, gradient in zip(names, tape.gradient(part, sources), strict=True)
        if gradient is not None and not _is_finite(gradient)
    ]


def _first_and_number(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


def _not_finite_in(values: Mapping[str, Any]) -> list[str]:
    return [name for name, value in values.items() if not _is_finite(value)]


def _is_finite(value: Any) -> bool:
    value = tf.convert_to_tensor(value)
    return not value.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(value)))
