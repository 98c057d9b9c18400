"""Symbolic tensors that user code has not been given: what went wrong, in words.

A term or a module that keeps a tensor of another graph, or calls NumPy with a traced one, makes
Keras or TensorFlow raise one of many errors, which do not say what to do.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

# Keras' class of symbolic tensors, which its messages name; and TensorFlow's words about a tensor
# of another graph, an error that has no type of its own.
_KERAS_TENSOR, _OUT_OF_SCOPE = keras.KerasTensor.__name__, "out of scope"
# What TensorFlow and Python say of np.sum(tensor) and float(tensor): errors of no own type.
_TO_NUMPY = "to a numpy array", "not 'SymbolicTensor'"


def without_captured_tensors(
    reader: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Returns the result of a function that may use no symbolic tensors but its arguments.

    Raises:
        ValueError: it used another symbolic tensor, which has no value here, or NumPy; the message
            says what to do instead.
    """
    try:
        results = function(*args, **kwargs)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        named = any(words in str(error) for words in (_KERAS_TENSOR, _OUT_OF_SCOPE))
        if named or _handled_symbolic_tensor(error):
            raise _captured(reader) from error
        if any(words in str(error) for words in _TO_NUMPY):
            raise ValueError(
                f"The {reader} calls NumPy or Python with a tensor, which has no values while a "
                "step is traced. Use tf or keras.ops: tf.reduce_sum for np.sum."
            ) from error
        raise
    if any(_has_no_value(result) for result in keras.tree.flatten(results)):
        raise _captured(reader)
    return results


def _handled_symbolic_tensor(error: BaseException) -> bool:
    """Returns whether code outside of Keras used a tensor without a value when `error` was raised.

    Keras' own code handles symbolic tensors of functional models, whatever goes wrong.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        known = frame.f_globals
        if known.get("__name__", "").partition(".")[0] == "keras":
            continue
        used_globals = [known[name] for name in frame.f_code.co_names if name in known]
        for value in (*frame.f_locals.values(), *used_globals):
            items = value if isinstance(value, (list, tuple)) else [value]
            if any(_has_no_value(item) for item in items):
                return True
    return False


def _has_no_value(result: Any) -> bool:
    if isinstance(result, keras.KerasTensor):
        return True
    return tf.executing_eagerly() and tf.is_tensor(result) and tf.is_symbolic_tensor(result)


@contextmanager
def scope_explained() -> Iterator[None]:
    """Explains TensorFlow's error about a tensor that a term or module kept from another trace.

    If the step is compiled, TensorFlow raises it only after the trace, when the term has returned.

    Raises:
        ValueError: instead of that error.
    """
    try:
        yield
    except TypeError as error:
        if _OUT_OF_SCOPE in str(error):
            raise _captured("step, or a term or module in it,") from error
        raise


def _captured(reader: str) -> ValueError:
    return ValueError(
        f"The {reader} uses a symbolic tensor that it was not given: one from outside of its "
        "method, like a keras.Input, what a layer made of it, or a tensor of another graph. Such a "
        "tensor has no value here. Two rules help. First: every tensor that you use is a parameter "
        "of the method, by the name in the forward pass, as in per_example(self, z_mean) or "
        "call(self, z). Second: compute where the tensor arises, in a layer or module right behind "
        "it, which writes the result under a name that others read."
    )
