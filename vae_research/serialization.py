"""Converts a model to plain data and back, for Keras' `save` and `load_model`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from vae_research.critics import Critic
from vae_research.objective import Objective
from vae_research.settings import from_config, import_own_modules

# Shape of one example and type, by the name of the data.
InputSpecs = Mapping[str, tuple[tuple[int | None, ...], str]]

_NETWORKS = ("encoder", "bottleneck", "decoder", "modules")


def model_config(networks: Mapping[str, Any], objective: Objective) -> dict[str, Any]:
    """Returns networks and objective of a model as plain data.

    Args:
        networks: encoder, bottleneck, decoder and the list of further modules, by these names.
        objective: as declared, with lengths in epochs.
    """
    serialized = {name: keras.saving.serialize_keras_object(networks[name]) for name in _NETWORKS}
    estimator = objective.gradient_estimator
    return serialized | {
        "terms": [term.to_config() for term in objective.terms],
        "num_samples": objective.num_samples,
        "importance_weighted": objective.importance_weighted,
        "gradient_estimator": None if estimator is None else estimator.to_config(),
    }


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a model from what `model_config` returned; other entries stay.

    Raises:
        ValueError: the class of a term is not imported, or a schedule was a plain function.
    """
    arguments = copy.deepcopy(dict(config))  # deserialisation takes it apart
    import_own_modules(arguments)
    arguments["terms"] = [from_config(term) for term in arguments["terms"]]
    arguments["critics"] = [Critic.from_config(critic) for critic in arguments["critics"]]
    if arguments.get("gradient_estimator") is not None:
        arguments["gradient_estimator"] = from_config(arguments["gradient_estimator"])
    for name in _NETWORKS:
        arguments[name] = keras.saving.deserialize_keras_object(arguments[name])
    return arguments


def build_config(specs: InputSpecs) -> dict[str, Any]:
    """Returns shapes and types of the data as plain data."""
    return {"data": {name: list(spec) for name, spec in specs.items()}}


def build_from_config(model: Any, config: Mapping[str, Any]) -> None:
    """Creates every variable of a model by a symbolic forward pass over data of these shapes."""
    data = config["data"].items()
    specs = {name: tf.TensorSpec([None, *shape], dtype) for name, (shape, dtype) in data}
    if specs:
        tf.function(model.forward, autograph=False).get_concrete_function(specs)
