"""Notebooks become pages: their cells, and what these have printed and drawn."""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File

NOTEBOOK = re.compile(r"(\]\([^)\s]*)\.ipynb\)")


def on_files(files, config):
    """Replaces every notebook by a page."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
        files.remove(file)
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=markdown(notebook)))
    return files


def on_page_markdown(text, page, config, files):
    """Has links to notebooks lead to their pages."""
    return NOTEBOOK.sub(r"\1.md)", text)


def markdown(notebook):
    """Returns a notebook as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            parts += filter(None, map(shown, cell["outputs"]))
    return "\n\n".join(parts) + "\n"


def shown(output):
    """Returns an output as Markdown, None of messages and if there is nothing to see."""
    if output.get("name") == "stderr":
        return None
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f"![output of the cell](data:image/png;base64,{picture})"
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else None
