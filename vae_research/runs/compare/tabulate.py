"""The tables of a comparison: a row for each run, or for each setting with its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from vae_research.evaluation import SCORES
from vae_research.evaluation.replicates import PairedBySeed, holm, mean_interval, paired_by_seed
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.formats import Cell, Column, Measured, Table
from vae_research.runs.compare.records import Record, Scalar
from vae_research.runs.compare.settings import (
    Seed,
    Setting,
    differing,
    seed_of,
    value_of,
)
from vae_research.settings import did_you_mean

# Of the test figures, those that a table shows if it is not asked for others.
_USUAL = ("negative_log_likelihood", "elbo", "kl", "active_units", *SCORES[:3])
_SHORT = {"negative_log_likelihood": "NLL", "elbo": "ELBO", "kl": "KL"}
_SHORT |= {"mig": "MIG", "dci_disentanglement": "DCI disentanglement", "sap": "SAP"}
_SMALLEST_P = 1e-12  # a p-value is 1 minus a probability, whose last digit is 1e-16
_LARGER_IS_BETTER = ("elbo", "importance_weighted_bound")


def figures_of(records: Sequence[Record], wanted: Sequence[str] | None) -> list[str]:
    """Returns the names of the test figures of a table, as they were asked for.

    Raises:
        UsageError: no run has one of them.
    """
    known = [key.removeprefix("units/") for key in records[0] if key.startswith("units/")]
    if wanted is None:
        return [name for name in _USUAL if name in known] or known
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"--figures: no run has a test figure {name!r}.{did_you_mean(name, known)} There "
                f"are {', '.join(known)}."
            )
    return list(wanted)


def table_of_runs(
    records: Sequence[Record],
    figures: Sequence[str],
    baseline: Record | None = None,
    difference: Callable[[Record, Record, str], tuple[Measured, float | None]] | None = None,
) -> Table:
    """Returns a table with a row for each run.

    Args:
        records: of finished runs, in the order of the rows.
        figures: names of test figures.
        baseline: the run that the others are compared with, example by example, if there is one.
        difference: of the first figure of two runs, the first minus the second; and the standard
            error that it would have if the two runs had different examples.
    """
    labels = [name for name in ("name", "note") if any(run[name] for run in records)]
    columns = [Column(name, name, [run[name] for run in records]) for name in ("run", *labels)]
    for name in differing(records):
        columns.append(Column(name, name, [value_of(run, name) for run in records]))
    columns.append(Column("seed", "seed", [seed_of(run) for run in records]))
    for figure in figures:
        cells = [_with_standard_error(run, figure) for run in records]
        columns.append(_column_of(figure, cells, records, "standard_error"))
    notes = ["+- is the standard error of the mean over test examples."]
    if any(figure in SCORES for figure in figures):
        notes.append("That of a score of disentanglement is over groups of test examples.")
    if baseline is not None and difference is not None:
        found = [
            (None, None) if run is baseline else difference(run, baseline, figures[0])
            for run in records
        ]
        label, key = f"{short(figures[0])} difference", f"{figures[0]}_difference"
        paired, unpaired = zip(*found, strict=True)
        columns += [
            Column(key, label, paired, f"{key}_standard_error"),
            Column(f"{key}_unpaired_standard_error", "unpaired +-", unpaired, digits=2),
        ]
        notes.append(
            f"Differences are to {baseline['run']}, of two trained models over the same test "
            "examples; unpaired +- is the error for different examples. Several "
            "seeds of each setting show what the setting does."
        )
    columns.append(Column("epochs", "epochs", [run["epochs"] for run in records]))
    columns.append(_time([run["seconds"] for run in records]))
    return Table(columns, notes)


def table_of_settings(
    settings: Sequence[Setting], figures: Sequence[str], baseline: Setting | None
) -> Table:
    """Returns a table with a row for each setting: means and 95 % t intervals over its seeds.

    Args:
        settings: in the order of the rows.
        figures: names of test figures.
        baseline: the setting that the others are compared with in the first figure, by seed.
    """
    some = [run for setting in settings for run in setting.runs.values()]
    columns = [
        Column(name, name, [setting.values[name] for setting in settings])
        for name in settings[0].values
    ]
    if any(run["name"] for run in some):
        columns.insert(0, Column("name", "name", [_common_name(each) for each in settings]))
    columns.append(Column("seeds", "seeds", [len(setting.runs) for setting in settings]))
    for figure in figures:
        cells = [_over_seeds(setting.figure(f"test/{figure}")) for setting in settings]
        columns.append(_column_of(figure, cells, some, "half_interval"))
    notes = ["+- is half of the 95 % t interval of the mean over seeds."]
    notes += [
        f"The seeds of {each} were trained by different code and may not be replicates: "
        f"{', '.join(each.changed_files)} in their source/."
        for each in settings
        if each.changed_files
    ]
    if baseline is not None:
        added, more = _comparisons(settings, figures[0], baseline)
        columns += added
        notes += more
    epochs = [setting.figure("epochs").values() for setting in settings]
    seconds = [setting.figure("seconds").values() for setting in settings]
    columns.append(Column("epochs", "epochs", [_mean(values) for values in epochs]))
    columns.append(_time([_mean(values) for values in seconds]))
    return Table(columns, notes)


def sort_key(name: str, records: Sequence[Record]) -> tuple[str, bool]:
    """Returns the key of records that `--sort` means, and whether large values come first.

    A figure has its best value first, anything else its smallest; `-NAME` turns that round.

    Raises:
        UsageError: there is no such column.
    """
    plain = name.removeprefix("-")
    is_figure = f"test/{plain}" in records[0]
    candidates = (f"test/{plain}", plain, f"flags/{plain}")
    key = next((each for each in candidates if each in records[0]), None)
    if key is None:
        known = [each.removeprefix("test/") for each in records[0] if each.count("/") < 2]
        raise UsageError(f"--sort={name}: the runs have no {plain!r}.{did_you_mean(plain, known)}")
    larger_first = is_figure and (plain.startswith(_LARGER_IS_BETTER) or plain in SCORES)
    return key, larger_first != name.startswith("-")


def in_order(rows: Sequence[Any], values: Sequence[Scalar], *, larger_first: bool) -> list[Any]:
    """Returns rows in the order of their values; those without a value come last."""
    numbers = all(isinstance(value, int | float | None) for value in values)
    known = [
        (value if numbers else str(value), at)
        for at, value in enumerate(values)
        if value is not None
    ]
    ordered = sorted(known, key=lambda each: each[0], reverse=larger_first)
    missing = [at for at, value in enumerate(values) if value is None]
    return [rows[at] for at in [*(at for _, at in ordered), *missing]]


def short(figure: str) -> str:
    """Returns what a head calls a figure."""
    return _SHORT.get(figure, figure.replace("_", " "))


def _comparisons(
    settings: Sequence[Setting], figure: str, baseline: Setting
) -> tuple[list[Column], list[str]]:
    """Returns the columns that compare settings with a baseline, and notes on them."""
    of_baseline = baseline.figure(f"test/{figure}")
    found: list[PairedBySeed | None] = [
        None if each is baseline else paired_by_seed(each.figure(f"test/{figure}"), of_baseline)
        for each in settings
    ]
    differences: list[Cell] = [
        None if each is None else Measured(each.difference.mean, each.difference.half_width)
        for each in found
    ]
    p_values = [
        None if each is None or each.p_value is None else max(each.p_value, _SMALLEST_P)
        for each in found
    ]
    tested = [at for at, value in enumerate(p_values) if value is not None]
    adjusted: list[float | None] = [None] * len(settings)
    for at, value in zip(tested, holm([p for p in p_values if p is not None]), strict=True):
        adjusted[at] = value
    key, words = f"{figure}_difference", short(figure)
    columns = [Column(key, f"{words} difference", differences, f"{key}_half_interval")]
    notes = [f"Differences to {baseline} are paired by seed."]
    if tested:
        columns += [
            Column("p_value", "p", p_values, digits=2),
            Column("p_value_holm", f"p, Holm over {len(tested)}", adjusted, digits=2),
        ]
        notes[0] += (
            f" p is that of a two-sided paired t-test, also corrected by Holm over the "
            f"{len(tested)} comparisons of {words} that have one."
        )
    for setting, each in zip(settings, found, strict=True):
        if setting is baseline:
            continue
        pairs = 0 if each is None else each.difference.count
        if pairs < 3:
            notes.append(
                f"{setting} has {_seeds(pairs)} in common with {baseline}: no p-value under three."
            )
        alone = {*setting.runs} ^ {*baseline.runs}
        if alone and pairs:
            numbers = ", ".join(sorted(map(str, alone)))
            notes.append(f"The difference of {setting} is without the unpaired seeds {numbers}.")
    return columns, notes


def _seeds(count: int) -> str:
    return {0: "no seed", 1: "one seed"}.get(count, f"{count} seeds")


def _with_standard_error(run: Record, figure: str) -> Cell:
    value, error = run[f"test/{figure}"], run[f"test/{figure}/standard_error"]
    if not isinstance(value, float):
        return None
    return Measured(value, error if isinstance(error, float) else None)


def _over_seeds(values: dict[Seed, float]) -> Cell:
    if not values:
        return None
    found = mean_interval(list(values.values()))
    return Measured(found.mean, found.half_width)


def _column_of(figure: str, cells: Sequence[Cell], runs: Sequence[Record], error: str) -> Column:
    unit = next((unit for run in runs if (unit := run[f"units/{figure}"])), None)
    # Heads of units that are no nats would be longer than their names.
    label = f"{short(figure)} (nats)" if unit == "nats" else short(figure)
    return Column(figure, label, cells, f"{figure}_{error}")


def _common_name(setting: Setting) -> str | None:
    names = {run["name"] for run in setting.runs.values()}
    return str(name) if len(names) == 1 and (name := names.pop()) else None


def _time(seconds: Sequence[Scalar]) -> Column:
    return Column(
        "seconds", "seconds", [None if s is None else round(float(s), 1) for s in seconds]
    )


def _mean(values: Any) -> float | None:
    return statistics.fmean(values) if values else None
