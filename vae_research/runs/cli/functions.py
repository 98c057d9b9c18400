"""The functions of an experiment, plain or wrapped by `functools.partial`, and whose files are."""

from __future__ import annotations

import functools
import inspect
import json
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vae_research.runs.cli.errors import UsageError

_OUR_FOLDER = Path(__file__).resolve().parents[2]


def function_of(build: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function of an experiment without what wraps it, such as `functools.partial`.

    Raises:
        TypeError: it is not a function.
    """
    if not callable(build):
        raise TypeError(f"build must be a function of config and data, got {build!r}.")
    while isinstance(build, functools.partial):
        build = build.func
    build = inspect.unwrap(build)
    return build if hasattr(build, "__code__") else type(build).__call__


def experiment_file(build: Callable[..., Any]) -> Path:
    """Returns the file that defines an experiment's `build`."""
    return Path(function_of(build).__code__.co_filename).absolute()


def experiment_name(build: Callable[..., Any]) -> str:
    """Returns the name of an experiment: that of its file, or `notebook` if there is no file."""
    file = experiment_file(build)
    return file.stem if file.is_file() else "notebook"


@functools.cache
def is_users(file: Path) -> bool:
    """Returns whether a file belongs to no installed package, to Python, or to this package."""
    file = file.resolve()
    if {"site-packages", "dist-packages"} & set(file.parts):
        return False
    others = [_OUR_FOLDER, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    return not any(file.is_relative_to(other.resolve()) for other in others)


def arguments_of(build: Callable[..., Any]) -> dict[str, Any] | None:
    """Returns the values that an experiment's function has beside its text, None without any.

    `functools.partial` gives it arguments, and the function around it the variables that it uses.

    Raises:
        UsageError: JSON cannot hold them, so that they could neither be compared nor given again.
    """
    function = function_of(build)
    cells = function.__closure__ or ()
    if not isinstance(build, functools.partial) and not cells:
        return None
    given = build if isinstance(build, functools.partial) else functools.partial(build)
    try:
        found = {
            "positional": given.args,
            "keywords": given.keywords,
            "enclosed": {
                name: cell.cell_contents
                for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
            },
        }
        return json.loads(json.dumps(found, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"functools.partial, or a function around it, gives {function.__name__} values that a "
            f"run cannot keep ({error}), and another command could not be compared with it. Give "
            "numbers, strings, lists of them, or use flags."
        ) from error


def bound(build: Callable[..., Any], arguments: Mapping[str, Any] | None) -> Callable[..., Any]:
    """Returns a function with what `arguments_of` returned; lists have become tuples."""
    if arguments is None:
        return build
    positional, keywords = arguments["positional"], arguments["keywords"]
    return functools.partial(
        build,
        *(tuple(v) if isinstance(v, list) else v for v in positional),
        **{k: tuple(v) if isinstance(v, list) else v for k, v in keywords.items()},
    )
