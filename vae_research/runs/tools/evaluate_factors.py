"""Scores of disentanglement of runs: `scripts/evaluate RUN|FOLDER ... --disentanglement`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vae_research.runs.cli import signals, streams
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.records import Record, load_runs
from vae_research.runs.compare.settings import group
from vae_research.runs.report.screen import print_figures
from vae_research.runs.session import directory
from vae_research.runs.session.factors import refuse_without_factors
from vae_research.settings import did_you_mean
from vae_research.tables import markdown_table

if TYPE_CHECKING:
    from vae_research.evaluation.encoding import EncodedData
    from vae_research.evaluation.factor_scores import FactorScores


def evaluate_factors(
    folders: Sequence[str | Path],
    seed: int = 0,
    examples: int | None = None,
    metrics: Sequence[str] | None = None,
) -> None:
    """Compares the codes of the test data of runs with their factors, prints and writes scores.

    The weights are those of the newest intact checkpoint. Several runs, of which those are left out
    that are not complete, are also compared: the rank correlation of each two scores over all runs,
    and, if runs differ in their seed only, the unsupervised ranking (UDR) beside the scores.

    Args:
        folders: run directories, or folders of them.
        seed: of what the metrics draw.
        examples: test examples, at most; None is the default of runs.
        metrics: names of some of them; None is all.

    Raises:
        RunError, DataError, CheckpointError: it cannot be done.
    """
    records = load_runs(*folders)  # before TensorFlow is loaded
    if len(records) > 1:
        left_out = [record["run"] for record in records if record["status"] != "done"]
        records = [record for record in records if record["status"] == "done"]
        if left_out:
            print(f"Not complete, and left out: {', '.join(map(str, left_out))}")
    found: dict[str, tuple[FactorScores, EncodedData]] = {}
    for record in records:
        name = str(record["run"])
        print(name)
        found[name] = _evaluate(Path(str(record["path"])), seed, examples, metrics)
    if len(found) > 1:
        values = {
            run: {name: figure.value for name, figure in scores.figures.items()}
            for run, (scores, _) in found.items()
        }
        print(f"\n{_with_udr(records, found, values)}\n{rank_correlations(values)}", end="")


def _evaluate(
    run_dir: Path, seed: int, examples: int | None, names: Sequence[str] | None
) -> tuple[FactorScores, EncodedData]:
    with streams.hide_startup_output():
        from vae_research.evaluation.factor_scores import METRICS
        from vae_research.runs.session.disentanglement import (
            EXAMPLES,
            save_scores,
            score_and_encode,
        )
        from vae_research.runs.session.loading import load_run

    for name in names or ():
        if name not in METRICS:
            raise UsageError(
                f"--metrics: there is no {name!r}.{did_you_mean(name, METRICS)} There are "
                f"{', '.join(METRICS)}."
            )
    run = load_run(run_dir)
    refuse_without_factors(run.data)
    with directory.locked(run_dir):
        signals.wait_for_steps()
        print(f"Weights of step {run.model.step:,}. Test data, codes beside factors:", flush=True)
        scores, encoded = score_and_encode(
            run.model,
            run.data,
            run.data.test,
            run.names,
            metrics={name: METRICS[name] for name in names or METRICS},
            examples=examples or EXAMPLES,
            seed=seed,
            between_calls=signals.raise_if_received,
        )
        print_figures(scores.figures, scores.notes, 0, dict.fromkeys(scores.figures, ""))
        written = save_scores(run_dir, run.model, run.data, run.names, scores, tensorboard=False)
    print(f"Written to {run_dir}: {', '.join(written)}", flush=True)
    return scores, encoded


def _with_udr(
    records: Sequence[Record],
    found: Mapping[str, tuple[FactorScores, EncodedData]],
    values: Mapping[str, dict[str, float]],
) -> str:
    """Adds the UDR of each run whose setting has several seeds, and returns a table of settings."""
    from vae_research.disentanglement import udr

    rows = []
    for setting in group(records):
        runs = [str(record["run"]) for record in setting.runs.values()]
        encoded = [found[run][1] for run in runs]
        if len(runs) > 1 and len({each.codes.shape for each in encoded}) == 1:
            kl = [each.kl for each in encoded if each.kl is not None]
            scores = udr([each.codes for each in encoded], kl if len(kl) == len(runs) else None)
            for run, score in zip(runs, scores, strict=True):
                values[run]["udr"] = score.value
        names = list(values[runs[0]])
        means = [np.mean([values[run][name] for run in runs]) for name in names]
        rows.append([str(setting), str(len(runs)), *(f"{mean:.3f}" for mean in means)])
    return markdown_table(["setting", "runs", *names], rows)


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

    first, *others = values.values()
    names = [name for name in first if all(name in each for each in others)]
    table = np.array([[each[name] for name in names] for each in values.values()])
    with np.errstate(invalid="ignore"):  # of a score that is equal in all runs
        found = np.corrcoef(average_ranks(table), rowvar=False).reshape(len(names), -1)
    rows = [
        [name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, found, strict=True)
    ]
    return markdown_table(["rank correlation", *names], rows)
