"""The page of the experiments shows what each header says, with its picture, flags and source."""

import ast
import html
import re
import textwrap
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `experiments/(\w+)\.py`", re.M)
LABEL = re.compile(r"^(Idea|Paper|Picture|Command|Time|Expect|The [\w ]+): *", re.M)


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
        if label == "Picture":
            lines += [f"![{name}]({words.removeprefix('docs/')})"]
        elif label == "Command" or label.startswith("The "):
            lines += ["```sh", textwrap.dedent(words.replace("\\\\", "\\")), "```"]
        else:
            lines += [f"**{label}.** {plain(words)}" if label else plain(words)]
        lines += [""]
    own = own_flags(tree)
    if own:
        lines += ["| flag | default | |", "| --- | --- | --- |"]
        lines += [f"| `--{flag}` | {default} | {words} |" for flag, default, words in own]
        lines += [""]
    listing = textwrap.indent(f"```python\n{source}```", "    ")
    return "\n".join([*lines, f'??? note "experiments/{name}.py"', "", listing, ""])


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
    return re.sub(r"([*_\\|\[\]$])", r"\\\1", html.escape(words, quote=False))


def own_flags(tree):
    """Returns name, default and help of the flags that an experiment defines, from its source."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="runs"), attr=attribute),
                args=[ast.Constant(value=name), default, *_, words],
            ) if attribute.startswith("define_"):
                shown = f"`{ast.unparse(default)}`"
                found.append((name, shown, plain(str(value_of(words)))))
    return found


def value_of(node):
    """Returns the text of a literal; of anything else, as it is written."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
