"""scripts/sweep: wrong uses, points and their names, processes, resuming, and equal weights.

What needs no TensorFlow runs with one that ends the process. The points of the whole sweeps are
tiny; their long series, with kills and times, are in test_sweep_series.py.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from tests import forks
from vae_research.runs.cli.errors import DirectoryInUseError, UsageError
from vae_research.runs.session import directory
from vae_research.runs.sweep import progress, record, workers
from vae_research.runs.sweep.command import main
from vae_research.runs.sweep.points import Point, grid, name_of, parse_over, parse_point
from vae_research.runs.sweep.record import Record

CHECKOUT = Path(__file__).resolve().parents[1]
EXPERIMENT = str(CHECKOUT / "experiments" / "vae_mnist.py")
COMMAND = ("-m", "vae_research.runs.sweep.command", EXPERIMENT)
# Of 38 training images: no last batch that is smaller, for which a step would be traced again.
TINY = ["--epochs=1", "--batch_size=19", "--importance_samples=2", "--hidden_units=4"]
TINY += ["--binarize=dynamic", "--jit=off", "--notensorboard", "--device=cpu"]


# ---------------------------------------------------------------- wrong uses

OVER = ["--over", "kl_weight=1,2"]
OPTIONS = {
    "no folder": (OVER, 2, "--into FOLDER is missing"),
    "nothing varies": (["--into=new"], 2, "nothing varies: give --over"),
    "no values": (["--over", "kl_weight", "--into=new"], 2, "write the name of a flag"),
    "dashes": (["--over", "--kl_weight=1,2", "--into=new"], 2, "expected one argument"),
    "an empty value": (["--over", "kl_weight=1,,2", "--into=new"], 2, "a value is empty"),
    "a value twice": (["--over", "kl_weight=1,2,1", "--into=new"], 2, "1 stands there twice"),
    "a flag twice": ([*OVER, *OVER, "--into=new"], 2, "kl_weight has values in two places"),
    "in both": ([*OVER, "--kl_weight=3", "--into=new"], 2, "and varies as well"),
    "no jobs": ([*OVER, "--jobs=0", "--into=new"], 2, "--jobs 0: must be at least 1"),
    "half a job": ([*OVER, "--jobs=1.5", "--into=new"], 2, "--jobs: invalid int value"),
    "no seeds": ([*OVER, "--seeds=0", "--into=new"], 2, "--seeds 0: must be at least 1"),
    "seeds twice": (
        ["--over", "seed=1,2", "--seeds=2", "--into=new"],
        2,
        "--seeds, and seed varies as well",
    ),
    "too large a seed": ([*OVER, "--seed=99999999999", "--into=new"], 2, "must be an integer from"),
    "a run directory": ([*OVER, "--run_dir=new", "--into=new"], 2, "its own run directory"),
    "a dry run": ([*OVER, "--dry_run", "--into=new"], 2, "--check examines all points"),
    "a point's quotes": (["--point", "a='1", "--into=new"], 2, "No closing quotation"),
    "search without trials": (["--search", "a=1..2", "--into=new"], 2, "--search needs --trials"),
    "trials without search": ([*OVER, "--trials=3", "--into=new"], 2, "there is no --search"),
    "a search and a grid": (
        [*OVER, "--search", "a=1..2", "--trials=3", "--into=new"],
        2,
        "--search is not combined with --over",
    ),
    "an empty range": (
        ["--search", "a=2..1", "--trials=3", "--into=new"],
        2,
        "the range must be finite",
    ),
    "a logarithm of 0": (
        ["--search", "a=log:0..1", "--trials=3", "--into=new"],
        2,
        "must begin above 0",
    ),
    "one choice": (["--search", "a=b", "--trials=3", "--into=new"], 2, "or different choices"),
    "no number": (["--search", "a=int:1.5..3", "--trials=3", "--into=new"], 2, "invalid literal"),
    "another pruner": (["--search", "a=1..2", "--pruner=x", "--into=new"], 2, "invalid choice"),
    "a file for a folder": ([*OVER, "--into=file"], 7, "is a file. Give another --into"),
    "a run": ([*OVER, "--into=run"], 2, "holds a run. Give another --into"),
    "another folder": ([*OVER, "--into=other"], 2, "holds picture.png and no sweep"),
    "a damaged record": ([*OVER, "--into=damaged"], 4, "sweep.json cannot be read"),
    "a record of something else": ([*OVER, "--into=odd"], 4, "is not what a run writes"),
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    for name, file in {
        "run": "config.json",
        "other": "picture.png",
        "damaged": "sweep.json",
        "odd": "sweep.json",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}" if name == "odd" else "{")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options_are_one_line_and_nothing_on_disk(name, places, capsys):
    arguments, code, message = OPTIONS[name]
    before = sorted(places.rglob("*"))
    assert main([EXPERIMENT, *arguments]) == code
    line = capsys.readouterr().err
    assert message in line
    assert line.startswith("sweep: ")
    assert line.count("\n") == 1
    assert sorted(places.rglob("*")) == before


def test_the_first_argument_is_an_experiment(capsys, tmp_path):
    assert main([]) == 2
    assert main(["--over"]) == main([str(tmp_path / "gone.py")]) == main([str(tmp_path)]) == 2
    assert "is no Python file" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "--jobs N" in capsys.readouterr().err


FLAGS = {
    "an unknown flag": (["--over", "kl_wieght=1,2"], 2, "Did you mean 'kl_weight'"),
    "a value that is none": (["--over", "kl_weight=1,-2"], 2, "kl_weight=-2,seed=0: flag --kl_we"),
    "a flag of all points": ([*OVER, "--latent_dim=0"], 2, "must be an integer >= 1"),
    "two equal points": (["--over", "kl_weight=1,1.0"], 2, "the same flags as kl_weight=1,seed=0"),
    "a stray word": ([*OVER, "latent_dim=3"], 2, "stray argument 'latent_dim=3'"),
    "the end of a range": (
        ["--search", "latent_dim=int:0..9", "--trials=2"],
        2,
        "corner 0: flag --latent_dim=0",
    ),
}


@pytest.mark.parametrize("name", FLAGS)
def test_all_flags_are_checked_before_tensorflow_is_loaded(name, tmp_path, without_tensorflow):
    arguments, code, message = FLAGS[name]
    options = {"cwd": tmp_path, "first": without_tensorflow}
    process = forks.run(*COMMAND, *arguments, "--into=new", **options)
    assert (process.returncode, process.stderr.count("\n")) == (code, 1), process.stderr
    assert message in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_study_is_no_experiment(tmp_path, without_tensorflow):
    study = str(CHECKOUT / "experiments" / "kl_formulations.py")
    arguments = [*COMMAND[:2], study, "--over", "epochs=1,2", "--into=new"]
    process = forks.run(*arguments, cwd=tmp_path, first=without_tensorflow)
    assert process.returncode in (2, 99), process.stderr  # 99: its file imports Keras
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_optuna_says_what_to_install(tmp_path, monkeypatch, capsys):
    find = workers.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "optuna" else find(name, *a)
    )
    arguments = ["--search", "a=1..2", "--trials=3", f"--into={tmp_path}"]
    assert main([EXPERIMENT, *arguments]) == 2
    assert capsys.readouterr().err == (
        "sweep: --search needs Optuna: pip install 'vae_research[sweep]'.\n"
    )


# ---------------------------------------------------------------- points and their record


def test_seeds_vary_fastest_and_a_list_is_combined_with_a_grid():
    points = grid([parse_over("epochs=1,2")], [parse_point("kl_weight=0.5 ema=0.9")], 2, 7)
    assert [point.name for point in points] == [
        "kl_weight=0.5,ema=0.9,epochs=1,seed=7",
        "kl_weight=0.5,ema=0.9,epochs=1,seed=8",
        "kl_weight=0.5,ema=0.9,epochs=2,seed=7",
        "kl_weight=0.5,ema=0.9,epochs=2,seed=8",
    ]
    assert points[0].arguments == ["--kl_weight=0.5", "--ema=0.9", "--epochs=1", "--seed=7"]


def test_names_are_folders():
    flags = {"dataset": "/a b/é.npz", "filters": "2,3", "name": "//"}
    assert name_of(flags) == "dataset=a-b-é.npz,filters=2-3,name=empty"
    with pytest.raises(UsageError, match=r"dataset=a-b,seed=0 has two points"):
        grid([("dataset", ["a/b", "a-b"])], [], 1, 0)
    with pytest.raises(UsageError, match="leaves no room for 2 seeds"):
        grid([], [], 2, 2**32 - 1)


def sweep_in(folder, names=("a", "b"), **settings):
    found = Record(folder, "/x/vae.py", ["--epochs=1"], settings or {"over": ["kl_weight=1,2"]})
    for name in names:
        found.add(Point(name, {"seed": name}))
    return found


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = sweep_in(tmp_path)
    written.write()
    written.change("a", state="done", threads=2)
    assert record.read(tmp_path) == written
    assert written.names("waiting") == ["b"]
    assert written.command(Point("a", {"seed": "a"})) == [
        *("/x/vae.py", "--epochs=1", "--seed=a", "--threads=2"),
        f"--run_dir={tmp_path / 'a'}",
    ]


def test_a_sweep_may_be_extended_and_not_replaced(tmp_path):
    before = sweep_in(tmp_path)
    record.refuse_other(before, sweep_in(tmp_path, ["c", "b", "a"]))
    with pytest.raises(UsageError, match="other points, such as b"):
        record.refuse_other(before, sweep_in(tmp_path, ["a", "c"]))
    with pytest.raises(UsageError, match="a sweep of another kind"):
        record.refuse_other(before, sweep_in(tmp_path, search=["a=1..2"]))
    other = sweep_in(tmp_path, search=["a=1..3"])
    with pytest.raises(UsageError, match="another search: --search was"):
        record.refuse_other(sweep_in(tmp_path, search=["a=1..2"]), other)
    before.experiment = "/x/other.py"
    with pytest.raises(UsageError, match=r"holds a sweep of /x/other.py"):
        record.refuse_other(before, sweep_in(tmp_path))


def test_one_sweep_writes_to_a_folder(tmp_path):
    with record.locked(tmp_path), pytest.raises(DirectoryInUseError, match="another --into"):
        record.locked(tmp_path).__enter__()


def test_points_of_a_killed_sweep_are_waited_for(tmp_path, capsys):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with directory.locked(tmp_path):  # as its points hold it
        lock = tmp_path / directory.LOCK
        lock.write_text(f"process {pid} on {os.uname().nodename} since then")
        assert record._has_ended(lock)
        lock.write_text(f"process {os.getpid()} on {os.uname().nodename} since then")
        assert not record._has_ended(lock)


# ---------------------------------------------------------------- what it prints


def test_time_left_is_that_of_what_is_left(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress(tmp_path, done=0)
    for name in "ab":
        shown.started(name, 1, 4)
    now[0] = 50.0
    for epoch in range(1, 6):  # too early for a line
        shown.reported(workers.Report("a", epoch, 10, -1.0), 4)
    now[0] = 100.0
    shown.ended(workers.Ended("b", 6, "diverged", 100.0), "failed", 4)
    # One and a half points took 100 seconds, two and a half are left.
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [
        "failed b: failed with exit code 6: diverged (1 of 4; about 2 min 47 s left)",
    ]


# ---------------------------------------------------------------- processes

CHILD = """
import os, signal, sys
how = sys.argv[1]
print("begun", flush=True)
if how == "waits":
    signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))
    while True:
        signal.pause()
if how == "words":
    print("out"); print("the cause", file=sys.stderr); sys.exit(6)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
# Started as a process of its own: forks of it must not know this one.
PARENT = """
import json, os, signal, sys, time
from pathlib import Path
from vae_research.runs.sweep.workers import Workers, Ended
into, how = Path(sys.argv[1]), sys.argv[2:]
workers = Workers(into)
for number, each in enumerate(how):
    workers.start(f"point{number}", [str(into / "child.py"), each])
found, is_told = {}, False
while len(workers):
    for event in workers.wait():
        found[event.name] = [event.exit_code, event.message]
    waiting = [n for n, each in enumerate(how) if each == "waits"]
    begun = [(into / "output" / f"point{n}.txt").read_text() for n in waiting]
    if all(begun) and len(workers) == len(waiting) and not is_told:
        is_told = True
        (os.kill(os.getpid(), signal.SIGKILL) if "dies" in how else workers.send_signal(15))
print(json.dumps(found))
"""


def test_processes_end_as_they_end(tmp_path, without_tensorflow):
    (tmp_path / "child.py").write_text(CHILD)
    arguments = ["-c", PARENT, tmp_path, "words", "killed", "ends", "waits"]
    process = forks.run(*arguments, cwd=tmp_path, first=without_tensorflow)
    assert json.loads(process.stdout) == {
        "point0": [6, "the cause"],
        "point1": [
            137,
            "ended by SIGKILL; if nobody sent it, the memory of the machine was exhausted",
        ],
        "point2": [0, "begun"],
        "point3": [143, "begun"],
    }, process.stderr
    assert (tmp_path / "output" / "point0.txt").read_text() == "begun\nout\nthe cause\n"


# A sweep whose points need no TensorFlow, and of whose output nobody reads anything.
UNHEARD = """
import os, sys
from vae_research.runs.sweep import command
command._examine = lambda record, before, points: ([], "child", [])
reading, writing = os.pipe()
os.close(reading)
for stream in (1, 2):
    os.close(stream) if sys.argv[1] == "closed" else os.dup2(writing, stream)
sys.exit(command.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("how", ["closed", "gone"])
def test_a_sweep_goes_on_when_nobody_reads_what_it_prints(how, tmp_path, without_tensorflow):
    (tmp_path / "child.py").write_text(CHILD.replace("how = sys.argv[1]", "how = 'words'"))
    options = ["--seeds=3", "--jobs=2", "--into=new"]
    arguments = ["-c", UNHEARD, how, "child.py", *options]
    process = forks.run(*arguments, cwd=tmp_path, first=without_tensorflow)
    assert process.returncode == 6, process.stderr
    found = record.read(tmp_path / "new")
    assert [point["message"] for point in found.points.values()] == ["the cause"] * 3
    outputs = (tmp_path / "new" / "output").iterdir()
    assert [path.read_text() for path in outputs] == ["begun\nout\nthe cause\n"] * 3


def test_an_unexpected_error_in_a_fork_is_printed(tmp_path, without_tensorflow):
    code = "from vae_research.runs.sweep import workers; workers.in_fork(lambda: {}['missing'])"
    process = forks.run("-c", code, cwd=tmp_path, first=without_tensorflow)
    assert process.returncode == 1
    assert process.stderr.endswith("KeyError: 'missing'\n")


@pytest.mark.slow
def test_an_unexpected_error_at_a_point_is_one_line_that_names_it(dataset, tmp_path):
    source = "from vae_research import runs\ndef build(config, data):\n    return {}['missing']\n"
    (tmp_path / "own.py").write_text(source + "runs.main(build)\n")
    command = [*COMMAND[:2], "own.py", "--over=latent_dim=1,2", dataset, "--into=new"]
    process = forks.run(*command, cwd=tmp_path)
    line = "sweep: latent_dim=1,seed=0: KeyError: 'missing' (--debug shows where)\n"
    assert (process.returncode, process.stderr) == (1, line)
    process = forks.run(*command, "--debug", cwd=tmp_path)
    assert "in build\n" in process.stderr
    assert process.stderr.endswith(line)
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


def test_points_end_with_a_sweep_that_is_killed(tmp_path, without_tensorflow):
    (tmp_path / "child.py").write_text(CHILD + "\n")
    with directory.locked(tmp_path):
        pass
    arguments = [
        "-c",
        "from vae_research.runs.session import directory\n"
        "lock = directory.locked(Path(sys.argv[1])); lock.__enter__()\n".join(
            ["import sys; from pathlib import Path\n", PARENT]
        ),
    ]
    process = forks.run(
        *arguments, tmp_path, "dies", "waits", cwd=tmp_path, first=without_tensorflow
    )
    assert process.returncode == -signal.SIGKILL
    with record.locked(tmp_path):  # waits for the point
        pass


# ---------------------------------------------------------------- whole sweeps


def state_of(into):
    return {name: point["state"] for name, point in record.read(into).points.items()}


def weights(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["weights_sha256"]


@pytest.mark.slow
def test_points_are_the_runs_of_single_commands(dataset, tmp_path):
    """One point diverges; the sweep is extended, and what is done is left as it is."""
    flags = [*TINY, dataset, "--jobs=2", f"--into={tmp_path / 'sweep'}"]
    over = "learning_rate=0.001,1e30"
    first = forks.run(*COMMAND, "--over", over, *flags, cwd=tmp_path)
    assert first.returncode == 6, first.stderr
    good, bad = "learning_rate=0.001,seed=0", "learning_rate=1e30,seed=0"
    assert state_of(tmp_path / "sweep") == {good: "done", bad: "failed"}
    point = record.read(tmp_path / "sweep").points[bad]
    assert point["exit_code"] == 6
    assert point["message"].startswith("vae_mnist: training diverged")
    assert f"failed {bad}: exit code 6: {point['message']}" in first.stderr
    assert "1 done, 1 failed" in first.stdout

    config = json.loads((tmp_path / "sweep" / good / "config.json").read_text())
    threads = config["flags"]["threads"]
    assert f"{threads} and {threads} asked for" in config["reproducibility"]["profile"]["threads"]
    alone = [EXPERIMENT, *TINY, dataset, "--learning_rate=0.001", f"--threads={threads}"]
    assert forks.run(*alone, "--run_dir=alone", cwd=tmp_path).returncode == 0
    assert weights(tmp_path / "sweep" / good) == weights(tmp_path / "alone")

    written = (tmp_path / "sweep" / good / "summary.json").stat()
    more = ["--over", "learning_rate=0.001,1e30", "--seeds=1", *flags, "--check"]
    assert forks.run(*COMMAND, *more, cwd=tmp_path).returncode == 0
    other = forks.run(*COMMAND, "--over", over, *flags, "--latent_dim=3", cwd=tmp_path)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "--latent_dim was 20, now 3" in other.stderr
    assert (tmp_path / "sweep" / good / "summary.json").stat() == written
