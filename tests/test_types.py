"""What a type checker knows of the public names, and that it knows the names that exist."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vae_research
from vae_research.lazy import lazy_names

CHECKOUT = Path(__file__).resolve().parents[1]
NAMESPACES = vae_research._NAMESPACES
MODULES = {"controllers", "schedules"}  # the others are packages
LAZY = ("vae_research", *(f"vae_research.{name}" for name in NAMESPACES if name not in MODULES))

# A program of a user: statements, and what mypy says of each (nothing, if it is correct).
PROGRAM = [
    ("import tensorflow as tf", None),
    ("import vae_research as vr", None),
    ("from vae_research import losses, networks, runs", None),
    ("reveal_type(vr.VAE)", r'"def \(.*\) -> vae_research\.model\.VAE"'),
    ("reveal_type(runs.train)", r'"def \(.*\) -> vae_research\.runs\..*Run"'),
    ("reveal_type(vr.callbacks.Scalars)", r'"def \(.*\) -> vae_research\.callbacks\..*Scalars"'),
    ("reveal_type(vr.bottlenecks.Bottleneck)", r'"def \(.*\) -> vae_research\..*Bottleneck"'),
    ("reveal_type(networks.dense_encoder)", r'"def \(.*latent_dim: int, .*\) -> .*"'),
    ("reveal_type(vr.schedules.Cosine(steps=1).in_steps(2))", r'"vae_research\.schedules\.Cosine"'),
    (
        "reveal_type(vr.KLDivergence(weight=2.0))",
        r'"vae_research\.losses\.divergence\.KLDivergence"',
    ),
    ("reveal_type(losses.KLDivergence().weight)", r'"float \| .* \| None"'),
    ("vr.KLDivergence(weight=vr.LinearWarmup(peak=4.0, epochs=2))", None),
    ("vr.KLDivergence(weight=vr.PIDControl(target=25.0))", None),
    ("vr.controllers.GECO()", 'Missing named argument "target" for "GECO"'),
    ("vr.KLDivergence(wieght=2.0)", 'Unexpected keyword argument "wieght" for "KLDivergence"'),
    ("vr.KLDivergence(2.0)", "Too many positional arguments"),
    ('vr.KLDivergence(weight="2")', 'Argument "weight" to "KLDivergence" has incompatible type'),
    ("vr.KLDivergence().weight = 3.0", r'Property "weight" .* is read-only'),
    ("vr.KLDivergenc", 'Module has no attribute "KLDivergenc"'),
    ("vr.losses.Bernouli", 'Module has no attribute "Bernouli"'),
    (
        """
class Sparse(vr.LossTerm):
    power: float
    scale: float = 1.0

    def per_example(self, z: tf.Tensor) -> tf.Tensor:
        return self.scale * vr.sum_over_event(abs(z) ** self.power)
""",
        None,
    ),
    ("reveal_type(Sparse(power=2.0, weight=0.5, name='sparse').scale)", '"float"'),
    ("Sparse()", 'Missing named argument "power" for "Sparse"'),
    ("Sparse(power=2.0, shift=1.0)", 'Unexpected keyword argument "shift" for "Sparse"'),
    (
        """
class Saturating(vr.schedules.Schedule):
    half_steps: int = 500

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return step / (step + self.half_steps)
""",
        None,
    ),
    ("Sparse(power=2.0, weight=Saturating(half_steps=10))", None),
    (
        """
class Watch(vr.callbacks.EpochCallback):
    def on_record(self, record: vr.callbacks.EpochRecord) -> None:
        reveal_type(record.figures)
""",
        r'"dict\[.*\]"',
    ),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of `PROGRAM`: a list of its messages for each of the statements."""
    folder = tmp_path_factory.mktemp("types")
    first_lines, source = [], ""
    for statement, _ in PROGRAM:
        first_lines.append(source.count("\n") + 1)
        source += f"{statement.strip()}\n"
    (folder / "program.py").write_text(source)
    # A copy of the cache that `scripts/check` has filled: two processes of tests may ask at a time.
    cache = CHECKOUT / ".mypy_cache"
    if cache.exists():
        shutil.copytree(cache, folder / "cache")
    command = [sys.executable, "-m", "mypy", f"--cache-dir={folder / 'cache'}"]
    process = subprocess.run(
        [*command, folder / "program.py"], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert process.returncode == 1, process.stderr  # errors were found, as they should
    messages = [[] for _ in PROGRAM]
    for line, message in re.findall(r"program\.py:(\d+): (.*)", process.stdout):
        # A note that mypy adds to an error, or not, depending on what its cache has.
        if not re.fullmatch('note: ".*" defined (here|in .*)', message):
            index = sum(first <= int(line) for first in first_lines) - 1
            messages[index].append(message)
    return messages


@pytest.mark.slow
@pytest.mark.parametrize(
    "index",
    range(len(PROGRAM)),
    ids=[statement.strip().partition("\n")[0] for statement, _ in PROGRAM],
)
def test_a_type_checker_knows_the_public_names(said, index):
    _, expected = PROGRAM[index]
    if expected is None:
        assert said[index] == []
    else:
        (message,) = said[index]
        assert re.search(expected, message)


def static_names(package):
    """The names that a package imports under TYPE_CHECKING, with the modules that define them."""
    tree = ast.parse(Path(importlib.import_module(package).__file__).read_text("utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    found = {}
    for node in block.body:
        for alias in node.names:
            assert alias.asname == alias.name  # otherwise it is private to a type checker
            found[alias.name] = node.module
    return found


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_what_exists_at_run_time(package):
    module = importlib.import_module(package)
    lazy = {
        name: f"{package}.{defined_in}"
        for defined_in, names in module._MODULES.items()
        for name in names
    }
    if package == "vae_research":
        lazy |= dict.fromkeys(NAMESPACES, package)
    assert static_names(package) == lazy
    assert set(module.__all__) - {"__version__"} == set(lazy)
    assert set(lazy) <= set(dir(module))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_namespace_has_all_flat_names_of_its_kind(namespace):
    module = getattr(vae_research, namespace)
    flat = {
        name: home
        for name, home in static_names("vae_research").items()
        if f"{home}.".startswith(f"vae_research.{namespace}.")
    }
    assert set(flat) <= set(module.__all__)
    for name in flat:
        assert getattr(module, name) is getattr(vae_research, name)


def test_a_namespace_is_there_without_an_import_of_its_own():
    program = f"""
import sys
import vae_research as vr

for name in {NAMESPACES}:
    assert name in dir(vr)
    assert set(getattr(vr, name).__all__) <= set(dir(getattr(vr, name)))
vr.losses.LossTerm, vr.losses.Likelihood, vr.schedules.LinearWarmup(steps=3), vr.LossTerm
vr.controllers.GECO(target=vr.LinearWarmup(steps=3, peak=80.0))
assert not {{"keras", "tensorflow"}} & sys.modules.keys()
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_a_name_that_is_not_public_is_answered_as_python_does():
    with pytest.raises(AttributeError, match="module 'vae_research' has no attribute 'Losses'"):
        vae_research.Losses  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from vae_research.losses import Nothing  # noqa: F401


def test_lazy_names_are_sorted_and_complete():
    public, get, names = lazy_names("vae_research", {"tables": ("markdown_table",)}, ("version",))
    assert public == ["markdown_table", "version"]
    assert get("version").__name__ == "vae_research.version"
    assert get("markdown_table").__module__ == "vae_research.tables"
    assert {"markdown_table", "version", "__name__"} <= set(names())


def test_the_package_says_that_it_is_typed():
    assert (CHECKOUT / "vae_research" / "py.typed").is_file()
