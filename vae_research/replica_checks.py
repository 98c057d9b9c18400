"""Whether replicas that share a batch compute what one device would, found before they train."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.data.streams import DeviceDataset
from vae_research.distribution import (
    Share,
    own_rows,
    questions,
    replicas_of,
    with_samples,
    with_share,
)
from vae_research.serialization import layers_of
from vae_research.state import optimizers, undone
from vae_research.tensors import RELAXED, SCALARS, Tensors, looks_at_whole_batch, outputs_of

# Examples of the batch that is tried, of which a replica has the last two.
EXAMPLES = 4
_OWN = Share(2, 4, EXAMPLES, 2)
# Relative; a sum over other rows changes values by far more, and rounding by far less: in float32,
# and in 16 bits.
_TOLERANCES = 1e-3, 5e-2
# By which the tensors of an untrained model are multiplied for a second trial of terms.
_LARGER = 100.0


def refuse_undistributed(model: Any, x: Any) -> None:
    """Raises ValueError for data or a model that replicas cannot share.

    Args:
        model: a VAE with its optimizers.
        x: what `fit` or `evaluate` was given.
    """
    refuse_scope(model.strategy)
    made = {f"layer {layer.name!r}": layer.variables for layer in model.layers}
    for group, optimizer in optimizers(model).items():
        made[f"optimizer of {group!r}"] = optimizer.variables
    refuse_other_strategy(model.strategy, made)
    if model.strategy is None:
        return
    if not isinstance(x, DeviceDataset):
        raise ValueError(
            f"This model was built in the scope of {type(model.strategy).__name__}, whose "
            "replicas share the batches of data.train.on_device(batch_size, seed=...); got "
            f"{type(x).__name__}."
        )
    if (replicas := replicas_of(model.strategy)) == 1:
        return
    check_replicas(model, x)
    if x.batch_size < replicas:
        raise ValueError(
            f"A batch of {x.batch_size} rows is smaller than the number of replicas, "
            f"{replicas}: give a larger batch_size, or fewer devices."
        )


def refuse_scope(strategy: tf.distribute.Strategy | None) -> None:
    """Raises ValueError in the scope of a strategy, where nothing is trained.

    Args:
        strategy: in whose scope the model was built, or None.
    """
    if tf.distribute.has_strategy():
        built = "This model was built outside of it. " if strategy is None else ""
        raise ValueError(
            f"The scope of a strategy is for building and compiling a model. {built}Call fit() "
            "and evaluate() after the `with` block."
        )


def check_replicas(model: Any, data: DeviceDataset) -> None:
    """Finds `needs_other_replicas` of a model, once, and keeps it there.

    Args:
        model: a VAE with its optimizers.
        data: of which the first rows are tried.

    Raises:
        ValueError: replicas would compute something else than one device, or an optimizer is
            one that they cannot share.
    """
    refuse_optimizers(optimizers(model).values())
    if model.needs_other_replicas is None:
        zero = tf.constant(0, tf.int64)
        rows = tf.range(EXAMPLES) % data.rows  # the first again if there are too few
        model.needs_other_replicas = needs_other_replicas(model, data.reader.read(zero, zero, rows))


def needs_other_replicas(model: Any, batch: Mapping[str, tf.Tensor]) -> bool:
    """Returns whether the loss of a replica needs what other replicas have.

    It refuses a model of which replicas would compute something else than one device.

    Each network and each term is tried on the rows of a replica: it must return the rows that it
    returns of the whole batch. Those that look at the batch as a whole are declared so, and
    critics and terms with `batch_statistic` are always given all of it.

    The weights are those before the first step. Terms are tried once more, on tensors that are
    larger: one that is constant below some value may look at the batch above it. What a network
    does with other weights only is not found.

    Args:
        model: a VAE.
        batch: `EXAMPLES` examples.

    Raises:
        ValueError: there is one that does not, by name.
    """
    _refuse_own_step(model)
    networks = model.networks_by_row()
    layers = [layer for _, network, _ in networks for layer in layers_of(network)]
    _refuse_layers([*layers, *(each for c in model.critics for each in layers_of(c.layer))])
    _refuse_unsynchronized(layers)
    tolerance = _TOLERANCES[any(layer.compute_dtype != "float32" for layer in layers)]
    kept = [each for layer in layers for each in layer.non_trainable_variables]
    kept = [each for each in kept if tf.as_dtype(each.dtype).is_floating]
    with _without_moments(layers), questions() as asked:

        def compute(function: Callable[[Tensors], Any], tensors: Tensors) -> Any:
            with undone(model):  # moving averages
                before, number = [tf.convert_to_tensor(each) for each in kept], len(asked)
                found = dict(function(tensors))
                if len(asked) == number:  # otherwise they are moved by what was gathered
                    found |= _moved(kept, before)
                return found

        with undone(model):
            tensors = model.forward(batch, training=True, seed=model.step_key())
        for what, advice, function in (*_networks(model), *_terms(model)):
            _try(what, advice, tensors, functools.partial(compute, function), tolerance)
        larger = _larger(tensors)
        for what, advice, function in _terms(model):
            function = functools.partial(compute, function)
            if _takes(function, larger):
                _try(what, advice, larger, function, tolerance)
    return bool(
        asked
        or model.critics
        or _normalizations(layers)
        or any(looks_at_whole_batch(network) for _, network, _ in networks)
        or any(term.batch_statistic for term in model.objective.terms)
    )


def refuse_optimizers(optimizers: Iterable[Any]) -> None:
    """Raises ValueError for an optimizer of Keras whose steps are not all the same.

    What it does in some steps only stands in a branch, where replicas cannot wait for each other.
    """
    for optimizer in optimizers:
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
            if value := getattr(optimizer, name, None):
                raise ValueError(
                    f"{type(optimizer).__name__}({name}={value}) does something in some steps "
                    "only, and there replicas cannot wait for each other. Leave it out."
                )


def refuse_other_strategy(
    strategy: tf.distribute.Strategy | None, made: Mapping[str, Iterable[Any]]
) -> None:
    """Raises ValueError for variables that the replicas of a model do not share.

    Args:
        strategy: in whose scope the model was built, or None.
        made: the variables of each of its parts, by what to call it in the message.
    """
    if isinstance(strategy, tf.distribute.OneDeviceStrategy):
        return
    for what, variables in made.items():
        found = [getattr(each.value, "distribute_strategy", None) for each in variables]
        if any(each is not strategy for each in found):
            place = "outside of the scope" if strategy is not None else "in the scope of a strategy"
            other = "in that of one" if strategy is not None else "outside"
            raise ValueError(
                f"The {what} has variables that were made {place}, and the VAE was built {other}. "
                "Build networks, VAE and optimizers in one `with strategy.scope():`, and call "
                "fit() after it."
            )


# What gets the rows of a replica: its name, advice, and what computes its values.
_Part = tuple[str, str, Callable[[Tensors], Any]]


def _networks(model: Any) -> Iterator[_Part]:
    advice = "Write whole_batch = True in its class, and every replica runs it on all rows."
    for role, network, only_input in model.networks_by_row():
        if not looks_at_whole_batch(network):
            run = functools.partial(_outputs_and_losses, role, network, only_input)
            yield f"The {role} {network.name!r}", advice, run


def _terms(model: Any) -> Iterator[_Part]:
    advice = "Return a scalar, and write batch_statistic = True in its class."
    for term in model.objective.terms:
        if not term.batch_statistic:
            named = functools.partial(lambda term, found: {term.label: term(found)}, term)
            yield f"Loss term {term.label!r}", advice, named


def _larger(tensors: Tensors) -> Tensors:
    """Returns tensors of which those with rows of real numbers are larger."""
    found = _copy(tensors)
    for name, value in tensors.items():
        if value.dtype.is_floating and value.shape.rank and name not in (*SCALARS, RELAXED):
            found[name] = value * tf.cast(_LARGER, value.dtype)
    return found


def _takes(compute: Callable[[Tensors], Any], tensors: Tensors) -> bool:
    """Returns whether values of tensors are among those that something is made for."""
    try:
        compute(_copy(tensors))
    except (ValueError, tf.errors.InvalidArgumentError):
        return False
    return True


def _outputs_and_losses(
    role: str, network: keras.layers.Layer, only_input: str | None, tensors: Tensors
) -> dict[str, tf.Tensor]:
    """Returns what a network writes, and the sum of what its layers passed to `add_loss`."""
    found = dict(outputs_of(role, network, tensors, training=True, only_input=only_input))
    losses = [tf.reduce_sum(loss) for layer in layers_of(network) for loss in layer._losses]
    if losses:
        found["add_loss"] = tf.add_n([tf.cast(loss, tf.float32) for loss in losses])
    return found


def _moved(variables: Iterable[Any], before: Iterable[tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the total change of each variable that has changed, by its path."""
    pairs = [
        (each, tf.convert_to_tensor(each) - old)
        for each, old in zip(variables, before, strict=True)
    ]
    return {
        f"{each.path} (moved)": tf.reduce_sum(tf.abs(change))
        for each, change in pairs
        if bool(tf.reduce_any(change != 0))
    }


def _try(
    what: str,
    advice: str,
    tensors: Tensors,
    compute: Callable[[Tensors], Mapping[str, tf.Tensor]],
    tolerance: float,
) -> None:
    """Compares what is computed of the rows of a replica with these rows of the whole batch."""
    whole = compute(_copy(tensors))
    with with_share(_OWN), with_samples(tensors.samples):
        rows = {
            name: value if name in (*SCALARS, RELAXED) or value.shape.rank == 0 else own_rows(value)
            for name, value in tensors.items()
        }
        part = compute(_copy(Tensors(rows)))
        expected = {
            name: value if value.shape.rank == 0 else own_rows(value)
            for name, value in whole.items()
        }
    for name, value in expected.items():
        if name not in part and name.endswith(" (moved)"):
            continue
        got, wanted = (np.asarray(each, np.float64) for each in (part[name], value))
        scale = np.max(np.abs(wanted), initial=1e-6, where=np.isfinite(wanted))
        same = np.isclose(got, wanted, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        if got.shape != wanted.shape or not same.all():
            raise ValueError(
                f"{what} returns other values of {name!r} for an example if other examples of the "
                "batch are on another replica: it looks at them, or draws noise by other functions "
                f"than those of vae_research. {advice}"
            )


def _copy(tensors: Tensors) -> Tensors:
    found = Tensors(tensors)
    found.samples = tensors.samples
    return found


def _refuse_layers(layers: Iterable[keras.layers.Layer]) -> None:
    """Raises ValueError for noise whose state replicas cannot share, and for losses by the row."""
    for layer in layers:
        kind = f"{type(layer).__name__} {layer.name!r}"
        if getattr(layer, "seed_generator", None) is not None:
            raise ValueError(
                f"{kind} draws noise from a generator of Keras, which replicas cannot share. Leave "
                "it out, or read `seed` in a layer of your own: "
                "vr.uniform(tf.shape(values), seed)."
            )
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(
                f"{kind} has an activity_regularizer, which is a mean over the rows of one "
                "replica. Make a loss term of it."
            )


def _refuse_own_step(model: Any) -> None:
    """Raises ValueError for a `train_step` that does not say that it is one of a replica."""
    owner = next(each for each in type(model).__mro__ if "train_step" in vars(each))
    if not (owner.__module__ == "vae_research.steps" or getattr(owner, "by_replica", False)):
        raise ValueError(
            f"{owner.__name__}.train_step is that of one device: in a replica, the loss and its "
            "gradients are a part of those of the batch, which self.update adds up. If it takes "
            "its loss from scaled_loss and ends with self.update([self, *self.critics], losses, "
            "tape), write by_replica = True in its class; an optimizer clips the whole gradient."
        )


def _refuse_unsynchronized(layers: Iterable[keras.layers.Layer]) -> None:
    for layer in _normalizations(layers):
        if not layer.synchronized:
            raise ValueError(
                f"BatchNormalization {layer.name!r} takes the moments of the rows of one replica. "
                "Those of all are BatchNormalization(synchronized=True)."
            )


def _normalizations(layers: Iterable[keras.layers.Layer]) -> list[Any]:
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


@contextmanager
def _without_moments(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Within it, normalisations of Keras use their moving averages: they are known to be right."""
    frozen = [layer for layer in _normalizations(layers) if layer.trainable]
    for layer in frozen:
        layer.trainable = False
    try:
        yield
    finally:
        for layer in frozen:
            layer.trainable = True
