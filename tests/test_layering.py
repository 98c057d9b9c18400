"""Who may import whom: downward only, read from the source without importing anything.

Every import counts, wherever it stands: at the top, inside a function, under `TYPE_CHECKING`, or as
a call of `import_module` with a constant name.
"""

import ast
import configparser
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import vae_research

CHECKOUT = Path(__file__).resolve().parents[1]
ROOT = "vae_research"

# From the ground up. A part is a module or a folder directly in vae_research; it may import itself
# and every part of the lines before its own, but none of its own line.
LAYERS = (
    ("distribution",),
    (
        *("settings", "arguments", "extras", "tables", "version", "randomness", "files"),
        *("lazy", "epochs", "captured_tensors"),
    ),
    ("schemas", "levels"),
    ("probability", "schedules", "tensors", "codes", "manifests", "state"),
    ("controllers",),
    ("priors",),
    ("losses", "bottlenecks", "networks", "data", "gradient_estimators", "disentanglement"),
    ("objective", "keras_losses", "distributions"),
    ("critics",),
    ("averaging",),
    ("keras_inputs", "suitability", "execution", "checkpoints", "running_means", "serialization"),
    ("round_trip", "replica_checks"),
    ("trainer",),
    ("steps",),
    ("saving",),
    ("model",),
    ("evaluation", "plots"),
    ("selfcheck",),
    ("callbacks",),
    ("runs",),
    ("",),  # vae_research/__init__.py, which knows them all
)
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
BOTTOM = (*LAYERS[0], *LAYERS[1], *LAYERS[2], *LAYERS[3], *LAYERS[4])

# Narrower than the layers: a part, and the only things of this package that it may import.
ONLY = {
    "objective": ("losses.term", "gradient_estimators", *BOTTOM),
    "model": (
        *("objective", "critics", "gradient_estimators", "saving", "priors", "suitability"),
        *BOTTOM,
    ),
}

# What comes from outside: everywhere, at the bottom, and only where it is used (inside a function).
REQUIRED = {"PIL", "absl", "keras", "numpy", "tensorboard", "tensorflow"}
REQUIRED_AT = {part: {"keras", "numpy", "tensorflow"} for part in LAYERS[3]} | {
    "distribution": {"tensorflow"},
    "settings": set(),
    "arguments": set(),
    "tables": set(),
    "version": set(),
    "files": set(),
    "lazy": set(),
    "epochs": set(),
    "extras": set(),
    "schemas": set(),
    "levels": set(),
    "captured_tensors": {"keras", "tensorflow"},
    "controllers": {"tensorflow"},
    "manifests": {"numpy"},
    "randomness": {"tensorflow"},
}
# By the extra of setup.cfg that has them.
EXTRAS = {
    "disentanglement": {"sklearn": "scikit-learn"},
    "matlab": {"scipy": "scipy"},
    "hdf5": {"h5py": "h5py"},
    "figures": {"matplotlib": "matplotlib", "sklearn": "scikit-learn"},
    "probability": {"tensorflow_probability": "tensorflow-probability"},
    "sweep": {"optuna": "optuna"},
}
OPTIONAL = {name for packages in EXTRAS.values() for name in packages}


class Import(NamedTuple):
    """One imported name: what it is, as a dotted path, and where it stands."""

    target: str
    line: int
    deferred: bool  # does not run when the module is imported


def imports_of(module: str, source: str, known: Mapping[str, str]) -> Iterator[Import]:
    is_package = any(name.startswith(f"{module}.") for name in known)

    def absolute(name: str, level: int) -> str:
        if not level:
            return name
        parents = [*module.split("."), *(["__init__"] if is_package else [])][:-level]
        return ".".join([*parents, name] if name else parents)

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, deferred)
            case ast.ImportFrom():
                for alias in node.names:
                    path = f"{absolute(node.module or '', node.level)}.{alias.name}"
                    yield Import(path, node.lineno, deferred)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                relative = name.lstrip(".")
                yield Import(absolute(relative, len(name) - len(relative)), node.lineno, deferred)
            case ast.Attribute(value=ast.Name(id="absl"), attr=attribute):
                yield Import(f"absl.{attribute}", node.lineno, deferred)
        deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        deferred |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, deferred)

    yield from visit(ast.parse(source), False)


def resolve(target: str, known: Mapping[str, str]) -> str:
    """Returns the longest beginning of a dotted path that is a module: the rest are its names."""
    while target not in known and "." in target:
        target = target.rpartition(".")[0]
    return target


def part_of(module: str) -> str:
    part = module.removeprefix(ROOT).lstrip(".").partition(".")[0]
    return "runs" if part.startswith("runs_") else part


def violations(sources: Mapping[str, str]) -> list[str]:
    """Returns one line per forbidden import in `{module name: source}`."""
    found = []
    for module, source in sources.items():
        part = part_of(module)
        if part not in HEIGHT:
            found.append(f"{module}: is in no layer")
            continue
        for target, line, deferred in imports_of(module, source, sources):
            where = f"{module}:{line}"
            if target.partition(".")[0] == ROOT:
                imported = resolve(target, sources)
                if not may_import(part, imported):
                    found.append(f"{where}: must not import {imported}")
            else:
                found += outside_violation(part, where, target, deferred)
    return found


def may_import(part: str, imported: str) -> bool:
    other = part_of(imported)
    if other == part:
        return True
    name = imported.removeprefix(f"{ROOT}.")
    if part in ONLY:
        return any(name == only or name.startswith(f"{only}.") for only in ONLY[part])
    return HEIGHT.get(other, len(LAYERS)) < HEIGHT[part]


def outside_violation(part: str, where: str, target: str, deferred: bool) -> list[str]:
    package = target.partition(".")[0]
    if f"{target}.".startswith("absl.flags.") and part != "runs":
        return [f"{where}: flags are defined in experiments and in runs, nowhere else"]
    if package in sys.stdlib_module_names or package in REQUIRED_AT.get(part, REQUIRED):
        return []
    if package in OPTIONAL and part not in REQUIRED_AT:
        return [] if deferred else [f"{where}: {package} is optional; import it where it is used"]
    return [f"{where}: {package} is not among what this module may depend on"]


def reachable(start: str, sources: Mapping[str, str]) -> set[str]:
    """Returns the modules that `start` imports, directly or by way of others, and itself."""
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module not in seen and module in sources:
            seen.add(module)
            targets = imports_of(module, sources[module], sources)
            waiting += [resolve(each.target, sources) for each in targets]
    return seen


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Returns modules each of which imports the next, the last one being the first; or nothing."""
    imported = {
        module: {resolve(each.target, sources) for each in imports_of(module, source, sources)}
        for module, source in sources.items()
    }
    graph = {module: targets & sources.keys() - {module} for module, targets in imported.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def private_uses(source: str, public: set[str]) -> list[str]:
    """Returns what an experiment takes from the package without it being offered.

    Args:
        source: of the experiment.
        public: names, those in a namespace as `losses.KLDivergence`.
    """
    found, prefixes = [], {}  # local names of the package and its namespaces, and what they mean
    tree = ast.parse(source)
    namespaces = {name.partition(".")[0] for name in public if "." in name}
    known = {ROOT: "", f"{ROOT}.runs": ""}
    for target, line, _ in imports_of("experiment", source, known):
        path = target.split(".")
        if path[0] != ROOT or path == [ROOT]:
            continue
        if path[1] == "runs":
            offered = len(path) < 3 or not path[2].startswith("_")
        else:
            offered = ".".join(path[1:]) in public
        if not offered:
            found.append(f"line {line}: {target}")
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    if alias.asname and alias.name.removeprefix(f"{ROOT}.") in namespaces:
                        prefixes[alias.asname] = alias.name.removeprefix(f"{ROOT}.") + "."
                    elif alias.name.partition(".")[0] == ROOT:
                        prefixes[alias.asname or ROOT] = ""
            case ast.ImportFrom(module="vae_research"):
                for alias in node.names:
                    if alias.name in namespaces:
                        prefixes[alias.asname or alias.name] = f"{alias.name}."
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in prefixes:
                used = prefixes[name] + attribute
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id=name), attr=namespace), attr=attribute
            ) if prefixes.get(name) == "" and namespace in namespaces:
                used = f"{namespace}.{attribute}"
            case _:
                continue
        if used not in public | {"runs"}:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


# ---------------------------------------------------------------- what is in the checkout


@pytest.fixture(scope="module")
def package():
    sources = {}
    for path in sorted((CHECKOUT / ROOT).rglob("*.py")):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


def test_imports_go_downward_only(package):
    assert violations(package) == []


def test_no_modules_import_each_other(package):
    assert cycle(package) == []


def test_a_loss_term_never_imports_the_model(package):
    losses = [module for module in package if part_of(module) == "losses"]
    assert losses
    for module in losses:
        assert f"{ROOT}.model" not in reachable(module, package), module


def test_the_model_never_imports_a_loss_term(package):
    # What Objective needs of a term is written down in losses.term, which holds no term.
    reached = {module for module in reachable(f"{ROOT}.model", package) if "losses" in module}
    assert reached <= {f"{ROOT}.losses.term"}


def test_experiments_benchmarks_and_scripts_use_public_names_only():
    programs = sorted((CHECKOUT / "experiments").glob("*.py"))
    assert programs
    programs += sorted((CHECKOUT / "benchmarks").glob("*.py"))
    for path in (CHECKOUT / "scripts").iterdir():
        if path.is_file() and re.match(r"#!.*python", path.read_text()):
            programs.append(path)
    public = public_names()
    found = {path.name: private_uses(path.read_text(), public) for path in programs}
    # The speed of transitions is that of a part: a whole estimate has preliminary chains, too.
    (measured,) = found.pop("ours.py")
    assert measured.endswith("vae_research.evaluation.annealing")
    assert {name: uses for name, uses in found.items() if uses} == {}


def public_names():
    return set(vae_research.__all__) | {
        f"{namespace}.{name}"
        for namespace in vae_research._NAMESPACES
        for name in getattr(vae_research, namespace).__all__
    }


def test_what_is_imported_is_what_setup_cfg_requires():
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / "setup.cfg")
    lines = settings["options"]["install_requires"].split("\n")
    required = {re.match(r"[\w-]*", line)[0].removesuffix("-py") for line in lines} - {""}
    assert required == REQUIRED - {"PIL"} | {"pillow"}
    for extra, packages in EXTRAS.items():
        assert all(name in settings["options.extras_require"][extra] for name in packages.values())


def test_importing_the_package_defines_no_flag_and_loads_no_tensorflow():
    program = """
import sys
from absl import app, flags, logging
import vae_research
own = [module for module in flags.FLAGS.flags_by_module_dict() if not module.startswith("absl.")]
vae_research.distributions
heavy = {"keras", "tensorflow", "matplotlib", "tensorflow_probability", "tf_keras"}
print(own, sorted(heavy & sys.modules.keys()))
"""
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert answer.stdout == "[] []\n"


# ---------------------------------------------------------------- the checker catches mistakes

GOOD = {
    "": "import importlib",
    "settings": "import dataclasses",
    "probability": "import tensorflow as tf",
    "schedules": "from vae_research.settings import Settings",
    "tensors": "import keras\nimport numpy as np",
    "controllers": "from vae_research.schedules import Schedule, value_at",
    "losses": "from .term import LossTerm",
    "losses.term": "from vae_research.controllers import Controller",
    "losses.divergence": "from vae_research import probability\nfrom .term import LossTerm",
    "bottlenecks": "",
    "bottlenecks.gaussian": "from ..probability import gaussian_kl",
    "networks": "",
    "keras_losses": "from vae_research import probability",
    "data": "",
    "objective": "from vae_research.losses.term import LossTerm\nfrom vae_research import tensors",
    "model": "from .objective import Objective\nimport vae_research.tensors",
    "callbacks": "",
    "callbacks.images": "from .. import evaluation\ndef f():\n    from matplotlib import pyplot",
    "evaluation": "from vae_research.model import VAE\nfrom vae_research import losses",
    "plots": "",
    "checkpoints": "",
    "runs": "from absl import flags\nfrom vae_research import callbacks, checkpoints, evaluation",
    "runs_flags": "import absl.flags",
}


PUBLIC = {"VAE", "losses", "losses.Bernoulli"}


def named(sources):
    return {f"{ROOT}.{name}".rstrip("."): source for name, source in sources.items()}


def test_good_imports_pass():
    assert violations(named(GOOD)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        # upward
        ("losses.divergence", "from vae_research.model import VAE"),
        ("losses.divergence", "from vae_research import model"),
        ("losses.divergence", "from .. import model"),
        ("losses.divergence", "from ..model import VAE"),
        ("losses", "from ..model import VAE"),
        ("losses.divergence", "def f():\n    import vae_research.model"),
        ("losses.divergence", "if TYPE_CHECKING:\n    from vae_research.model import VAE"),
        ("losses.divergence", "try:\n    import vae_research.objective\nexcept ImportError: pass"),
        ("losses.divergence", "import_module('vae_research.model')"),
        ("losses.divergence", "f = lambda: importlib.import_module('..model', __package__)"),
        ("probability", "from vae_research.losses.term import LossTerm"),
        ("settings", "from vae_research import schedules"),
        ("controllers", "from vae_research.losses.term import LossTerm"),
        ("data", "from vae_research import runs"),
        ("model", "from vae_research.callbacks import images"),
        ("evaluation", "from vae_research.runs import load_run"),
        # the package's own public names: they know everything
        ("losses.divergence", "import vae_research"),
        ("losses.divergence", "from vae_research import VAE"),
        ("runs", "from vae_research import VAE"),
        # sideways
        ("losses.divergence", "from vae_research.bottlenecks import gaussian"),
        ("networks", "from vae_research.data import load_mnist"),
        ("schedules", "from vae_research import probability"),
        ("evaluation", "from vae_research import plots"),
        ("evaluation", "from vae_research.callbacks import images"),
        # downward, but more than may be known
        ("objective", "from vae_research.losses import divergence"),
        ("objective", "from vae_research.losses import LossTerm"),
        ("objective", "from vae_research import bottlenecks"),
        ("model", "from vae_research.losses.term import LossTerm"),
        ("model", "from vae_research.losses.divergence import KLDivergence"),
        ("model", "from vae_research import networks"),
        ("model", "from vae_research.bottlenecks.gaussian import GaussianBottleneck"),
        # from outside
        ("probability", "import tensorboard"),
        ("probability", "import scipy"),
        ("settings", "import numpy"),
        ("callbacks.images", "import matplotlib.pyplot as plt"),
        ("callbacks.images", "def f():\n    import pandas"),
        ("tensors", "def f():\n    import matplotlib"),
        # flags
        ("callbacks.images", "from absl import flags"),
        ("callbacks.images", "from absl.flags import DEFINE_string"),
        ("callbacks.images", "import absl.flags"),
        ("callbacks.images", "import absl\nabsl.flags.DEFINE_string"),
        ("model", "def f():\n    from absl import flags"),
    ],
)
def test_forbidden_import_is_caught(module, line):
    sources = named(GOOD | {module: f"{GOOD[module]}\n{line}"})
    found = violations(sources)
    assert len(found) == 1
    assert found[0].startswith(f"{ROOT}.{module}:")


def test_module_in_no_layer_is_caught():
    assert violations(named(GOOD | {"helpers": ""})) == [f"{ROOT}.helpers: is in no layer"]


def test_detour_to_the_model_is_caught():
    sources = named(GOOD | {"probability": "def f():\n    from vae_research.model import VAE"})
    assert f"{ROOT}.model" in reachable(f"{ROOT}.losses.divergence", sources)
    assert f"{ROOT}.model" not in reachable(f"{ROOT}.losses.divergence", named(GOOD))


@pytest.mark.parametrize(
    "line",
    [
        "from vae_research import tensors",
        "def f():\n    from .tensors import bind",
        "if TYPE_CHECKING:\n    import vae_research.tensors",
    ],
)
def test_cycle_is_caught(line):
    sources = named(GOOD | {"tensors": "from vae_research.schedules import Schedule"})
    assert cycle(sources) == []
    sources |= named({"settings": line})  # which schedules imports
    schedules, settings, tensors = named({"schedules": "", "settings": "", "tensors": ""})
    assert set(cycle(sources)) == {schedules, settings, tensors}


@pytest.mark.parametrize(
    "source",
    [
        "from vae_research import VAE, runs\nfrom vae_research.runs import main\nimport numpy",
        "import vae_research as vr\nvr.VAE\nvr.runs",
        "import vae_research.runs\nvae_research.VAE",
        "import vae_research as vr\nvr.losses.Bernoulli(weight=2.0).weight",
        "import vae_research.losses\nvae_research.losses.Bernoulli",
        "import vae_research.losses as terms\nterms.Bernoulli",
        "from vae_research import losses\nlosses.Bernoulli",
        "from vae_research.losses import Bernoulli",
    ],
)
def test_public_use_passes(source):
    assert private_uses(source, PUBLIC) == []


@pytest.mark.parametrize(
    "source",
    [
        "from vae_research import KL",
        "from vae_research import model",
        "from vae_research.model import VAE",
        "from vae_research.runs import _flags",
        "import vae_research.model",
        "def f():\n    from vae_research.losses.term import LossTerm",
        "import vae_research as vr\nvr.model.VAE",
        "import vae_research\nvae_research._MODULES",
        "import vae_research as vr\nvr.losses.term",
        "import vae_research as vr\nvr.losses.KL()",
        "import vae_research.losses as terms\nterms.KL",
        "from vae_research import losses\nlosses.term.LossTerm",
        "from vae_research.losses import term",
    ],
)
def test_private_use_is_caught(source):
    assert len(private_uses(source, PUBLIC)) == 1
