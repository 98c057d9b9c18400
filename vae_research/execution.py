"""How steps are compiled, and how many of them run in one call.

Keras' `fit` calls a Python function for every step, or for `steps_per_execution` of them, with
values that tf.data copied to the device. For data that stay on the device, `StepLoop` is that
function: one call is a compiled loop over several steps, and each step gathers its own batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from vae_research.data.streams import DeviceDataset
from vae_research.distribution import on_each_device, replicas_of, run

# XLA on a CPU has no fast kernels for these: a convolutional step took 1.3 to 60 times as long.
_SLOW_UNDER_XLA_ON_CPU = ("Conv2D", "Conv3D", "DepthwiseConv2d")

# Steps in a call: as many as take about half a second at 100 GFLOP/s, so that signals and the
# progress bar wait no longer; more than 100 gain nothing. Without XLA a call saves only the time
# that Python takes between two steps, for which a few steps are enough.
_FLOPS_PER_CALL, _MOST_STEPS, _MOST_STEPS_WITHOUT_XLA = 5e10, 100, 10

# Rows that are read for a call; up to five calls are in memory at a time.
_BYTES_PER_CALL = 2**24

# What a call reads is usually larger, the activations of a step are smaller.
_RETURNED_BYTES, _M_MMAP_THRESHOLD = 2**23, -3


@dataclasses.dataclass(frozen=True)
class Execution:
    """Whether a model runs with XLA, how many steps run in a call, and why."""

    jit_compile: bool
    steps_per_call: int
    reason: str


class StepLoop:
    """Runs the steps of one call, as Keras' `train_function` or `test_function`.

    Called with an iterator over `batches.calls(...)` and those batches. Others may be passed if
    their `reader.steps_alike` is equal: tensors are arguments of the compiled program.

    Args:
        step: one training or test step on a batch.
        results: returns the running means when the steps are done.
        batches: an example of what is read.
        jit_compile: compile the loop over steps with XLA. The smaller last batch of an epoch runs
            without XLA: it is one step of hundreds, and compiling it takes a second.
        run_eagerly: run step by step in Python.
        strategy: runs each step in all of its replicas, which share the batch; the loop over steps
            is around them.

    Attributes:
        graph_of_one_step: known after the smaller last batch has run compiled; otherwise None.
    """

    def __init__(
        self,
        step: Callable[[Any], Any],
        results: Callable[[], dict[str, tf.Tensor]],
        batches: DeviceDataset,
        *,
        jit_compile: bool,
        run_eagerly: bool,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self.graph_of_one_step: tf.Graph | None = None
        self._strategy = strategy
        # What is read, with a copy of its tensors for each device.
        self._placed: tuple[Any, dict[str, Any]] = None, {}
        self._step, self._results, self._read = step, results, batches.reader
        self._many, self._rest = self._run_many, self._run_rest
        if not run_eagerly:
            # XLA cannot wait for other replicas within a program.
            alone = jit_compile and replicas_of(strategy) == 1
            self._many = tf.function(self._many, jit_compile=alone, autograph=False)
            self._rest = tf.function(self._rest, autograph=False)

    def __call__(self, iterator: Iterator[Any], batches: DeviceDataset) -> dict[str, tf.Tensor]:
        call = batches.next_call(iterator)
        tensors, answer = self._tensors_of(batches), None
        # Both conditions are values on the host, so testing them does not wait for the device.
        if call["count"] > call["begin"]:
            answer = self._many(tensors, call)
        if call["is_last"] and len(call["rest"]):
            answer = self._rest(tensors, call)
        # If a run resumes within an epoch, the first calls have nothing to do.
        return self._results() if answer is None else answer

    def _tensors_of(self, batches: DeviceDataset) -> dict[str, Any]:
        """Returns the tensors of the reader, on the devices of all replicas."""
        if self._placed[0] is not batches.reader:
            self._placed = batches.reader, on_each_device(self._strategy, batches.reader.tensors)
        return self._placed[1]

    def _one_step(
        self, tensors: Any, read: dict[str, tf.Tensor], rows: tf.Tensor, *place: Any
    ) -> None:
        """Reads a batch and makes its step, in each replica.

        Args:
            tensors: of the reader.
            read: those of a call that has read its rows.
            rows: numbers of the rows of the global batch.
            place: epoch, position, and where the rows are in `read`, or None.
        """

        def step(tensors: Any, read: Any, rows: tf.Tensor, *place: Any) -> None:
            epoch, position, places = place
            self._step(self._read({**tensors, **read}, epoch, position, rows, places))

        run(self._strategy, step, rows.shape[0], tensors, read, rows, *place)

    def _run_many(
        self, tensors: dict[str, tf.Tensor], call: dict[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        def body(index: tf.Tensor) -> tuple[tf.Tensor]:
            position = call["first"] + tf.cast(index, tf.int64)
            rows, places = call["rows"][index], None
            if "places" in call:  # of rows that were read for this call
                places = call["places"][index]
            self._one_step(tensors, call.get("read", {}), rows, call["epoch"], position, places)
            return (index + 1,)

        tf.while_loop(
            lambda index: index < call["count"], body, (call["begin"],), parallel_iterations=1
        )
        return self._results()

    def _run_rest(
        self, tensors: dict[str, tf.Tensor], call: dict[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        if not tf.executing_eagerly():
            self.graph_of_one_step = tf.compat.v1.get_default_graph()
        position = call["first"] + tf.cast(call["count"], tf.int64)
        place = call["epoch"], position, call.get("rest_places")
        self._one_step(tensors, call.get("read", {}), call["rest"], *place)
        return self._results()


class TracedStep:
    """A training step as TensorFlow sees it, before anything is compiled or run.

    Args:
        step: a training step on a batch.
        example: a small batch.

    Attributes:
        graph: of the step.
    """

    def __init__(self, step: Callable[[Any], Any], example: Any) -> None:
        self._program = tf.function(step, jit_compile=True, autograph=False)
        self._example = example
        self.graph: tf.Graph = self._program.get_concrete_function(example).graph

    def operations(self) -> set[str]:
        """Returns the types of all operations of the step and of functions that it calls."""
        functions = self.graph.as_graph_def().library.function
        called = {node.op for function in functions for node in function.node_def}
        return called | {operation.type for operation in self.graph.get_operations()}

    def unknown_to_xla(self) -> str | None:
        """Returns the operations that XLA cannot compile, or None if it compiles all of them."""
        try:
            self._program.experimental_get_compiler_ir(self._example)(stage="hlo")
        except (tf.errors.OpError, ValueError) as error:
            # One line names the operations: "... on XLA_CPU_JIT: PyFunc (No registered ..."
            found = sorted(set(re.findall(r"(\w+) \(No registered", str(error))))
            return ", ".join(found) or str(error).partition("\n")[0]
        return None


def choose_jit(step: TracedStep, jit: str) -> tuple[bool, str]:
    """Returns whether to compile with XLA, and why, from the operations of a step.

    The choice does not depend on anything that changes between starts, so that the same command
    gives the same weights.

    Args:
        step: the training step.
        jit: "on", "off" or "auto".

    Raises:
        ValueError: `jit` is "on", and there is an operation that XLA cannot compile.
    """
    if jit == "off":
        return False, "asked for"
    if jit == "auto" and not tf.config.list_logical_devices("GPU"):
        found = step.operations()
        slow = sorted(name for name in found if name.startswith(_SLOW_UNDER_XLA_ON_CPU))
        if slow:
            return False, f"it makes {slow[0]} slower on a CPU"
    unknown = step.unknown_to_xla()
    if jit == "on" and unknown is not None:
        raise ValueError(f"--jit=on, and XLA cannot compile {unknown}. --jit=auto runs without.")
    if unknown is not None:
        return False, f"it cannot compile {unknown}"
    return True, "asked for" if jit == "on" else "it can compile the model"


def steps_per_call(
    weights: int, jit_compile: bool, steps_per_epoch: int, interval: int, bytes_per_step: int = 0
) -> int:
    """Returns how many optimizer steps to run in a call, so that calls are about equally long.

    Args:
        weights: parameters of the model times rows that its decoder sees in a step.
        jit_compile: whether the call is compiled with XLA.
        steps_per_epoch: no call is longer than an epoch.
        interval: calls must end at multiples of this number of steps, so the result divides it; 0
            allows any number.
        bytes_per_step: of rows that are read for a step, if they are not on the device.

    >>> steps_per_call(0, True, 391, 0), steps_per_call(0, True, 391, 500)
    (98, 100)
    """
    flops = 6.0 * max(weights, 1)  # two forward, and twice as much backward
    most = _MOST_STEPS if jit_compile else _MOST_STEPS_WITHOUT_XLA
    if bytes_per_step:
        most = min(most, _BYTES_PER_CALL // bytes_per_step)
    most = max(1, min(most, int(_FLOPS_PER_CALL / flops), steps_per_epoch))
    if interval:
        return max(number for number in range(1, most + 1) if interval % number == 0)
    return -(-steps_per_epoch // -(-steps_per_epoch // most))


def return_large_buffers() -> None:
    """Has the C library give the buffers of rows that were read for a call back to the system.

    glibc otherwise begins to keep freed buffers, of up to 32 MiB each, in the gaps of a heap that
    grows for as long as an epoch lasts: a run on ten times as many rows took 16 % more memory, and
    takes the same with this, within 2 %. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES)
