"""The page of the flags has tables of those that every run has, as the program defines them."""

import html

from vae_research.runs.cli.definitions import STANDARD, defined
from vae_research.runs.cli.parsers import Serializer
from vae_research.runs.cli.standard_flags import define_standard_flags


def on_page_markdown(text, page, config, files):
    """Adds a table for each section of --help."""
    if page.file.src_uri != "flags.md":
        return text
    define_standard_flags()
    sections = {}
    for name, each in defined[STANDARD].items():
        sections.setdefault(each.section, []).append(row(name, each))
    lines = []
    for title, rows in sections.items():
        lines += [f"## {title}", "", "| flag | default | | may change when resumed |"]
        lines += ["| --- | --- | --- | --- |", *rows, ""]
    return "\n".join([text.rstrip("\n"), "", *lines])


def row(name, each):
    """Returns the row of a flag."""
    flag = each.flag
    default = "" if flag.default is None else f"`{Serializer().serialize(flag.default)}`"
    kind = flag.parser.syntactic_help
    words = html.escape(f"{flag.help}{f' ({kind})' if kind else ''}", quote=False)
    return f"| `--{name}` | {default} | {escaped(words)} | {'yes' if each.may_change else ''} |"


def escaped(words):
    """Returns text as a cell of a table shows it."""
    for character in "|*_[]":
        words = words.replace(character, f"\\{character}")
    return words
