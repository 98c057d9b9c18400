"""The model of a run: built, checked against the data, and how its steps will run.

Imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from vae_research.data import Data, DataError
from vae_research.data.scaling import extremes
from vae_research.distribution import replicas_of, run, strategy_of
from vae_research.execution import (
    Execution,
    TracedStep,
    choose_jit,
    return_large_buffers,
    steps_per_call,
)
from vae_research.losses.term import Likelihood
from vae_research.model import VAE
from vae_research.replica_checks import check_replicas
from vae_research.runs import cluster
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import is_given
from vae_research.runs.session.fit.stopping import printed_warnings
from vae_research.state import hidden_state
from vae_research.suitability import refuse_between_levels
from vae_research.tensors import MissingTensorError

# Rows of a split that are compared with the levels of a likelihood.
_ROWS = 64


def build_model(build: Callable[[Config, Data], VAE], config: Config, data: Data) -> VAE:
    """Returns the model of an experiment, compiled, with all its variables.

    Raises:
        UsageError: `build`, or a forward pass over two examples, found something wrong, or the
            likelihood is a density and the data are binarised.
        DataError: it reads a further array that was left out or has values that are not finite, or
            the data have values for which the likelihood has no density.
    """
    try:
        with printed_warnings():
            model = build(config, data)
        if not isinstance(model, VAE):
            raise TypeError(f"build() returned {model!r}; it must return a VAE.")
        _refuse_unread_noise_seed(model, config)
        steps = data.train.steps(config.batch_size)
        if not model.compiled:
            average = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
            rate = learning_rate(config, steps)
            model.compile(keras.optimizers.Adam(rate, **average), run_eagerly=config.run_eagerly)
        else:
            _refuse_flags_of_optimizer(config)
        # A forward pass makes every variable, and finds what does not fit before anything is
        # written.
        model.set_steps_per_epoch(steps)
        refuse_values_outside_support(model, data)
        model.data_read(data.validation.tensors(slice(0, 2), data.names))
        _refuse_density_of_drawn_values(model, data)
    except MissingTensorError as error:
        why = data.why_missing(error.name)
        if why is not None:
            raise DataError(f"the {error.reader} reads {error.name!r}: {why}") from error
        raise UsageError(f"{error} (--debug shows where)") from error
    except (DataError, UsageError):
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(f"{error} (--debug shows where)") from error
    for split in data.splits:
        for name in names_read(model, data):
            split.array(name)  # raises if values are not finite
    model.build_optimizer()
    return model


def _refuse_unread_noise_seed(model: VAE, config: Config) -> None:
    """Raises ValueError if the model has another seed than the flag --noise_seed."""
    given = config.as_dict().get("noise_seed")
    if given not in (None, model.seed):
        raise ValueError(
            f"--noise_seed={given}, and build() makes a model with the seed {model.seed}: write "
            "VAE(..., seed=config.noise_seed)."
        )


def learning_rate(
    config: Config, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate of Adam, or its schedule over all epochs.

    Cosine: Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5, without restarts. Steps: the
    divisions by 10 at a half and at three quarters of He et al. 2016 (arXiv:1512.03385, section
    4.2).

    Args:
        config: the flags.
        steps: in an epoch.
    """
    rate, total = config.learning_rate, config.epochs * steps
    if config.learning_rate_schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(rate, total)
    if config.learning_rate_schedule == "steps":
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            # The boundary is the last step with the larger rate.
            [total // 2 - 1, total * 3 // 4 - 1],
            [rate, rate / 10, rate / 100],
        )
    return rate


def _refuse_flags_of_optimizer(config: Config) -> None:
    """Raises ValueError if a flag would be for the optimizer, which `build` has made."""
    if config.ema:
        raise ValueError(
            f"--ema={config.ema:g}, and build() compiles the model itself; give its optimizer "
            "use_ema=True and ema_momentum."
        )
    if config.learning_rate_schedule != "constant":
        raise ValueError(
            f"--learning_rate_schedule={config.learning_rate_schedule}, and build() compiles the "
            "model itself; give its optimizer one of keras.optimizers.schedules."
        )


def names_read(model: VAE, data: Data) -> tuple[str, ...]:
    """Returns the names of the further arrays of the data that a model of `build_model` reads."""
    return tuple(name for name in data.names if name in model.data_names)


def choose_execution(model: VAE, config: Config, data: Data) -> Execution:
    """Chooses XLA and the number of steps per call, and sets both on the model.

    Raises:
        UsageError: --jit=on, and XLA cannot compile the model; or --steps_per_call does not fit.
    """
    step = traced_step(model, config, data)
    if step is None:
        return Execution(False, 1, "the model runs eagerly")
    steps = data.train.steps(config.batch_size)
    asked = config.steps_per_call
    intervals = {name: getattr(config, name) for name in ("log_every_steps", "checkpoint_steps")}
    for name, interval in intervals.items():
        if asked is not None and interval % asked:
            raise UsageError(
                f"--{name}={interval} is not a multiple of --steps_per_call={asked}: figures and "
                "states exist only at the end of a call."
            )
    interval = math.gcd(*intervals.values())
    try:
        jit_compile, reason = _choose_jit(model, step, config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = config.batch_size * model.objective.num_samples
    if config.profile_steps:  # a call is recorded as a whole
        first, last = config.profile_steps
        interval = math.gcd(interval, (first - 1) % steps, last % steps)
    bytes_per_step = 0
    if data.train.is_streamed:
        return_large_buffers()
        bytes_per_step = config.batch_size * math.prod(data.shape) * data.train.raw.dtype.itemsize
    weights = model.count_params() * rows
    calls = steps_per_call(weights, jit_compile, steps, interval, bytes_per_step)
    chosen = Execution(jit_compile, asked or calls, reason)
    model.jit_compile, model.steps_per_execution = chosen.jit_compile, chosen.steps_per_call
    return chosen


def _choose_jit(model: VAE, step: TracedStep, config: Config) -> tuple[bool, str]:
    """Returns whether to compile with XLA, and why; see `choose_jit`.

    Raises:
        ValueError: --jit=on, and XLA cannot compile it.
    """
    jit = "on" if model.jit_compile else config.jit
    if replicas_of(model.strategy) == 1:
        return choose_jit(step, jit)
    waits = model.needs_other_replicas
    if waits and jit == "on":
        raise ValueError(
            "--jit=on, and within a step the replicas of this model wait for each other, which a "
            "program of XLA cannot do. --jit=auto runs without."
        )
    if waits:
        return False, "replicas wait for each other within a step"
    return choose_jit(step, jit)


def traced_step(model: VAE, config: Config, data: Data) -> TracedStep | None:
    """Returns the training step, which remembers nothing that a checkpoint does not hold.

    Of several replicas it is what each of them computes before they add up gradients. None if the
    model runs eagerly; then a step that cannot be traced is not checked.

    Raises:
        UsageError: it cannot be traced, or remembers something else.
    """
    rows = min(config.batch_size, len(data.train))
    names = names_read(model, data)
    arrays = {name: data.train.arrays[name][:rows] for name in names}
    few = dataclasses.replace(data.train, raw=data.train.raw[:rows], arrays=arrays)
    batches = few.on_device(rows, seed=0, names=names)
    read = batches.reader  # the key is an argument of the step
    zero = tf.constant(0, tf.int64)

    def step_on(given: dict[str, tf.Tensor]) -> None:
        # With what makes the batch: an augmentation may have a state, or be unknown to XLA.
        model.training_step(read(given, zero, zero, tf.range(rows)))

    def gradients_on(given: dict[str, tf.Tensor]) -> list[Any]:
        with tf.GradientTape() as tape:
            batch = read(given, zero, zero, tf.range(rows))
            _, report = model.report(batch, training=True, seed=model.step_key())
        return tape.gradient(report.surrogate, model.trainable_variables)

    if replicas_of(model.strategy) > 1:
        try:
            check_replicas(model, batches)
        except ValueError as error:
            raise UsageError(f"--strategy={config.strategy}: {error}") from error
    try:
        step = TracedStep(lambda given: run(model.strategy, step_on, rows, given), read.tensors)
    except (ValueError, TypeError) as error:
        if model.run_eagerly:
            return None
        raise UsageError(f"{error} (--debug shows where)") from error
    found = hidden_state(model, step.graph, step.operations())
    if found:
        raise UsageError(
            f"the training step uses {' and '.join(found)}, which no checkpoint holds: a resumed "
            "run would differ in silence. A variable belongs to a layer of the model, an "
            "optimizer to a Critic, a weight with a state to a Controller, and noise to a reader "
            "of `seed` with tf.random.stateless_normal."
        )
    if model.run_eagerly:
        return None
    # Of several replicas, XLA would compile the loss and the gradients of each.
    return step if replicas_of(model.strategy) == 1 else TracedStep(gradients_on, read.tensors)


def refuse_values_outside_support(model: VAE, data: Data) -> None:
    """Raises if the data have values for which the likelihood has no density.

    Raises:
        UsageError: a flag of the command chose the likelihood or the scale.
        DataError: the data are so by themselves.
    """
    for likelihood in model.objective.likelihood.factors:
        low, high = _range_of_target(likelihood, data)
        if not likelihood.support[0] <= low <= high <= likelihood.support[1]:
            _refuse_range(likelihood, data, low, high)
        _refuse_between_levels(likelihood, data)


def _refuse_between_levels(likelihood: Likelihood, data: Data) -> None:
    """Looks at the first rows of each split, if a likelihood is one of integers or levels."""
    if likelihood.spacing is not None and data.dequantize != "none":
        raise DataError(
            f"{type(likelihood).__name__} is a likelihood of levels, to which --dequantize="
            f"{data.dequantize} adds noise. Leave it out."
        )
    name = "inputs" if likelihood.target == "targets" else likelihood.target
    for split in data.splits if likelihood.spacing is not None else ():
        rows = slice(0, _ROWS)
        if name == "inputs" and split.is_repeatable:
            values = split.prepare(rows)
        elif name in split.arrays:
            values = split.arrays[name][rows]
        else:
            continue  # what a module writes, or a pipeline, whose rows cannot be read beforehand
        if (mask := split.arrays.get(likelihood.observed or "")) is not None:
            values = values[mask[rows] > 0]
        try:
            refuse_between_levels(likelihood, name, values)
        except ValueError as error:
            raise DataError(str(error)) from None


def _range_of_target(likelihood: Likelihood, data: Data) -> tuple[float, float]:
    """Returns the smallest and the largest value that a likelihood compares, of those known."""
    name, mask = likelihood.target, likelihood.observed
    if name not in data.names and name not in ("targets", "inputs"):
        return likelihood.support  # what a module writes
    found = []
    for split in data.splits:
        values = split.arrays.get(name)
        if values is None:
            if mask is None:
                return data.value_range()
            values = split.prepare()
        if mask is not None and mask in split.arrays:
            values = values[:][split.arrays[mask][:] > 0]
        if len(values):
            found.append(extremes(values))
    if not found:
        return likelihood.support
    return float(min(each[0] for each in found)), float(max(each[1] for each in found))


def _refuse_density_of_drawn_values(model: VAE, data: Data) -> None:
    """Raises UsageError if a density is to be trained on values that are binarised."""
    for each in model.objective.likelihood.factors:
        of_inputs = each.target in ("inputs", "targets") and each.target not in data.names
        if each.is_density and of_inputs and data.binarize != "none":
            raise UsageError(
                f"{type(each).__name__} is a density of real values, which has no bound on values "
                f"that --binarize={data.binarize} makes 0 or 1. Add --binarize=none."
            )


def _refuse_range(likelihood: Likelihood, data: Data, low: float, high: float) -> None:
    name, support = type(likelihood).__name__, likelihood.support
    of = data.name if likelihood.target in ("targets", "inputs") else likelihood.target
    advice = (
        "Clip validation and test data to the range of the training data."
        if data.rescale == "unit"
        else "--rescale=unit maps them to [0, 1]; Gaussian and Laplace likelihoods take all values."
    )
    message = (
        f"{of} has values from {low:g} to {high:g}, and {name} needs values from "
        f"{support[0]:g} to {support[1]:g}. {advice}"
    )
    raise (UsageError if is_given("rescale") or is_given("likelihood") else DataError)(message)


def _divide_processor(count: int) -> None:
    """Makes several devices of the processor.

    Raises:
        RuntimeError: TensorFlow has begun to compute, with another number of them.
    """
    processor = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    if tf.config.get_logical_device_configuration(processor) != parts:
        tf.config.set_logical_device_configuration(processor, parts)


def choose_device(wanted: str, threads: int | None = None) -> str:
    """Returns what the run computes on, in words.

    Args:
        wanted: `--device`.
        threads: `--threads`, None for as many as there are cores.

    Raises:
        UsageError: a GPU is asked for, and TensorFlow finds none or this process hides it.
    """
    kind, _, number = wanted.partition(":")
    count = int(number) if number else None
    found = tf.config.list_physical_devices("GPU")
    if kind == "gpu" and not found:
        raise UsageError(
            f"--device={wanted}, and TensorFlow finds no GPU. pip install 'vae_research[gpu]' "
            "brings its CUDA libraries; --device=cpu runs without."
        )
    if kind == "gpu" and count is not None and count > len(found):
        raise UsageError(f"--device={wanted}, and TensorFlow finds {len(found)} GPUs.")
    try:
        if kind == "cpu":
            tf.config.set_visible_devices([], "GPU")
            if count is not None:
                _divide_processor(count)
        else:
            if count is not None:
                tf.config.set_visible_devices(found[:count], "GPU")
            for gpu in found[:count]:
                tf.config.experimental.set_memory_growth(gpu, True)
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        flags = f"--device={wanted}" + (f" --threads={threads}" if threads else "")
        print(
            f"warning: {flags}: TensorFlow has begun to compute in this process, whose devices, "
            "memory and threads stay as they are; restart it to change them",
            file=sys.stderr,
        )
    used = tf.config.get_visible_devices("GPU")
    if kind == "gpu" and not used:
        raise UsageError(f"--device={wanted}, and this process hides the GPU. Restart it.")
    if not used:
        reason = (
            f"--device={wanted}"
            if kind == "cpu"
            else "the GPU is hidden"
            if found
            else "no GPU found"
        )
        return f"CPU ({reason})"
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in used
    ]
    return ", ".join(names)


def choose_strategy(name: str) -> tf.distribute.Strategy | None:
    """Returns how replicas share the batches; None for one device.

    Args:
        name: `--strategy`.

    Raises:
        UsageError: there is one device only.
        PeerLostError: TensorFlow cannot connect with the other workers.
    """
    if name == "multiworker" and cluster.peers().count > 1:
        return cluster.strategy()
    strategy = strategy_of(name)
    if name == "mirrored" and replicas_of(strategy) == 1:
        raise UsageError(
            "--strategy=mirrored shares batches among the devices of this machine, and there is "
            "one. --device=cpu:2 makes two devices of the processor."
        )
    return strategy
