"""`scripts/check --numbers`: the table of numbers, and how a row of it is rerun."""

import datetime
import json
import re
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import numbers

CHECKOUT = Path(__file__).resolve().parents[1]
ROWS = json.loads(numbers.TABLE.read_text("utf-8"))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_is_run_and_what_is_compared(name):
    row = ROWS[name]
    assert {"set_up", "source", "command", "seeds", "time", "figures", "rerun"} <= row.keys()
    program, experiment, *flags = shlex.split(row["command"])
    assert program == "scripts/run"
    assert (CHECKOUT / experiment).is_file()
    assert not any(re.match(r"--(seed|run_dir)\b", flag) for flag in flags)
    assert row["seeds"]
    if row["rerun"] is not None:
        datetime.date.fromisoformat(row["rerun"])
    for figure in row["figures"]:
        assert figure["tolerance"] > 0.0
        if row["rerun"] is not None and "unfinished" not in row:
            compared = numbers.Compared(name, figure, figure["rerun"])
            assert len(compared.values) == len(row["seeds"])
            assert compared.agrees


def test_the_page_has_the_values_and_the_date_of_the_last_rerun():
    page = (CHECKOUT / "docs" / "results.md").read_text("utf-8")
    table = page.partition("| row | figure |")[2].partition("\n\n")[0].splitlines()[2:]
    figures = [(row, figure) for row in ROWS.values() for figure in row["figures"]]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len(shown) >= sum("unfinished" not in row for row, _ in figures)
    for (_, _, _, by_seed, _, date), (row, figure) in zip(shown, figures, strict=False):
        values = by_seed.split(", ") if by_seed else []
        assert [float(value) for value in values] == [
            round(found, len(value.partition(".")[2]))
            for found, value in zip(figure.get("rerun", []), values, strict=True)
        ]
        if date:
            rerun = datetime.date.fromisoformat(row["rerun"])
            assert date == f"{rerun.day} {rerun:%B %Y}"


LINEAR = {
    "set_up": "few rows",
    "source": "none",
    "command": "scripts/run experiments/linear_gaussian.py --epochs=1 --rows=100 --values=3 "
    "--latent_dim=1 --importance_samples=50 --jit=off --notensorboard --verbose=0",
    "seeds": [0, 1],
    "time": "seconds",
    "figures": [
        {
            "figure": "negative_log_likelihood",
            "minus": "exact_negative_log_likelihood",
            "value": 0.0,
            "tolerance": 0.5,
        }
    ],
    "rerun": None,
}


@pytest.mark.slow
def test_a_row_is_rerun_compared_and_dated(tmp_path, capfd):
    table, runs = tmp_path / "numbers.json", tmp_path / "runs"
    unfinished = LINEAR | {"unfinished": "epoch 7 of 9"}
    table.write_text(json.dumps({"linear": LINEAR, "long": unfinished}))
    assert numbers.main(["--write"], table, runs) == 0
    printed = capfd.readouterr().out
    (line,) = re.findall(r"^linear +negative_log_likelihood - exact_\w+ .*$", printed, re.M)
    assert line.endswith("  agrees")
    assert printed.endswith("long is unfinished: epoch 7 of 9\n")
    row = json.loads(table.read_text())["linear"]
    assert row["rerun"] == datetime.date.today().isoformat()
    wanted = []
    for seed in (0, 1):
        test = json.loads((runs / f"linear-{seed}" / "summary.json").read_text())["test"]
        names = "negative_log_likelihood", "exact_negative_log_likelihood"
        wanted.append(test[names[0]]["value"] - test[names[1]]["value"])
    np.testing.assert_allclose(row["figures"][0]["rerun"], wanted, atol=1e-4)
    assert not (runs / "long-0").exists()


def test_a_row_that_is_killed_continues_and_one_that_is_complete_is_rerun(tmp_path, monkeypatch):
    figure = {"figure": "elbo", "value": 0.0, "tolerance": 9.0}
    row = {"command": "scripts/run x.py", "seeds": [4, 5, 6], "figures": [figure]}
    trained, killed_at = [], []

    def run(command, **options):
        run_dir = Path(command[-1].removeprefix("--run_dir="))
        seed = int(run_dir.name.removeprefix("row-"))
        if not (run_dir / "summary.json").exists():
            trained.append(seed)
            run_dir.mkdir(exist_ok=True)
            if seed in killed_at:
                raise KeyboardInterrupt
            test = {"elbo": {"value": seed + len(trained)}}
            (run_dir / "summary.json").write_text(json.dumps({"test": test}))
        return SimpleNamespace(returncode=0)

    def rerun(*kills):
        trained.clear()
        killed_at[:] = kills
        with pytest.raises(KeyboardInterrupt) if kills else nullcontext():
            numbers.rerun("row", row, tmp_path)
        return [*trained]

    monkeypatch.setattr(numbers.subprocess, "run", run)
    assert [rerun(6), rerun(6), rerun()] == [[4, 5, 6], [6], [6]]
    assert rerun() == [4, 5, 6]
    assert [rerun(5), rerun()] == [[4, 5], [5, 6]]
    # Killed while the runs of a complete row were removed.
    shutil.rmtree(tmp_path / "row-4")
    assert rerun() == [4, 5, 6]


@pytest.mark.parametrize(("value", "code", "result"), [(3.0, 0, "agrees"), (9.0, 1, "DIFFERS")])
def test_the_mean_of_the_seeds_is_compared(value, code, result, tmp_path, capsys, monkeypatch):
    figure = {"figure": "elbo", "published": 2.5, "value": value, "tolerance": 0.1}
    table = tmp_path / "numbers.json"
    before = json.dumps({"row": {"figures": [figure], "rerun": None}})
    table.write_text(before)
    found = [numbers.Compared("row", figure, [2.0, 4.1])]
    monkeypatch.setattr(numbers, "rerun", lambda *given: found)
    assert numbers.main(["row", "--write"], table, tmp_path) == code
    assert re.search(
        rf"^row +elbo +2\.50 +{value:.3f} +3\.050 .* {result}$", capsys.readouterr().out, re.M
    )
    assert (table.read_text() == before) == (code == 1)
    assert not numbers.Compared("row", figure, [float("nan")]).agrees


def test_bad_input_is_one_line_and_an_exit_code(tmp_path, capfd):
    assert numbers.main(["dense"], numbers.TABLE, tmp_path) == 2
    assert capfd.readouterr().err.startswith("scripts/check --numbers: there is no row 'dense'; ")
    assert numbers.main(["--list"], numbers.TABLE, tmp_path) == 0
    assert all(name in capfd.readouterr().out for name in list(ROWS)[:1])


def test_a_command_that_fails_ends_with_its_exit_code(tmp_path, capfd):
    table = tmp_path / "numbers.json"
    command = "scripts/run experiments/vae_mnist.py --latent_dim=0"
    table.write_text(json.dumps({"bad": LINEAR | {"command": command}}))
    assert numbers.main([], table, tmp_path) == 2
    assert "bad: its command ended with 2; see " in capfd.readouterr().err
