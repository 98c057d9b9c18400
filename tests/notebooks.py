"""Runs the notebooks of docs in a kernel, and stores what they show.

    python -m tests.notebooks                                     all of them
    python -m tests.notebooks docs/notebooks/first_steps.ipynb    one

Stored are texts on standard output, values and PNG pictures. Left out are what TensorFlow says of
the machine on standard error, second formats of pictures, and the empty areas that Keras makes when
it writes a summary of a network into a file.
"""

import sys
import tempfile
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
KINDS = ("text/plain", "image/png")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook):
    """Runs all cells in a folder of their own, and leaves in them what is stored.

    Raises:
        CellExecutionError: a cell raises an error.
    """
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}  # times
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if is_stored(output)]
        for output in cell.outputs:
            if "data" in output:
                output.data = {kind: output.data[kind] for kind in KINDS if kind in output.data}
    notebook.metadata.pop("widgets", None)


def is_stored(output):
    return output.output_type == "execute_result" or output.get("name") == "stdout"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        notebook = read(path)
        execute(notebook)
        nbformat.write(notebook, path)
        print(f"stored {path}")
