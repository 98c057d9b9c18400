"""README.md and the pages of docs: their code runs, and what they name exists.

The blocks of a page run in order, in one process. What a block prints or raises stands below it.
Every day MNIST has few images in the pages of docs, and XLA compiles only what a page asks it to;
`--soak` runs them as they are.
"""

import contextlib
import doctest
import io
import json
import re
import shlex
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from tests import forks
from tests.proofs import SOAK
from vae_research.data import load_data

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)

BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
ERROR = re.compile(r"(\w+(?:Error|Exception)):\s*(.*)", re.DOTALL)
RUN = re.compile(r"^scripts/run (experiments/\S+\.py .*--run_dir=.*)$", re.MULTILINE)
# A run that a page asks for and then reads is made smaller.
SMALLER = ["--epochs=1", "--importance_samples=1", "--hidden_units=16"]
FEW = {"train": 1000, "validation": 500, "test": 100}  # images
EXACT = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1


def text(page):
    return page.read_text(encoding="utf-8")


def blocks(page):
    """Code and what is shown below it, in order."""
    return BLOCK.findall(text(page))


def raised(error):
    """What is compared with a page, and shown if it differs."""
    told = "".join(traceback.format_exception(error))
    return {"error": type(error).__name__, "message": str(error), "told": told}


def outcome(code, names):
    """What a block prints, or the error that it raises."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<page>", "exec"), names)
    except Exception as error:  # any error is compared with the page
        return raised(error)
    return {"printed": printed.getvalue(), "told": printed.getvalue()}


def agrees(shown, got):
    """Compares an error by its type and the words of its message, anything else by its text.

    `...` in a text stands for any characters: figures that differ from machine to machine.
    """
    expected = ERROR.fullmatch(shown.strip())
    if "error" in got or expected:
        return (
            "error" in got
            and expected is not None
            and got["error"] == expected[1]
            and expected[2].strip() in got["message"]
            and bool(expected[2].strip() or not got["message"])
        )
    return doctest.OutputChecker().check_output(shown, got["printed"], EXACT)


@pytest.mark.slow
@every_page
def test_every_block_does_what_the_page_says(page, tmp_path):
    def python(*arguments):
        done = forks.run(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    if not blocks(page):
        return
    smaller, few = SMALLER, []
    if not SOAK and page.stem != "README":  # which shows figures
        few = [tmp_path / "few.npz"]
        save_few_images(*few)
        smaller = [*SMALLER, f"--dataset={few[0]}", "--jit=off", "--notensorboard"]
    for command in RUN.findall(text(page)):
        experiment, *flags = shlex.split(command)
        python(CHECKOUT / experiment, *flags, *smaller)
    outcomes = json.loads(python(__file__, page, *few).splitlines()[-1])
    for (code, shown), got in zip(blocks(page), outcomes, strict=True):
        assert agrees(shown, got), f"{code}\nshould give\n{shown}\nand gives\n{got['told']}"


def test_every_page_that_teaches_has_code():
    with_code = {page.stem for page in PAGES if blocks(page)}
    assert with_code >= {"README", "extending", "kl_loss", "notebook", "speed"}


def test_the_page_on_the_kl_loss_has_every_recipe_that_fails():
    shown = [ERROR.match(shown) for _, shown in blocks(CHECKOUT / "docs" / "kl_loss.md")]
    assert [error[1] for error in shown if error] == [
        "ValueError",  # a loss function that closes over tensors
        "ValueError",  # a TensorFlow function on a symbolic tensor, outside of a layer
        "ValueError",  # and in one
        "NotImplementedError",  # a symbolic loss on the model
        "TypeError",  # add_loss(inputs=...)
        "NotImplementedError",  # add_metric
        "ValueError",  # no y
        "ValueError",  # no loss
        "ValueError",  # our own message
    ]


@pytest.mark.parametrize(
    ("shown", "got"),
    [
        ("ValueError: b", raised(TypeError("a b c"))),
        ("ValueError: b", raised(ValueError("a c"))),
        ("ValueError: b", {"printed": "ValueError: b"}),
        # What Keras raises for a symbolic loss has no message, and the page shows none.
        ("NotImplementedError:", raised(NotImplementedError("something"))),
        ("", raised(ValueError("b"))),
        ("b\n", raised(ValueError("b"))),
        ("b\n", {"printed": "c\n"}),
        ("", {"printed": "c\n"}),
        ("b ... d\n", {"printed": "b c\n"}),
        ("1\n", {"printed": "True\n"}),
    ],
)
def test_a_page_that_says_something_else_is_noticed(shown, got):
    assert not agrees(shown, got)


def test_a_page_that_is_right_passes():
    assert agrees("ValueError: b", raised(ValueError("a b c")))
    assert agrees("NotImplementedError:", raised(NotImplementedError()))  # Keras' has no message
    assert agrees("b\n", {"printed": "b\n"})
    assert agrees("b ... d\n", {"printed": "b c d\n"})
    assert agrees("", {"printed": ""})


@every_page
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)\)", text(page))
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_every_image_is_shown():
    shown = {
        image for page in PAGES for image in re.findall(r"!\[.+?\]\(images/([^)]+)\)", text(page))
    }
    assert {path.name for path in (CHECKOUT / "docs" / "images").iterdir()} == shown


@every_page
def test_files_that_are_named_exist(page):
    named = re.findall(r"`([\w/]+/[\w.-]+\.(?:py|txt))`", text(page))
    assert [path for path in named if not (CHECKOUT / path).is_file()] == []


def test_public_names_that_are_named_exist():
    import vae_research as vr

    used = {name for page in PAGES for name in re.findall(r"\bvr\.(\w+)", text(page))}
    assert used <= set(vr.__all__)
    assert len(used) > 20


def test_tests_that_are_named_exist():
    table = text(CHECKOUT / "docs" / "reliability.md").partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and "---" not in row][1:]
    assert len(rows) > 10
    for row in rows:
        held_by = row.split("|")[-2]
        assert "`tests/" in held_by, row
        for part in re.split(r"(?=`tests/)", held_by)[1:]:
            file, *names = re.findall(r"`([^`]+)`", part)
            source = (CHECKOUT / file).read_text(encoding="utf-8")
            assert [name for name in names if f"def {name}(" not in source] == []


def save_few_images(path):
    """Writes the data that MNIST is for a page, see `make_lighter`."""
    mnist = load_data("mnist")
    np.savez(path, **{name: getattr(mnist, name).raw[:rows] for name, rows in FEW.items()})


def make_lighter(few):
    """In the process of a page: MNIST is the images of a file, and little is traced or compiled.

    Keras does not choose XLA. The few steps of a VAE run eagerly unless a page asks for XLA, and
    gradient descent is a third of the operations of "adam".
    """
    import keras

    import vae_research

    load, compiled = vae_research.load_data, keras.Model.compile

    def load_few(name, **options):
        return load(few if name == "mnist" else name, **options)

    def compile_lightly(model, optimizer="rmsprop", *arguments, jit_compile="auto", **options):
        chosen = False if jit_compile == "auto" else jit_compile
        if isinstance(model, vae_research.VAE) and not chosen:
            options = {"run_eagerly": True} | options
        optimizer = "sgd" if isinstance(optimizer, str) else optimizer  # not that of a run
        compiled(model, optimizer, *arguments, jit_compile=chosen, **options)

    vae_research.load_data, keras.Model.compile = load_few, compile_lightly


if __name__ == "__main__":  # the process of a page
    if sys.argv[2:]:
        make_lighter(sys.argv[2])
    names = {"__name__": "__main__"}  # as in a notebook: flags belong to a module
    print(json.dumps([outcome(code, names) for code, _ in blocks(Path(sys.argv[1]))]))
