"""Scores of disentanglement of several runs: means over seeds, UDR, ranks; and scripts/compare."""

import re

import numpy as np
import pytest

from tests.run_directories import write_run
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.records import load_runs
from vae_research.runs.session import directory
from vae_research.runs.session.factors import METRIC_NAMES, metric_names
from vae_research.runs.tools import evaluate
from vae_research.runs.tools.evaluate_factors import evaluate_factors

RANDOM = np.random.default_rng(0)
CAUSES = RANDOM.normal(size=(500, 3))


def write_scores(run_dir, codes, kl, **scores):
    figures = {
        name: {"value": value, "standard_error": None, "count": 500}
        for name, value in scores.items()
    }
    directory.write_json(run_dir / directory.DISENTANGLEMENT, {"step": 30, "figures": figures})
    np.savez(run_dir / directory.CODES, codes=codes, kl=kl)


@pytest.fixture
def study(tmp_path):
    """Two settings with two seeds: equal codes but for order and sign, and rotated ones."""
    for weight in (1.0, 4.0):
        for seed in (0, 1):
            codes = CAUSES[:, ::-1] * [1, -1, 1] if seed else CAUSES
            if weight == 1.0:
                codes = codes @ np.linalg.qr(RANDOM.normal(size=(3, 3)))[0]
            path = write_run(tmp_path / f"{weight}-{seed}", kl_weight=weight, seed=seed)
            mig = 0.1 * weight + 0.01 * seed
            write_scores(path, codes, np.full(3, 2.0), mig=mig, sap=1 - mig)
    return tmp_path


def test_scores_of_runs_are_compared_without_computing_them_again(study, capsys):
    write_run(study / "last", status="running", seed=9)
    evaluate_factors([study])
    printed = capsys.readouterr().out
    assert "Not complete, and left out: last" in printed
    assert "| setting | runs | mig | sap | udr |" in printed
    found = dict(re.findall(r"\| kl_weight=(\d) \| 2 \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|", printed))
    # Codes that agree up to order and sign: the penalty of 0.1 takes a tenth of each weight.
    assert float(found["4"]) == pytest.approx(0.9, abs=0.01)
    assert float(found["1"]) < 0.75
    assert "| kl_weight=4 | 2 | 0.405 | 0.595 |" in printed
    assert "| mig | 1.00 | -1.00 |" in printed


def test_scripts_compare_reads_scores_of_the_last_weights(study):
    records = load_runs(study)
    found = {record["run"]: record["test/mig"] for record in records}
    assert found == pytest.approx({"1.0-0": 0.1, "1.0-1": 0.11, "4.0-0": 0.4, "4.0-1": 0.41})
    scores = directory.read_json(study / "1.0-0" / directory.DISENTANGLEMENT)
    directory.write_json(study / "1.0-0" / directory.DISENTANGLEMENT, scores | {"step": 29})
    found = {record["run"]: record["test/mig"] for record in load_runs(study)}
    assert found["1.0-0"] is None and found["4.0-1"] == pytest.approx(0.41)


def test_names_of_metrics_are_those_that_exist():
    from vae_research.evaluation.factor_scores import METRICS

    assert set(METRIC_NAMES) == set(METRICS)
    assert metric_names(None) == METRIC_NAMES and metric_names("sap,mig") == ("sap", "mig")
    with pytest.raises(UsageError, match=r"there is no 'migs'.*mig.*There are mig, sap"):
        metric_names("migs")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a", "b", "--ais"], "--ais evaluates one run, and 2 are given"),
        (["a", "--ais", "--metrics=mig"], "are those of --disentanglement"),
        (["a", "--disentanglement", "--examples=3"], "--examples"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, capsys):
    assert evaluate.main(flags) == 2
    assert message in capsys.readouterr().err
