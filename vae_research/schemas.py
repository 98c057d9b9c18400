"""What a JSON file must contain: types by name, checked before anything relies on them."""

from __future__ import annotations

from typing import Any

NUMBER = (int, float)
TEXT_OR_NOTHING = (str, type(None))


def mismatch(value: Any, schema: Any, name: str = "it") -> str | None:
    """Returns in words the first part of a JSON value that a schema does not allow, or None.

    Args:
        value: what was read.
        schema: a type or a tuple of types; `[schema]`, a list; `{"name": schema}`, an object with
            this name, which may be missing if it ends in `?`, and with any others;
            `{str: schema}`, an object with any names.
        name: of the value, for the answer.

    >>> mismatch({"flags": {"epochs": "3"}}, {"flags": {"epochs": int}, "claim?": str})
    'flags.epochs is a str'
    """
    if isinstance(schema, list | dict) and not isinstance(value, type(schema)):
        return f"{name} is a {type(value).__name__}"
    prefix = "" if name == "it" else f"{name}."
    if isinstance(schema, list):
        parts = [(f"{name}[{at}]", part, schema[0]) for at, part in enumerate(value)]
    elif isinstance(schema, dict) and str in schema:
        parts = [(f"{prefix}{key}", part, schema[str]) for key, part in value.items()]
    elif isinstance(schema, dict):
        wanted = {key.removesuffix("?"): inner for key, inner in schema.items()}
        missing = [key for key in schema if key in wanted and key not in value]
        if missing:
            return f"{prefix}{missing[0]} is missing"
        parts = [(f"{prefix}{key}", value[key], wanted[key]) for key in wanted if key in value]
    else:
        types = schema if isinstance(schema, tuple) else (schema,)
        return None if type(value) in types else f"{name} is a {type(value).__name__}"
    found = (mismatch(part, inner, path) for path, part, inner in parts)
    return next((words for words in found if words is not None), None)
