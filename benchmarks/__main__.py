"""Measures this package beside Keras' `fit`, PyTorch, JAX and pythae on the same training.

    scripts/benchmark                                         everything, 40 minutes and more
    scripts/benchmark --only=dense_128,nll --rounds=5
    scripts/benchmark --contenders=ours,keras_fit --seconds=2

Every contender has its own process, and those that do not belong to this project have their own
environment in .benchmark, which is made when it is first needed. They are measured in turn, in
several rounds. Markdown goes to standard output, Markdown and JSON to a folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import sections
from benchmarks.contenders import BY_NAME, CHECKOUT, CONTENDERS, Contender, ContenderError
from benchmarks.machine import describe
from benchmarks.tables import markdown
from benchmarks.works import CONVOLUTIONAL, DENSE_20, DENSE_128, Work

Settings = argparse.Namespace


def _training(work: Work) -> Callable[[list[Contender], Settings], dict[str, Any]]:
    return lambda contenders, settings: sections.turns(
        _shrunk(work, settings), contenders, settings
    )


def _sweep(setting: str, values: Sequence[int]) -> Callable[..., dict[str, Any]]:
    def measure(contenders: list[Contender], settings: Settings) -> dict[str, Any]:
        dense = _shrunk(DENSE_128, settings)
        works = {str(value): dataclasses.replace(dense, **{setting: value}) for value in values}
        return sections.sweep(setting.replace("_", " "), works, contenders, settings)

    return measure


def _steps_per_call(contenders: list[Contender], settings: Settings) -> dict[str, Any]:
    dense = _shrunk(DENSE_128, settings)
    values = ("1", "10", "50", "100")
    return sections.sweep(
        "steps per call",
        dict.fromkeys(values, dense),
        contenders,
        settings,
        {value: {"steps_per_call": int(value)} for value in values},
    )


# By name: the function that measures, and its contenders; None means all that were chosen.
SECTIONS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...] | None]] = {
    "dense_128": (_training(DENSE_128), None),
    "dense_20": (_training(DENSE_20), None),
    "convolutional": (_training(CONVOLUTIONAL), None),
    "nll": (lambda *given: sections.negative_log_likelihood(DENSE_128, *given), None),
    "ais": (lambda *given: sections.annealed(DENSE_128, *given), ("ours",)),
    "batch_size": (_sweep("batch_size", (20, 64, 128, 256, 1024)), ("ours", "keras_fit")),
    "latent_dim": (_sweep("latent_dim", (2, 10, 40, 200)), ("ours", "keras_fit")),
    "steps_per_call": (_steps_per_call, ("ours",)),
    "run": (lambda *given: sections.whole_runs(DENSE_128, *given), ("ours",)),
    "logging": (sections.logging, ("ours",)),
    "streams": (sections.data_streams, ("ours",)),
    "start": (lambda *given: sections.start(DENSE_128, *given), None),
}


def _shrunk(work: Work, settings: Settings) -> Work:
    return dataclasses.replace(work, images=min(work.images, settings.images))


def main(arguments: Sequence[str]) -> int:
    """Runs the command line. Returns 1 if a section could not be measured."""
    settings = parse(arguments)
    folder = settings.output / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    results: dict[str, Any] = {"arguments": list(arguments), "machine": describe(), "sections": {}}
    started, failed = time.time(), False
    for name in settings.only:
        measure, whom = SECTIONS[name]
        chosen = [each for each in settings.contenders if whom is None or each in whom]
        if not chosen:
            continue
        print(f"{name} ({time.time() - started:.0f} s)", file=sys.stderr, flush=True)
        try:
            found = measure([BY_NAME[each] for each in chosen], settings)
        except ContenderError as error:
            print(f"benchmark: {name}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        # After every section, so that an interrupted benchmark keeps its results.
        results["sections"][name] = found
        results["seconds"] = round(time.time() - started)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (folder / "tables.md").write_text(markdown(results))
    if results["sections"]:
        print(markdown(results))
        print(f"{results['seconds']} seconds. Written to {folder}", file=sys.stderr)
    return int(failed)


def parse(arguments: Sequence[str]) -> Settings:
    """Returns the flags; a bad flag ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse_names(text: str) -> list[str]:
            chosen = [name for name in text.split(",") if name]
            unknown = [name for name in chosen if name not in known]
            if unknown or not chosen:
                raise argparse.ArgumentTypeError(
                    f"{', '.join(unknown) or 'nothing'} is not among {', '.join(known)}"
                )
            return [name for name in known if name in chosen]

        return parse_names

    def positive(kind: type) -> Callable[[str], Any]:
        def parse_number(text: str) -> Any:
            value = kind(text)
            if not 0 < value < float("inf"):
                raise ValueError
            return value

        parse_number.__name__ = f"positive {kind.__name__}"
        return parse_number

    everyone = [contender.name for contender in CONTENDERS]
    parser.add_argument(
        "--only",
        type=names(list(SECTIONS)),
        default=list(SECTIONS),
        help=f"sections, of {', '.join(SECTIONS)}; default all",
    )
    parser.add_argument(
        "--contenders",
        type=names(everyone),
        default=everyone,
        help=f"of {', '.join(everyone)}; default all",
    )
    parser.add_argument("--rounds", type=positive(int), default=3, help="turns of each contender")
    parser.add_argument(
        "--seconds",
        type=positive(float),
        default=4.0,
        help="shortest turn, which is whole epochs; default %(default)s",
    )
    parser.add_argument(
        "--epochs",
        type=positive(int),
        default=2,
        help="before the turns; the table has the loss of the last one; default %(default)s",
    )
    parser.add_argument(
        "--images", type=positive(int), default=50_000, help="largest number in an epoch"
    )
    parser.add_argument(
        "--nll_images", type=positive(int), default=100, help="fewest test images in a turn"
    )
    parser.add_argument(
        "--run_epochs",
        type=positive(int),
        default=15,
        help="of a default run that is measured; eight times as many short ones for logging",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=CHECKOUT / "runs" / "benchmark",
        help="a folder DATE-TIME is made in it; default %(default)s",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
