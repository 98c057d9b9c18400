"""Compares Python files by what is executed: comments, docstrings and layout do not count."""

from __future__ import annotations

import ast
import difflib
import itertools

_SHOWN = 12  # lines of the difference of a file
_WIDTH = 200  # characters of such a line


def same(before: bytes, now: bytes) -> bool:
    """Returns whether two files have the same syntax tree, apart from docstrings.

    >>> same(b"x = 1  # one", b"x = (1)"), same(b"x = 1", b"x = 1.0")
    (True, False)
    """
    return before == now or _tree(before) == _tree(now)


def changed_lines(before: bytes, now: bytes) -> list[str]:
    """Returns the first lines of a unified difference, without comments and empty lines."""
    left, right = (content.decode("utf-8", "replace").splitlines() for content in (before, now))
    difference = list(difflib.unified_diff(left, right, lineterm="", n=0))[2:]  # no file names
    told = [line for line in difference if line.startswith("@@") or _tells(line[1:].strip())]
    shown = [
        line[:_WIDTH]
        for line, following in itertools.pairwise([*told, "@@"])
        if not (line.startswith("@@") and following.startswith("@@"))
    ]
    return shown[:_SHOWN] + ["..."] * (len(shown) > _SHOWN)


def _tells(line: str) -> bool:
    return bool(line) and not line.startswith("#")


class _Executed(ast.NodeTransformer):
    """Removes statements that do nothing: docstrings, other constants, `pass`."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_Pass(self, node: ast.Pass) -> None:
        return None


def _tree(content: bytes) -> str | bytes:
    try:
        return ast.dump(_Executed().visit(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError):  # no Python
        return content
