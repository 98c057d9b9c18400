"""Functions that define flags, and the table of those that were defined.

The flags are absl's. Unlike absl's own definitions, those here require numbers to be finite and in
range, name the nearest choice in messages, and let two experiments in one process define flags of
the same name. With `may_change=True` a resumed run may have another value than before, because it
changes nothing that has been computed. Importing this module defines no flag.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from vae_research.runs.cli.parsers import (
    Auto,
    Choice,
    Devices,
    Line,
    Number,
    Numbers,
    Range,
    Serializer,
)

flags.disclaim_key_flags()  # a flag belongs to the module that calls define_...()

STANDARD = "vae_research.runs.cli.standard_flags"  # the module that asks for the standard flags


@dataclasses.dataclass(frozen=True)
class Defined:
    """A flag, and what absl does not know of it."""

    flag: flags.Flag
    holder: flags.FlagHolder
    section: str | None
    may_change: bool


# Flags by the module that asked for them. absl has one flag per name and process, which would be
# the one of the experiment that was imported last.
defined: dict[str, dict[str, Defined]] = {}
# Titles of --help; standard flags that are defined next are listed under the last one.
sections: list[str] = []
# Defaults of standard flags that an experiment overrides, by its module.
defaults: dict[str, dict[str, Any]] = {}


def define_integer(
    name: str,
    default: int | None,
    help: str,
    *,
    minimum: int = 0,
    maximum: int | None = None,
    may_change: bool = False,
) -> flags.FlagHolder:
    """Defines a flag that is an integer from `minimum` to `maximum`."""
    return _define(Number(int, minimum, maximum), name, default, help, may_change)


def define_float(
    name: str,
    default: float | None,
    help: str,
    *,
    minimum: float | None = 0.0,
    maximum: float | None = None,
    above: float | None = None,
    may_change: bool = False,
) -> flags.FlagHolder:
    """Defines a flag that is a finite number, `minimum` to `maximum` and greater than `above`."""
    return _define(Number(float, minimum, maximum, above), name, default, help, may_change)


def define_auto_integer(
    name: str, help: str, *, minimum: int = 1, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is an integer or `auto`, the default, which becomes None."""
    return _define(Auto(Number(int, minimum)), name, None, help, may_change)


def define_choice(
    name: str, default: str | None, choices: Sequence[str], help: str, *, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is one of `choices`."""
    return _define(Choice(choices), name, default, help, may_change)


def define_devices(
    name: str,
    default: str,
    choices: Sequence[str],
    counted: Sequence[str],
    help: str,
    *,
    may_change: bool = False,
) -> flags.FlagHolder:
    """Defines a flag that is one of `choices`, or one of `counted` with a number: `cpu:2`."""
    return _define(Devices(choices, counted), name, default, help, may_change)


def define_integers(
    name: str, default: Sequence[int], help: str, *, minimum: int = 1, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is a comma-separated list of integers."""
    return _define(Numbers(Number(int, minimum)), name, tuple(default), help, may_change)


def define_floats(
    name: str,
    default: Sequence[float],
    help: str,
    *,
    minimum: float = 0.0,
    may_change: bool = False,
) -> flags.FlagHolder:
    """Defines a flag that is a comma-separated list of finite numbers."""
    return _define(Numbers(Number(float, minimum)), name, tuple(default), help, may_change)


def define_range(
    name: str, default: tuple[int, int] | None, help: str, *, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is two integers `first,last` with 1 <= first <= last."""
    return _define(Range(), name, default, help, may_change)


def define_string(
    name: str, default: str | None, help: str, *, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is any text."""
    return _define(flags.ArgumentParser(), name, default, help, may_change)


def define_line(
    name: str, default: str | None, help: str, *, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is a line of text, not empty."""
    return _define(Line(), name, default, help, may_change)


def define_boolean(
    name: str, default: bool | None, help: str, *, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is on (`--name`) or off (`--noname`)."""
    holder = flags.DEFINE_boolean(name, default, help, allow_override=True)
    return _register(name, holder, may_change)


def set_defaults(**values: Any) -> None:
    """Changes defaults of standard flags for the experiment whose file calls this."""
    defaults[sys._getframe(1).f_globals["__name__"]] = values


def _define(
    parser: flags.ArgumentParser, name: str, default: Any, help: str, may_change: bool
) -> flags.FlagHolder:
    holder = flags.DEFINE(parser, name, default, help, serializer=Serializer(), allow_override=True)
    return _register(name, holder, may_change)


def _register(name: str, holder: flags.FlagHolder, may_change: bool) -> flags.FlagHolder:
    depth = 1
    while sys._getframe(depth).f_globals["__name__"] == __name__:
        depth += 1
    module = sys._getframe(depth).f_globals["__name__"]
    section = sections[-1] if module == STANDARD else None
    defined.setdefault(module, {})[name] = Defined(flags.FLAGS[name], holder, section, may_change)
    return holder
