"""The pages of docs are run line by line, and what their code prints or raises stands below it."""

import contextlib
import io
import re
import traceback
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = sorted((CHECKOUT / "docs").glob("*.md"))
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
ERROR = re.compile(r"(\w+(?:Error|Exception)):\s*(.*)", re.DOTALL)


def blocks(page):
    """Code and what is shown below it, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def outcome(code, names):
    """What a block prints, or the error that it raises."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<page>", "exec"), names)
    except Exception as error:  # whatever it is, it is compared with the page
        return error
    return printed.getvalue()


def agrees(shown, got):
    """An error agrees by its type and by the words of its message, all else by its text."""
    expected = ERROR.fullmatch(shown.strip())
    if isinstance(got, Exception) or expected:
        return (
            isinstance(got, Exception)
            and expected is not None
            and type(got).__name__ == expected[1]
            and expected[2].strip() in str(got)
            and (expected[2].strip() or not str(got))
        )
    return shown == got


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_does_what_the_page_says(page):
    names = {"__name__": "page"}
    for code, shown in blocks(page):
        got = outcome(code, names)
        told = "".join(traceback.format_exception(got)) if isinstance(got, Exception) else got
        assert agrees(shown, got), f"{code}\nis said to give\n{shown}\nand gives\n{told}"


def test_the_page_on_the_kl_loss_has_every_recipe_that_fails():
    shown = [ERROR.match(text) for _, text in blocks(CHECKOUT / "docs" / "kl_loss.md")]
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
        ("ValueError: b", TypeError("a b c")),
        ("ValueError: b", ValueError("a c")),
        ("ValueError: b", "ValueError: b"),
        # What Keras raises for a symbolic loss has no message, and the page shows none.
        ("NotImplementedError:", NotImplementedError("something")),
        ("", ValueError("b")),
        ("b\n", ValueError("b")),
        ("b\n", "c\n"),
    ],
)
def test_a_page_that_says_something_else_is_noticed(shown, got):
    assert not agrees(shown, got)


def test_a_page_that_is_right_passes():
    assert agrees("ValueError: b", ValueError("a b c"))
    assert agrees("NotImplementedError:", NotImplementedError())  # Keras' own has no message
    assert agrees("b\n", "b\n")
    assert agrees("", "")
