"""Writes a picture of a run for a paper.

    scripts/figure RUN samples|reconstructions|traversals|curves [FLAGS]
    scripts/figure RUN factor_traversals|mutual_information [FLAGS]

Curves need no TensorFlow; the other pictures load the model. The last two compare codes with the
factors of the data, if these have any.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from vae_research.plots import ENDINGS, save_curves
from vae_research.runs.cli import streams
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.parsers import Number
from vae_research.runs.cli.tools import choice, exit_code_of, parse
from vae_research.runs.session import directory

_PICTURES = (
    *("samples", "reconstructions", "traversals", "curves"),
    *(directory.TRAVERSED, directory.INFORMATION),
)
_FORMATS = (*(ending.removeprefix(".") for ending in ENDINGS), "gif")
_FLAGS = {
    "format": f"{', '.join(_FORMATS)} (traversals, moving); default: the ending of --to, or png",
    "to": "the file; default: RUN/figures/paper_NAME.FORMAT",
    "columns": "samples or reconstructions side by side; default: 10",
    "which": "the checkpoint: last, or best on validation data; default: last",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a picture; returns 0, or the exit code of what is wrong."""
    return exit_code_of(
        "figure", lambda: write_figure(sys.argv[1:] if arguments is None else arguments)
    )


def write_figure(arguments: Sequence[str]) -> None:
    """Writes the picture that a command line asks for, and prints where.

    Raises:
        UsageError: a flag is not valid, or the run has no such picture.
        DataError, CheckpointError: the run cannot be loaded.
    """
    given = parse(arguments, f"Usage: scripts/figure RUN {'|'.join(_PICTURES)} [FLAGS]", _FLAGS)
    if given is None:
        return
    if len(given.subjects) != 2:
        raise UsageError(f"give a run and one of {', '.join(_PICTURES)}. --help lists all flags.")
    name = choice("", given.subjects[1], _PICTURES)
    which = choice("--which=", given.which or "last", ["last", "best"])
    try:
        columns = Number(int, 1, 100).parse("10" if given.columns is None else given.columns)
    except ValueError as error:
        raise UsageError(f"--columns={given.columns}: {error}.") from error
    run_dir = Path(given.subjects[0]).expanduser().absolute()
    path = _file(run_dir, name, given.format, given.to)
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("pictures need matplotlib: pip install 'vae_research[figures]'.")
    directory.read_config(run_dir)  # "holds no run" comes before anything else
    if given.to is not None and not path.parent.is_dir():
        raise UsageError(f"--to={given.to}: there is no folder {path.parent}.")
    if name == "curves":
        records = directory.read_metrics(run_dir / directory.METRICS)
        if not records:
            raise UsageError(f"{run_dir} has no curves: no epoch is complete.")
        path.parent.mkdir(exist_ok=True)
        save_curves(path, records)
    else:
        _save_picture(run_dir, name, path, columns, which)
    print(f"Written to {path}")


def _save_picture(run_dir: Path, name: str, path: Path, columns: int, which: str) -> None:
    with streams.hide_startup_output():
        from vae_research.runs.report.paper_pictures import save_picture
        from vae_research.runs.session.loading import load_run

    run = load_run(run_dir, which=cast(Literal["best", "last"], which))
    path.parent.mkdir(exist_ok=True)
    save_picture(run, name, path, columns)


def _file(run_dir: Path, name: str, asked: Any, to: str | None) -> Path:
    """Returns the file of a picture, whose ending says the format."""
    ending = None if to is None else Path(to).suffix.lower().removeprefix(".")
    kind = asked or ending or "png"
    if ending is not None and ending not in (_FORMATS if asked is None else (asked,)):
        wanted = f"one of {', '.join(_FORMATS)}" if asked is None else asked
        raise UsageError(f"--to={to}: the file must end in {wanted}.")
    choice("--format=", kind, _FORMATS)
    if kind == "gif" and name != "traversals":
        raise UsageError(f"only traversals are animated: give {name} another format than gif.")
    if to is None:
        return run_dir / "figures" / f"paper_{name}.{kind}"
    return Path(to).expanduser().absolute()


if __name__ == "__main__":
    sys.exit(main())
