"""Scores of disentanglement of runs: `scripts/evaluate RUN|FOLDER ... --disentanglement`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.evaluation import SCORES
from vae_research.runs.cli import signals, streams
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.comparability import difference_between
from vae_research.runs.compare.records import Record, load_runs, read_scores
from vae_research.runs.compare.settings import group
from vae_research.runs.report.screen import print_figures
from vae_research.runs.session import directory
from vae_research.runs.session.factors import EXAMPLES, metric_names, refuse_without_factors
from vae_research.tables import markdown_table


def evaluate_factors(
    folders: Sequence[str | Path],
    seed: int | None = None,
    examples: int | None = None,
    metrics: str | None = None,
) -> None:
    """Compares the codes of the test data of runs with their factors, prints and writes scores.

    The weights are those of the newest intact checkpoint. Of several runs, those that are not
    complete are left out, and those whose scores are as asked keep them. They are also compared:
    the share of the variance between settings, the rank correlation of each two scores over all
    runs, and, if runs differ in their seed only, the unsupervised ranking (UDR) beside the scores.

    Args:
        folders: run directories, or folders of them.
        seed: of what the metrics draw; None keeps that of scores that exist, and is 0 for others.
        examples: test examples, at most; None keeps those of scores that exist, and is the default
            of runs for others.
        metrics: names of some of them, separated by commas; None keeps those that a run has scores
            of, and is all for others.

    Raises:
        UsageError: no run is complete, or their scores would be of other data, another number of
            examples or another seed.
        RunError, DataError, CheckpointError: it cannot be done.
    """
    names = metric_names(metrics, "--metrics")
    records = load_runs(*folders)  # before TensorFlow is loaded
    if len(records) == 1:
        path = Path(str(records[0]["path"]))
        _evaluate(path, seed or 0, examples or EXAMPLES, names)
        return
    left_out = [str(record["run"]) for record in records if record["status"] != "done"]
    records = [record for record in records if record["status"] == "done"]
    if not records:
        raise UsageError(f"none of the {len(left_out)} runs is complete: {', '.join(left_out)}.")
    asked = {"seed": seed, "examples": examples, "metrics": None if metrics is None else names}
    stored = [_stored(record, asked) for record in records]
    default = {"seed": seed or 0, "examples": examples or EXAMPLES}
    group(records)  # which refuses two runs of one setting and seed
    _refuse_different(records, [default if each is None else each for each in stored])
    for record, each in zip(records, stored, strict=True):
        if each is None:
            print(record["run"])
            _evaluate(Path(str(record["path"])), default["seed"], default["examples"], names)
    print(comparison_of_scores(records), end="")
    if left_out:
        print(f"\nNot complete, and left out: {', '.join(left_out)}")


def _stored(record: Record, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns with which seed and number of examples the scores of a run were made.

    None if it has none, or not those that were asked for.
    """
    path = Path(str(record["path"]))
    found = read_scores(path, record["steps"])
    if found is None or not (path / directory.CODES).exists():
        return None
    counts = [figure["count"] for figure in found["figures"].values()]
    made = found.get("settings", {"examples": max(counts)} if counts else {})
    for name in ("seed", "examples"):
        if asked[name] is not None and (
            name not in made
            or _of_test_data(record, name, asked[name]) != _of_test_data(record, name, made[name])
        ):
            return None
    if asked["metrics"] is not None and not {*asked["metrics"]} <= {*made.get("metrics", ())}:
        return None
    return made


def _of_test_data(record: Record, name: str, value: Any) -> Any:
    """Returns a setting; of a number of examples, no more than the run has for testing."""
    count = record.get("data/counts/test")
    return min(value, count) if name == "examples" and isinstance(count, int) else value


def _refuse_different(records: Sequence[Record], settings: Sequence[Mapping[str, Any]]) -> None:
    """Raises UsageError unless scores that are made with these settings can be compared."""
    of_scores = [
        record
        | {
            "evaluation/factor_examples": _of_test_data(
                record, "examples", made.get("examples", EXAMPLES)
            ),
            "evaluation/seed": made.get("seed", 0),
        }
        for record, made in zip(records, settings, strict=True)
    ]
    for other in of_scores[1:]:
        if (found := difference_between(of_scores[0], other, SCORES)) is not None:
            flag = {"--disentanglement_examples": "--examples", "--evaluation_seed": "--seed"}
            mended = flag.get(found.split(" ")[0])
            advice = "" if mended is None else f" With {mended}=N all are evaluated alike."
            names = f"{of_scores[0]['run']} and {other['run']}"
            raise UsageError(f"{names} cannot be compared: {found}.{advice}")


def _evaluate(run_dir: Path, seed: int, examples: int, names: Sequence[str]) -> None:
    with streams.hide_startup_output():
        from vae_research.evaluation.factor_scores import METRICS
        from vae_research.runs.session.disentanglement import save_scores, score_split
        from vae_research.runs.session.loading import load_run

    run = load_run(run_dir)
    refuse_without_factors(run.data)
    with directory.locked(run_dir):
        signals.wait_for_steps()
        print(f"Weights of step {run.model.step:,}. Test data, codes beside factors:", flush=True)
        scores = score_split(
            run.model,
            run.data,
            run.data.test,
            run.names,
            metrics={name: METRICS[name] for name in names},
            examples=examples,
            seed=seed,
            between_calls=signals.raise_if_received,
        )
        print_figures(scores.figures, scores.notes, 0, dict.fromkeys(scores.figures, ""))
        written = save_scores(run_dir, run.model, run.data, run.names, scores, tensorboard=False)
    print(f"Written to {run_dir}: {', '.join(written)}", flush=True)


def comparison_of_scores(records: Sequence[Record]) -> str:
    """Returns tables of the scores of runs: means over the seeds of a setting, with UDR; ranks.

    Args:
        records: of runs that have scores and codes.
    """
    from vae_research.disentanglement import udr

    values: dict[str, dict[str, float]] = {}
    setting_of: dict[str, str] = {}
    rows = []
    for setting in group(records):
        runs = {str(record["run"]): Path(str(record["path"])) for record in setting.runs.values()}
        for run, path in runs.items():
            found = directory.read_json(path / directory.DISENTANGLEMENT) or {}
            figures = found["figures"].items()
            # One that is not finite is null in a file, and is like one that there is not.
            of_run = {name: figure["value"] for name, figure in figures}
            values[run] = {name: float(each) for name, each in of_run.items() if each is not None}
            setting_of[run] = str(setting)
        saved = [np.load(path / directory.CODES) for path in runs.values()]
        codes, kl = ([each[name] for each in saved if name in each] for name in ("codes", "kl"))
        if len(runs) > 1 and len({len(each) for each in codes}) == 1:
            scores = udr(codes, kl if len(kl) == len(runs) else None)
            for run, score in zip(runs, scores, strict=True):
                values[run]["udr"] = score.value
        names = names_of_all({run: values[run] for run in runs})
        means = [np.mean([values[run][name] for run in runs]) for name in names]
        cells = dict(zip(names, (f"{mean:.3f}" for mean in means), strict=True))
        rows.append({"setting": str(setting), "runs": str(len(runs)), **cells})
    head = list(dict.fromkeys(name for row in rows for name in row))
    table = markdown_table(head, [[row.get(name, "") for name in head] for row in rows])
    common = names_of_all(values)
    lacking = {name for each in values.values() for name in each} - {*common, "udr"}
    note = f"\nNot of every run: {', '.join(sorted(lacking))}\n" if lacking else ""
    if len(values) == 1 or not common:
        return table + note
    compared = f"{between_settings(values, setting_of)}\n{rank_correlations(values)}"
    return f"{table}\n{compared}{note}"


def between_settings(
    values: Mapping[str, Mapping[str, float]], setting_of: Mapping[str, str]
) -> str:
    """Returns a table of the share of the variance of scores that is between settings.

    The rest is between seeds. If settings made no difference, the share would be
    `(settings - 1) / (runs - 1)` on average.

    Args:
        values: of each run, by name.
        setting_of: the setting of each run.

    >>> found = {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 4}, "d": {"x": 5}}
    >>> print(between_settings(found, {"a": "1", "b": "1", "c": "2", "d": "2"}), end="")
    | variance | between settings | expected by chance |
    | --- | --- | --- |
    | x | 0.90 | 0.33 |
    """
    rows = []
    for name in names_of_all(values):
        of_runs = {run: each[name] for run, each in values.items()}
        groups: dict[str, list[float]] = {}
        for run, value in of_runs.items():
            groups.setdefault(setting_of[run], []).append(value)
        within = sum(np.var(each) * len(each) for each in groups.values())
        total = np.var(list(of_runs.values())) * len(of_runs)
        share = "" if total == 0.0 else f"{1.0 - within / total:.2f}"
        chance = (len(groups) - 1) / max(len(of_runs) - 1, 1)
        rows.append([name, share, f"{chance:.2f}"])
    return markdown_table(["variance", "between settings", "expected by chance"], rows)


def names_of_all(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the names of the scores that every run has."""
    first, *others = values.values()
    return [name for name in first if all(name in each for each in others)]


def rank_correlations(values: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a table of Spearman's rank correlations of scores over runs.

    Args:
        values: of each run, by name; those that not every run has are left out.

    >>> print(rank_correlations({"a": {"x": 1, "y": 7}, "b": {"x": 2, "y": 4}}), end="")
    | rank correlation | x | y |
    | --- | --- | --- |
    | x | 1.00 | -1.00 |
    | y | -1.00 | 1.00 |
    """
    from vae_research.disentanglement.ranks import average_ranks

    names = names_of_all(values)
    table = np.array([[each[name] for name in names] for each in values.values()])
    with np.errstate(invalid="ignore"):  # of a score that is equal in all runs
        found = np.corrcoef(average_ranks(table), rowvar=False).reshape(len(names), -1)
    rows = [
        [name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, found, strict=True)
    ]
    return markdown_table(["rank correlation", *names], rows)
