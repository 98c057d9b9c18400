"""Notebooks of docs run, and show what they print.

What is shown was stored by `tests.notebooks`, and is compared without its numbers. Every day the
cells run in a fork, with few images and without XLA, as the pages of docs do (see test_docs.py);
`--soak` runs them in a kernel, as they are.
"""

import ast
import contextlib
import io
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from tests import forks, test_docs
from tests.notebooks import FOLDER, KINDS, code_cells, execute, is_stored, read
from vae_research import runs

CHECKOUT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")
LARGEST = 60_000  # bytes: a notebook is read in a review, and is part of every clone


def shown(cell):
    """What a cell prints, and its value: a text, or the kind of a picture; without numbers."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    values = [output.data for output in cell.outputs if output.output_type == "execute_result"]
    return as_compared(printed, [picture_or_text(value) for value in values])


def picture_or_text(data):
    return "a picture" if "image/png" in data else data["text/plain"]


def as_compared(printed, values):
    # Columns of numbers are as wide as the numbers.
    return [re.sub(r" +", " ", NUMBER.sub("#", text)) for text in (printed, *values)]


@pytest.mark.slow
@every_notebook
def test_every_cell_shows_what_is_stored(path, tmp_path):
    few = tmp_path / "few.npz"
    test_docs.save_few_images(few)
    done = forks.run(__file__, path, few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for cell, got in zip(code_cells(read(path)), found, strict=True):
        assert got == shown(cell), cell.source


@pytest.mark.soak
@every_notebook
def test_every_cell_shows_what_is_stored_in_a_kernel(path):
    stored, notebook = read(path), read(path)
    execute(notebook)
    for cell, again in zip(code_cells(stored), code_cells(notebook), strict=True):
        assert shown(again) == shown(cell), cell.source


@every_notebook
def test_a_notebook_is_valid_small_and_names_no_machine(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size <= LARGEST
    assert notebook.cells[0].source.startswith("# ")
    assert all(cell.outputs or "print" not in cell.source for cell in code_cells(notebook))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert all(is_stored(output) and {*output.get("data", ())} <= {*KINDS} for output in outputs)
    assert not re.search(r"/(?:home|root|tmp|Users)/", path.read_text(encoding="utf-8"))
    page = (CHECKOUT / "docs" / "notebook.md").read_text(encoding="utf-8")
    assert f"(notebooks/{path.name})" in page


@every_notebook
def test_links_of_a_notebook_lead_to_files(path):
    links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(cell.source for cell in read(path).cells))
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_another_output_is_noticed():
    assert as_compared("ELBO -104.4\n", []) == as_compared("ELBO  -99.87\n", [])
    assert as_compared("ELBO -104.4\n", []) != as_compared("KL 20.1\n", [])
    assert as_compared("1 2\n", []) != as_compared("1\n", [])
    assert as_compared("", ["a picture"]) != as_compared("", [])


def executed(source, names):
    """Runs a cell as a notebook does; returns what it shows."""
    printed, values = io.StringIO(), []
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        value = (
            None if last is None else eval(compile(ast.Expression(last.value), "", "eval"), names)
        )
    if value is not None:
        values.append("a picture" if hasattr(value, "_repr_png_") else repr(value))
    return as_compared(printed.getvalue(), values)


if __name__ == "__main__":  # the process of a notebook
    test_docs.make_lighter(sys.argv[2])
    runs.set_defaults(jit="off", tensorboard=False)  # of what a notebook runs, as `__main__`
    names = {"__name__": "__main__"}
    print(json.dumps([executed(cell.source, names) for cell in code_cells(read(sys.argv[1]))]))
