"""The functions of an experiment, as they are given: plain, or wrapped by `functools.partial`."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from vae_research.runs.cli.errors import UsageError


def function_of(build: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function of an experiment without what wraps it, such as `functools.partial`."""
    while isinstance(build, functools.partial):
        build = build.func
    build = inspect.unwrap(build)
    return build if hasattr(build, "__code__") else type(build).__call__


def arguments_of(build: Callable[..., Any]) -> dict[str, Any] | None:
    """Returns what `functools.partial` has given an experiment's function, None without it.

    Raises:
        UsageError: JSON cannot hold it, so that a run that is loaded could not build its model.
    """
    if not isinstance(build, functools.partial):
        return None
    found = {"positional": list(build.args), "keywords": dict(build.keywords)}
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"functools.partial gives {function_of(build).__name__} values that config.json cannot "
            f"hold ({error}), and a run that is loaded needs them. Give numbers, strings, lists of "
            "them, or use flags."
        ) from error
    return found


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
