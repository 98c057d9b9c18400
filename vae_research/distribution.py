"""Several replicas of a model compute what one device would: the little that tf.distribute lacks.

A global batch is split by row among N replicas, as evenly as possible. If it has fewer rows than
there are replicas, all of them compute the whole of it: a layer without any row has no mean.

While a step is traced for a replica, `share()` is its part. What depends on the whole batch asks
here: for a sum (`total`), for tensors (`whole_rows`), or for noise (`drawn_by_row`). With one
replica there is no share, and all of these return what they are given.

The loss of a replica is its part of the loss of the global batch. The losses of all replicas add up
to it, and so do their gradients; the gradient of a sum over replicas is again such a sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Share:
    """The examples of the global batch that a replica has: from `start` up to `stop` of `size`.

    All numbers are known when a step is traced, which is done for each replica by itself.

    Attributes:
        replicas: how many share the batch.
        copies: how many of them have the same rows: 1, or all.
        samples: rows of a tensor for each example, next to each other.
    """

    start: int
    stop: int
    size: int
    replicas: int
    copies: int = 1
    samples: int = 1

    @classmethod
    def of(cls, replica: int, replicas: int, size: int) -> Share:
        """Returns the share of a replica.

        >>> [Share.of(replica, 4, 10).count for replica in range(4)]
        [3, 3, 2, 2]
        """
        if size < replicas:
            return cls(0, size, size, replicas, copies=replicas)
        least, more = divmod(size, replicas)
        start, stop = (number * least + min(number, more) for number in (replica, replica + 1))
        return cls(start, stop, size, replicas)

    @property
    def count(self) -> int:
        """Examples of this replica."""
        return self.stop - self.start


_SHARE: ContextVar[Share | None] = ContextVar("share", default=None)


def share() -> Share | None:
    """Returns the share of the replica that is being traced; None if tensors are whole batches."""
    return _SHARE.get()


@contextmanager
def with_share(value: Share | None) -> Iterator[None]:
    """Within it `share()` is this one."""
    token = _SHARE.set(value)
    try:
        yield
    finally:
        _SHARE.reset(token)


def whole_batch() -> AbstractContextManager[None]:
    """Within it tensors are those of the global batch: all replicas compute the same."""
    return with_share(None)


def with_samples(samples: int) -> AbstractContextManager[None]:
    """Within it tensors have so many rows for each example."""
    own = share()
    return with_share(None if own is None else dataclasses.replace(own, samples=samples))


# ---------------------------------------------------------------- strategies


def strategy_of(name: str) -> tf.distribute.Strategy | None:
    """Returns the strategy of a name: `none`, `mirrored` or `multiworker`.

    Mirrored has a replica on each GPU, or on each device of the processor if there is no GPU.

    Raises:
        ValueError: there is no such strategy.
    """
    if name == "none":
        return None
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        # Collective operations of one strategy are taken for those of the next one in a process.
        operations = None
        if devices[0].device_type == "CPU":
            operations = tf.distribute.ReductionToOneDevice()
        names = [device.name for device in devices]
        return tf.distribute.MirroredStrategy(names, cross_device_ops=operations)
    if name == "multiworker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    raise ValueError(f"There is no strategy {name!r}: none, mirrored, multiworker.")


def present_strategy() -> tf.distribute.Strategy | None:
    """Returns the strategy in whose scope this is called, or None."""
    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def scope_of(strategy: tf.distribute.Strategy | None) -> AbstractContextManager[Any]:
    """Returns the scope of a strategy, also if it has been entered; None has no scope."""
    if strategy is None or tf.distribute.get_strategy() is strategy:
        return nullcontext()
    return strategy.scope()


def replicas_of(strategy: tf.distribute.Strategy | None) -> int:
    """Returns the number of replicas, 1 without a strategy."""
    return 1 if strategy is None else strategy.num_replicas_in_sync


def replicas_here(strategy: tf.distribute.Strategy | None) -> tuple[int, ...]:
    """Returns the numbers of the replicas of this process, which are next to each other."""
    if strategy is None:
        return (0,)
    found: list[int] = []

    def note(context: Any) -> tf.Tensor:
        found.append(context.replica_id_in_sync_group)
        return tf.zeros([])

    strategy.experimental_distribute_values_from_function(note)
    return tuple(found)


def rows_of(here: Sequence[int], replicas: int, size: int) -> slice:
    """Returns which rows of a global batch some of its replicas have.

    >>> rows_of([2, 3], 4, 10)
    slice(6, 10, None)
    """
    first, last = (Share.of(each, replicas, size) for each in (here[0], here[-1]))
    return slice(first.start, last.stop)


def run(
    strategy: tf.distribute.Strategy | None, step: Callable[..., Any], size: int, *args: Any
) -> None:
    """Runs a step on a global batch, in each replica of a strategy.

    Args:
        strategy: None runs it once, on the whole batch.
        step: called with `args`; `share()` is that of its replica.
        size: examples of the global batch.
        args: tensors, which every replica gets, or values with one for each replica.
    """
    if strategy is None:
        step(*args)
        return
    replicas = strategy.num_replicas_in_sync

    def in_replica(*args: Any) -> None:
        number = tf.get_static_value(_replica().replica_id_in_sync_group)
        own = Share.of(int(number), replicas, size) if replicas > 1 else None
        with with_share(own):
            step(*args)

    strategy.run(tf.autograph.experimental.do_not_convert(in_replica), args=args)


def in_parallel(
    strategy: tf.distribute.Strategy | None, compute: Callable[[Any], Any], arguments: Sequence[Any]
) -> Iterator[tuple[Any, Any]]:
    """Yields arguments with what a function returns for them, as many at a time as devices here.

    Args:
        strategy: of these devices; None computes one after the other.
        compute: called in a thread for each device.
        arguments: in their order, which is kept.
    """
    devices = () if strategy is None else strategy.extended.worker_devices
    if len(devices) < 2:
        yield from ((argument, compute(argument)) for argument in arguments)
        return

    def on_device(device: str, argument: Any) -> Any:
        with tf.device(device):
            return compute(argument)

    with ThreadPoolExecutor(len(devices)) as threads:
        for first in range(0, len(arguments), len(devices)):
            some = arguments[first : first + len(devices)]
            yield from zip(some, threads.map(on_device, devices, some), strict=True)


def on_each_device(
    strategy: tf.distribute.Strategy | None, tensors: dict[str, tf.Tensor]
) -> dict[str, Any]:
    """Returns a copy of tensors on the device of each replica, as an argument of `run`."""
    if replicas_of(strategy) == 1:
        return tensors
    assert strategy is not None
    devices = strategy.extended.worker_devices

    def copied(context: Any) -> dict[str, tf.Tensor]:
        with tf.device(devices[context.replica_id_in_sync_group % len(devices)]):
            return {name: tf.identity(tensor) for name, tensor in tensors.items()}

    return strategy.experimental_distribute_values_from_function(copied)


def _replica() -> Any:
    return tf.distribute.get_replica_context()


# ---------------------------------------------------------------- the whole batch


_QUESTIONS: ContextVar[list[str] | None] = ContextVar("questions", default=None)


@contextmanager
def questions() -> Iterator[list[str]]:
    """Gives a list, which grows when something asks for what other replicas have, and gets none."""
    asked: list[str] = []
    token = _QUESTIONS.set(asked)
    try:
        yield asked
    finally:
        _QUESTIONS.reset(token)


def total(values: Any) -> Any:
    """Returns the sum over replicas of a tensor, or of each one in a nested structure of them."""
    if share() is None:
        return values
    if (asked := _QUESTIONS.get()) is not None:  # one replica is tried alone
        asked.append("total")
        return values
    return _replica().all_reduce(tf.distribute.ReduceOp.SUM, values)


def sum_of_gradients(gradients: Sequence[Any]) -> list[Any]:
    """Returns the gradients of the loss of the global batch, from those of the replicas' parts."""
    if share() is None:
        return list(gradients)
    summed = iter(total([gradient for gradient in gradients if gradient is not None]))
    return [None if gradient is None else next(summed) for gradient in gradients]


def take_sums(optimizer: Any) -> None:
    """Has an optimizer of Keras take gradients for what they are: sums over all replicas.

    It would add them up itself, after it has clipped those of each replica.
    """
    if share() is not None:
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        optimizer._all_reduce_sum_gradients = lambda pairs: pairs


def batch_mean(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean over the examples of the global batch; a scalar is one already."""
    own = share()
    if own is None or values.shape.rank == 0:
        return tf.reduce_mean(values)
    return total(tf.reduce_sum(values)) / (own.size * own.copies)


def whole_rows(values: tf.Tensor) -> tf.Tensor:
    """Returns the rows of all replicas in their order; gradients return to the replica of a row.

    Args:
        values: `[rows, ...]` of this replica.
    """
    own = share()
    if own is None or own.copies > 1:
        return values
    _check_rows(own, values.shape[0], f"a tensor of shape {values.shape}")
    # Added up with zeros from the others, which changes no digit; all have the same shape.
    numbers = tf.cast(values, _summed_as(values.dtype))
    around = [own.start * own.samples, (own.size - own.stop) * own.samples]
    numbers = tf.pad(numbers, [around, *[[0, 0]] * (values.shape.rank - 1)])
    numbers.set_shape([own.size * own.samples, *values.shape[1:]])
    return tf.cast(total(numbers), values.dtype)


def _summed_as(dtype: tf.DType) -> tf.DType:
    """Returns what a tensor is summed as: collective operations have only two kinds of integers."""
    if not (dtype.is_bool or dtype.is_integer):
        return dtype
    return tf.int32 if dtype.size < 4 else tf.int64 if dtype.is_unsigned else dtype


def own_rows(values: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """Returns this replica's rows of a tensor of the global batch.

    Args:
        values: `[..., rows, ...]`.
        axis: of the rows.
    """
    own = share()
    if own is None:
        return values
    place = slice(own.start * own.samples, own.stop * own.samples)
    return values[(*[slice(None)] * axis, place)]


def drawn_by_row(
    draw: Callable[[Any], tf.Tensor], shape: Sequence[Any] | tf.Tensor, axis: int = 0
) -> tf.Tensor:
    """Returns noise of which each row is that of one device, which draws it for the global batch.

    Args:
        draw: from a shape to numbers.
        shape: what this replica needs; integers or scalars.
        axis: of the rows.

    Raises:
        ValueError: that axis does not have the rows of this replica.
    """
    own = share()
    if own is None:
        return draw(shape)
    shape = tf.convert_to_tensor(shape, tf.int32)
    known = tf.get_static_value(shape)
    if known is not None:
        _check_rows(own, int(known[axis]), f"noise of shape {known.tolist()}")
        whole = known.tolist()
        whole[axis] = own.size * own.samples
    else:
        rows = [own.size * own.samples]
        whole = tf.concat([shape[:axis], rows, shape[axis + 1 :]], axis=0)
    with whole_batch():
        numbers = draw(whole)
    return own_rows(numbers, axis)


def _check_rows(own: Share, rows: int | None, what: str) -> None:
    if rows not in (None, own.count * own.samples):
        raise ValueError(
            f"{what} does not have a row for each of the {own.count * own.samples} rows of a "
            f"replica (of {own.size * own.samples} in the batch). A layer that looks at the batch "
            "as a whole says so by `whole_batch = True` in its class."
        )
