"""Scores of disentanglement of runs: `scripts/evaluate RUN|FOLDER ... --disentanglement`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vae_research.runs.cli import signals, streams
from vae_research.runs.compare.records import Record, load_runs
from vae_research.runs.compare.settings import group
from vae_research.runs.report.screen import print_figures
from vae_research.runs.session import directory
from vae_research.runs.session.factors import metric_names, refuse_without_factors
from vae_research.tables import markdown_table


def evaluate_factors(
    folders: Sequence[str | Path],
    seed: int = 0,
    examples: int | None = None,
    metrics: str | None = None,
) -> None:
    """Compares the codes of the test data of runs with their factors, prints and writes scores.

    The weights are those of the newest intact checkpoint. Of several runs, those that are not
    complete are left out, and those that have scores keep them. They are also compared: the share
    of the variance between settings, the rank correlation of each two scores over all runs, and, if
    runs differ in their seed only, the unsupervised ranking (UDR) beside the scores.

    Args:
        folders: run directories, or folders of them.
        seed: of what the metrics draw.
        examples: test examples, at most; None is the default of runs.
        metrics: names of some of them, separated by commas; None is all.

    Raises:
        RunError, DataError, CheckpointError: it cannot be done.
    """
    names = metric_names(metrics, "--metrics")
    records = load_runs(*folders)  # before TensorFlow is loaded
    if len(records) == 1:
        _evaluate(Path(str(records[0]["path"])), seed, examples, names)
        return
    left_out = [str(record["run"]) for record in records if record["status"] != "done"]
    records = [record for record in records if record["status"] == "done"]
    for record in records:
        path = Path(str(record["path"]))
        if not all((path / name).exists() for name in (directory.DISENTANGLEMENT, directory.CODES)):
            print(record["run"])
            _evaluate(path, seed, examples, names)
    print(comparison_of_scores(records), end="")
    if left_out:
        print(f"\nNot complete, and left out: {', '.join(left_out)}")


def _evaluate(run_dir: Path, seed: int, examples: int | None, names: Sequence[str]) -> None:
    with streams.hide_startup_output():
        from vae_research.evaluation.factor_scores import METRICS
        from vae_research.runs.session.disentanglement import EXAMPLES, save_scores, score_split
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
            examples=examples or EXAMPLES,
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
            values[run] = {name: float(figure["value"]) for name, figure in figures}
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
    return f"{table}\n{between_settings(values, setting_of)}\n{rank_correlations(values)}"


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
