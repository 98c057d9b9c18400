"""Whether the processor is fast in 16 bits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

# Processors with one of these multiply matrices in bfloat16.
_UNITS = ("amx_bf16", "avx512_bf16")
_REPEATS, _SECONDS = 4, 2.0
# Below this, what was measured may be chance.
_SLOWER = 1.2


def warning_of_bfloat16(
    processor: Path = Path("/proc/cpuinfo"), measure: Callable[[], float] | None = None
) -> str | None:
    """Returns a warning if bfloat16 is slower than float32 on this processor, otherwise None.

    The processor is asked first. If it names no unit for bfloat16, two layers are measured, which
    takes about a second.

    Args:
        processor: its description.
        measure: returns the seconds of a computation in bfloat16 over those in float32.
    """
    known = processor.read_text("utf-8", "replace") if processor.exists() else ""
    flags = re.findall(r"[\w.]+", known)
    if set(_UNITS) & set(flags):
        return None
    ratio = (measure or time_ratio)()
    if ratio < _SLOWER:
        return None
    return (
        "--precision=mixed_bfloat16: this processor has no instructions for bfloat16 "
        f"({', '.join(_UNITS)}): a dense layer and a convolution with their gradients took "
        f"{ratio:.1f} times as long as in float32. --precision=float32 is the faster one here."
    )


def time_ratio() -> float:
    """Returns the seconds of two layers in bfloat16 over those in float32.

    Each is the fastest of a few repeats, in turns. None begins after 2 seconds.
    """
    begun = time.perf_counter()
    seconds: dict[tf.DType, list[float]] = {tf.float32: [], tf.bfloat16: []}
    for repeat in range(_REPEATS):
        for dtype, found in seconds.items():
            found.append(_seconds_of_layers(dtype))
        if repeat and time.perf_counter() - begun > _SECONDS:
            break
    return min(seconds[tf.bfloat16]) / min(seconds[tf.float32])


def _seconds_of_layers(dtype: tf.DType) -> float:
    """Returns the seconds of a dense layer and of a convolution, forward and back."""
    rows, kernel = tf.ones([64, 784], dtype), tf.ones([784, 256], dtype)
    images, filters = tf.ones([8, 14, 14, 16], dtype), tf.ones([3, 3, 16, 32], dtype)
    given = [rows, kernel, images, filters]
    started = time.perf_counter()
    with tf.GradientTape() as tape:
        tape.watch(given)
        written = [tf.matmul(rows, kernel), tf.nn.conv2d(images, filters, 2, "SAME")]
    for gradient in tape.gradient(written, given):
        gradient.numpy()  # waits for it
    return time.perf_counter() - started
