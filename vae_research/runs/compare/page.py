"""report.html of a folder of runs: the table, what differs between settings, and plots."""

from __future__ import annotations

import importlib.util
import shlex
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from vae_research import files
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.comparability import refuse_different
from vae_research.runs.compare.formats import Table, as_cells
from vae_research.runs.compare.notes import notes_on
from vae_research.runs.compare.records import Record, load_runs
from vae_research.runs.compare.settings import Setting, group
from vae_research.runs.compare.tabulate import (
    figures_of,
    in_order,
    sort_key,
    table_of_runs,
    table_of_settings,
)
from vae_research.runs.compare.unfinished import unfinished_in_words
from vae_research.runs.report import html
from vae_research.runs.session.directory import REPORT


def write_report(folder: Path, title: str, command: Sequence[str]) -> Path:
    """Writes report.html into a folder of runs and returns its path.

    It refers to the report of each run, and needs nothing else.

    Args:
        folder: of the runs, for example that of a sweep.
        title: the title of the page.
        command: what made the runs, for a shell.

    Raises:
        UsageError: there is no run in the folder.
        CheckpointError: a file of a run is damaged.
    """
    records = load_runs(folder)
    finished = [record for record in records if record["status"] == "done"]
    missing = unfinished_in_words(records, [folder])
    parts = [
        html.text(f"{len(records)} runs, {len(finished)} of them finished.", kind="lead"),
        *([html.text(f"Not finished: {missing}.")] if missing else ()),
        *(_comparison(finished) if finished else ()),
        html.text("Runs", "h2"),
        _runs(folder, records),
        html.text("How to go on", "h2"),
        html.text(_commands(folder, command), "pre"),
    ]
    files.replace(folder / REPORT, html.page(title, parts).encode(), durable=False)
    return folder / REPORT


def _comparison(finished: Sequence[Record]) -> Iterable[str]:
    """Yields a table of what compares, and plots."""
    yield html.text("Test figures", "h2")
    figures = figures_of(finished, None)
    try:
        refuse_different(finished, figures)
    except UsageError as error:
        yield html.text(f"{error} The table of each run by itself:")
        yield _table(table_of_runs(finished, figures))
        yield html.bullets(notes_on(finished, figures))
        return
    key, larger_first = sort_key(figures[0], finished)
    settings = group(finished)
    values = [[*setting.figure(key).values()] for setting in settings]
    means = [statistics.fmean(found) if found else None for found in values]
    settings = in_order(settings, means, larger_first=larger_first)
    if any(len(setting.runs) > 1 for setting in settings):
        yield _table(table_of_settings(settings, figures, None))
    else:
        yield _table(table_of_runs(finished, figures))
    yield html.bullets(notes_on(finished, figures))
    yield html.text("Plots", "h2")
    yield from _plots(settings, figures[0])


def _table(table: Table) -> str:
    head, rows = as_cells(table)
    notes = html.bullets(table.notes)
    return html.table(head, rows, range(1, len(table.columns))) + notes


def _plots(settings: Sequence[Setting], figure: str) -> Iterable[str]:
    """Yields the plots that these runs have."""
    if importlib.util.find_spec("matplotlib") is None:
        yield html.text("Plots need matplotlib: pip install 'vae_research[figures]'.")
        return
    from vae_research.runs.compare.plots import plot

    captions = {
        "curves": "Validation by epoch: a thin line for each seed, a thick one for their mean.",
        "rate_distortion": "Test figures; models of one ELBO lie on a dashed line.",
    }
    for name in settings[0].values:
        captions[name] = f"The test figure against {name}: seeds, means and 95 % t intervals."
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, caption) in enumerate(captions.items()):
            path = Path(folder, f"{number}.svg")
            try:
                plot(kind, path, settings, figure)
            except UsageError:
                continue  # these runs have no such figures
            yield html.picture(path, caption)


def _runs(folder: Path, records: Sequence[Record]) -> str:
    rows = [
        [record["run"], record["status"], record["epochs"], record["flags/epochs"]]
        for record in records
    ]
    links = {
        str(record["run"]): quote(f"{Path(str(record['path'])).relative_to(folder)}/{REPORT}")
        for record in records
        if Path(str(record["path"]), REPORT).exists()
    }
    return html.table(["run", "status", "epochs", "of"], rows, (2, 3), links)


def _commands(folder: Path, command: Sequence[str]) -> str:
    place = shlex.quote(str(folder))
    return (
        f"{shlex.join(command)}  # resumes; more values, seeds or epochs extend it\n"
        f"scripts/compare {place}  # other figures, a baseline, LaTeX, plots\n"
        f"scripts/tensorboard {place}\n"
    )
