"""Converts a model to plain data and back, for Keras' `save`, `load_model` and `export`."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research.critics import Critic
from vae_research.networks.kernels import is_narrow, narrow_convolution
from vae_research.objective import Objective
from vae_research.settings import from_config, import_own_modules

# Shape of one example and type, by the name of the data.
InputSpecs = Mapping[str, tuple[tuple[int | None, ...], str]]


def layers_of(networks: Any) -> list[keras.layers.Layer]:
    """Returns every layer of a network, or of a structure of networks, at any depth and once."""
    found = [layer for network in keras.tree.flatten(networks) for layer in _flat(network)]
    return list({id(layer): layer for layer in found}.values())


def _flat(network: keras.layers.Layer) -> list[keras.layers.Layer]:
    # Keras has no public name for it: `layers` is of models alone.
    return list(network._flatten_layers())


def has_all_variables(networks: Any) -> bool:
    """Returns whether every layer of networks is built, or has nothing of its own to build.

    That a layer says so of itself is not enough: one that makes layers in `__init__` and has no
    `build` is called built although those may have no variables yet.
    """
    return all(layer.built or _has_no_build(layer) for layer in layers_of(networks))


def _has_no_build(layer: keras.layers.Layer) -> bool:
    return type(layer).build is keras.layers.Layer.build


def create_variables(model: Any, specs: InputSpecs) -> None:
    """Creates every variable of a model by a symbolic forward pass over data of these shapes."""
    tf.function(model.forward, autograph=False).get_concrete_function(_tensor_specs(specs))


def _tensor_specs(specs: InputSpecs) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec([None, *shape], dtype, name) for name, (shape, dtype) in specs.items()
    }


# A model as plain data.


def model_config(
    networks: Mapping[str, Any], critics: Sequence[Critic], objective: Objective, specs: InputSpecs
) -> dict[str, Any]:
    """Returns networks and objective of a model as plain data.

    Args:
        networks: encoder, bottleneck, decoder, and the lists of further modules and of the critics'
            networks, by these names.
        critics: the critics, in the order of their networks.
        objective: as declared, with lengths in epochs.
        specs: shapes and types of the data; empty if the model has not seen any.
    """
    config = _serialized(dict(networks))
    layers = zip(critics, config["critics"], strict=True)
    config["critics"] = [critic.get_config() | {"layer": layer} for critic, layer in layers]
    estimator = objective.gradient_estimator
    narrow = {name: [x.name for x in layers_of(networks[name]) if is_narrow(x)] for name in config}
    return config | {
        "terms": [term.to_config() for term in objective.terms],
        "num_samples": objective.num_samples,
        "importance_weighted": objective.importance_weighted,
        "gradient_estimator": None if estimator is None else estimator.to_config(),
        "narrow_convolutions": {name: names for name, names in narrow.items() if names},
        "data": {name: [list(shape), dtype] for name, (shape, dtype) in specs.items()},
    }


def model_arguments(config: Mapping[str, Any]) -> tuple[dict[str, Any], InputSpecs]:
    """Returns the arguments of a model, and the shapes of its data, from a `model_config`.

    Raises:
        ValueError: the class of a term is not imported, or a schedule was a plain function.
    """
    arguments = copy.deepcopy(dict(config))  # deserialisation takes it apart
    import_own_modules(arguments)
    arguments["terms"] = [from_config(term) for term in arguments["terms"]]
    for name in ("encoder", "bottleneck", "decoder", "modules"):
        arguments[name] = keras.saving.deserialize_keras_object(arguments[name])
    arguments["critics"] = [Critic.from_config(critic) for critic in arguments["critics"]]
    if arguments["gradient_estimator"] is not None:
        arguments["gradient_estimator"] = from_config(arguments["gradient_estimator"])
    for name, names in arguments.pop("narrow_convolutions", {}).items():
        found = arguments[name]
        for layer in layers_of([x.layer for x in found] if name == "critics" else found):
            if isinstance(layer, keras.layers.Conv2D) and layer.name in names:
                narrow_convolution(layer)
    data = arguments.pop("data", {}).items()
    return arguments, {name: (tuple(shape), dtype) for name, (shape, dtype) in data}


def _serialized(networks: dict[str, Any]) -> dict[str, Any]:
    """Returns networks as plain data in which a layer that is met twice can be told to be one.

    While Keras saves or loads a model, equal `shared_object_id` mean the same object.
    """
    # Keras gives an id to an object that it has met before. By then it may have copied the
    # configuration of the first occurrence. The second time, it has met all.
    keras.saving.serialize_keras_object(networks)
    config = keras.saving.serialize_keras_object(networks)
    layers = {id(layer): layer for layer in layers_of(networks)}
    met = [entry for entry in objects_in(config) if "shared_object_id" in entry]
    times = collections.Counter(entry["shared_object_id"] for entry in met)
    for entry in met:
        number = entry["shared_object_id"]
        layer = layers.get(number)
        # What is no layer may have existed for that moment alone, at the address of another object.
        if times[number] == 1 or layer is None:
            del entry["shared_object_id"]
        if layer is not None and not isinstance(layer, keras.Model) and _has_no_build(layer):
            # Keras would only mark it as built, and warn. The first forward pass builds it.
            entry.pop("build_config", None)
    _count_calls(config, collections.Counter(), set())
    return config


def _count_calls(config: Any, calls: collections.Counter[int], made: set[int]) -> None:
    """Numbers the calls of shared layers as they are when the networks are made in this order.

    Keras numbers the calls of a layer within each functional network from zero. When it makes the
    network, a layer that another one has called before has those calls as well.

    Args:
        config: of several networks; changed in place.
        calls: of shared layers so far, by id.
        made: ids of the layers so far; they are not made again.
    """
    if isinstance(config, (list, tuple)):
        for value in config:
            _count_calls(value, calls, made)
        return
    if not isinstance(config, Mapping) or config.get("shared_object_id") in made:
        return
    for value in config.values():
        _count_calls(value, calls, made)
    graph = config.get("config")
    if isinstance(graph, Mapping) and graph.keys() >= {"layers", "input_layers", "output_layers"}:
        shared = [layer for layer in graph["layers"] if "shared_object_id" in layer]
        before = {layer["name"]: calls[layer["shared_object_id"]] for layer in shared}
        for tensor in _tensors_of(graph):
            tensor[1] += before.get(tensor[0], 0)
        for layer in shared:
            calls[layer["shared_object_id"]] += len(layer["inbound_nodes"])
    if "shared_object_id" in config:
        made.add(config["shared_object_id"])


def _tensors_of(graph: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yields `[name of a layer, number of its call, number of its output]` in a configuration."""
    arguments = [layer["inbound_nodes"] for layer in graph["layers"]]
    for entry in objects_in(arguments):
        if entry["class_name"] == "__keras_tensor__":
            yield entry["config"]["keras_history"]
    waiting = [graph["input_layers"], graph["output_layers"]]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            waiting += found.values()
        elif len(found) == 3 and isinstance(found[0], str):
            yield found
        else:
            waiting += found


def objects_in(config: Any) -> Iterator[Any]:
    """Yields the descriptions of all objects in a configuration, at any depth."""
    if isinstance(config, Mapping):
        if "class_name" in config:
            yield config
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return
    for value in config:
        yield from objects_in(value)


def seeds_of(model: keras.Model) -> list[Any]:
    """Returns the counters of random layers, such as Dropout, which Keras does not save."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


# Exported programs.


def input_signature(call: Callable[[Any], Any], specs: InputSpecs) -> list[Any]:
    """Returns what `export` needs to know: shapes and types of the data that `call` reads.

    Data that only loss terms read, such as targets, are left out. If `inputs` are all that is
    read, they are the argument; otherwise it is a dictionary.

    Args:
        call: what is exported, a function of the data.
        specs: shapes and types of the data.

    Raises:
        ValueError: there are no specs.
    """
    if not specs:
        raise ValueError(
            "export() must know the shapes of the data. Call the model on a batch before, or give "
            "them: export(path, input_signature=[tf.TensorSpec([None, 28, 28, 1])])."
        )
    given = _tensor_specs(specs)
    if given.keys() == {"inputs"}:
        return [given["inputs"]]
    graph = tf.function(call, autograph=False).get_concrete_function(given).graph
    read = {
        name: given[name]
        for name, placeholder in zip(sorted(given), graph.inputs, strict=False)
        if placeholder.consumers()
    }
    return [read["inputs"] if read.keys() == {"inputs"} else read]
