"""What made a run: which edits make another source of it, and what is executed on loading it."""

import functools
import importlib
import json
import linecache
import sys

import pytest

from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session.kept import sources
from vae_research.runs.session.kept.kept_modules import KeptSource
from vae_research.runs.session.loading import made_by

FILES = {
    "experiment.py": '''"""An experiment."""

import math

import helper
from lab.nets import units
from vae_research import runs

runs.define_float("kl_weight", 1.0, "weight")


def build(config, data):
    """Returns the model."""
    from late import activation  # where it is used

    # The weight is that of the ELBO.
    weight = 1.0
    optimizer = "adam"
    return helper.VALUE, units(), activation(), weight, optimizer, math.pi


def load(config):
    return helper.VALUE
''',
    "helper.py": "VALUE = 1\n",
    "late.py": "def activation():\n    return 'relu'\n",
    "lab/__init__.py": "",
    "lab/nets.py": "from .sizes import SIZE\n\n\ndef units():\n    return (SIZE,)\n",
    "lab/sizes.py": "SIZE = 500\n",
    "unrelated.py": "VALUE = 2\n",
}
PACKAGE = {"model.py": b"STEP = 1\n", "losses/term.py": b'"""A term."""\n\n\ndef f():\n    pass\n'}

# Edits between two starts: file, what is replaced by what, and whether the source is another.
EDITS = {
    "weight": ("experiment.py", "weight = 1.0", "weight = 25.0", True),
    "weight of another type": ("experiment.py", "weight = 1.0", "weight = 1", True),
    "optimizer": ("experiment.py", '"adam"', '"sgd"', True),
    "default of a flag": ("experiment.py", '"kl_weight", 1.0', '"kl_weight", 2.0', True),
    "order": ("experiment.py", "units(), activation()", "activation(), units()", True),
    "decorator": ("experiment.py", "def load", "@staticmethod\ndef load", True),
    "module beside": ("helper.py", "1", "2", True),
    "module that is imported late": ("late.py", "relu", "tanh", True),
    "network in a package beside": ("lab/nets.py", "(SIZE,)", "(SIZE, SIZE)", True),
    "module that a module imports": ("lab/sizes.py", "500", "400", True),
    "what a package runs": ("lab/__init__.py", "", "import math\n", True),
    "no Python any more": ("helper.py", "VALUE = 1", "VALUE =", True),
    "this package": ("package", "STEP = 1", "STEP = 2", True),
    "this package, a docstring": ("package", "A term.", "A loss term.", False),
    "comment": ("experiment.py", "# The weight is that of the ELBO.", "# 1 is the ELBO.", False),
    "comment behind a line": ("experiment.py", "  # where it is used", "", False),
    "docstring": ("experiment.py", "Returns the model.", "Returns a VAE.", False),
    "docstring of the file": ("experiment.py", '"""An experiment."""', "", False),
    "empty lines": ("experiment.py", "\n\n\n", "\n", False),
    "quotes and brackets": ("experiment.py", '"adam"', "('adam')", False),
    "module that is not imported": ("unrelated.py", "2", "3", False),
}


def write(folder, files=FILES):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def imported(folder, monkeypatch):
    """The experiment as a script of this folder has it."""
    monkeypatch.syspath_prepend(str(folder))
    for name in ("experiment", "helper", "late", "lab", "lab.nets", "lab.sizes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("experiment")


@pytest.fixture
def collect(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_package", lambda: PACKAGE)
    write(tmp_path / "code")
    experiment = imported(tmp_path / "code", monkeypatch)
    return lambda: sources.collect(experiment.build)


def test_what_the_experiment_imports_is_kept_and_nothing_else(collect, tmp_path):
    found = collect()
    assert (found.main, found.build) == ("experiment.py", "build")
    assert set(found.files) == set(FILES) - {"unrelated.py"}
    assert found.origins["lab/nets.py"] == str(tmp_path / "code/lab/nets.py")
    assert sources.keep(tmp_path, found) == "source"
    assert sources.read(tmp_path, "source") == found
    for name, content in found.files.items():
        assert (tmp_path / "source" / name).read_bytes() == content


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_between_two_starts(edit, collect, tmp_path, monkeypatch):
    file, old, new, is_another = EDITS[edit]
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    sources.keep(run_dir, collect())
    if file == "package":
        edited = {k: v.replace(old.encode(), new.encode()) for k, v in PACKAGE.items()}
        assert edited != PACKAGE
        monkeypatch.setattr(sources, "_package", lambda: edited)
        file = "vae_research/model.py"
    else:
        path = tmp_path / "code" / file
        edited = path.read_text().replace(old, new) if old else new
        assert edited != path.read_text()
        path.write_text(edited)
    now = collect()
    found = sources.changes_since(run_dir, "source", now)
    assert [each.what for each in found] == ([f"{file} has changed"] if is_another else [])
    for each in found:
        added = [line[1:] for line in each.lines if line.startswith("+")]
        assert any(part in "\n".join(added) for part in new.splitlines())
    # The first one stays, as checkpoints name the source that made them.
    assert sources.keep(run_dir, now) == ("source-2" if is_another else "source")
    assert sources.changes_since(run_dir, sources.keep(run_dir, now), now) == []


def test_a_difference_is_a_few_lines_without_comments(collect, tmp_path):
    sources.keep(tmp_path, collect())
    path = tmp_path / "code/experiment.py"
    text = path.read_text().replace("# The weight is", "# That is").replace("1.0\n", "2.0\n")
    path.write_text(text)
    (found,) = sources.changes_since(tmp_path, "source", collect())
    assert found.lines == ["@@ -16,2 +16,2 @@", "-    weight = 1.0", "+    weight = 2.0"]
    path.write_text(text + "".join(f"x{number} = {number}\n" for number in range(99)))
    (found,) = sources.changes_since(tmp_path, "source", collect())
    assert (len(found.lines), found.lines[-1]) == (13, "...")


def test_another_function_of_the_same_file_is_another_source(collect, tmp_path):
    sources.keep(tmp_path, collect())
    now = sources.collect(sys.modules["experiment"].load)
    (found,) = sources.changes_since(tmp_path, "source", now)
    assert found.what == "the model was made by 'build', now by 'load'"


PACKAGE_FILES = {
    "lab/__init__.py": "",
    "lab/nets.py": "UNITS = 500\n",
    "lab/data.py": "from .nets import UNITS\n\n\ndef load(config):\n    return UNITS + 1\n",
    "lab/experiments/mnist.py": """
from lab.data import load

from ..nets import UNITS

def build(config, data):
    return UNITS
""",
}


def test_files_of_packages_are_kept_as_they_are_imported(tmp_path, monkeypatch):
    """Relative imports are followed, and work when the source is loaded from another place."""
    monkeypatch.setattr(sources, "_package", lambda: PACKAGE)
    code, run_dir = tmp_path / "code", tmp_path / "run"
    run_dir.mkdir()
    write(code, PACKAGE_FILES)
    monkeypatch.syspath_prepend(str(code))
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        monkeypatch.delitem(sys.modules, name)
    experiment = importlib.import_module("lab.experiments.mnist")

    def collect():
        return sources.collect(experiment.build, data=made_by(experiment.load))

    found = collect()
    assert (found.main, found.data) == ("lab/experiments/mnist.py", ("lab/data.py", "load"))
    assert set(found.files) == set(PACKAGE_FILES)
    sources.keep(run_dir, found)
    write(code, {"lab/nets.py": "UNITS = 400\n"})
    (edited,) = sources.changes_since(run_dir, "source", collect())
    assert edited.what == "lab/nets.py has changed"
    # The folder of the code may move; the run is the same, and is loaded with what it keeps.
    write(code, PACKAGE_FILES)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        monkeypatch.delitem(sys.modules, name)
    code = code.rename(tmp_path / "moved")
    monkeypatch.syspath_prepend(str(code))
    importlib.invalidate_caches()
    experiment = importlib.import_module("lab.experiments.mnist")
    assert sources.keep(run_dir, collect()) == "source"
    kept = KeptSource(run_dir, "source")
    assert (kept.build()(None, None), kept.data()(None)) == (500, 501)


def test_files_that_cannot_be_placed_are_refused(collect, tmp_path, monkeypatch):
    write(tmp_path, {"other/helper.py": "def evaluate(run):\n    pass\n"})
    build = sys.modules["experiment"].build
    with pytest.raises(UsageError, match=r"are both imported as helper.*Rename one of them"):
        sources.collect(build, tmp_path / "other/helper.py")
    monkeypatch.setattr(sys.modules["experiment"], "__package__", "elsewhere")
    with pytest.raises(UsageError, match="as a part of the package elsewhere, and does not lie in"):
        sources.collect(build)


def enclosing(weight):
    def build(config, data):
        return weight

    return build


def test_what_a_function_is_given_beside_its_text_is_compared_and_given_again(collect, tmp_path):
    build = sys.modules["experiment"].load
    before = sources.collect(functools.partial(build, rate=1.0, units=(4, 5)))
    sources.keep(tmp_path, before)
    assert sources.changes_since(tmp_path, "source", before) == []
    now = sources.collect(functools.partial(build, rate=25.0, units=(4, 5)))
    (found,) = sources.changes_since(tmp_path, "source", now)
    assert found.what == ("load was given rate=1.0, units=[4, 5], now rate=25.0, units=[4, 5]")
    assert sources.keep(tmp_path, now) == "source-2"
    for folder, rate in ("source", 1.0), ("source-2", 25.0):
        assert KeptSource(tmp_path, folder).build().keywords == {"rate": rate, "units": (4, 5)}
    (found,) = sources.differences(*(sources.collect(enclosing(each)) for each in (1.0, 25.0)))
    assert found.what == "build was given weight=1.0, now weight=25.0"
    with pytest.raises(UsageError, match="gives build values that a run cannot keep"):
        sources.collect(enclosing(object()))


def test_two_runs_have_the_modules_that_made_them(collect, tmp_path, monkeypatch):
    found = {}
    for value in (1, 2):
        write(tmp_path / "code", {"helper.py": f"VALUE = {value}\n", "late.py": FILES["late.py"]})
        (tmp_path / str(value)).mkdir()
        sources.keep(tmp_path / str(value), collect())
    # What the process has imported, or would find, is of no concern.
    write(tmp_path / "code", {"helper.py": "VALUE = 3\n", "late.py": "raise SystemExit\n"})
    for value in (1, 2, 1):
        kept = KeptSource(tmp_path / str(value), "source")
        found[value] = kept.build()(None, None)
        assert found[value][:3] == (value, (500,), "relu")
        with pytest.raises(LookupError, match="has no function that makes the data"):
            kept.data()
    assert "late" not in sys.modules
    assert sys.modules["helper"].VALUE == 1
    names = {path.name for path in (tmp_path / "1" / "source").iterdir()}
    assert names == {*FILES, "source.json", "vae_research.zip", "lab"} - {
        *("unrelated.py", "lab/__init__.py", "lab/nets.py", "lab/sizes.py")
    }


@pytest.mark.parametrize(("length", "said"), [(9, "kept"), (2**21, "left out: 2097152 characters")])
def test_a_diff_of_git_is_kept_or_said_to_be_missing(length, said, collect, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "git", lambda *arguments: "+" * length)
    sources.keep(tmp_path, collect())
    record = json.loads((tmp_path / "source/source.json").read_text())
    assert record["git_diff"] == said
    assert (tmp_path / "source/git.diff").exists() is (said == "kept")


def test_a_source_that_cannot_be_executed_says_so(collect, tmp_path):
    write(tmp_path / "code", {"helper.py": "import not_installed_here\n"})
    sources.keep(tmp_path, collect())
    with pytest.raises(LookupError, match=r"experiment\.py cannot be executed.*not_installed_here"):
        KeptSource(tmp_path, "source").build()


@pytest.mark.parametrize("attack", ["link", "link to a folder", "outside", "edited", "no record"])
def test_what_is_not_the_kept_source_is_not_executed(attack, collect, tmp_path):
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run_dir.mkdir()
    elsewhere.mkdir()
    name = sources.keep(run_dir, collect())
    kept = run_dir / "source"
    if attack == "link":
        (kept / "helper.py").rename(elsewhere / "helper.py")
        (kept / "helper.py").symlink_to(elsewhere / "helper.py")
    elif attack == "link to a folder":
        kept.rename(elsewhere / "source")
        kept.symlink_to(elsewhere / "source")
    elif attack == "outside":
        kept.rename(elsewhere / "source")
        name = "../elsewhere/source"
    elif attack == "edited":
        (kept / "helper.py").write_text("VALUE = 9\n")
    else:
        (kept / "source.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is damaged"):
        KeptSource(run_dir, name)


def test_a_run_of_before_has_no_source(collect, tmp_path):
    (found,) = sources.changes_since(tmp_path, None, collect())
    assert found.what == "its source was not kept by the vae_research that made it"


def test_cells_of_a_notebook_are_compared_by_their_syntax_trees(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_package", lambda: PACKAGE)

    def collect(*texts):
        """As IPython compiles cells: the name of a file depends on its text."""
        names = {}
        for text in texts:
            file = f"/nowhere/ipykernel_1/{hash(text)}.py"
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
            exec(compile(text, file, "exec"), names)
        return sources.collect(names["build"], data=made_by(names["load"]))

    cells = ["def build(config, data):\n    return 1\n", "def load(config):\n    return 2\n"]
    before = collect(*cells)
    assert before.is_of_notebook
    assert set(before.files) == {"cell-1.py", "cell-2.py"}
    sources.keep(tmp_path, before)
    commented = collect(cells[0], "# A comment.\n" + cells[1])
    assert sources.changes_since(tmp_path, "source", commented) == []
    (found,) = sources.changes_since(tmp_path, "source", collect(cells[0], cells[1][:-2] + "3\n"))
    assert found.what == "cell-2.py has changed"
