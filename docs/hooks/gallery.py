"""The page of the experiments shows what each header says, with pictures, flags and source.

The pictures of an experiment are docs/images/NAME.png and docs/images/NAME_*.png.
"""

import ast
import html
import re
import textwrap
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `experiments/(\w+)\.py`", re.M)
LABEL = re.compile(r"^(Idea|Paper|Command|Time|Expect|The [\w ]+): *", re.M)


def on_page_markdown(text, page, config, files):
    """Puts sections below each table of the page, and links its rows to them."""
    if page.file.src_uri != "experiments.md":
        return text
    parts = re.split(r"(?m)^(?=## )", text)
    return "".join(with_sections(part) for part in parts)


def with_sections(part):
    """Returns a part of the page with a section for every experiment of its table."""
    names = ROW.findall(part)
    linked = ROW.sub(r"| [`experiments/\1.py`](#\1)", part)
    return "\n".join([linked.rstrip("\n"), "", *map(section, names), ""])


def section(name):
    """Returns the section of an experiment."""
    path = CHECKOUT / "experiments" / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    title, parts = header(ast.get_docstring(tree))
    lines = [f"### {name} {{ #{name} }}", "", f"**{plain(title)}**", ""]
    for label, words in parts:
        if label == "Command" or label.startswith("The "):
            lines += ["```sh", textwrap.dedent(words.replace("\\\\", "\\")), "```"]
        else:
            lines += [f"**{label}.** {plain(words)}" if label else plain(words)]
        lines += [""]
    images = CHECKOUT / "docs" / "images"
    pictures = [*images.glob(f"{name}.*"), *sorted(images.glob(f"{name}_*"))]
    lines += [f"![{name}](images/{picture.name}){{ width=300 }}" for picture in pictures] + [""]
    own = own_flags(tree)
    if own:
        rows = ["| flag | default | |", "| --- | --- | --- |"]
        rows += [f"| `--{flag}` | {default} | {words} |" for flag, default, words in own]
        lines += folded("Its flags", "\n".join(rows))
    return "\n".join([*lines, *folded(f"experiments/{name}.py", f"```python\n{source}```")])


def folded(title, text):
    """Returns lines that show a text when their title is clicked."""
    return [f'??? note "{title}"', "", textwrap.indent(text, "    "), ""]


def header(document):
    """Returns the first sentence of a header, and pairs of a label (or none) and its words."""
    title, _, rest = document.partition("\n\n")
    found = []
    for block in rest.split("\n\n"):
        pieces = LABEL.split(block)
        if pieces[0].strip():
            found.append(("", pieces[0]))
        found += zip(pieces[1::2], pieces[2::2], strict=True)
    return title, [(label, words.strip()) for label, words in found]


def plain(words):
    """Returns text as Markdown that shows it as it is."""
    pieces = re.split(r"(`[^`]*`)", words)
    pieces[::2] = [
        re.sub(r"([*_\\|\[\]$])", r"\\\1", html.escape(piece, quote=False)) for piece in pieces[::2]
    ]
    return "".join(pieces)


def own_flags(tree):
    """Returns name, default and help of the flags that an experiment defines, from its source."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="runs"), attr=attribute),
                args=[ast.Constant(value=name), default, *_, words],
            ) if attribute.startswith("define_"):
                found.append((name, f"`{value_of(default)}`", plain(str(value_of(words)))))
    return found


def value_of(node):
    """Returns the text of a literal; of anything else, as it is written."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
