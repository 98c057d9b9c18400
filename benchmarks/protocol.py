"""Requests to a contender: one JSON object per line on standard input, one answer for each.

A contender is a class with

    __init__(work, variant)         builds model and data
    train(go_on, step_done)         trains whole epochs while `go_on()`; losses of the epochs, nats
    negative_log_likelihood(count)  optional: importance-weighted, of the first test images, nats
    nll_ceiling(count)              optional: noise and decoder products of that, and nothing else
    annealing(count)                optional: so many Hamiltonian transitions of all chains
    annealing_ceiling(count)        optional: products of decoder and gradients of these alone
    matrix_products()               optional: {"float32": ..., "bfloat16": ...}, FLOP/s
    description                     optional: how it runs, in words

Its process exists through all rounds and waits while others are measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.works import Work


def serve(contender: type, packages: Iterable[str]) -> None:
    """Answers requests until there are no more.

    Args:
        contender: the class.
        packages: packages whose versions are reported.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    running = None
    for line in sys.stdin:
        request = json.loads(line)
        match request.pop("do"):
            case "prepare":
                # Release the old model before the new one is built: peak memory is that of one.
                running = None
                running, answer = _prepare(contender, **request)
            case "measure":
                answer = _measure(running, **request)
            case "nll":
                answer = _measure_nll(running, **request)
            case "nll_ceiling" | "annealing" | "annealing_ceiling" as name:
                started = time.perf_counter()
                getattr(running, name)(**request)
                answer = {"seconds": time.perf_counter() - started, "images": request["count"]}
            case "peak":
                answer = {"flops": running.matrix_products()}
            case "versions":
                answer = {"versions": {name: _version(name) for name in packages}}
        print(json.dumps(answer), file=answers, flush=True)


def _version(name: str) -> str:
    return platform.python_version() if name == "python" else importlib.metadata.version(name)


def _prepare(
    contender: type, work: dict[str, Any], variant: dict[str, Any], epochs: int
) -> tuple[Any, dict[str, Any]]:
    """Builds, trains `epochs` epochs, and reports when the first step was done."""
    first_step = []

    def step_done() -> None:
        if not first_step:
            first_step.append(time.time())

    built = contender(Work.from_json(work), variant)
    losses = built.train(_epochs(epochs), step_done) if epochs else []
    return built, {
        "losses": losses,
        "first_step": first_step[0] if first_step else None,
        "description": getattr(built, "description", ""),
        "peak_memory": peak_memory(),
    }


def _epochs(number: int) -> Callable[[], bool]:
    left = [number]

    def go_on() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return go_on


def _measure(running: Any, seconds: float) -> dict[str, Any]:
    """Trains whole epochs until `seconds` have passed; the time ends with the last epoch."""
    ends = []

    def go_on() -> bool:
        ends.append(time.perf_counter())
        return ends[-1] - ends[0] < seconds

    losses = running.train(go_on, None)
    return {
        "seconds": ends[-1] - ends[0],
        "images": len(losses) * running.work.images,
        "loss": losses[-1],
        "peak_memory": peak_memory(),
    }


def _measure_nll(running: Any, count: int) -> dict[str, Any]:
    started = time.perf_counter()
    value = running.negative_log_likelihood(count)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "images": count, "nll": value, "peak_memory": peak_memory()}


def best_matrix_product(
    product: Callable[[int], Callable[[], Any]],
    side: int = 2048,
    repeats: int = 8,
    seconds: float = 5.0,
) -> float:
    """Returns FLOP/s of the fastest of several products of two square matrices.

    It begins with small matrices and ends with the largest whose products should take no more than
    `seconds` in all: without instructions for bfloat16 a single large one can take minutes.

    Args:
        product: from a side to a function that computes the product and waits for it.
        side: of the largest matrices.
        repeats: number of products.
        seconds: for the products of one side.
    """
    this = min(128, side)
    while True:
        multiply = product(this)
        multiply()
        times: list[float] = []
        while len(times) < repeats and sum(times) < seconds:
            started = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - started)
        # Twice the side takes 8 times as long; the first product is one of them.
        if this == side or 8 * (1 + repeats) * min(times) > seconds:
            return 2.0 * this**3 / min(times)
        this = min(2 * this, side)


def peak_memory() -> int:
    """Returns the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage includes the memory of the parent before exec
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def own_memory() -> int:
    """Returns the memory of this process in bytes, without pages of files that it maps.

    Such pages are the system's cache, which it takes back when memory is short.
    """
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else peak_memory()
