"""scripts/compare and load_runs, on run directories that are written as JSON, not trained."""

import csv
import html
import io
import json
import os
import re
import shutil
import statistics
from urllib.parse import quote

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import ConvexHull

import vae_research as vr
from tests import forks
from tests.run_directories import DATA, figure, write_run, write_sweep
from vae_research.evaluation import replicates
from vae_research.objective import LARGER_IS_BETTER
from vae_research.runs.compare import comparability, tabulate
from vae_research.runs.compare.page import write_report
from vae_research.runs.compare.plots import frontier_of
from vae_research.runs.session import directory
from vae_research.runs.tools import compare

RNG = np.random.default_rng(0)


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "sweep")


def said(capsys, *arguments, exit_code=0):
    """What the command prints, after its exit code was checked."""
    assert compare.main([str(argument) for argument in arguments]) == exit_code
    return capsys.readouterr()


def rows_of(capsys, *arguments):
    text = said(capsys, *arguments, "--format=csv").out
    return list(csv.DictReader(io.StringIO(text)))


# ---------------------------------------------------------------- records


def test_records_are_flat_and_have_the_same_keys(sweep):
    records = vr.load_runs(sweep)
    assert len(records) == 13
    assert len({tuple(record) for record in records}) == 1
    for key in records[0]:
        kinds = {type(record[key]) for record in records} - {type(None)}
        assert kinds <= {str, int, float, bool}
        assert len(kinds) <= 1, key
    first = records[0]
    assert (first["run"], first["status"]) == ("kl_weight=0.5,seed=0", "done")
    assert first["path"] == str(sweep / first["run"])
    assert first["flags/hidden_units"] == "8,4"
    assert first["test/negative_log_likelihood"] == figure(0.5, 0)
    assert first["test/negative_log_likelihood/standard_error"] == 0.25
    assert first["validation/elbo"] == -108.0
    assert first["data/counts/test"] == first["test/elbo/count"] == 4
    last = records[-1]
    assert (last["run"], last["status"], last["epochs"]) == ("last", "unfinished", 2)
    assert last["test/elbo"] is None


def test_runs_are_found_at_any_depth_once_and_not_within_each_other(tmp_path):
    write_run(tmp_path / "a/deep/run")
    write_run(tmp_path / "a/deep/run/checkpoints/copied")  # nobody's run of its own
    study = write_run(tmp_path / "a/study")
    write_run(study / "model")
    config = json.loads((study / "config.json").read_text())
    del config["terms"], config["sha256"]
    (study / "config.json").write_text(json.dumps(config))
    (study / "summary.json").write_text('{"status": "done", "seconds_of_last_session": 3.0}')
    records = vr.load_runs(tmp_path, tmp_path / "a/deep/run", tmp_path / "a/../a")
    assert [record["run"] for record in records] == ["deep/run", "study/model"]
    (record,) = vr.load_runs(study / "model")
    assert record["run"] == "model"


def test_a_run_says_what_became_of_it(tmp_path):
    write_run(tmp_path / "a", status="diverged")
    write_run(tmp_path / "b", status="unfinished")
    write_run(tmp_path / "c", status="unfinished")
    with directory.locked(tmp_path / "c"):
        found = {record["run"]: record["status"] for record in vr.load_runs(tmp_path)}
    assert found == {"a": "diverged", "b": "unfinished", "c": "running"}


# ---------------------------------------------------------------- tables


def test_a_table_of_settings_has_intervals_over_seeds(sweep, capsys):
    rows = rows_of(capsys, sweep)
    assert [row["kl_weight"] for row in rows] == ["0.5", "1.0", "2.0"]  # smallest NLL first
    for row in rows:
        values = [figure(float(row["kl_weight"]), seed) for seed in range(4)]
        low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
        assert row["seeds"] == "4"
        assert float(row["negative_log_likelihood"]) == pytest.approx(np.mean(values))
        half = float(row["negative_log_likelihood_half_interval"])
        assert half == pytest.approx((high - low) / 2)
        assert (float(row["epochs"]), float(row["seconds"])) == (3.0, 61.5)
    assert "p_value" not in rows[0]


def unpaired(setting, baseline):
    """A mutant of `paired_by_seed`: gives the baseline's figures to other seeds."""
    moved = dict(zip(baseline, reversed(baseline.values()), strict=True))
    return replicates.paired_by_seed(setting, moved)


@pytest.mark.parametrize("is_mutant", [False, True])
def test_differences_to_a_baseline_are_paired_by_seed_and_corrected_by_holm(
    sweep, capsys, monkeypatch, is_mutant
):
    if is_mutant:
        monkeypatch.setattr(tabulate, "paired_by_seed", unpaired)
    rows = {row["kl_weight"]: row for row in rows_of(capsys, sweep, "--baseline=kl_weight=1")}
    assert rows["1.0"]["p_value"] == rows["1.0"]["negative_log_likelihood_difference"] == ""
    base = [figure(1.0, seed) for seed in range(4)]
    found, expected = [], []
    for weight in (0.5, 2.0):
        result = stats.ttest_rel([figure(weight, seed) for seed in range(4)], base)
        low, high = result.confidence_interval(0.95)
        row = rows[str(weight)]
        found += [float(row["negative_log_likelihood_difference"]), float(row["p_value"])]
        found.append(float(row["negative_log_likelihood_difference_half_interval"]))
        expected += [(low + high) / 2, result.pvalue, (high - low) / 2]
    agrees = np.allclose(found, expected, rtol=1e-6)  # CSV has p-values in full
    assert agrees != is_mutant
    if not is_mutant:
        first, second = sorted((expected[1], expected[4]))  # Holm by hand: twice the smaller one
        smaller, larger = sorted(float(rows[key]["p_value_holm"]) for key in ("0.5", "2.0"))
        assert smaller == pytest.approx(2 * first)
        assert larger == pytest.approx(max(2 * first, second))
        screen = said(capsys, sweep, "--baseline=kl_weight=1").out
        assert f" {first:.2g} " in screen and f" {2 * first:.2g} " in screen


def test_two_seeds_have_an_interval_and_no_p_value(sweep, capsys):
    for path in sweep.glob("kl_weight=2,seed=[23]"):
        shutil.rmtree(path)
    shutil.rmtree(sweep / "kl_weight=1,seed=3")
    output = said(capsys, sweep, "--baseline=kl_weight=1", "--format=csv")
    rows = {row["kl_weight"]: row for row in csv.DictReader(io.StringIO(output.out))}
    assert rows["2.0"]["p_value"] == rows["2.0"]["p_value_holm"] == ""
    assert float(rows["2.0"]["negative_log_likelihood_difference_half_interval"]) > 0
    # One comparison is left, so that there is nothing to correct.
    assert rows["0.5"]["p_value"] == rows["0.5"]["p_value_holm"] != ""
    assert (
        "kl_weight=2 has 2 seeds in common with kl_weight=1: no p-value under three" in output.err
    )
    assert "The difference of kl_weight=0.5 is without the unpaired seeds 3." in output.err


def test_two_trained_models_are_compared_by_example_and_never_by_holm(tmp_path, capsys):
    values = {name: RNG.normal(98.0, 5.0, 40).astype(np.float32) for name in "ab"}
    for name, kl_weight in (("a", 1.0), ("b", 2.0)):
        run_dir = write_run(tmp_path / name, kl_weight=kl_weight, name=f"run | {name}")
        np.savez(run_dir / "figures.npz", negative_log_likelihood=values[name])
    output = said(capsys, tmp_path, "--baseline=a", "--format=csv")
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(output.out))}
    difference = values["b"].astype(np.float64) - values["a"]
    found = rows["b"]["negative_log_likelihood_difference"]
    assert float(found) == pytest.approx(difference.mean())
    error = rows["b"]["negative_log_likelihood_difference_standard_error"]
    assert float(error) == pytest.approx(stats.sem(difference))
    unpaired = rows["b"]["negative_log_likelihood_difference_unpaired_standard_error"]
    errors = [stats.sem(each.astype(np.float64)) for each in values.values()]
    assert float(unpaired) == pytest.approx(np.hypot(*errors))
    assert rows["a"]["negative_log_likelihood_difference_unpaired_standard_error"] == ""
    assert not any("p_value" in name for name in rows["b"])
    assert "Differences are to a, of two trained models" in output.err
    # Asked about settings, one seed of each says nothing of its certainty.
    output = said(capsys, tmp_path, "--rows=settings", "--baseline=run | a", "--format=csv")
    (row,) = [r for r in csv.DictReader(io.StringIO(output.out)) if r["kl_weight"] == "2.0"]
    assert row["negative_log_likelihood_difference_half_interval"] == ""
    assert "p_value" not in row
    assert "kl_weight=2 has one seed in common" in output.err
    assert "Holm" not in output.err


def test_the_screen_names_what_is_not_finished(sweep, capsys):
    screen = said(capsys, sweep, "--baseline=kl_weight=1").out
    head, *lines = screen.splitlines()
    assert head.split()[:4] == ["kl_weight", "seeds", "NLL", "(nats)"]
    mean = statistics.fmean(figure(0.5, seed) for seed in range(4))
    assert lines[0].split()[:4] == ["0.5", "4", f"{mean:.1f}", "+-"]
    assert "Not in the table: last (unfinished, epoch 2 of 3)." in screen
    assert "also corrected by Holm over the 2 comparisons of NLL" in screen


@pytest.fixture
def unfinished_sweep(tmp_path):
    """Points that are done, failed before and after config.json, wait, and were interrupted."""
    new = {"flags": {}, "trial": None, "threads": 1}
    points = {
        "done": new | {"state": "done", "exit_code": 0},
        "again": new | {"state": "failed", "exit_code": 1, "message": "and done by hand"},
        "diverged": new | {"state": "failed", "exit_code": 6, "message": "kl is not finite"},
        "killed": new | {"state": "running"},
        "never": new | {"state": "failed", "exit_code": 3, "message": "there is no such file"},
        "waits": new | {"state": "waiting"},
    }
    into = tmp_path / "sweeps/one"
    for seed, name in enumerate(["done", "again", "diverged", "killed"]):
        status = "done" if seed < 2 else "diverged" if seed < 3 else "unfinished"
        write_run(into / name, seed=seed, status=status)
    write_record(into, points)
    return into


def write_record(into, points):
    """Writes the sweep.json of some points."""
    values = {"format": 1, "identity": "a", "experiment": "b.py", "arguments": [], "settings": {}}
    directory.write_json(into / "sweep.json", values | {"points": points})


def test_points_of_a_sweep_that_are_not_done_are_named_with_their_reason(unfinished_sweep, capsys):
    named = (
        "diverged (failed, exit code 6: kl is not finite), killed (unfinished, epoch 3 of 3), "
        "never (failed, exit code 3: there is no such file), waits (waiting)."
    )
    assert said(capsys, unfinished_sweep).out.endswith(f"Not in the table: {named}\n")
    # The folder of the sweep need not be named, and of a run that is named it says nothing.
    assert said(capsys, unfinished_sweep.parent).out.endswith(f"Not in the table: {named}\n")
    assert "Not in the table" not in said(capsys, unfinished_sweep / "done").out


def test_notes_of_the_runs_are_printed_once_with_their_runs(tmp_path, capsys):
    for seed in range(6):
        own = ["Weights are averaged."] if seed == 3 else []
        tails = f"Of 9{seed}.5% of the examples the tail is heavy."
        write_run(tmp_path / str(seed), seed=seed, notes=["No likelihood.", tails, *own])
    _, notes = said(capsys, tmp_path).out.split("\n\n")
    wanted = [
        "All runs: No likelihood.",
        "0, and with other numbers all others: Of 90.5% of the examples the tail is heavy.",
        "3: Weights are averaged.",
    ]
    assert notes.splitlines()[1:] == wanted
    write_run(tmp_path / "x", seed=6, notes=[])
    _, notes = said(capsys, tmp_path).out.split("\n\n")
    assert notes.splitlines()[1:3] == [
        "0, 1, 2 and 3 more: No likelihood.",
        "0, and with other numbers 1, 2, 3 and 2 more: Of 90.5% of the examples the tail is heavy.",
    ]


def test_markdown_and_latex_escape_what_they_must(tmp_path, capsys):
    write_run(tmp_path / "a_1", {"elbo": -103.25}, name="50 % | a_b", note="x & y")
    write_run(tmp_path / "b", {"elbo": -104.0}, kl_weight=2.0)
    markdown = said(capsys, tmp_path, "--format=markdown", "--figures=elbo").out.splitlines()
    assert markdown[0] == (
        "| run | name | note | kl_weight | seed | ELBO (nats) | epochs | seconds |"
    )
    assert markdown[2] == "| a_1 | 50 % &#124; a_b | x & y | 1 | 0 | -103.25 ± 0.25 | 3 | 60 |"
    latex = said(capsys, tmp_path, "--format=latex", "--figures=elbo").out.splitlines()
    assert latex[0] == r"% needs \usepackage{booktabs}"
    assert r"\begin{tabular}{lllrrrrr}" in latex
    row = r"a\_1 & 50 \% | a\_b & x \& y & 1 & 0 & $-103.25 \pm 0.25$ & 3 & 60 \\"
    assert row in latex


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("elbo", ["c", "a", "b"]),
        ("-elbo", ["b", "a", "c"]),
        ("negative_log_likelihood", ["b", "a", "c"]),
        ("kl_weight", ["c", "b", "a"]),
        ("seconds", ["a", "b", "c"]),
    ],
)
def test_rows_are_sorted_the_best_first(tmp_path, capsys, sort, order):
    for name, elbo, nll, weight, seconds in (
        ("a", -104.0, 98.0, 2.0, 5.0),
        ("b", -105.0, 97.0, 1.0, 6.0),
        ("c", -103.0, 99.0, 0.5, 70.0),
    ):
        test = {"elbo": elbo, "negative_log_likelihood": nll}
        write_run(tmp_path / name, test, kl_weight=weight, seconds=seconds)
    assert [row["run"] for row in rows_of(capsys, tmp_path, f"--sort={sort}")] == order


def test_a_larger_value_is_better_of_what_the_objective_says():
    assert set(tabulate._LARGER_IS_BETTER) == set(LARGER_IS_BETTER)


def test_a_figure_that_is_not_finite_is_named_and_not_averaged(sweep, capsys):
    summary = sweep / "kl_weight=2,seed=0" / "summary.json"
    values = json.loads(summary.read_text())
    values["test"]["negative_log_likelihood"]["value"] = None
    summary.write_text(json.dumps(values))
    screen = said(capsys, sweep).out
    assert "Without a finite negative_log_likelihood: kl_weight=2,seed=0." in screen
    (row,) = [row for row in rows_of(capsys, sweep) if row["kl_weight"] == "2.0"]
    mean = statistics.fmean(figure(2.0, seed) for seed in (1, 2, 3))
    assert float(row["negative_log_likelihood"]) == pytest.approx(mean)


def test_places_and_evaluation_are_no_settings(tmp_path, capsys):
    for seed in (0, 1):
        more = {
            "jit": ["on", "off"][seed],
            "log_every_steps": seed,
            "dataset": f"/{seed}/mnist.npz",
        }
        write_run(tmp_path / str(seed), seed=seed, more=more, run_dir=str(seed), note=str(seed))
    (row,) = rows_of(capsys, tmp_path)
    assert row["seeds"] == "2"
    assert not {"jit", "dataset", "run_dir", "note", "seed"} & row.keys()


def test_seeds_of_parts_are_replicates_too(tmp_path, capsys):
    for noise_seed in (0, 5, 7):
        for weight in (1.0, 2.0):
            test = {"negative_log_likelihood": 98.0 + weight + noise_seed**2}
            more = {"init_seed": 0, "noise_seed": noise_seed}
            path = tmp_path / f"{weight},{noise_seed}"
            write_run(path, test, kl_weight=weight, seed=0, more=more)
    rows = rows_of(capsys, tmp_path, "--baseline=kl_weight=1")
    assert [row["seeds"] for row in rows] == ["3", "3"]
    assert float(rows[1]["negative_log_likelihood_difference"]) == 1.0
    runs = rows_of(capsys, tmp_path, "--rows=runs")
    assert {row["seed"] for row in runs} == {"0", "0, noise_seed=5", "0, noise_seed=7"}


def test_runs_of_different_terms_are_no_seeds_of_one_setting(tmp_path, capsys):
    for seed, kl in enumerate(["KLDivergence()", "KLDivergence(weight=4.0)"] * 2):
        write_run(tmp_path / str(seed), {"elbo": -100.0 - seed}, seed=seed, kl=kl)
    rows = rows_of(capsys, tmp_path, "--figures=elbo", "--baseline=terms/kl=KLDivergence()")
    assert [(row["terms/kl"], row["seeds"], float(row["elbo"])) for row in rows] == [
        ("KLDivergence()", "2", -101.0),
        ("KLDivergence(weight=4.0)", "2", -102.0),
    ]
    # A flag that says the same is enough.
    for seed, weight in enumerate([1.0, 4.0] * 2):
        path = tmp_path / "with_flags" / str(seed)
        write_run(path, kl_weight=weight, seed=seed, kl=f"KLDivergence(weight={weight})")
    rows = rows_of(capsys, tmp_path / "with_flags")
    assert [row["seeds"] for row in rows] == ["2", "2"]
    assert "terms/kl" not in rows[0]


def test_seeds_of_different_code_are_named(tmp_path, capsys):
    for seed in range(3):
        for weight in (1.0, 2.0):
            of_seed = {"vae.py": "a", "vae_research.zip": f"{weight == 2.0 and seed == 1}"}
            # Of the last runs no source was kept.
            source = of_seed if seed < 2 else None
            path = tmp_path / f"{weight},{seed}"
            write_run(path, kl_weight=weight, seed=seed, source=source)
    screen = said(capsys, tmp_path).out
    notes = [line for line in screen.splitlines() if line.startswith("The seeds of")]
    assert notes == [
        "The seeds of kl_weight=2 were trained by different code and may not be replicates: "
        "vae_research.zip in their source/."
    ]
    assert {run["source/vae.py"] for run in vr.load_runs(tmp_path)} == {"a", None}
    write_run(tmp_path / "more", kl_weight=1.0, seed=3, source={"vae.py": "a", "lab/nets.py": "b"})
    assert "The seeds of kl_weight=1 were trained by different code" in said(capsys, tmp_path).out


# ---------------------------------------------------------------- what does not compare


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"fingerprint": "f1"}}, "the data (fingerprint) is 'f0' and 'f1'"),
        ({"data": {"binarize": "none"}}, "--binarize is 'dynamic' and 'none'"),
        ({"data": {"scaling": "divided by 15"}}, "the scaling of the data, and with it the unit"),
        (
            {"data": {"counts": DATA["counts"] | {"test": 3}}},
            "the number of test examples is 4 and",
        ),
        ({"evaluation": {"importance_samples": 50}}, "--importance_samples is 5 and 50"),
        ({"evaluation": {"seed": 1}}, "--evaluation_seed is 0 and 1"),
        ({"likelihood": {"measure": "density of targets"}}, "the likelihood is 'probability of"),
        ({"likelihood": {"note": "grey"}}, "the note on the likelihood is not recorded and 'grey'"),
        ({"units": {"negative_log_likelihood": "bits"}}, "the unit of negative_log_likelihood is"),
    ],
)
def test_what_does_not_compare_is_refused_with_the_reason(tmp_path, capsys, changes, words):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", kl_weight=2.0)
    write_run(tmp_path / "c", kl_weight=3.0, **changes)
    output = said(capsys, tmp_path, exit_code=2)
    assert output.out == ""
    assert output.err.startswith(f"compare: a and c cannot be compared: {words}")
    assert output.err.count("\n") == 1
    with pytest.raises(vr.runs.UsageError, match="cannot be compared example by example"):
        vr.paired_difference(tmp_path / "b", tmp_path / "c")


def test_two_figures_that_the_other_run_lacks_are_no_difference():
    mine, other = {"units/a": "nats", "units/b": None}, {"units/a": None, "units/b": "codes"}
    assert comparability.difference_between(mine, other, ["a", "b"]) is None


BITS, STORED = "bits_per_dimension_nll", "negative_log_likelihood_in_stored_units"
NOISY = {"rescale": "standard", "scaling": "(x - 9) / 4", "dequantize": "uniform"}
DENSITY = {"measure": "density of targets", "note": "a density"}


def test_bits_compare_across_likelihoods_and_rescalings_and_nats_do_not(tmp_path, capsys):
    write_run(tmp_path / "a", {BITS: 3.0}, units={BITS: "bits"})
    for seed, rescale in enumerate(["standard", "symmetric"]):
        data = NOISY | {"rescale": rescale}
        given = {"data": data, "likelihood": DENSITY, "seed": seed}
        write_run(tmp_path / rescale, {BITS: 3.5 + seed}, units={BITS: "bits"}, **given)
    for name in "a", "standard":
        np.savez(tmp_path / name / "figures.npz", **{BITS: RNG.normal(size=4)})
    rows = rows_of(capsys, tmp_path, f"--figures={BITS}")
    found = [(row["rescale"], row["dequantize"], float(row[BITS])) for row in rows]
    # Two rescalings are two settings, and not two seeds of one.
    wanted = [("unit", "", 3.0), ("standard", "uniform", 3.5), ("symmetric", "uniform", 4.5)]
    assert found == wanted
    paths = tmp_path / "a", tmp_path / "standard"
    assert vr.paired_difference(*paths, BITS).count == 4
    with pytest.raises(vr.runs.UsageError, match="--rescale is 'unit' and 'standard'"):
        vr.paired_difference(*paths)
    for arguments in ([], [f"--figures={BITS}", "--sort=negative_log_likelihood"]):
        error = said(capsys, tmp_path, *arguments, exit_code=2).err
        assert "--rescale is 'unit' and 'standard'" in error
    assert said(capsys, tmp_path, exit_code=2).err.endswith(f" These can: --figures={BITS}.\n")


@pytest.mark.parametrize(
    ("figure", "changes", "words"),
    [
        (BITS, {"data": NOISY, "likelihood": DENSITY}, None),
        (BITS, {"data": NOISY | {"fingerprint": "f1"}}, "the data (fingerprint)"),
        (BITS, {"data": NOISY | {"binarize": "none"}}, "--binarize"),
        (BITS, {"likelihood": {"measure": "density of targets where mask"}}, "likelihood is of"),
        (BITS, {"evaluation": {"importance_samples": 50}}, "--importance_samples"),
        (BITS, {"evaluation": {"dequantize_draws": 50}}, None),
        (f"{BITS}_of_levels", {"evaluation": {"dequantize_draws": 50}}, "_draws is 2 and 50"),
        (STORED, {"data": {"rescale": "none", "scaling": "x"}}, None),
        (STORED, {"data": NOISY}, "--dequantize"),
        (STORED, {"likelihood": DENSITY}, "the likelihood is"),
        (STORED, {"units": {STORED: "bits"}}, "the unit of"),
    ],
)
def test_what_must_be_equal_depends_on_the_figure(tmp_path, figure, changes, words):
    write_run(tmp_path / "a", {figure: 3.0})
    write_run(tmp_path / "b", {figure: 3.0}, **changes)
    found = comparability.difference_between(*vr.load_runs(tmp_path), [figure])
    assert found is None if words is None else words in str(found)


# ---------------------------------------------------------------- wrong uses


def wrong_uses(runs, other):
    """Arguments, an exit code, and the words of its line."""
    return [
        ([], 2, "give at least one run, or a folder of runs"),
        ([other / "nowhere"], 2, "there is no folder"),
        ([other / "empty"], 2, "there is no run in"),
        ([other / "unfinished"], 2, "no run is finished: unfinished (diverged, epoch 3 of 3)"),
        ([other / "file"], 2, "there is no folder"),
        ([runs, "--formta=csv"], 2, "unknown flag --formta. Did you mean 'format'?"),
        (
            [runs, "--format=html"],
            2,
            "--format=html: must be one of screen, markdown, csv, latex",
        ),
        ([runs, "--format"], 2, "expected one argument"),
        ([runs, "--rows=seeds"], 2, "--rows=seeds: must be one of settings, runs"),
        ([runs, "--sort=elbow"], 2, "no 'elbow'. Did you mean 'elbo'?"),
        ([runs, "--sort=elbo", "--sort=kl"], 2, "--sort is given twice, as elbo and as kl"),
        ([runs, "--figures=nll"], 2, "no run has a test figure 'nll'"),
        ([runs, "--baseline=kl_wieght=1"], 2, "setting 'kl_wieght'. Did you mean 'kl_weight'?"),
        ([runs, "--baseline=kl_weight=7"], 2, "no run has kl_weight=7; there are 1, 2"),
        ([runs, "--baseline=frist"], 2, "no run of this name. Did you mean 'first'?"),
        ([runs, "--baseline=latent_dim=2"], 2, "means several runs: first, second. Name one"),
        (
            [runs, "--rows=settings", "--baseline=latent_dim=2"],
            2,
            "means several settings: kl_weight=1; kl_weight=2",
        ),
        ([runs, other / "again"], 2, "have the same settings and the same seed, 0"),
        ([other / "damaged"], 4, "summary.json cannot be read"),
        ([other / "edited"], 4, "test.elbo.value is a str"),
    ]


def test_every_wrong_use_is_one_line_and_an_exit_code(tmp_path, capsys):
    runs, other = tmp_path / "runs", tmp_path / "other"
    write_run(runs / "first", {"elbo": -103.0})
    write_run(runs / "second", {"elbo": -104.0}, kl_weight=2.0)
    write_run(other / "again", {"elbo": -103.0})
    write_run(other / "unfinished", status="diverged")
    write_run(other / "damaged")
    (other / "damaged/summary.json").write_text('{"status"')
    write_run(other / "edited", {"elbo": "high"})
    (other / "empty").mkdir()
    (other / "file").write_text("")
    for arguments, exit_code, words in wrong_uses(runs, other):
        output = said(capsys, *arguments, exit_code=exit_code)
        assert output.out == "", words
        assert words in output.err
        assert output.err.startswith("compare: ")
        assert output.err.count("\n") == 1


def test_the_frontier_is_the_part_of_the_convex_hull_that_nothing_dominates():
    for _ in range(20):
        points = RNG.normal(size=[12, 2]).round(1)
        corners = frontier_of([tuple(point) for point in points.tolist()])
        hull = ConvexHull(points)
        # Sides whose outside is below and left of them, if there is more than a point.
        sides = (hull.equations[:, :2] < -1e-9).all(axis=1)
        corners_of_sides = hull.simplices[sides] if sides.any() else [np.lexsort(points.T)[0]]
        wanted = {tuple(points[at]) for at in np.unique(corners_of_sides)}
        assert wanted == set(corners) and corners == sorted(corners)
    # A larger rate and a larger distortion than those of the second.
    assert frontier_of([(5, 100), (20, 80), (40, 85)]) == [(5, 100), (20, 80)]


def test_the_report_of_a_folder_has_its_table_plots_and_runs(sweep, capsys):
    (finished, *_) = [path.parent for path in sorted(sweep.glob("*/summary.json"))]
    (finished / "report.html").write_text("<h1>a run</h1>")
    write_record(sweep, {"never": {"flags": {}, "state": "waiting"}})
    page = write_report(sweep, "A <sweep>", ["scripts/sweep", "a b.py"]).read_text()
    assert "<h1>A &lt;sweep&gt;</h1>" in page and "scripts/sweep &#x27;a b.py&#x27;" in page
    words = re.sub(r"<[^>]+>", "\n", page)
    assert "All runs: a note" in page
    assert "Not finished: last (unfinished, epoch 2 of 3), never (waiting)." in page
    table = said(capsys, sweep, "--format=markdown").out
    for line in re.findall(r"^\|(.*)\|$", table, re.M):
        for cell in line.split("|") if "---" not in line else ():
            assert f"\n{html.escape(cell.strip())}\n" in words, cell
    assert page.count("data:image/svg+xml;base64,") == page.count("src=") == 2
    assert re.findall('href="([^"]+)"', page) == [f"{quote(finished.name)}/report.html"]
    for record in vr.load_runs(sweep):
        assert f"\n{html.escape(record['run'])}\n" in words


def test_the_report_of_runs_that_do_not_compare_says_so(tmp_path):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", data={"fingerprint": "f1"})
    page = write_report(tmp_path, "Two", ["scripts/sweep"]).read_text()
    assert "cannot be compared: the data (fingerprint)" in page and "<svg" not in page
    assert page.count(">one</td>") == page.count(">two</td>") == 2


def test_wrong_uses_of_plots(sweep, tmp_path, capsys):
    to = f"--to={tmp_path / 'plot.png'}"
    for arguments, words in (
        (["--plot=curves"], "--to is missing: a plot needs both, as --to=plot.pdf"),
        ([to], "--plot is missing"),
        (["--plot=curve", to], "Did you mean 'curves'?"),
        (["--plot=latent_dim", to], "or a setting that differs between the runs (kl_weight)"),
        (["--plot=curves", "--to=plot.jpg"], "the file must end in .png, .svg, .pdf"),
        (["--plot=curves", f"--to={tmp_path / 'no/plot.png'}"], "there is no folder"),
        (["--plot=rate_distortion", to], "no run has both test figures, kl and reconstruction"),
    ):
        output = said(capsys, sweep, *arguments, exit_code=2)
        assert (output.out, output.err.count("\n")) == ("", 1)
        assert words in output.err
    assert not (tmp_path / "plot.png").exists()


def test_a_pipe_that_nobody_reads_any_more(sweep, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert compare.main([str(sweep)]) == 0


@pytest.mark.slow
def test_the_command_needs_no_tensorflow(sweep, without_tensorflow):
    process = forks.run(
        *("-m", "vae_research.runs.tools.compare", "."), cwd=sweep, first=without_tensorflow
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("kl_weight")
    process = forks.run(
        *("-m", "vae_research.runs.tools.compare", "--help"), cwd=sweep, first=without_tensorflow
    )
    assert process.stdout.startswith("Usage: scripts/compare RUN|FOLDER ... [FLAGS]")
