"""Flags of an experiment: from modules that it imports, from files, and with what may change."""

import functools
import json
import sys
from types import ModuleType

import pytest

from tests import forks
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import configure, may_change
from vae_research.runs.cli.functions import arguments_of, bound, experiment_file, function_of

SHARED = '''"""Flags of several experiments."""

from absl import flags

from vae_research import runs

runs.set_defaults(epochs=2, latent_dim=3)
DEPTH = runs.define_integer("depth", 2, "layers")
flags.DEFINE_integer("of_absl", 7, "defined with absl itself")
'''

BETWEEN = '''"""Uses them."""

import shared_flags


def units(config):
    return (4,) * config.depth
'''

EXPERIMENT = '''"""Takes flags of a module by way of another."""

import functools
import json
import sys

from between import units
from vae_research import runs
from vae_research.runs.cli.flags import may_change, parse

runs.define_integer("patience", 2, "epochs", may_change=True)
runs.set_defaults(latent_dim=4)


def build(config, data, width):
    raise AssertionError


def data(config):
    found = config.as_dict() | {"units": units(config), "changing": sorted(may_change(build))}
    print(json.dumps(found))
    sys.exit(0)


if __name__ == "__main__":
    runs.main(functools.partial(build, width=5), data=data)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flags")
    files = {"shared_flags": SHARED, "between": BETWEEN, "takes_flags": EXPERIMENT}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "own.txt").write_text("# of this machine\n--depth=6\n--flagfile=more.txt\n")
    (folder / "more.txt").write_text("--epochs=3\n")
    (folder / "twice.txt").write_text("--depth=6\n--depth=7\n")
    return folder


@pytest.fixture
def said(place, without_tensorflow):
    def run(*flags):
        return forks.run(place / "takes_flags.py", *flags, cwd=place, first=without_tensorflow)

    return run


def test_flags_of_modules_that_an_experiment_imports(said):
    process = said("--depth=1", "--of_absl=8")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert (found["depth"], found["of_absl"], found["units"]) == (1, 8, [4])
    # The defaults of the experiment come before those of the module.
    assert (found["epochs"], found["latent_dim"]) == (2, 4)
    assert {"patience", "epochs", "early_stopping", "tensorboard"} < set(found["changing"])
    assert not {"depth", "of_absl", "latent_dim", "seed"} & set(found["changing"])


def test_flags_of_a_file_come_after_those_of_the_command_line(said):
    for flags in (["--flagfile=own.txt", "--epochs=9"], ["--epochs=9", "--flagfile", "own.txt"]):
        process = said(*flags)
        assert process.returncode == 0, process.stderr
        found = json.loads(process.stdout)
        assert (found["depth"], found["epochs"]) == (6, 9)
        assert "flagfile" not in found
    assert json.loads(said("--flagfile=own.txt").stdout)["epochs"] == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--flagfile=no.txt"], "No such file or directory: 'no.txt'"),
        (["--flagfile=twice.txt"], "--depth is given twice, as 6 and as 7"),
        (["--flagfile=own.txt", "--epochs=1", "--epochs=2"], "--epochs is given twice"),
        (["--undefok=depth"], "--undefok hides flags"),
        (["--deph=3"], "unknown flag --deph. Did you mean 'depth'?"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(flags, words, said):
    process = said(*flags)
    assert (process.returncode, process.stdout) == (2, "")
    assert words in process.stderr
    assert process.stderr.count("\n") == 1


def test_help_has_sections(said):
    lines = said("--help").stdout.splitlines()
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "Flags of this experiment:"
    assert titles[1:4] == ["The run:", "Data:", "Model and training:"]
    own = lines[lines.index(titles[0]) + 1 : lines.index(titles[1])]
    names = [line.strip() for line in own if line.startswith("  --")]
    assert names == ["--depth=2", "--of_absl=7", "--patience=2"]
    data = lines[lines.index("Data:") :]
    assert any(line.startswith("  --dataset=") for line in data)


def build(config, data, width=1, units=()):
    return width, units


def test_a_function_with_arguments_is_found_and_bound_again():
    partial = functools.partial(functools.partial(build, width=3), units=(4, 5))
    assert function_of(partial) is build
    assert experiment_file(partial).name == "test_flags.py"
    assert arguments_of(build) is None
    arguments = json.loads(json.dumps(arguments_of(partial)))
    assert bound(build, arguments)(None, None) == (3, (4, 5))
    assert bound(build, None) is build
    with pytest.raises(UsageError, match=r"gives build values that a run cannot keep"):
        arguments_of(functools.partial(build, width=object()))


def test_what_may_change_is_a_matter_of_one_experiment(tmp_path, monkeypatch):
    found = {}
    configure(build)  # defines the standard flags
    for name, changing in (("changes_rate", True), ("keeps_rate", False)):
        found[name] = module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
        exec(
            "from vae_research import runs\n"
            f"runs.define_float('rate_of_two', 1.0, 'help', may_change={changing})\n"
            "def build(config, data): pass\n",
            vars(module),
        )
    assert "rate_of_two" in may_change(found["changes_rate"].build)
    assert "rate_of_two" not in may_change(found["keeps_rate"].build)
    assert "rate_of_two" in may_change(build)  # a study has it, and its run's config too
