"""The weights of loss terms at a step, and how a weighted sum is rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from vae_research.controllers import Controller, first_state, weight_of
from vae_research.losses.term import LossTerm
from vae_research.schedules import value_at

# The state of each controller, by the name of its term: scalars by name.
ControllerStates = Mapping[str, Mapping[str, Any]]


def weights_of(
    terms: Iterable[LossTerm], step: int | tf.Tensor, states: ControllerStates
) -> dict[str, tf.Tensor]:
    """Returns the weights of trained terms at a step, float32 scalars by name.

    Args:
        terms: the loss terms.
        step: of the model.
        states: of the controllers, by the name of their term; the first one of those left out.
    """
    weights = {}
    for term in terms:
        if isinstance(term.weight, Controller):
            state = states.get(term.label)
            weights[term.label] = weight_of(
                term.weight, first_state(term.weight) if state is None else state
            )
        elif term.weight is not None:
            weights[term.label] = value_at(term.weight, step)
    return weights


def controllers_of(terms: Iterable[LossTerm]) -> dict[str, Controller]:
    """Returns the weights that have a state, by the name of their term."""
    return {term.label: term.weight for term in terms if isinstance(term.weight, Controller)}


def plus(total: tf.Tensor, weight: tf.Tensor | float, value: tf.Tensor) -> tf.Tensor:
    """Returns `total + weight * value`, rounded like that also in a chain of several.

    Without XLA, TensorFlow turns a chain of additions into one AddN, whose order depends on which
    of its inputs is freed first. It leaves subtractions as they are.
    """
    return total - (-weight) * value
