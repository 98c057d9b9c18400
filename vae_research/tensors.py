"""The vocabulary of a forward pass, and how a reader gets the tensors that it names.

A forward pass is a dictionary of named tensors. Modules write names, loss terms and later modules
read them, and a name is written once. The names that every part of the package agrees on:

| name | shape | written by |
| --- | --- | --- |
| `step` | scalar, float32, optimizer steps (0 when not compiled) | model |
| `seed` | `[2]`, int64: a stateless key of the reader's own | model |
| `inputs` | `[batch, ...]` | data |
| `targets` | as `inputs` unless given (Keras' `y`): what is reconstructed | data |
| `labels`, own names | `[batch, ...]` | data given as a dictionary |
| `z_mean`, `z_log_var` | `[batch, latent]` | encoder |
| `z` | `[rows, latent]` | bottleneck |
| `log_posterior`, `log_prior` | `[rows]`, nats | bottleneck |
| `kl` | `[rows, ...]`, nats: its shape is that of the divergence | bottleneck with a closed form |
| `kl_NAME`, `log_posterior_NAME`, `log_prior_NAME` | as these three | bottleneck, module |
| `code_usage` | `[rows, codes]`: shares of an example's codes | bottleneck with a codebook |
| `relaxed` | scalar: there is no ELBO | bottleneck whose codes are relaxed in training |
| `logits`; `x_mean`, `x_log_var` | as `targets` | decoder |
| `reconstruction` | as `targets`, in data space | the likelihood's mean |
| `reconstruction_ARRAY` | as this array of the data | mean of a factor of a `ProductLikelihood` |

Levels: with one latent, its divergence and densities have no suffix. With several, each latent NAME
has its own, written by the bottleneck or by a module behind it: `kl_NAME` in closed form, or both
`log_posterior_NAME` and `log_prior_NAME`, or all three. All of them are part of the ELBO. A loss
term that reads `kl`, `log_posterior` or `log_prior` gets that of all levels: divergences side by
side, `[rows, values]`, and the sum of the densities.

With K samples a batch, every tensor after the encoder has `rows = K * batch` rows, the K samples
of one example next to each other.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import keras
import tensorflow as tf

from vae_research.captured_tensors import without_captured_tensors
from vae_research.distribution import own_rows, share, whole_batch, whole_rows, with_share
from vae_research.levels import OF_LEVELS, WITHOUT_SUFFIX, level_of, levels
from vae_research.randomness import fold_in
from vae_research.settings import declared_names, did_you_mean

# Names that do not have a row for every example: they are not repeated for K samples.
SCALARS = ("step", "seed")
# Codes are not those of the model: likelihood minus divergence is not a bound of log p(x).
RELAXED = "relaxed"


class MissingTensorError(ValueError):
    """A reader names a tensor that nothing wrote.

    Attributes:
        reader: who reads it, in words.
        name: of the tensor.
    """

    def __init__(self, reader: str, name: str, written: Mapping[str, Any]) -> None:
        self.reader, self.name = reader, name
        hint = did_you_mean(name, written)
        part, latent = level_of(name) or ("", "")
        level = levels(written, complete=False).get(latent, {})
        if part == "kl" and {"log_posterior", "log_prior"} <= level.keys():
            hint = " Posterior and prior have no divergence in closed form: use MonteCarloKL()."
        if part in ("log_posterior", "log_prior") and RELAXED in written:
            hint = " Relaxed codes have no probability: train with KLDivergence()."
        if name == "targets":
            hint = (
                " There are none when codes are decoded: a decoder that is trained on them "
                "(teacher forcing) defines sample(self, z, seed), which makes data by itself."
            )
        super().__init__(
            f"The {reader} reads {name!r}, but the forward pass wrote "
            f"{', '.join(sorted(written))}.{hint}"
        )


class Tensors(dict[str, tf.Tensor]):
    """The named tensors of one forward pass. A name is written once.

    Attributes:
        writers: the writer of each name; the initial tensors have none.
        written: each of them as it was written. All readers depend on it, while an entry of the
            dictionary is what the next reader will get.
        read: the names that were read.
        samples: rows for each example.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writers: dict[str, str] = {}
        self.written: dict[str, tf.Tensor] = {}
        self.read: set[str] = set()
        self.samples = 1
        self._whole: dict[str, tf.Tensor] = {}  # of the global batch, if replicas share it

    def write(self, writer: str, tensors: Mapping[str, tf.Tensor]) -> None:
        """Adds the tensors that `writer` computed.

        Raises:
            ValueError: a name was written before.
        """
        taken = sorted(set(tensors) & set(self))
        if taken:
            raise ValueError(
                f"The {writer} writes {', '.join(map(repr, taken))}, which the forward pass has "
                f"already: {', '.join(sorted(self))}. Give its output a name of its own, for "
                "example with named(network, ...)."
            )
        self.update(tensors)
        self.writers |= dict.fromkeys(tensors, writer)
        self.written |= tensors

    def write_whole(self, writer: str, tensors: Mapping[str, tf.Tensor]) -> None:
        """Adds tensors that `writer` computed of the global batch, of which the rows are ours."""
        if share() is None:
            self.write(writer, tensors)
            return
        rows = {name: value for name, value in tensors.items() if value.shape.rank != 0}
        self.write(writer, {**tensors, **{name: own_rows(value) for name, value in rows.items()}})
        self._whole |= rows

    def repeat(self, times: int) -> None:
        """Repeats each row, so that there is one for every sample of an example."""
        self.samples = times
        if times > 1:
            # The K rows of one example are adjacent: Objective reshapes to [batch, K].
            for name in [name for name in self if name not in SCALARS]:
                self[name] = repeat_rows(self[name], times)
            self._whole.clear()

    def tap(self, reader: str, name: str, *, key: str | None = None) -> tf.Tensor:
        """Returns the tensor `name` for one reader, and leaves an identity of it for the next.

        Args:
            reader: what to call the reader in a message.
            name: of the tensor.
            key: what the reader's noise is for. `seed` is a stateless key that only readers with
                this `key` have; rewording `reader` changes no number. By default `reader`.

        Raises:
            MissingTensorError: nothing of that name was written; the message lists what was.
        """
        if name not in self:
            raise MissingTensorError(reader, name, self)
        self.read.add(name)
        if name == "seed":
            return fold_in(self["seed"], reader if key is None else key)
        # Identities are chained so that no tensor has more than two consumers: a gradient that is a
        # sum of three numbers has no fixed order, and differs in the last bit from run to run.
        self[name] = tf.identity(self[name])
        return self[name]

    def of_whole_batch(self) -> Tensors:
        """Returns these tensors with the rows of all replicas, gathered when one is read.

        Without replicas these are the tensors themselves.
        """
        return self if share() is None else _WholeBatch(self, self._whole)


class _WholeBatch(Tensors):
    """The named tensors of a replica, of which a reader gets the rows of the global batch.

    Args:
        tensors: of the replica.
        gathered: what was gathered before, by name.
    """

    def __init__(self, tensors: Tensors, gathered: dict[str, tf.Tensor]) -> None:
        super().__init__(tensors)
        self.writers, self.written = tensors.writers, tensors.written
        self._tensors, self._gathered, self._share = tensors, gathered, share()

    def tap(self, reader: str, name: str, *, key: str | None = None) -> tf.Tensor:
        """Returns a tensor of the global batch; see `Tensors.tap`."""
        is_scalar = name in self._tensors and self._tensors[name].shape.rank == 0
        if is_scalar or name in (*SCALARS, RELAXED) or name not in self._tensors:
            return self._tensors.tap(reader, name, key=key)
        if name not in self._gathered:
            with with_share(self._share):
                self._gathered[name] = whole_rows(self._tensors.tap(reader, name))
        self._tensors.read.add(name)
        self._gathered[name] = tf.identity(self._gathered[name])
        return self._gathered[name]


def of_all_levels(reader: str, part: str, tensors: Tensors) -> tf.Tensor:
    """Returns `kl` `[rows, ...]`, `log_posterior` or `log_prior` `[rows]`, nats, of all latents.

    Of several latents the divergences are side by side, `[rows, values]`, and the densities are
    added up: their sum is the density of all latents together.

    Args:
        reader: what to call the reader in a message.
        part: one of these three names.
        tensors: of the forward pass.

    Raises:
        MissingTensorError: a latent does not have it.
        ValueError: a density is not `[rows]` and would broadcast.
    """
    found = levels(tensors)
    if found.keys() <= {WITHOUT_SUFFIX}:
        names = [found.get(WITHOUT_SUFFIX, {}).get(part, part)]
    else:
        names = [level.get(part, f"{part}_{latent}") for latent, level in found.items()]
    if part != "kl":
        return sum_in_order([density(reader, name, tensors) for name in names])
    values = [tensors.tap(reader, name) for name in names]
    if len(values) == 1:
        return values[0]
    return tf.concat([tf.reshape(value, [tf.shape(value)[0], -1]) for value in values], axis=1)


def density(reader: str, name: str, tensors: Tensors) -> tf.Tensor:
    """Returns a log-density of the forward pass, `[rows]`, nats.

    Args:
        reader: what to call the reader in a message.
        name: of the density.
        tensors: of the forward pass.

    Raises:
        MissingTensorError: nothing wrote it.
        ValueError: it has another shape and would broadcast.
    """
    found = tensors.tap(reader, name)
    if found.shape.rank not in (1, None):
        raise ValueError(
            f"{name!r} has the shape {found.shape}; a density has one value for each row, [rows] "
            "(sum_over_event adds up the other axes)."
        )
    return found


def sum_in_order(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the sum of one or more tensors, added up from the first to the last.

    Without XLA, TensorFlow turns a chain of additions into one AddN, whose order depends on which
    of its inputs is freed first. It leaves a sum over an axis as it is.
    """
    if len(values) <= 2:
        return values[0] if len(values) == 1 else values[0] + values[1]
    return tf.reduce_sum(tf.stack(values), axis=0)


def bind(
    reader: str,
    function: Callable[..., Any],
    tensors: Mapping[str, tf.Tensor],
    *,
    key: str | None = None,
    rename: Mapping[str, str] | None = None,
    only_input: str | None = None,
    joined_levels: bool = False,
) -> dict[str, tf.Tensor]:
    """Returns the tensors that a reader needs, by its own parameter names.

    A method needs its parameters, a functional Keras model its named inputs, and any other Keras
    layer the parameters of its `call`.

    Args:
        reader: what to call it in a message, for example `decoder`.
        function: a method, or a Keras layer or model.
        tensors: what was written so far.
        key: what its noise is for; see `Tensors.tap`.
        rename: from a parameter's name to the name that is read in its place.
        only_input: what a network with a single input reads, unless the name of its input says
            otherwise. (`inputs` is what Keras calls the argument of any layer.)
        joined_levels: `kl`, `log_posterior` and `log_prior` are those of all latents, unless they
            are in `rename`; see `of_all_levels`.

    Raises:
        ValueError: a name was not written.
        TypeError: the signature does not name tensors.
    """
    if not isinstance(tensors, Tensors):
        tensors = Tensors(tensors)
    rename = rename or {}
    is_network = isinstance(function, keras.layers.Layer)
    names = reads_of(function, tensors) if is_network else None
    if names is None:
        of_layer = isinstance(getattr(function, "__self__", None), keras.layers.Layer)
        names = declared_names(function, tensors if of_layer else None)
    elif len(names) == 1 and only_input and _is_unnamed(function, names[0], tensors):
        rename = {names[0]: only_input, **rename}
    joined = [name for name in OF_LEVELS if joined_levels and name not in rename]
    return {
        name: of_all_levels(reader, name, tensors)
        if name in joined
        else tensors.tap(reader, rename.get(name, name), key=key)
        for name in names
    }


def _is_unnamed(network: keras.layers.Layer, name: str, tensors: Mapping[str, tf.Tensor]) -> bool:
    if isinstance(network, Named) and network.reads:
        return False
    return name == "inputs" or name not in tensors


def reads_of(network: keras.layers.Layer, tensors: Mapping[str, tf.Tensor]) -> list[str]:
    """Returns the names of the tensors that a network reads, given what was written so far."""
    if isinstance(network, Named):
        return list(network.reads) if network.reads else reads_of(network.network, tensors)
    if isinstance(network, keras.Sequential):
        return ["inputs"]
    if isinstance(network, keras.Model) and _is_functional(network):
        return [tensor.name for tensor in network.inputs]
    parameters = inspect.signature(network.call).parameters.values()
    return [
        parameter.name
        for parameter in parameters
        if parameter.name != "training"
        # In Keras' own layers `mask` is what Keras attaches to tensors, and not a name of ours.
        and not (parameter.name == "mask" and _is_of_keras(network.call))
        # An optional parameter, such as `labels=None`, is read if the name exists.
        and (parameter.default is parameter.empty or parameter.name in tensors)
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _is_of_keras(function: Callable[..., Any]) -> bool:
    return function.__module__.partition(".")[0] == "keras"


def _is_functional(network: keras.Model) -> bool:
    # keras.Model(inputs, outputs) creates an instance of a class that Keras does not export.
    return any(cls.__name__ == "Functional" for cls in type(network).__mro__)


def call_module(
    role: str,
    module: keras.layers.Layer,
    tensors: Tensors,
    *,
    training: bool,
    only_input: str | None = None,
    of_whole_batch: bool = False,
) -> None:
    """Runs a module on the tensors that it names and writes its outputs.

    Every replica runs a module that looks at a batch as a whole on the rows of all replicas. It
    has `whole_batch = True` in its class, or the caller says so.

    Raises:
        ValueError: a name is missing or taken, or the module used a symbolic tensor that it was
            not given.
        TypeError: the module returned tensors without names.
    """
    of_whole_batch |= looks_at_whole_batch(module)
    given = tensors.of_whole_batch() if of_whole_batch else tensors
    with graph_scope(role), whole_batch() if of_whole_batch else nullcontext():
        outputs = outputs_of(role, module, given, training=training, only_input=only_input)
    if of_whole_batch:
        tensors.write_whole(role, outputs)
    else:
        tensors.write(role, outputs)


def looks_at_whole_batch(module: keras.layers.Layer) -> bool:
    """Returns whether a module says that a row of its outputs depends on other rows of a batch."""
    network = module.network if isinstance(module, Named) else module
    return getattr(network, "whole_batch", False)


def graph_scope(name: str) -> Any:
    """Returns a context whose operations are one box in a picture of the graph."""
    return tf.name_scope(re.sub(r"\W", "_", name).strip("_") or "unnamed")


def outputs_of(
    role: str,
    module: keras.layers.Layer,
    tensors: Tensors,
    *,
    training: bool,
    only_input: str | None,
) -> Mapping[str, tf.Tensor]:
    """Returns what a module writes, by name; see `call_module`."""
    arguments = bind(role, module, tensors, key=role, only_input=only_input)
    network = module.network if isinstance(module, Named) else module
    positional: list[Any] = list(arguments.values())
    by_name: dict[str, tf.Tensor] = {}
    if isinstance(network, keras.Model) and _is_functional(network):
        if len(positional) > 1:
            positional = [keras.tree.pack_sequence_as(network.input, positional)]
    elif not isinstance(module, Named) and len(arguments) > 1:
        positional, by_name = _apart(network, arguments)
    outputs = without_captured_tensors(
        f"{role} {module.name!r}", module, *positional, **by_name, training=training
    )
    if not isinstance(outputs, Mapping):
        count = len(outputs) if isinstance(outputs, (tuple, list)) else 1
        raise TypeError(
            f"The {role} {module.name!r} returned {count} tensor{'s' * (count > 1)} without "
            "names. Return a dictionary, or name them in their order: "
            "named(network, 'z_mean', 'z_log_var') for an encoder, named(network, 'logits') for a "
            "decoder."
        )
    return outputs


def _apart(
    network: keras.layers.Layer, arguments: dict[str, tf.Tensor]
) -> tuple[list[Any], dict[str, tf.Tensor]]:
    """Returns the arguments of a layer by position, and those by name.

    All go by name, except for `mask` and what precedes it. By name, Keras would take it for the
    mask of a sequence, which a layer that `supports_masking` attaches to its outputs.
    """
    parameters = inspect.signature(network.call).parameters
    kind = parameters["mask"].kind if "mask" in arguments else None
    if kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        return [], arguments
    first = list(parameters)[: list(parameters).index("mask") + 1]
    if any(name not in arguments and parameters[name].default is not None for name in first):
        return [], arguments
    rest = {name: tensor for name, tensor in arguments.items() if name not in first}
    return [arguments.get(name) for name in first], rest


def repeat_rows(values: tf.Tensor, times: int) -> tf.Tensor:
    """Returns `tf.repeat(values, times, axis=0)` in a form that XLA fuses."""
    shape = tf.shape(values)
    rows = tf.expand_dims(values, 1)
    rows = tf.broadcast_to(rows, tf.concat([shape[:1], [times], shape[1:]], axis=0))
    repeated = tf.reshape(rows, tf.concat([shape[:1] * times, shape[1:]], axis=0))
    return tf.ensure_shape(repeated, [None, *values.shape[1:]])


@keras.saving.register_keras_serializable(package="vae_research")
class Named(keras.Model):
    """A network whose outputs have names; see `named`."""

    def __init__(
        self,
        network: keras.layers.Layer,
        outputs: list[str | None],
        reads: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        given = [name for name in outputs if name]
        if not given or len(set(given)) < len(given):
            raise ValueError(
                f"named() needs a name of its own for each output of {network.name!r} that is "
                f"read; got {', '.join(map(repr, outputs)) or 'none'}."
            )
        self.network = network
        self.outputs_in_order = list(outputs)
        self.reads = list(reads) if reads else None

    def call(self, *tensors: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the network's outputs by name."""
        values = self.network(*tensors, training=training)
        names = self.outputs_in_order
        if isinstance(values, Mapping):
            raise ValueError(
                f"{self.network.name!r} names its outputs itself: {', '.join(values)}. Use it "
                "without named()."
            )
        if not isinstance(values, (tuple, list)):
            values = [values] if len(names) == 1 else self._split(values)
        if len(values) != len(names):
            raise ValueError(
                f"{self.network.name!r} returns {len(values)} tensors, and named() was given "
                f"{len(names)} names: {', '.join(map(repr, names))}. Give one name for each, None "
                "for one that is not read."
            )
        return {name: value for name, value in zip(names, values, strict=True) if name}

    def _split(self, values: tf.Tensor) -> list[tf.Tensor]:
        names = self.outputs_in_order
        if values.shape[-1] % len(names):
            raise ValueError(
                f"{self.network.name!r} returns one tensor with {values.shape[-1]} values in its "
                f"last axis, which does not split into {', '.join(map(repr, names))}."
            )
        return tf.split(values, len(names), axis=-1)

    def build(self, *shapes: Any) -> None:
        """Does nothing: the first call builds the network."""
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs."""
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "outputs": self.outputs_in_order,
            "reads": self.reads,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Named:
        """Returns the network that `get_config` described."""
        config = dict(config)
        network = keras.saving.deserialize_keras_object(config.pop("network"))
        return cls(network, **config)


def named(
    network: keras.layers.Layer, *outputs: str | None, reads: list[str] | None = None
) -> Named:
    """Names the outputs of a network, in their order.

    A network that returns one tensor and is given several names is split along its last axis into
    equal parts: `named(sequential, "z_mean", "z_log_var")` for a last layer of `2 * latent_dim`
    units. `None` drops an output that is not read.

    Args:
        network: any Keras layer or model; it is kept unchanged as `.network`.
        outputs: one name for each output.
        reads: names of the tensors that are its inputs, if its own input names do not say so.
    """
    return Named(network, list(outputs), reads, name=f"named_{network.name}")
