"""Saves a network in a file that is known to load as the same network.

Keras reads some files without an error as another network: with fresh weights, or without a setting
that a layer forgot to save. So a file is loaded and compared before it gets its name.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research import files
from vae_research.networks.kernels import is_narrow, narrow_convolution
from vae_research.serialization import InputSpecs, layers_of, objects_in
from vae_research.state import as_array, saved_variables

# Tensors by name that a network computes.
Compute = Callable[[Any], dict[str, tf.Tensor]]

_SETTINGS = "The get_config of a layer returns every setting that its __init__ takes."
_LAYERS = (
    "A layer makes its variables and layers in __init__ or build, and the get_config of a layer "
    "has every layer that it was given."
)


def save_checked(
    network: keras.Model,
    path: str | Path,
    save: Callable[[str], None],
    compute: Compute,
    *,
    overwrite: bool = True,
) -> None:
    """Saves a network in a file that is known to load as the same network.

    It is written beside its place, loaded and compared: every variable of the network and of its
    optimizer, and what it computes. Only then does it get its name.

    Args:
        network: the network that is saved.
        path: a file `.keras`, a folder, or an address that Keras knows (`hf://...`).
        save: writes the network to a path, by Keras.
        compute: returns tensors by name that a network computes; `figures_of` or `outputs_of`.
        overwrite: replace what has this name.

    Raises:
        ValueError: it cannot be saved or loaded, or loads as another network; the message says why.
            Whatever had the name before is unchanged.
        FileExistsError: something has this name, and `overwrite` is False.
    """
    if "://" in str(path):
        with tempfile.TemporaryDirectory() as folder:
            _write(network, Path(folder) / "model.keras", path, save, compute)
        save(str(path))
        return
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; save(..., overwrite=True) replaces it.")
    aside = path.with_name(f".writing-{path.name}")
    try:
        _write(network, aside, path, save, compute)
        if path.is_dir():
            files.remove(path)
        files.flush(aside)
        files.rename(aside, path)
    finally:
        if aside.exists():
            files.remove(aside)


def _write(
    network: keras.Model,
    aside: Path,
    path: str | Path,
    save: Callable[[str], None],
    compute: Compute,
) -> None:
    """Writes a network to `aside`; raises ValueError unless it loads as the same network."""
    refused = f"{Path(path).name} was not written: "
    try:
        save(str(aside))
    except OSError:
        raise
    except Exception as error:  # of Keras, or of a layer's own methods
        raise ValueError(refused + _in_short(error)) from error
    try:
        values = compute(network)
    except Exception:  # a layer of the user's own may refuse made-up data
        values = {}
    numbers = random.getstate()  # Keras draws a seed for every layer that it makes
    try:
        loaded = keras.saving.load_model(aside)
        found = _other_variables(network, loaded)
        if values and not found:
            _compute_alike(network, loaded)
            found = _other_values(values, compute(loaded))
    except OSError:
        raise
    except Exception as error:
        why = f"it could not be loaded. {_why(network, error)}"
        raise ValueError(refused + why) from error
    finally:
        random.setstate(numbers)
    if found:
        raise ValueError(f"{refused}it would load as another model. {found}")


def figures_of(model: Any, specs: InputSpecs) -> dict[str, tf.Tensor]:
    """Returns losses and ELBO of two made-up rows; nothing if shapes are not known."""
    if not specs or any(None in shape for shape, _ in specs.values()):
        return {}
    data = {name: _two_rows(shape, dtype) for name, (shape, dtype) in specs.items()}
    _, report = model.report(data)
    found = {f"loss of {name}": critic.loss for name, critic in report.critics.items()}
    found |= {} if report.elbo is None else {"ELBO": report.elbo}
    return found | {"loss": report.loss}


def outputs_of(network: keras.Model) -> dict[str, tf.Tensor]:
    """Returns the outputs for made-up inputs; nothing if the network does not tell its inputs."""
    inputs = getattr(network, "inputs", None)
    if not inputs or any(None in tensor.shape[1:] for tensor in inputs):
        return {}
    values = [_two_rows(tensor.shape[1:], tensor.dtype) for tensor in inputs]
    found = network(keras.tree.pack_sequence_as(network.input, values))
    return {f"output {at}": value for at, value in enumerate(keras.tree.flatten(found))}


def _two_rows(shape: Any, dtype: str) -> tf.Tensor:
    """Returns values in [0, 1), which every likelihood has in its support, or zeros."""
    values = np.random.default_rng(0).random((2, *shape))
    return (
        tf.cast(values, dtype) if tf.as_dtype(dtype).is_floating else tf.zeros(values.shape, dtype)
    )


def _why(network: keras.Model, error: Exception) -> str:
    """Returns why a file does not load, and what to do."""
    found = list(objects_in(keras.saving.serialize_keras_object(network)))
    unknown = sorted({entry["class_name"] for entry in found if _is_unknown(entry)})
    if unknown:
        return (
            f"Keras does not know {', '.join(unknown)}: write "
            "@keras.saving.register_keras_serializable(package='...') above the class."
        )
    if any(entry["class_name"] == "__lambda__" for entry in found):
        return (
            "A lambda is code, which Keras does not load from a file: write a layer, or a function "
            "below @keras.saving.register_keras_serializable(package='...')."
        )
    if "objects could not be loaded" in str(error):
        return f"{_in_short(error)} {_LAYERS}"
    return _in_short(error) if isinstance(error, ValueError) else f"{_in_short(error)} {_SETTINGS}"


def _in_short(error: Exception) -> str:
    """Returns the message in one line, without what Keras adds: settings, colours, examples."""
    # Errors of nested objects are nested; the last one is the cause.
    cause = str(error).rpartition("Exception encountered: ")[2]
    cause = re.split(r"\s*(?:Full object config|config=|Example:|List of objects)", cause)[0]
    return " ".join(re.sub(r"\x1b\[[\d;]*m", "", cause).split())


def _is_unknown(entry: Mapping[str, Any]) -> bool:
    package = (entry.get("module") or "").partition(".")[0]
    name = entry.get("registered_name")
    of_keras = package in ("keras", "builtins")
    return bool(name) and not of_keras and keras.saving.get_registered_object(name) is None


def _other_variables(network: keras.Model, loaded: keras.Model) -> str:
    """Returns in words which variable differs, or an empty string."""
    ours, theirs = saved_variables(network), saved_variables(loaded)
    for one, other in zip(ours, theirs, strict=False):
        value, loaded_value = as_array(one.value), as_array(other.value)
        kind, loaded_kind = ((array.dtype, array.shape) for array in (value, loaded_value))
        if kind != loaded_kind or value.tobytes() != loaded_value.tobytes():
            return (
                f"Of {len(ours)} variables and {len(theirs)} loaded ones the first that differs is "
                f"{one.path} {one.shape}; in its place there is {other.path} {other.shape}. "
                f"{_LAYERS}"
            )
    if len(ours) != len(theirs):
        return f"It has {len(ours)} variables, and the loaded one {len(theirs)}. {_LAYERS}"
    return ""


def _compute_alike(network: keras.Model, loaded: keras.Model) -> None:
    for one, other in zip(layers_of(network), layers_of(loaded), strict=False):
        if is_narrow(one):  # the file of a network has its layers, not how they are computed
            narrow_convolution(other)


def _other_values(ours: Mapping[str, tf.Tensor], theirs: Mapping[str, tf.Tensor]) -> str:
    """Returns in words which value differs, or an empty string."""
    for name in ours:
        one, other = ours[name].numpy(), theirs[name].numpy()
        if one.tobytes() != other.tobytes():
            return f"Its {name} of two rows would be {other}, and is {one}. {_SETTINGS}"
    return ""
