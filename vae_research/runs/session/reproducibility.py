"""The environment in which a resumed run is bit-exact with an uninterrupted one: its profile."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from vae_research.execution import Execution
from vae_research.runs.cli.config import Config


def profile(execution: Execution, config: Config, device: str, replicas: int = 1) -> dict[str, str]:
    """Returns everything that the last bit of a result may depend on, as text by name."""
    threads = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "device": "CPU" if device.startswith("CPU") else device,
        "cpu": _cpu(),
        "threads": f"{_cores()} cores, {threads[0]} and {threads[1]} asked for (0: all)",
        "precision": config.precision,
        "jit_compile": str(execution.jit_compile),
        "run_eagerly": str(config.run_eagerly),
        "replicas": str(replicas),
    }


def claim(
    now: Mapping[str, str],
    saved: Mapping[str, str],
    before: str = "",
    other_changes: Sequence[str] = (),
    *,
    rows_have_numbers: bool = True,
) -> str:
    """Returns "bit-exact", or "valid, not bit-exact" and why.

    Args:
        now: the profile of this session.
        saved: the profile of the checkpoint that is resumed; empty at the start of a run.
        before: the claim of the run's previous session.
        other_changes: what else has changed since the checkpoint, in words: files of the source.
        rows_have_numbers: whether training rows can be read again by their numbers.

    >>> claim({"device": "CPU", "cpu": "A"}, {"device": "CPU", "cpu": "B"})
    'valid, not bit-exact: cpu was B, now A'
    """
    changed = [
        *other_changes,
        *(
            f"{name} was {saved[name]}, now {now.get(name)}"
            for name in saved
            if saved[name] != now.get(name)
        ),
    ]
    if changed:
        return f"valid, not bit-exact: {'; '.join(changed)}"
    if before.startswith("valid"):
        return before
    if not rows_have_numbers:
        return "valid, not bit-exact: training rows come from a pipeline, in an order of its own"
    if now["device"] != "CPU":
        return "valid, not bit-exact: a GPU adds up in no fixed order"
    return "bit-exact"


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu() -> str:
    """Returns the name of the processor and a short hash of its feature flags."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                found.setdefault(name.strip(), value.strip())
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}".strip()
    features = hashlib.sha256(found.get("flags", "").encode()).hexdigest()[:8]
    return f"{found.get('model name', platform.machine())} (features {features})"
