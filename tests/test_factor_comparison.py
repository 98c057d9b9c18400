"""Scores of disentanglement of several runs: means over seeds, UDR, ranks; and scripts/compare."""

import re

import numpy as np
import pytest

from tests.run_directories import write_run
from vae_research.evaluation import NOTE_ON_SCORES
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.records import load_runs
from vae_research.runs.session import directory
from vae_research.runs.session.factors import METRIC_NAMES, metric_names
from vae_research.runs.tools import compare, evaluate
from vae_research.runs.tools import evaluate_factors as evaluate_factors_module
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
            counts = {"counts": {"train": 9, "validation": 5, "test": 600}}
            run_dir = tmp_path / f"{weight}-{seed}"
            path = write_run(run_dir, kl_weight=weight, seed=seed, data=counts)
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


# Scores that exist, and those that are asked for.


@pytest.fixture
def evaluated(monkeypatch):
    """What is evaluated again: run, seed, examples and metrics, in place of doing it."""
    found = []
    monkeypatch.setattr(
        evaluate_factors_module,
        "_evaluate",
        lambda path, *asked: found.append((path.name, *asked)),
    )
    return found


def made_with(path, examples=500, seed=0, metrics=("mig", "sap")):
    file = path / directory.DISENTANGLEMENT
    settings = {"examples": examples, "seed": seed, "metrics": list(metrics)}
    directory.write_json(file, directory.read_json(file) | {"settings": settings})


RUNS = ["1.0-0", "1.0-1", "4.0-0", "4.0-1"]


@pytest.mark.parametrize(
    ("asked", "again"),
    [
        ({}, []),
        ({"examples": 500, "seed": 0, "metrics": "sap"}, []),
        ({"examples": 400}, RUNS),
        ({"seed": 1}, RUNS),
        ({"metrics": "mig,dci"}, RUNS),
    ],
)
def test_scores_are_made_again_if_others_are_asked_for(study, evaluated, asked, again):
    for run in RUNS:
        made_with(study / run)
    evaluate_factors([study], **asked)
    assert [run for run, *_ in evaluated] == again
    for _, seed, examples, metrics in evaluated:
        assert seed == asked.get("seed", 0) and examples == asked.get("examples", 10_000)
        assert metrics == metric_names(asked.get("metrics"))


def test_more_examples_than_there_are_is_all_of_them(study, evaluated):
    for run in RUNS:
        made_with(study / run, examples=10_000)  # of 600
    evaluate_factors([study], examples=700)
    assert not evaluated
    evaluate_factors([study], examples=599)
    assert len(evaluated) == 4


def test_scores_of_other_weights_are_made_again(study, evaluated):
    file = study / RUNS[2] / directory.DISENTANGLEMENT
    directory.write_json(file, directory.read_json(file) | {"step": 29})
    evaluate_factors([study], examples=500)
    assert [run for run, *_ in evaluated] == [RUNS[2]]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"examples": 400}, r"--disentanglement_examples is 500 and 400. With --examples=N all"),
        ({"seed": 3}, r"--evaluation_seed is 0 and 3. With --seed=N all"),
    ],
)
def test_a_table_has_scores_of_one_kind(study, evaluated, made, message):
    made_with(study / RUNS[3], **made)
    with pytest.raises(UsageError, match=f"1.0-0 and 4.0-1 cannot be compared: {message}"):
        evaluate_factors([study])
    # Also those that would be made now.
    (study / RUNS[3] / directory.DISENTANGLEMENT).unlink()
    with pytest.raises(UsageError, match="500 and 600"):
        evaluate_factors([study])
    assert not evaluated


def test_runs_on_other_data_are_not_in_one_table(study, evaluated):
    config = directory.read_config(study / RUNS[1])
    config.pop("sha256", None)
    directory.write_config(
        study / RUNS[1], config | {"data": config["data"] | {"fingerprint": "g"}}
    )
    with pytest.raises(UsageError, match="the data \\(fingerprint\\) is 'f0' and 'g'"):
        evaluate_factors([study])


def test_runs_of_a_setting_with_other_scores_are_compared_by_those_of_all(study, capsys):
    """One seed has a score that the other lacks, and one score is null in the file."""
    for run, name, value in ((RUNS[0], "sap", None), (RUNS[3], "infoc", 0.5)):
        file = study / run / directory.DISENTANGLEMENT
        scores = directory.read_json(file)
        scores["figures"][name] = {"value": value, "standard_error": None, "count": 500}
        directory.write_json(file, scores)
    evaluate_factors([study])
    printed = capsys.readouterr().out
    assert re.search(
        r"\| kl_weight=1 \| 2 \| 0\.105 \| 0\.\d+ \|  \|\n", printed
    )  # no sap of one seed
    assert re.search(r"\| kl_weight=4 \| 2 \| 0\.405 \| 0\.\d+ \| 0\.595 \|\n", printed)
    assert "| rank correlation | mig | udr |" in printed
    assert printed.endswith("\nNot of every run: infoc, sap\n")


def test_runs_of_which_none_is_complete_are_refused(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, status="running")
    with pytest.raises(UsageError, match="none of the 2 runs is complete: a, b"):
        evaluate_factors([tmp_path])


def test_a_single_complete_run_has_a_table_and_no_ranks(study, capsys):
    for run in RUNS[1:]:
        (study / run / directory.SUMMARY).unlink()
    evaluate_factors([study])
    printed = capsys.readouterr().out
    assert "| all runs | 1 | 0.100 | 0.900 |" in printed and "rank correlation" not in printed


def test_scripts_compare_refuses_other_numbers_of_examples(study, capsys):
    for run in RUNS:
        made_with(study / run)
    assert compare.main([str(study), "--figures=mig"]) == 0
    made_with(study / RUNS[3], examples=400)
    assert compare.main([str(study), "--figures=mig"]) == 2
    assert "--disentanglement_examples is 500 and 400" in capsys.readouterr().err


def test_newer_scores_replace_those_of_the_run(tmp_path):
    path = write_run(tmp_path / "run", {"mig": 0.5, "sap": 0.5, "elbo": -90.0})
    write_scores(path, CAUSES, np.ones(3), mig=0.2)
    made_with(path)
    (record,) = load_runs(path)
    assert record["test/mig"] == pytest.approx(0.2) and record["test/elbo"] == -90.0
    assert "test/sap" not in record and record["evaluation/factor_examples"] == 500


def test_notes_are_those_of_the_newer_scores(tmp_path):
    path = write_run(tmp_path / "run", {"mig": 0.5})
    summary = directory.read_json(path / directory.SUMMARY)
    notes = ["grey values", f"{NOTE_ON_SCORES} of 1,000"]
    directory.write_json(path / directory.SUMMARY, summary | {"notes": notes})
    write_scores(path, CAUSES, np.ones(3), mig=0.2)
    scores = directory.read_json(path / directory.DISENTANGLEMENT)
    newer = [f"{NOTE_ON_SCORES} of 500"]
    directory.write_json(path / directory.DISENTANGLEMENT, scores | {"notes": newer})
    assert load_runs(path)[0]["notes"] == f"grey values\n{NOTE_ON_SCORES} of 500"


def test_two_runs_of_one_setting_and_seed_are_refused_before_they_are_scored(study, evaluated):
    write_run(study / "again", kl_weight=1.0, seed=0, data={"counts": {"test": 600}})
    with pytest.raises(UsageError, match="the same seed"):
        evaluate_factors([study])
    assert evaluated == []
