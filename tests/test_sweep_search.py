"""Searches of scripts/sweep: what Optuna is asked and told, and what it is told after a kill.

No model is trained but in the last test: a score is a file that the test writes.
"""

import json

import pytest

from tests import forks
from tests.test_sweep import COMMAND, EXPERIMENT, TINY, state_of
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.sweep import command, record
from vae_research.runs.sweep.record import Record
from vae_research.runs.sweep.search import Search, corners, open_study, parse_search, warning_of

optuna = pytest.importorskip("optuna")
SPACE = ["learning_rate=log:1e-4..1e-2", "latent_dim=int:2..64", "network=dense|convolutional"]


def search_in(folder, trials=6, storage=None, text=SPACE):
    kept = {"storage": storage} if storage else {}
    folder.mkdir(exist_ok=True)
    found = record.read(folder) or Record(folder, "/x/vae.py", [], {"search": text, **kept})
    found.write()
    space = dict(map(parse_search, text))
    study = open_study(storage or str(folder / "study.journal"), "study", "median", found)
    return found, Search(found, study, space, trials, seed=0)


def finish(found, search, point, scores, state="done"):
    """What the loop of a sweep does with a point, whose validation ELBOs are given."""
    run_dir = found.into / point.name
    run_dir.mkdir(exist_ok=True)
    for epoch, value in enumerate(scores, 1):
        if search.reported(point, epoch, value):
            state = "pruned"
            break
    lines = [{"epoch": 1, "step": 1, "validation/loss": 0.0, "validation/elbo": scores[-1]}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found.change(point.name, state=state, threads=1)
    search.ended(point, state)
    return state


def drawn(search, count):
    return [search.next() for _ in range(count)]


def study_of(folder):
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    )
    return optuna.load_study(study_name="study", storage=storage)


def test_what_can_be_searched():
    space = dict(map(parse_search, [*SPACE, "ema=0.9..0.99", "epochs=int:log:1..100"]))
    assert [type(each).__name__.removesuffix("Distribution") for each in space.values()] == [
        *("Float", "Int", "Categorical", "Float", "Int"),
    ]
    assert [space[name].log for name in ("learning_rate", "ema", "epochs")] == [True, False, True]
    ends = corners(space)
    assert [point.flags["network"] for point in ends] == ["dense", "convolutional"]
    assert [point.flags["latent_dim"] for point in ends] == ["2", "64"]
    assert warning_of(space) is None


WARNINGS = {
    "likelihood": "--likelihood cannot be compared",
    "dequantize": "--dequantize cannot be compared",
    "image_size": "--image_size cannot be compared",
    "num_samples": "--num_samples may be different bounds",
    "importance_weighted": "--importance_weighted may be different bounds",
}


def test_flags_under_which_scores_do_not_compare_are_warned_of():
    for name, words in WARNINGS.items():
        assert words in warning_of({name: None, "latent_dim": None})
    both = warning_of(dict.fromkeys(["rescale", "num_samples", "dequantize"]))
    assert "--rescale and --dequantize cannot" in both
    assert "--num_samples may" in both


def test_a_search_that_is_killed_draws_what_it_would_have_drawn(tmp_path):
    """After each point there are a new process, and sometimes a trial that nobody wrote down."""
    scores = [-100.0, -90.0, -95.0, -80.0, -85.0, -99.0]
    found, search = search_in(tmp_path / "whole")
    for value in scores:
        finish(found, search, search.next(), [value])
    assert search.next() is None
    for value in scores:
        killed, search = search_in(tmp_path / "killed", trials=6)
        point = search.next()
        killed.change(point.name, state="running", threads=1)
        killed, search = search_in(tmp_path / "killed", trials=6)
        assert search.next() == point  # it resumes
        finish(killed, search, point, [value])
    assert list(killed.points) == list(found.points)
    assert killed.points == found.points
    assert search.next() is None
    assert [trial.value for trial in study_of(tmp_path / "killed").trials] == scores
    assert "trial 3, validation score -80.00" in search.conclusion()


def test_a_trial_that_was_not_written_down_is_given_up_and_not_counted(tmp_path):
    found, search = search_in(tmp_path, trials=2)
    study_of(tmp_path).ask()
    assert [point.trial for point in drawn(search, 2)] == [1, 2]
    found.write()
    _, search = search_in(tmp_path, trials=2)
    assert search.total == 2
    assert [trial.state.name for trial in study_of(tmp_path).trials] == [
        *("FAIL", "RUNNING", "RUNNING"),
    ]


def test_a_worse_point_is_pruned_even_if_its_process_was_killed_before_it_heard(tmp_path):
    found, search = search_in(tmp_path, trials=8)
    for _ in range(5):  # before that, Optuna's median pruner waits
        assert finish(found, search, search.next(), [-100.0, -90.0]) == "done"
    assert finish(found, search, search.next(), [-200.0, -190.0]) == "pruned"
    point = search.next()
    found.change(point.name, state="running", threads=1)
    assert search.reported(point, 1, -150.0)
    found, search = search_in(tmp_path, trials=8)
    following = search.next()
    assert (point.trial, following.trial) == (6, 7)
    assert found.points[point.name]["state"] == "pruned"
    states = [trial.state.name for trial in study_of(tmp_path).trials]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"] * 2 + ["RUNNING"]
    assert not search.reported(following, 1, float("nan"))


def test_what_was_written_down_and_not_told_is_told(tmp_path):
    found, search = search_in(tmp_path)
    points = drawn(search, 2)
    (tmp_path / points[0].name).mkdir()
    line = {"epoch": 1, "step": 1, "validation/loss": 0.0, "validation/elbo": -7.0}
    (tmp_path / points[0].name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    found.change(points[0].name, state="done")
    found.change(points[1].name, state="failed")
    search_in(tmp_path)
    told = study_of(tmp_path).trials
    assert [(trial.state.name, trial.value) for trial in told] == [
        *(("COMPLETE", -7.0), ("FAIL", None)),
    ]


REPEATED = {
    "another order": (["--trials=9", "--ema=0.9", "--dataset=/x.npz", "--epochs=1"], None),
    "what may change": (
        ["--trials=2", "--dataset=/x.npz", "--epochs=1", "--ema=0.9", "--notensorboard"],
        None,
    ),
    "longer": (
        ["--trials=2", "--dataset=/x.npz", "--epochs", "2", "--ema=0.9"],
        "flags were --epochs=1, now --epochs=2. Give another {} for a new search.",
    ),
    "more flags": (
        ["--trials=2", "--dataset=/x.npz", "--epochs=1", "--ema=0.9", "--units=3"],
        "flags were without them, now --units=3. Give another {} for a new search.",
    ),
}


@pytest.mark.parametrize("storage", [[], ["--storage=shared.journal", "--study=ours"]])
def test_a_search_is_repeated_or_refused_before_anything_is_written(
    storage, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    changing = ["epochs", "early_stopping", "tensorboard"]
    monkeypatch.setattr(command, "_examine", lambda now, before, points: ([], "vae", changing))
    monkeypatch.setattr(command, "_run", lambda record, points, *given: record.write() or 0)
    start = [EXPERIMENT, "--search=latent_dim=int:2..9", *storage]
    first = ["--trials=2", "--dataset=/x.npz", "--epochs=1", "--ema=0.9"]
    assert command.main([*start, *first, "--into=new"]) == 0
    for name, (flags, words) in REPEATED.items():
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.j*")}
        assert len(before) >= 2
        assert command.main([*start, *flags, "--into=new"]) == (2 if words else 0)
        if words:
            what = "--study and another --into" if storage else "--into"
            assert capsys.readouterr().err.endswith(f"{words.format(what)}\n")
            assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.j*")}
            # The advice works.
            study = [f"--study={name}"] * bool(storage)
            assert command.main([*start, *flags, *study, f"--into={name}"]) == 0
            if storage:
                assert command.main([*start, *flags, "--into=third"]) == 2
                assert "Give another --study for a new search." in capsys.readouterr().err
                assert not (tmp_path / "third").exists()


@pytest.mark.slow
def test_machines_share_a_study(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    (one, here), (two, there) = (
        search_in(tmp_path / name, trials=3, storage=storage) for name in ("one", "two")
    )
    points = [here.next(), there.next(), here.next()]
    assert [point.trial for point in points] == [0, 1, 2]
    assert here.next() is there.next() is None
    assert (len(one.points), len(two.points)) == (2, 1)
    finish(two, there, points[1], [-5.0])
    assert "trial 1" in here.conclusion()
    with pytest.raises(UsageError, match="made with other settings: search was"):
        search_in(tmp_path / "three", storage=storage, text=SPACE[:1])
    with pytest.raises(UsageError, match="--storage nonsense://"):
        search_in(tmp_path / "four", storage="nonsense://")


@pytest.mark.slow
def test_a_search_trains_its_points(dataset, tmp_path):
    range_of = ["--search", "learning_rate=log:1e-4..1e-2", "--trials=2", "--jobs=2"]
    process = forks.run(*COMMAND, *range_of, *TINY, dataset, "--into=found", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    into = tmp_path / "found"
    assert [*state_of(into).values()] == ["done", "done"]
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(into / "study.journal"))
    )
    trials = optuna.load_study(study_name="found", storage=storage).trials
    for trial, (name, point) in zip(trials, record.read(into).points.items(), strict=True):
        (line,) = (into / name / "metrics.jsonl").read_text().splitlines()
        assert trial.value == json.loads(line)["validation/elbo"]
        assert trial.intermediate_values == {1: pytest.approx(trial.value)}
        assert point["flags"] == {"learning_rate": repr(trial.params["learning_rate"])}
    assert "Best of 2 complete trials" in process.stdout
