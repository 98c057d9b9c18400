"""scripts/run, check and tensorboard, with a stub in place of Python and pip; no TensorFlow.

The stub keeps a log of how it was called. It makes environments whose Python is the stub itself,
so that the log also tells what an experiment would have been started with.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from tests.conftest import fast_first

CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE = 600.0  # a guard against what hangs, and not how long a machine may take

STUB = """#!/usr/bin/env bash
case "$*" in
"-c "*)
    if [[ "$*" == *ensurepip* && -n "${STUB_VERSION-}" ]]; then
        echo "$STUB_VERSION"
        exit
    fi
    exec "$REAL_PYTHON" "$@"
    ;;
"-m venv --clear "*)
    echo "venv" >>"$STUB_LOG"
    rm -rf "$4" && mkdir -p "$4/bin" && touch "$4/pyvenv.cfg" && ln -s "$STUB" "$4/bin/python"
    ;;
"-m pip install "*)
    echo "pip ${*: -1}" >>"$STUB_LOG"
    sleep "${STUB_PIP_SECONDS:-0}"
    echo "output of pip"
    [[ -z "${STUB_PIP_KILLED-}" ]] || kill -KILL $$
    exit "${STUB_PIP_CODE:-0}"
    ;;
*)
    echo "start$(printf ' <%s>' "$@")" >>"$STUB_LOG" # at once: two may be started at a time
    { true >&9; } 2>/dev/null && echo "still holds the lock" >>"$STUB_LOG"
    echo "working folder $PWD"
    [[ "$*" != *"${STUB_FAILS:-no such thing}"* ]] || exit 3
    last="${*: -1}"
    [[ "$last" != --fast-first=* ]] || date +%s >"${last#*=}"
    ;;
esac
"""


class Checkout:
    """A copy of the scripts with two experiments, and the stub's log."""

    def __init__(self, folder: Path, stub: Path):
        self.folder, self.stub, self.log_file = folder, stub, stub.parent / "log"
        shutil.copytree(CHECKOUT / "scripts", folder / "scripts")
        shutil.copytree(CHECKOUT / ".ci", folder / ".ci")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, folder)
        (folder / "experiments").mkdir()
        for name in ("vae_mnist.py", "other.py", "__init__.py"):
            (folder / "experiments" / name).touch()

    def start(self, *arguments, cwd=None, script="scripts/run", **environment):
        return subprocess.Popen(
            [self.folder / script, *arguments],
            cwd=cwd or self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **options):
        process = self.start(*arguments, **options)
        process.stdout_text, process.stderr_text = process.communicate(timeout=PATIENCE)
        return process

    def environment(self, **changes):
        return os.environ | {
            "PYTHON": str(self.stub),
            "REAL_PYTHON": sys.executable,
            "STUB": str(self.stub),
            "STUB_LOG": str(self.log_file),
            "CHROMIUM": "there is one",
            **changes,
        }

    def take_log(self):
        """Returns what the stub was asked for since the last call."""
        text = self.log_file.read_text() if self.log_file.exists() else ""
        self.log_file.write_text("")
        return text.splitlines()

    def started(self, experiment, *arguments):
        path = self.folder / "experiments" / experiment
        return "start " + " ".join(f"<{part}>" for part in (path, *arguments))


@pytest.fixture
def fresh(tmp_path):
    """A checkout that was never used, in a folder with a space in its name."""
    stub = tmp_path / "stub" / "python"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    folder = tmp_path / "my research"
    folder.mkdir()
    return Checkout(folder, stub)


@pytest.fixture
def ready(fresh):
    """A checkout whose environment is there."""
    process = fresh.run("experiments/vae_mnist.py")
    assert process.returncode == 0, process.stderr_text
    fresh.take_log()
    return fresh


# ---------------------------------------------------------------- first and later starts


def test_first_use_makes_the_environment_and_says_so(fresh):
    process = fresh.run("experiments/vae_mnist.py", "--epochs=1")
    assert process.returncode == 0
    assert "First use: making a virtual environment in .venv" in process.stderr_text
    assert fresh.take_log() == [
        "venv",
        "pip .[figures]",
        fresh.started("vae_mnist.py", "--epochs=1"),
    ]


def test_later_start_runs_neither_pip_nor_a_second_python(ready):
    process = ready.run("experiments/vae_mnist.py", PYTHON="/no/such/python")
    assert (process.returncode, process.stderr_text) == (0, "")
    assert ready.take_log() == [ready.started("vae_mnist.py")]


def test_a_sweep_starts_and_a_search_installs_optuna(ready, tmp_path):
    module = "start <-m> <vae_research.runs.sweep.command>"
    experiment = ready.folder / "experiments" / "vae_mnist.py"
    given = ["experiments/vae_mnist.py", "--over", "a=1,2"]
    ready.run(*given, script="scripts/sweep", cwd=tmp_path)
    assert ready.take_log() == [f"{module} <{experiment}> <--over> <a=1,2>"]
    ready.run(*given, "--search=b=1..2", script="scripts/sweep", cwd=tmp_path)
    installed, started = ready.take_log()
    assert installed == "pip .[figures,sweep]"
    assert started == f"{module} <{experiment}> <--over> <a=1,2> <--search=b=1..2>"


@pytest.mark.parametrize("tool", ["compare", "figure"])
def test_tools_get_their_arguments_from_any_folder(ready, tmp_path, tool):
    process = ready.run("a run", "--to=b.pdf", cwd=tmp_path, script=f"scripts/{tool}")
    assert (process.returncode, process.stdout_text) == (0, f"working folder {tmp_path}\n")
    asked = f"start <-m> <vae_research.runs.tools.{tool}> <a run> <--to=b.pdf>"
    assert ready.take_log() == [asked]


def test_flags_arrive_unchanged(ready):
    flags = ["--name=two words", "--empty=", "*", "$HOME", "a\nb", "--", "-h"]
    ready.run("experiments/vae_mnist.py", *flags)
    assert "\n".join(ready.take_log()) == ready.started("vae_mnist.py", *flags)


def test_exit_code_is_that_of_the_experiment(ready):
    assert ready.run("experiments/other.py", STUB_FAILS="other.py").returncode == 3


def test_the_experiment_becomes_the_process_that_was_started(ready):
    # A signal must reach the experiment itself, not a shell that waits for it.
    ready.stub.write_text('#!/usr/bin/env bash\necho "$$"\n')
    process = ready.run("experiments/vae_mnist.py")
    assert int(process.stdout_text) == process.pid


# ---------------------------------------------------------------- from where, and what


def test_relative_to_the_checkout_from_another_folder(ready, tmp_path):
    process = ready.run("experiments/vae_mnist.py", cwd=tmp_path)
    assert ready.take_log() == [ready.started("vae_mnist.py")]
    assert process.stdout_text == f"working folder {tmp_path}\n"


def test_relative_to_the_current_folder(ready):
    ready.run("vae_mnist.py", cwd=ready.folder / "experiments")
    assert ready.take_log() == [ready.started("vae_mnist.py")]


def test_an_experiment_outside_the_checkout(ready, tmp_path):
    (tmp_path / "mine.py").touch()
    ready.run("mine.py", cwd=tmp_path)
    ready.run(str(tmp_path / "mine.py"))
    assert ready.take_log() == [f"start <{tmp_path}/mine.py>"] * 2


def test_through_symbolic_links(ready, tmp_path):
    (tmp_path / "one").symlink_to(ready.folder / "scripts" / "run")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "link to checkout").symlink_to(ready.folder)
    for script in (tmp_path / "two", tmp_path / "link to checkout" / "scripts" / "run"):
        process = ready.run("experiments/vae_mnist.py", cwd="/", script=script)
        assert (process.returncode, process.stderr_text) == (0, "")
    assert ready.take_log() == [ready.started("vae_mnist.py")] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no experiment given"),
        (("experiments/vae_minst.py",), "there is no file experiments/vae_minst.py"),
        (("vae_mnist",), "Did you mean experiments/vae_mnist.py?"),
        (("experiments",), "there is no file experiments"),
        (("--epochs=3", "experiments/vae_mnist.py"), "the experiment comes first"),
    ],
)
def test_without_a_usable_experiment(fresh, arguments, message):
    process = fresh.run(*arguments)
    assert process.returncode == 2
    assert message in process.stderr_text
    assert process.stderr_text.endswith("  experiments/other.py\n  experiments/vae_mnist.py\n")
    assert "__init__" not in process.stderr_text
    assert process.stdout_text == ""
    assert fresh.take_log() == []
    assert not (fresh.folder / ".venv").exists()


def test_help_lists_the_experiments(fresh):
    process = fresh.run("--help")
    assert (process.returncode, process.stderr_text) == (0, "")
    assert "experiments/vae_mnist.py" in process.stdout_text


# ---------------------------------------------------------------- when the environment is stale


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
def test_changed_settings_are_installed_into_the_same_environment(ready, name):
    with (ready.folder / name).open("a") as file:
        file.write("# changed\n")
    process = ready.run("experiments/vae_mnist.py")
    assert "up to date" in process.stderr_text
    assert ready.take_log() == ["pip .[figures]", ready.started("vae_mnist.py")]
    ready.run("experiments/vae_mnist.py")
    assert ready.take_log() == [ready.started("vae_mnist.py")]


def test_a_moved_checkout_gets_a_new_environment(ready, tmp_path):
    ready.folder = ready.folder.rename(tmp_path / "elsewhere")
    process = ready.run("experiments/vae_mnist.py")
    assert "has moved" in process.stderr_text
    assert ready.take_log() == ["venv", "pip .[figures]", ready.started("vae_mnist.py")]


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_another_python_gets_a_new_environment(ready, change):
    link = ready.folder / ".venv" / "bin" / "python"
    link.unlink()
    if change == "removed":
        link.symlink_to("/no/such/python3.11")
    else:
        link.symlink_to(sys.executable)
    ready.run("experiments/vae_mnist.py")
    assert ready.take_log() == ["venv", "pip .[figures]", ready.started("vae_mnist.py")]


def test_failed_installation_shows_the_output_of_pip_and_is_repeated(fresh):
    process = fresh.run("experiments/vae_mnist.py", STUB_PIP_CODE="1")
    assert process.returncode == 1
    assert "output of pip\n" in process.stderr_text
    assert process.stderr_text.splitlines()[-1].startswith("scripts/run: installing failed")
    assert fresh.take_log() == ["venv", "pip .[figures]"]

    assert fresh.run("experiments/vae_mnist.py").returncode == 0
    assert fresh.take_log() == ["pip .[figures]", fresh.started("vae_mnist.py")]


def test_killed_installation_begins_with_an_empty_environment(fresh):
    process = fresh.run("experiments/vae_mnist.py", STUB_PIP_KILLED="1")
    assert process.returncode == 128 + signal.SIGKILL
    fresh.take_log()

    process = fresh.run("experiments/vae_mnist.py")
    assert "interrupted" in process.stderr_text
    assert fresh.take_log() == ["venv", "pip .[figures]", fresh.started("vae_mnist.py")]


@pytest.mark.slow
def test_killed_with_its_pip_begins_with_an_empty_environment(fresh):
    process = fresh.start("experiments/vae_mnist.py", STUB_PIP_SECONDS="1")
    deadline = time.monotonic() + PATIENCE
    while "pip" not in (fresh.log_file.read_text() if fresh.log_file.exists() else ""):
        assert time.monotonic() < deadline, "pip was never started"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    fresh.take_log()

    # The pip that lost its parent still holds the lock: nobody works beside it.
    process = fresh.run("experiments/vae_mnist.py")
    assert "waiting for it" in process.stderr_text
    assert fresh.take_log() == ["venv", "pip .[figures]", fresh.started("vae_mnist.py")]


def test_simultaneous_first_uses_install_once(fresh):
    processes = [fresh.start("experiments/other.py", STUB_PIP_SECONDS="0.5") for _ in range(4)]
    for process in processes:
        process.communicate(timeout=PATIENCE)
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(fresh.take_log()) == [
        "pip .[figures]",
        *[fresh.started("other.py")] * 4,
        "venv",
    ]


def test_an_environment_made_by_hand_is_used(fresh):
    (fresh.folder / ".venv" / "bin").mkdir(parents=True)
    (fresh.folder / ".venv" / "bin" / "python").symlink_to(fresh.stub)
    process = fresh.run("experiments/vae_mnist.py")
    assert "into the existing environment .venv" in process.stderr_text
    assert fresh.take_log() == ["pip .[figures]", fresh.started("vae_mnist.py")]


def test_something_else_called_venv_is_left_alone(fresh):
    (fresh.folder / ".venv").mkdir()
    (fresh.folder / ".venv" / "thesis.tex").write_text("years of work")
    process = fresh.run("experiments/vae_mnist.py")
    assert process.returncode == 2
    assert "move it away" in process.stderr_text
    assert (fresh.folder / ".venv" / "thesis.tex").read_text() == "years of work"


# ---------------------------------------------------------------- machines that cannot


def one_line(process, code):
    assert process.returncode == code
    assert process.stderr_text.count("\n") == 1, process.stderr_text
    return process.stderr_text


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.10", ""])
def test_unfit_python(fresh, version):
    unfit = {"STUB_VERSION": version} if version else {"PYTHON": "/no/such/python"}
    message = one_line(fresh.run("experiments/vae_mnist.py", **unfit), 2)
    assert "Python >= 3.11" in message


@pytest.mark.parametrize("version", ["3.11", "3.13", "3.14", "3.20"])
def test_fit_python(fresh, version):
    assert fresh.run("experiments/vae_mnist.py", STUB_VERSION=version).returncode == 0


@pytest.mark.parametrize("version", ["3.11", "3.14"])
def test_python_without_venv(fresh, version):
    without = f"{version}\nwithout venv"
    message = one_line(fresh.run("experiments/vae_mnist.py", STUB_VERSION=without), 2)
    assert "python3-venv" in message


def test_the_python_that_has_tensorflow_wheels_is_preferred(fresh, tmp_path):
    # python3 is too new, python3.13 exists without starting, as pyenv leaves it, python3.12 fits.
    folder = tmp_path / "bin"
    folder.mkdir()
    pythons = {"python3": "echo 3.14", "python3.13": "exit 127", "python3.12": 'exec "$STUB" "$@"'}
    for name, line in pythons.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    process = fresh.run("experiments/vae_mnist.py", PYTHON="", PATH=path)
    assert process.returncode == 0, process.stderr_text
    assert fresh.take_log()[0] == "venv"


def test_checkout_that_cannot_be_written_to(fresh):
    # A file in the way stands for a read-only disk, which the superuser would not notice.
    (fresh.folder / ".venv").write_text("")
    message = one_line(fresh.run("experiments/vae_mnist.py"), 7)
    assert "cannot write" in message


def test_colon_in_the_path(fresh, tmp_path):
    fresh.folder = fresh.folder.rename(tmp_path / "12:30")
    message = one_line(fresh.run("experiments/vae_mnist.py"), 2)
    assert "rename the folder" in message


# ---------------------------------------------------------------- scripts/check


def test_check_adds_to_the_environment_of_run(ready):
    assert ready.run(script="scripts/check").returncode == 0
    assert ready.take_log()[0] == "pip .[figures,test,docs]"
    ready.run("experiments/vae_mnist.py")
    assert ready.take_log() == [ready.started("vae_mnist.py")]
    ready.run(script="scripts/check")
    assert "pip" not in " ".join(ready.take_log()[:1])


def test_check_runs_every_stage_and_hands_its_arguments_to_pytest(ready, tmp_path):
    process = ready.run("tests/test_x.py", "-k", "a or b", cwd=tmp_path, script="scripts/check")
    stages = stages_of(ready)
    assert [name for name, _ in stages[:2]] == ["ruff", "ruff"]
    at_a_time = dict(stages[2:])
    assert set(at_a_time) == {"mypy", "pytest"}
    assert at_a_time["pytest"].endswith("<tests/test_x.py> <-k> <a or b>")
    assert process.stdout_text == f"working folder {ready.folder}\n" * 4
    assert process.returncode == 0


def stages_of(checkout):
    """Name and command of everything that was started."""
    started = [line for line in checkout.take_log() if line.startswith("start")]
    return [(line.split("> <")[1].rstrip(">"), line) for line in started]


@pytest.mark.parametrize(
    ("arguments", "sets"),
    [
        ([], ["<--fast-first=FILE>"]),
        (["--fast"], ["<-m> <not slow>"]),
        (["--fast", "-x"], ["<-m> <not slow> <-x>"]),
        (["--soak"], ["<--soak>"]),
        (["--cov=vae_research"], ["<--cov=vae_research>"]),
    ],
    ids=" ".join,
)
def test_check_runs_a_set_of_tests_and_says_how_long_it_took(ready, arguments, sets):
    process = ready.run(*arguments, script="scripts/check")
    assert process.returncode == 0, process.stderr_text
    tests = [line for name, line in stages_of(ready) if name == "pytest"]
    given = [line.partition("<--dist=worksteal> ")[2] for line in tests]
    assert [re.sub(r"first=/[^>]+", "first=FILE", flags) for flags in given] == sets
    both = "" if arguments else r"\d+:\d\d minutes for what --fast does, "
    assert re.search(rf"scripts/check: {both}\d+:\d\d minutes in all\.\n$", process.stderr_text)


@pytest.mark.parametrize("stage", ["ruff format --check", "ruff check", "mypy", "pytest"])
def test_check_goes_on_after_a_failing_stage_and_reports_it(ready, stage):
    process = ready.run(script="scripts/check", STUB_FAILS=f"-m {stage}")
    assert len(stages_of(ready)) == 4
    assert process.returncode == 3
    assert process.stderr_text.endswith(f"scripts/check: failed: {stage}\n")


class Item(NamedTuple):
    """A test of pytest's, as far as its order is concerned."""

    name: int
    is_slow: bool
    module: ModuleType

    def get_closest_marker(self, name):
        return self.is_slow or None


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 30, 31])
def test_every_worker_begins_with_fast_tests(workers, count):
    plain, starting = ModuleType("plain"), ModuleType("starting")
    starting.forks = None
    items = [Item(n, n % 3 == 0, starting if n % 2 else plain) for n in range(count)]
    ordered = fast_first(items, workers)
    assert sorted(ordered, key=lambda item: item.name) == items
    shares = []
    for left in range(workers, 0, -1):  # as pytest-xdist hands them out
        share = ordered[: len(ordered) // left]
        del ordered[: len(share)]
        wanted = [[], [], []]  # fast tests, slow ones that start programs, other slow ones
        for item in sorted(share, key=lambda item: item.name):
            wanted[(1 + (item.module is plain)) * item.is_slow].append(item)
        assert share == [*itertools.chain(*wanted)]
        shares.append(len([item for item in share if not item.is_slow]))
    assert max(shares) - min(shares) <= 1


def test_the_build_machine_runs_check(ready):
    process = ready.run(cwd="/", script=".ci/run")
    assert process.returncode == 0
    assert "pytest" in dict(stages_of(ready))


@pytest.fixture
def without_chromium(tmp_path):
    """A path on which everything is found but a browser; apt-get and id are what a test writes."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for place in ("/bin", "/usr/bin", "/usr/local/bin"):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            unwanted = program.name.startswith(("chromium", "google-chrome", "apt-get", "id"))
            if not unwanted and not (tools / program.name).is_symlink():
                (tools / program.name).symlink_to(program)

    def make(**programs):
        for name, lines in programs.items():
            path = tools / name.replace("_", "-")
            path.write_text(f"#!/usr/bin/env bash\n{lines}\n")
            path.chmod(0o755)
        return {"PATH": str(tools), "CHROMIUM": ""}

    return make


def test_check_brings_a_browser_where_it_may_and_says_so(ready, without_chromium, tmp_path):
    asked = tmp_path / "asked"
    environment = without_chromium(id="echo 0", apt_get=f'echo "$@" >>"{asked}"')
    process = ready.run(script="scripts/check", **environment)
    assert process.returncode == 0, process.stderr_text
    assert "Installing Chromium by apt-get" in process.stderr_text
    assert asked.read_text().splitlines() == [
        "update",
        "install --yes --no-install-recommends chromium",
    ]


def test_check_goes_on_without_a_browser_that_cannot_be_had(ready, without_chromium):
    environment = without_chromium(id="echo 0", apt_get='echo "no network"; exit 100')
    process = ready.run(script="scripts/check", **environment)
    assert process.returncode == 0
    assert "no network" in process.stderr_text
    assert "Chromium could not be installed (see above)" in process.stderr_text
    assert "pytest" in dict(stages_of(ready))


def test_check_asks_for_nothing_that_only_root_may(ready, without_chromium):
    environment = without_chromium(id="echo 1000", apt_get="exit 99")
    process = ready.run(script="scripts/check", **environment)
    assert process.returncode == 0
    assert "there is no Chromium, so the browser test is skipped" in process.stderr_text
    assert "pytest" in dict(stages_of(ready))


# ---------------------------------------------------------------- scripts/tensorboard


def make_runs(folder, *names):
    """Runs that were begun one after another."""
    for age, name in enumerate(reversed(names)):
        (folder / name).mkdir(parents=True)
        config = folder / name / "config.json"
        config.touch()
        os.utime(config, (1e9 - age, 1e9 - age))


def logdir_of(checkout):
    return checkout.take_log()[-1].partition("<--logdir=")[2].partition(">")[0]


def test_tensorboard_starts_on_the_newest_run(ready, tmp_path):
    make_runs(ready.folder / "runs", "vae_mnist/old", "study/new of all")
    assert ready.run(script="scripts/tensorboard", cwd="/").returncode == 0
    assert logdir_of(ready) == str(ready.folder / "runs" / "study" / "new of all")
    # Runs of the folder that one is in come first.
    make_runs(tmp_path / "elsewhere" / "runs", "vae_mnist/own")
    ready.run(script="scripts/tensorboard", cwd=tmp_path / "elsewhere")
    assert logdir_of(ready) == str(tmp_path / "elsewhere" / "runs" / "vae_mnist" / "own")


def test_tensorboard_takes_a_folder_and_flags_of_its_own(ready):
    make_runs(ready.folder / "runs", "vae_mnist/old", "vae_mnist/new")
    process = ready.run("runs/vae_mnist", "--port=7000", script="scripts/tensorboard")
    assert process.returncode == 0
    (line,) = ready.take_log()
    assert line.startswith("start <-m> <tensorboard.main>")
    assert f"<--logdir={ready.folder / 'runs' / 'vae_mnist'}>" in line
    assert line.endswith("<--port=7000>")


def test_tensorboard_without_a_run_says_where_it_has_looked(ready, tmp_path):
    process = ready.run(script="scripts/tensorboard")
    assert process.returncode == 2
    assert f"no run below {ready.folder}/runs" in process.stderr_text
    process = ready.run("nowhere", script="scripts/tensorboard")
    assert process.returncode == 2
    assert "there is no folder nowhere" in process.stderr_text
    assert ready.take_log() == []


# ---------------------------------------------------------------- scripts/docs


def test_docs_are_built_in_the_checkout_where_a_folder_is_asked_for(ready, tmp_path):
    process = ready.run(script="scripts/docs", cwd="/")
    assert process.returncode == 0, process.stderr_text
    assert process.stdout_text == f"working folder {ready.folder}\n"
    assert ready.take_log() == ["pip .[docs]", "start <-m> <mkdocs> <build> <--strict>"]
    ready.run("--into", "pages", script="scripts/docs", cwd=tmp_path)
    (line,) = ready.take_log()
    assert line == f"start <-m> <mkdocs> <build> <--site-dir> <{tmp_path / 'pages'}> <--strict>"


def test_docs_are_served_with_flags_of_mkdocs(ready):
    ready.run("--serve", "--dev-addr=:7000", script="scripts/docs")
    assert ready.take_log()[-1] == "start <-m> <mkdocs> <serve> <--strict> <--dev-addr=:7000>"
    process = ready.run("--into", script="scripts/docs")
    assert (process.returncode, ready.take_log()) == (2, [])
    assert "--into needs a folder" in process.stderr_text


# ---------------------------------------------------------------- settings


def test_ruff_reads_every_python_program():
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    programs = [
        f"scripts/{path.name}"
        for path in sorted((CHECKOUT / "scripts").iterdir())
        if path.is_file() and not path.suffix and "python" in path.read_text().splitlines()[0]
    ]
    assert settings["tool"]["ruff"]["extend-include"] == programs
