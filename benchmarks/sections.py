"""The measurements. Every section returns plain figures for JSON and for `tables.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vae_research as vr
from benchmarks import streams
from benchmarks.contenders import CHECKOUT, Contender, ContenderError, Worker
from benchmarks.works import ANNEALED_IMAGES, CHAINS, TEST_IMAGES, Work

_BETWEEN_TURNS_SECONDS = 0.2  # until the threads of the previous contender are idle
# A contender whose first turn takes this many times longer than asked has only that one.
_FAR_TOO_SLOW = 4.0


def turns(work: Work, contenders: Sequence[Contender], settings: Namespace) -> dict[str, Any]:
    """Measures training in turn, in several rounds, and matrix products between the turns."""
    lines = {
        contender.name: {"title": contender.title, "measured": [], "peaks": []}
        for contender in contenders
    }
    with contextlib.ExitStack() as stack:
        workers = _prepared(stack, work, contenders, lines, settings)
        for number in range(settings.rounds):
            for name, worker in workers.items():
                _one_turn(lines[name], worker, settings.seconds, number)
    return {
        "work": dataclasses.asdict(work),
        "flops_per_image": work.flops_per_image(),
        "epochs": settings.epochs,
        "lines": lines,
    }


def _prepared(
    stack: contextlib.ExitStack,
    work: Work,
    contenders: Iterable[Contender],
    lines: dict[str, dict[str, Any]],
    settings: Namespace,
) -> dict[str, Worker]:
    """Starts the processes one after the other; each trains its first epochs."""
    workers = {}
    for contender in contenders:
        line = lines[contender.name]
        if work.name in contender.leaves_out:
            line["failure"] = contender.leaves_out[work.name]
            continue
        _say(f"{work.name}: {contender.name} begins")
        try:
            worker = stack.enter_context(Worker(contender))
            line |= {"images": contender.images_of(work), "precision": contender.precision}
            line |= worker.prepare(work, settings.epochs) | worker.ask("versions")
            workers[contender.name] = worker
        except ContenderError as error:
            _say(str(error))
            line["failure"] = str(error)
    return workers


def _one_turn(line: dict[str, Any], worker: Worker, seconds: float, number: int) -> None:
    measured = line["measured"]
    if "failure" in line:
        return
    if number and measured[0]["seconds"] > _FAR_TOO_SLOW * seconds:
        return
    time.sleep(_BETWEEN_TURNS_SECONDS)
    try:
        measured.append(worker.ask("measure", seconds=seconds))
        if worker.contender.name in ("ours", "pytorch_eager"):
            line["peaks"].append(worker.ask("peak")["flops"])
    except ContenderError as error:
        line["failure"] = str(error)
        return
    speed = measured[-1]["images"] / measured[-1]["seconds"]
    _say(f"  round {number + 1}: {worker.contender.name} {speed:,.0f} images per second")


def negative_log_likelihood(
    work: Work, contenders: Sequence[Contender], settings: Namespace
) -> dict[str, Any]:
    """Measures the importance-weighted NLL of a model after a few epochs of training."""
    contenders = [contender for contender in contenders if contender.has_nll]
    lines = {contender.name: {"title": contender.title, "measured": []} for contender in contenders}
    with contextlib.ExitStack() as stack:
        workers = _prepared(stack, work, contenders, lines, settings)
        for name, worker in workers.items():
            # The figure is of the same images for every contender. The first pass also compiles.
            lines[name]["nll"] = worker.ask("nll", count=settings.nll_images)["nll"]
            lines[name]["images"] = _filling(worker, settings)
        ceiling: list[dict[str, Any]] = []
        if "ours" in workers:
            workers["ours"].ask("nll_ceiling", count=lines["ours"]["images"])  # which compiles
        for number in range(settings.rounds):
            for name, worker in workers.items():
                time.sleep(_BETWEEN_TURNS_SECONDS)
                answer = worker.ask("nll", count=lines[name]["images"])
                lines[name]["measured"].append(answer)
                if name == "ours":  # in the same turn: what the machine allows changes with it
                    ceiling.append(worker.ask("nll_ceiling", count=lines[name]["images"]))
                speed = answer["images"] / answer["seconds"]
                _say(f"  round {number + 1}: {name} {speed:,.0f} images per second")
    return {"work": dataclasses.asdict(work), "lines": lines, "ceiling": ceiling}


def annealed(work: Work, contenders: Sequence[Contender], settings: Namespace) -> dict[str, Any]:
    """Measures transitions of annealed importance sampling beside their products alone, in turn."""
    contenders = [each for each in contenders if each.name == "ours"]
    lines: dict[str, Any] = {"ours": {}}
    measured: dict[str, list[dict[str, Any]]] = {"annealing": [], "annealing_ceiling": []}
    with contextlib.ExitStack() as stack:
        workers = _prepared(stack, work, contenders, lines, settings)
        if "ours" not in workers:
            raise ContenderError(lines["ours"]["failure"])
        counts = dict.fromkeys(measured, 1)
        for name in measured:
            workers["ours"].ask(name, count=1)  # which compiles
            while workers["ours"].ask(name, count=counts[name])["seconds"] < 0.5 * settings.seconds:
                counts[name] *= 2
        for number in range(settings.rounds):
            for name, answers in measured.items():
                time.sleep(_BETWEEN_TURNS_SECONDS)
                answers.append(workers["ours"].ask(name, count=counts[name]))
                answers[-1]["images"] *= ANNEALED_IMAGES * CHAINS
                speed = answers[-1]["images"] / answers[-1]["seconds"]
                _say(f"  round {number + 1}: {name} {speed:,.0f} transitions per second")
    return {"work": dataclasses.asdict(work), "measured": measured}


def _filling(worker: Worker, settings: Namespace) -> int:
    """Returns how many images fill a turn, at most the whole test set.

    Their number grows step by step, because an evaluation also has costs that do not depend on it.
    """
    count = settings.nll_images
    while count < TEST_IMAGES:
        if worker.ask("nll", count=count)["seconds"] > 0.5 * settings.seconds:
            break
        count = min(3 * count, TEST_IMAGES)
    return count


def sweep(
    name: str,
    works: dict[str, Work],
    contenders: Sequence[Contender],
    settings: Namespace,
    variants: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Measures contenders for several values of one setting, for each value in rounds.

    Args:
        name: of the setting.
        works: by value.
        contenders: the contenders.
        settings: the command line.
        variants: by value, what is added to the variant.
    """
    lines: dict[str, Any] = {contender.name: {} for contender in contenders}
    for value, work in works.items():
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(contender)) for contender in contenders]
            for worker in workers:
                worker.prepare(work, 1, **(variants or {}).get(value, {}))
            for _ in range(settings.rounds):
                for worker in workers:
                    time.sleep(_BETWEEN_TURNS_SECONDS)
                    answer = worker.ask("measure", seconds=settings.seconds / 2)
                    speed = answer["images"] / answer["seconds"]
                    lines[worker.contender.name].setdefault(value, []).append(speed)
        told = ", ".join(
            f"{key} {statistics.median(line[value]):,.0f}" for key, line in lines.items()
        )
        _say(f"{name} {value}: {told}")
    return {"name": name, "lines": lines, "titles": {c.name: c.title for c in contenders}}


def start(work: Work, contenders: Sequence[Contender], settings: Namespace) -> dict[str, Any]:
    """Measures the time from the command to the end of the first step, without and with caches."""
    lines = {}
    for contender in contenders:
        if work.name in contender.leaves_out:
            continue
        line = lines[contender.name] = {"title": contender.title}
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold", "warm"):
                try:
                    with Worker(contender, Path(folder)) as worker:
                        answer = worker.prepare(work, 1)
                        line[state] = answer["first_step"] - worker.started
                        line["peak_memory"] = answer["peak_memory"]
                except ContenderError as error:
                    line["failure"] = str(error)
                    break
        _say(f"start: {contender.name} {line}")
    return {"lines": lines}


# Flags of a run that change what it does beside training, by title.
RUNS = {
    "default": [],
    "training figures every 100 steps": ["--log_every_steps=100"],
    "nothing for TensorBoard": ["--notensorboard"],
    "a checkpoint after every epoch": ["--checkpoint_epochs=1"],
}
_EPOCHS_SHORT = 2


def whole_runs(work: Work, contenders: Sequence[Contender], settings: Namespace) -> dict[str, Any]:
    """Measures `experiments/vae_mnist.py` as a user starts it, beside bare training of its model.

    The seconds of an epoch are the difference between a long run and a short one: what happens once
    in a run (imports, compilation, test figures) is in both.
    """
    work = dataclasses.replace(work, hidden_units=(500,), latent_dim=20)
    speeds: dict[str, list[float]] = {"bare training": []} | {name: [] for name in RUNS}
    with Worker(contenders[0]) as worker:
        worker.prepare(work, settings.epochs, binarize="dynamic")
        for number in range(settings.rounds):
            answer = worker.ask("measure", seconds=settings.seconds)
            speeds["bare training"].append(answer["images"] / answer["seconds"])
            for name, flags in RUNS.items():
                long = _run_seconds(flags, _EPOCHS_SHORT + settings.run_epochs)
                seconds = long - _run_seconds(flags, _EPOCHS_SHORT)
                speeds[name].append(work.images * settings.run_epochs / seconds)
            told = ", ".join(f"{key} {speed[-1]:,.0f}" for key, speed in speeds.items())
            _say(f"  round {number + 1}: {told}")
    return {"speeds": speeds, "flags": RUNS}


# Rows of an .npy file, ten times as many, and JPEG files.
_ROWS, _MORE = 50_000, 10


def data_streams(contenders: Sequence[Contender], settings: Namespace) -> dict[str, Any]:
    """Measures training on streams beside rows on the device, and decoding alone, in turn."""
    del contenders  # only this package reads data by row number
    count = min(_ROWS, settings.images)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        streams.write_rows(folder / "rows.npy", count)
        streams.write_rows(folder / "more.npy", _MORE * count)
        streams.write_images(folder / "images", count)
        cases = [("device", "rows.npy"), ("streamed", "rows.npy"), ("streamed", "more.npy")]
        cases += [(case, "images") for case in streams.CASES]
        for number in range(settings.rounds):
            for case, data in cases:
                if not number:
                    lines.append({"case": case, "data": data, "measured": []})
                line = next(each for each in lines if (each["case"], each["data"]) == (case, data))
                command = [sys.executable, "-m", "benchmarks.streams", case, str(folder / data)]
                output = _output_of([*command, str(settings.seconds)])
                line["measured"].append(json.loads(output.splitlines()[-1]))
                speed = line["measured"][-1]["images"] / line["measured"][-1]["seconds"]
                _say(f"  round {number + 1}: {case} {data} {speed:,.0f} images per second")
    return {"rows": count, "cases": lines}


_EPOCHS_OF_LOGGING = 20
# A sixteenth of the training images, which are 25 steps, and more validation images than callbacks
# use. The cost of TensorBoard at the end of an epoch does not depend on the epoch's length, and
# epochs of three seconds differ from each other by more than that cost.
_IMAGES_OF_LOGGING = {"train": 3125, "validation": 1000, "test": 100}
_BATCH_OF_LOGGING, _STEPS_OF_LOGGING = 128, 25


def logging(contenders: Sequence[Contender], settings: Namespace) -> dict[str, Any]:
    """Measures what TensorBoard costs in `experiments/vae_mnist.py`.

    Its callbacks are active in every other epoch of one run with few images: two runs of the same
    command differ by more than their cost. A run with all images and without TensorBoard follows in
    the same round; the cost is given in percent of it. Gradients are measured in every epoch with
    callbacks, in a default run in four of five.
    """
    del contenders  # only the experiment is measured
    lines = []
    for number in range(settings.rounds):
        with tempfile.TemporaryDirectory() as folder:
            few = Path(folder, "few.npz")
            _save_first_images(few, _IMAGES_OF_LOGGING)
            command = [sys.executable, "-m", "benchmarks.every_other", "--verbose=0"]
            command += [f"--dataset={few}", "--binarize=dynamic", f"--run_dir={folder}/every_other"]
            command += [f"--batch_size={_BATCH_OF_LOGGING}"]
            command += [f"--gradients_every_steps={_STEPS_OF_LOGGING}"]
            command += [f"--epochs={8 * settings.run_epochs + 4}"]
            line = json.loads(_output_of(command).splitlines()[-1])
            command = [sys.executable, str(CHECKOUT / "experiments" / "vae_mnist.py")]
            command += ["--notensorboard", f"--epochs={_EPOCHS_OF_LOGGING}"]
            started = time.perf_counter()
            _output_of([*command, f"--run_dir={folder}/whole"])
            line["whole"] = time.perf_counter() - started
        # The median, because other programs slow some epochs.
        each = statistics.median(map(operator.sub, line["with"], line["without"]))
        line["each"], line["cost"] = each, line["once"] + _EPOCHS_OF_LOGGING * each
        lines.append(line)
        told = ", ".join(f"{line[key]:.2f} s {key}" for key in ("once", "cost", "whole"))
        _say(f"  round {number + 1}: {told}, {1000 * each:.0f} ms an epoch")
    return {"epochs": _EPOCHS_OF_LOGGING, "rounds": lines}


def _save_first_images(path: Path, counts: dict[str, int]) -> None:
    """Writes the first images of each split of MNIST to a file that runs can read."""
    data = vr.load_data("mnist")
    names = {"train": "x_train", "validation": "x_val", "test": "x_test"}
    splits = {names[split]: getattr(data, split).raw[:count] for split, count in counts.items()}
    np.savez(path, **splits)


def _output_of(command: list[str]) -> str:
    """Returns the standard output of a program.

    Raises:
        ContenderError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    if done.returncode:
        raise ContenderError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _run_seconds(flags: list[str], epochs: int) -> float:
    """Returns the training time in a run's summary, without imports and test figures."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, str(CHECKOUT / "experiments" / "vae_mnist.py")]
        command += [f"--run_dir={run}", f"--epochs={epochs}", "--importance_samples=1"]
        _output_of([*command, *flags])
        return json.loads((run / "summary.json").read_text())["seconds"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
