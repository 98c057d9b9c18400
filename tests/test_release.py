"""The distributions that are published, and the package as others install it.

Sdist and wheel are built as `python -m build` does: the wheel from the sdist. The wheel is then
installed into an environment of its own, and an experiment in another folder than this checkout
uses it. Every day that environment has links to the packages at hand, but for those of the extras;
with `--soak` there is also one that pip alone has made, as a new user does.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import setuptools

from tests import forks
from vae_research.runs.session.kept import tested
from vae_research.version import TESTED, __version__

CHECKOUT = Path(__file__).resolve().parents[1]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(CHECKOUT / "setup.cfg")

# What .gitignore names: in any folder, and in that of the checkout.
MADE = shutil.ignore_patterns("__pycache__", "*.py[cod]", ".ipynb_checkpoints", ".DS_Store")
MADE_HERE = re.compile(
    r"\.git|\.venv|.*\.egg-info|runs|build|dist|site|\.benchmark|test-artefacts|htmlcov|coverage.xml"
    r"|\..*_cache|\.coverage.*|\.venv\.lock"
)
# The hooks of PEP 517: pip and build call them in this way.
HOOK = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"

EXPERIMENT = '''"""An experiment outside of the checkout."""

import vae_research as vr
from vae_research import runs

import parts

runs.define_float("sparsity", 0.5, "weight of the sparse code term")


def build(config, data):
    """Returns the model."""
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(16,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(16,)),
        [vr.Bernoulli(), vr.KLDivergence(), parts.SparseCode(weight=config.sparsity)],
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
'''
PARTS = '''"""A term in a file beside the experiment."""

import vae_research as vr


class SparseCode(vr.LossTerm):
    """Sum of the absolute values of the code. Reads z [rows, latent]."""

    def per_example(self, z):
        return vr.sum_over_event(abs(z))
'''
# What a session does with the finished run, and with what is not installed.
SESSION = """
import json, sys
import keras
import numpy as np
import vae_research as vr

run = vr.load_run("first")
codes = run.model.encode(run.data.test.prepare())
found = {"file": vr.__file__, "codes": list(codes.shape), "sparsity": run.config.sparsity}


def told(action):
    try:
        action()
    except (ImportError, ValueError) as error:
        return str(error)


found["t_sne"] = told(lambda: vr.t_sne(codes))
labels = np.zeros(len(codes), int)
found["plot"] = told(lambda: vr.save_scatter("plot.png", codes, labels, title="codes"))
found["prior"] = told(lambda: vr.distributions.DistributionPrior())
print(json.dumps(found))
"""


def run(*command, cwd, **environment):
    """Runs a program to its end, without this checkout on its path."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=variables | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Sdist and wheel; see `Distributions`."""
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("building needs setuptools >= 77: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("distributions")
    sources = folder / "checkout"
    copy([path for path in CHECKOUT.iterdir() if not MADE_HERE.fullmatch(path.name)], sources)
    names = files_of(sources)
    sdist = folder / built("sdist", sources, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    packed = files_of(unpacked)
    wheel = folder / built("wheel", unpacked, folder)
    return Distributions(sdist, wheel, names, packed)


class Distributions(NamedTuple):
    """Both files, and names of files: of the checkout, and of the sdist."""

    sdist: Path
    wheel: Path
    names: set[str]
    packed: set[str]


def copy(paths, into):
    """Copies files and folders of the checkout, but for what is made."""
    into.mkdir(exist_ok=True)
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, into / path.name, ignore=MADE)
        else:
            shutil.copy(path, into)


def built(kind, source, into):
    """Builds a distribution; returns its name."""
    backend = str(Path(setuptools.__file__).parents[1])
    hook = ("-W", "error", "-c", HOOK.format(kind))
    done = run(sys.executable, *hook, into, cwd=source, PYTHONPATH=backend)
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert not re.search("deprecat|SetuptoolsWarning", told, re.IGNORECASE), told
    return done.stdout.splitlines()[-1]


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_sdist_has_all_that_builds_and_tests_need(distributions):
    assert distributions.sdist.name == f"vae_research-{__version__}.tar.gz"
    added = {name for name in distributions.packed if name == "PKG-INFO" or ".egg-info/" in name}
    assert distributions.packed - added == distributions.names


@pytest.mark.slow
def test_the_wheel_has_the_package_with_its_data_and_nothing_else(distributions):
    assert distributions.wheel.name == f"vae_research-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(distributions.wheel).namelist())
    own = {name for name in names if ".dist-info/" not in name}
    assert own == {name for name in distributions.names if name.startswith("vae_research/")}
    assert {name for name in own if not name.endswith(".py")} == {
        "vae_research/py.typed",
        "vae_research/data/mnist.npz",
        "vae_research/data/MNIST-NOTICE.txt",
    }
    described = {Path(name).name for name in names - own}
    assert described == {"LICENSE", "METADATA", "WHEEL", "RECORD", "top_level.txt"}


@pytest.mark.slow
def test_a_docker_image_gets_what_it_installs_and_runs(distributions, tmp_path):
    """What .dockerignore lets in is enough to build the wheel, and has all experiments."""
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    assert "*" in lines  # all but what follows
    copy([CHECKOUT / line[1:] for line in lines if line.startswith("!")], tmp_path)
    (by_default,) = re.findall(r'^CMD \["([^"]+)"', (CHECKOUT / "Dockerfile").read_text(), re.M)
    assert (tmp_path / by_default).is_file()
    wheel = tmp_path / built("wheel", tmp_path, tmp_path)
    assert zipfile.ZipFile(wheel).namelist() == zipfile.ZipFile(distributions.wheel).namelist()


# ---------------------------------------------------------------- the package as others have it

MODULES_OF_EXTRAS = (
    *("matplotlib", "sklearn", "scipy", "optuna", "tensorflow_probability", "tf_keras", "xprof"),
)


class Elsewhere:
    """An environment with the wheel, and a folder with an experiment; neither is the checkout."""

    def __init__(self, python, folder):
        self.python, self.folder = python, folder

    def run(self, *arguments, **environment):
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
        return run(self.python, *arguments, cwd=self.folder, **quiet, **environment)


def environment_of_links(folder):
    """Makes an environment with links to the packages at hand, but those of the extras."""
    done = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    (into,) = folder.glob("lib/python*/site-packages")
    hidden = re.compile("|".join([*MODULES_OF_EXTRAS, "vae_research", "_+editable", r".*\.pth$"]))
    for place in map(Path, sys.path):
        if place.name in ("site-packages", "dist-packages"):
            for path in place.iterdir():
                if not hidden.match(path.name) and not (into / path.name).exists():
                    (into / path.name).symlink_to(path)
    return ["--no-deps", "--no-index"]


def environment_of_pip(folder):
    """Makes an environment with nothing in it; pip finds what the wheel requires."""
    done = run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return []


@pytest.fixture(
    scope="module",
    params=[environment_of_links, pytest.param(environment_of_pip, marks=pytest.mark.soak)],
    ids=["links", "pip"],
)
def elsewhere(distributions, tmp_path_factory, request):
    environment = tmp_path_factory.mktemp("environment") / "venv"
    options = request.param(environment)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-input")
    done = run(*pip, *options, distributions.wheel, cwd=environment.parent)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if re.search("vae.research|metadata", line)]
    assert told == []  # pip warns of other things, such as mirrors
    folder = tmp_path_factory.mktemp("my research")
    (folder / "my_experiment.py").write_text(EXPERIMENT)
    (folder / "parts.py").write_text(PARTS)
    pixels = np.random.default_rng(0).random([60, 6, 6, 1], np.float32)
    np.savez(folder / "images.npz", train=pixels[:40], validation=pixels[40:50], test=pixels[50:])
    return Elsewhere(python, folder)


TINY = ("--dataset=images.npz", "--latent_dim=2", "--batch_size=20", "--importance_samples=2")
QUICK = ("--jit=off", "--notensorboard", "--run_dir=first")


@pytest.fixture(scope="module")
def first(elsewhere):
    """The run of the experiment, after one epoch and after a second one."""
    done = [
        elsewhere.run("my_experiment.py", *TINY, *QUICK, f"--epochs={epochs}") for epochs in (1, 2)
    ]
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    return done


@pytest.mark.slow
def test_an_experiment_elsewhere_trains_and_resumes(elsewhere, first):
    before, after = (each.stdout for each in first)
    assert "sparse_code" in before
    assert "Resuming after epoch 1 (step 2)" in after
    run_dir = elsewhere.folder / "first"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("done", 2)
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 2
    config = json.loads((run_dir / "config.json").read_text())
    assert config["versions"]["vae_research"] == __version__
    assert {"my_experiment.py", "parts.py"} <= {path.name for path in run_dir.glob("source/*.py")}


@pytest.mark.slow
def test_help_and_bad_flags_elsewhere(elsewhere):
    done = elsewhere.run("my_experiment.py", "--help")
    assert done.returncode == 0
    assert "--sparsity" in done.stdout + done.stderr
    done = elsewhere.run("my_experiment.py", "--sparsty=1", "--run_dir=none")
    assert done.returncode == 2
    assert done.stderr.startswith("my_experiment: unknown flag --sparsty. Did you mean 'sparsity'?")
    assert not (elsewhere.folder / "none").exists()


@pytest.mark.slow
def test_a_run_is_loaded_elsewhere_and_what_is_missing_says_how_it_is_installed(elsewhere, first):
    (elsewhere.folder / "session.py").write_text(SESSION)
    done = elsewhere.run("session.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["file"]).is_relative_to(elsewhere.python.parents[1])
    assert (found["codes"], found["sparsity"]) == ([10, 2], 0.5)
    figures = "pip install 'vae_research[figures]'."
    assert found["t_sne"] == f"t-SNE needs scikit-learn: {figures}"
    assert found["plot"] == f"a plot needs matplotlib: {figures}"
    assert found["prior"] == (
        "DistributionPrior needs tensorflow-probability and tf-keras: "
        "pip install 'vae_research[probability]'."
    )
    assert "pip install 'vae_research[figures]'" in first[0].stdout  # no figures/curves.png


@pytest.mark.slow
def test_commands_say_which_extra_is_missing(elsewhere, first):
    (elsewhere.folder / "images.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(128) + bytes(64))
    module = "vae_research.runs"
    sweep = ("-m", f"{module}.sweep.command", "my_experiment.py", "--into=sweep", "--trials=2")
    for command, extra, code in (
        ((*sweep, "--search=learning_rate=log:1e-4..1e-2", *TINY), "sweep", 2),
        (("-m", f"{module}.tools.compare", "first", "--plot=curves", "--to=a.png"), "figures", 2),
        (("my_experiment.py", "--dataset=images.mat", "--run_dir=none"), "matlab", 3),
    ):
        done = elsewhere.run(*command)
        (line,) = done.stderr.strip().splitlines()
        assert (done.returncode, f"pip install 'vae_research[{extra}]'" in line) == (code, True)
    # A profile is written without the extra, and a warning says what shows it.
    done = elsewhere.run(
        *("my_experiment.py", *TINY, "--jit=off", "--run_dir=profiled", "--epochs=1"),
        "--profile_steps=1,1",
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'vae_research[profile]'" in done.stderr


# ---------------------------------------------------------------- tested versions

NEWER = """
import runpy, sys
from vae_research.runs.session.kept import tested

tested.installed = lambda: {"tensorflow": "2.21.9", "keras": "4.0.0"}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WARNING = "keras 4.0.0 is newer than 3.15, the newest version that vae_research"


@pytest.mark.slow
def test_a_run_with_a_newer_keras_warns_once(dataset, tmp_path):
    command = (CHECKOUT / "experiments" / "vae_mnist.py", dataset, "--dry_run", "--batch_size=19")
    done = forks.run("-c", NEWER, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"warning: {WARNING}") == 1
    assert "tensorflow" not in done.stderr


def test_what_is_installed_is_what_was_tested():
    """A newer version must be tested, and written into `TESTED`, before it is promised."""
    found = tested.installed()
    assert found.keys() == TESTED.keys()
    assert tested.warnings_of(found) == []
    required = SETTINGS["options"]["install_requires"]
    for name, version in TESTED.items():
        assert re.search(rf"^{name} >= {re.escape(version)}, < ", required, re.MULTILINE)


# ---------------------------------------------------------------- what the files of a release say


def test_the_version_stands_in_one_place_and_is_repeated_rightly():
    assert SETTINGS["metadata"]["version"] == "attr: vae_research.version.__version__"
    changes = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, released = re.findall(r"^## \[(.+?)\](.*)$", changes, re.MULTILINE)[:2]
    assert unreleased == ("Unreleased", "")
    citation = dict(
        re.findall(r'^([\w-]+): "?([^"\n]+)', (CHECKOUT / "CITATION.cff").read_text(), re.M)
    )
    assert released == (__version__, f" - {citation['date-released']}")
    assert citation["version"] == __version__
    assert citation["license"] == SETTINGS["metadata"]["license_expression"]


def test_hooks_before_a_commit_are_those_of_the_check():
    """The programs, in their order; scripts/check has them as commands of its stages."""
    check = (CHECKOUT / "scripts" / "check").read_text()
    programs = re.findall(r'"\$python" -m (ruff \w+|mypy)\b', check)
    hooks = (CHECKOUT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: \.venv/bin/python -m (.+)$", hooks, re.MULTILINE)
    assert [each.removesuffix(" --force-exclude") for each in entries] == programs


def test_extras_are_described():
    pages = [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    described = set(re.findall(r"(?:`|vae_research)\[(\w+)\]", text))
    assert set(SETTINGS["options.extras_require"]) <= described


def test_images_are_built_of_what_setup_cfg_offers():
    docker = (CHECKOUT / "Dockerfile").read_text()
    assert re.findall(r"^FROM \S+ AS (\w+)$", docker, re.MULTILINE) == ["base", "gpu", "cpu"]
    extras = {name for found in re.findall(r'"\.\[(.+?)\]"', docker) for name in found.split(",")}
    assert extras == {"figures", "gpu"}
    assert extras <= set(SETTINGS["options.extras_require"])
