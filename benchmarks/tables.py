"""Turns the figures into Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.streams import CASES
from vae_research import runs

BASE = "keras_fit"


def markdown(results: dict[str, Any]) -> str:
    """Returns all tables, with the machine and the versions."""
    machine = results["machine"]
    parts = [f"Measured on {machine['processor']}, {machine['memory']}; {machine['system']}.\n"]
    for name, section in results["sections"].items():
        title, table = _TABLES.get(name, _training)(section)
        parts.append(f"### {title}\n\n{table}")
    versions = {}
    for section in results["sections"].values():
        for line in section.get("lines", {}).values():
            versions |= line.get("versions", {})
    parts.append(f"tcmalloc for PyTorch and pythae: {machine['tcmalloc']}.\n")
    if versions:
        parts.append(", ".join(f"{name} {versions[name]}" for name in sorted(versions)) + ".\n")
    return "\n".join(parts)


def _training(section: dict[str, Any]) -> tuple[str, str]:
    lines = section["lines"]
    base = _speeds(lines.get(BASE, {}))
    peaks = _peaks(lines)
    head = ["", "images per second", "times Keras `fit`", "of the peak", "loss, nats"]
    head += ["peak memory", "how"]
    rows = []
    for line in lines.values():
        speeds = _speeds(line)
        if "failure" in line or not speeds:
            rows.append([line["title"], line.get("failure", "-"), *[""] * (len(head) - 2)])
            continue
        flops = statistics.median(speeds) * section["flops_per_image"]
        whole = line["images"] == section["work"]["images"]
        how = line["description"] + ("" if whole else f", {line['images']} images in an epoch")
        rows.append(
            [
                line["title"],
                _whole(speeds),
                _ratio(speeds, base),
                f"{flops / peaks[line['precision']]:.0%}" if peaks else "-",
                f"{line['losses'][-1]:.1f}" if whole else "-",
                f"{max(each['peak_memory'] for each in line['measured']) / 2**20:,.0f} MB",
                how,
            ]
        )
    notes = [f"The loss is the mean over epoch {section['epochs']}."]
    if peaks:
        told = " and ".join(f"{peak / 1e9:,.0f} GFLOP/s in {name}" for name, peak in peaks.items())
        notes.append(
            f"The peak is that of one large matrix product, measured between the turns: {told}; a "
            f"step has {section['flops_per_image'] / 1e6:.2f} million operations for each image."
        )
    if others := disagreeing(section):
        notes.append(f"**Not the same training, by its loss: {', '.join(others)}.**")
    return section["work"]["title"], f"{runs.markdown_table(head, rows)}\n{' '.join(notes)}\n"


def disagreeing(section: dict[str, Any]) -> list[str]:
    """Returns the names of the lines whose loss differs from the median by more than 5 %."""
    losses = {
        name: line["losses"][-1]
        for name, line in section["lines"].items()
        if line.get("losses") and line["images"] == section["work"]["images"]
    }
    middle = statistics.median(losses.values()) if losses else 0.0
    return [name for name, loss in losses.items() if abs(loss - middle) > 0.05 * middle]


def _peaks(lines: dict[str, Any]) -> dict[str, float]:
    """Returns by precision the largest of the contenders' median peaks."""
    peaks: dict[str, float] = {}
    for line in lines.values():
        for name in ("float32", "bfloat16"):
            found = [each[name] for each in line.get("peaks", [])]
            if found:
                peaks[name] = max(peaks.get(name, 0.0), statistics.median(found))
    return peaks


def _nll(section: dict[str, Any]) -> tuple[str, str]:
    base = _speeds(section["lines"].get("pythae", {}))
    rows = []
    for line in section["lines"].values():
        speeds = _speeds(line)
        if "failure" in line or not speeds:
            rows.append([line["title"], line.get("failure", "-"), "", "", ""])
            continue
        memory = max(each["peak_memory"] for each in line["measured"])
        row = [line["title"], _whole(speeds), _ratio(speeds, base), f"{line['nll']:.1f}"]
        rows.append([*row, f"{memory / 2**20:,.0f} MB"])
    if section.get("ceiling"):
        speeds = _speeds({"measured": section["ceiling"]})
        title = "noise and decoder products of this package alone"
        rows.append([title, _whole(speeds), _ratio(speeds, base), "", ""])
    head = ["", "images per second", "times pythae", "NLL, nats", "peak memory"]
    title = f"importance-weighted NLL with 200 samples, {section['work']['title']}"
    return title, runs.markdown_table(head, rows)


def _annealed(section: dict[str, Any]) -> tuple[str, str]:
    words = {
        "annealing": "annealed importance sampling, one chain, 10 leapfrog steps each",
        "annealing_ceiling": "products of decoder and gradients alone",
    }
    speeds = {name: _speeds({"measured": each}) for name, each in section["measured"].items()}
    base = speeds["annealing_ceiling"]
    rows = [[words[name], _whole(each), _ratio(each, base)] for name, each in speeds.items()]
    head = ["", "transitions per second", "of the ceiling"]
    title = f"annealed importance sampling, {section['work']['title']}"
    return title, runs.markdown_table(head, rows)


def _sweep(section: dict[str, Any]) -> tuple[str, str]:
    lines, titles = section["lines"], section["titles"]
    values = list(next(iter(lines.values()), {}))
    rows = [
        [titles[name], *(_whole(line[value]) for value in values)] for name, line in lines.items()
    ]
    return (
        f"images per second by {section['name']}",
        runs.markdown_table([section["name"], *values], rows),
    )


def _start(section: dict[str, Any]) -> tuple[str, str]:
    rows = []
    for line in section["lines"].values():
        if "failure" in line:
            rows.append([line["title"], line["failure"], "", ""])
        else:
            memory = f"{line['peak_memory'] / 2**20:,.0f} MB"
            rows.append([line["title"], f"{line['cold']:.1f}", f"{line['warm']:.1f}", memory])
    head = ["", "seconds to the first step, cold", "with compilers' caches", "peak memory"]
    return "from the command to the first step", runs.markdown_table(head, rows)


def _whole_runs(section: dict[str, Any]) -> tuple[str, str]:
    speeds = section["speeds"]
    rows = [
        [
            name,
            " ".join(section["flags"].get(name, [])),
            _whole(found),
            _ratio(found, speeds["bare training"]),
        ]
        for name, found in speeds.items()
    ]
    head = ["", "flags", "images per second", "times bare training"]
    return "`experiments/vae_mnist.py`, an epoch with all that belongs to it", runs.markdown_table(
        head, rows
    )


def _logging(section: dict[str, Any]) -> tuple[str, str]:
    lines = section["rounds"]
    figures = {
        "once, seconds": [line["once"] for line in lines],
        "each epoch, milliseconds": [1000 * line["each"] for line in lines],
        "the run without, seconds": [line["whole"] for line in lines],
        "added, percent": [100 * line["cost"] / line["whole"] for line in lines],
    }
    head = ["TensorBoard", "median (min to max)"]
    rows = [[name, runs.median_and_range(found, 2)] for name, found in figures.items()]
    title = f"what TensorBoard adds to {section['epochs']} epochs of `experiments/vae_mnist.py`"
    return title, runs.markdown_table(head, rows)


def _streams(section: dict[str, Any]) -> tuple[str, str]:
    count = section["rows"]
    kinds = {
        "rows.npy": f"{count:,} rows of 28 x 28",
        "more.npy": f"{10 * count:,} rows of 28 x 28",
        "images": f"{count:,} JPEG files of 32 x 32",
    }
    of_device = {"rows.npy": "rows.npy", "more.npy": "rows.npy", "images": "images"}
    lines = section["cases"]

    def speeds_of(case: str, data: str) -> list[float]:
        found = (line for line in lines if (line["case"], line["data"]) == (case, data))
        return [speed for line in found for speed in _speeds(line)]

    rows = []
    for line in lines:
        speeds, data = _speeds(line), line["data"]
        memory = max(each["memory"] for each in line["measured"]) / 2**20
        rows.append(
            [
                kinds[data],
                CASES[line["case"]],
                _whole(speeds),
                _ratio(speeds, speeds_of("device", of_device[data])),
                _ratio(speeds, speeds_of("pillow", data)),
                f"{memory:,.0f} MB",
            ]
        )
    head = ["data", "", "images per second", "times device", "times Pillow", "memory"]
    return "rows that are read when they are needed", runs.markdown_table(head, rows)


def _speeds(line: dict[str, Any]) -> list[float]:
    return [each["images"] / each["seconds"] for each in line.get("measured", [])]


def _whole(speeds: Sequence[float]) -> str:
    low, high = min(speeds), max(speeds)
    return f"{statistics.median(speeds):,.0f} ({low:,.0f} to {high:,.0f})"


def _ratio(speeds: Sequence[float], base: Sequence[float]) -> str:
    """Returns the ratio within each round: what slows the machine slows both."""
    ratios = [a / b for a, b in zip(speeds, base, strict=False)]
    return runs.median_and_range(ratios, 2) if ratios else "-"


_TABLES = {
    "nll": _nll,
    "ais": _annealed,
    "batch_size": _sweep,
    "latent_dim": _sweep,
    "steps_per_call": _sweep,
    "start": _start,
    "run": _whole_runs,
    "logging": _logging,
    "streams": _streams,
}
