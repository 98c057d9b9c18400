"""From a command line to the values of the flags.

The flags of an experiment are the standard ones, its own, and those of every module that its file
imports, directly or by way of others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from vae_research.data import GREY_DATASETS
from vae_research.runs.cli import definitions
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.definitions import STANDARD
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.functions import function_of, is_users
from vae_research.runs.cli.parsers import Serializer
from vae_research.runs.cli.standard_flags import define_standard_flags
from vae_research.settings import did_you_mean

flags.disclaim_key_flags()


def parse(build: Callable[..., Any], arguments: Sequence[str]) -> Config:
    """Returns the values of all flags.

    Args:
        build: the experiment's function; the flags of its module, and of those that it imports, are
            the experiment's own.
        arguments: the command line without the program. `--help` prints and exits with 0;
            `--flagfile=FILE` stands for the lines of a file, a flag each, and a flag of the command
            line comes before those of the file.

    Raises:
        UsageError: a flag is unknown or given twice, a value is not valid, or an argument is not a
            flag.
    """
    define_standard_flags()
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(arguments):
        print(_help(build))
        sys.exit(0)
    known = _flags_of(build)
    try:
        arguments = _expanded(arguments)
        stray = flags.FLAGS([sys.argv[0], *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        raise _unknown(error.flagname, known) from error
    except flags.Error as error:
        message = str(error).removeprefix("ERROR:: ").replace("\n", " ")
        raise UsageError(message) from error
    if stray:
        raise UsageError(
            f"stray argument {stray[0]!r}: flags are written --name=value. --help lists them."
        )
    for name in set().union(*definitions.defined.values()) - known.keys():
        if is_given(name):  # of another experiment in this process
            raise _unknown(name, known)
    defaults = _defaults_of(build, known)
    return _with_data_defaults(
        {name: flag.value if flag.present else defaults[name] for name, flag in known.items()}
    )


def _unknown(name: str, known: Iterable[str]) -> UsageError:
    return UsageError(f"unknown flag --{name}.{did_you_mean(name, known)} --help lists all flags.")


def _expanded(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with those of flag files first, which the command line overrides.

    Raises:
        UsageError: a flag is given twice, on the command line or in files.
        flags.Error: a file cannot be read.
    """
    groups: tuple[list[str], list[str]] = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, _, value = argument.partition("=")
        if name.lstrip("-") == "flagfile" and name.startswith("-"):
            value = value or next(remaining, "")
            groups[0].extend(flags.FLAGS.read_flags_from_files([f"--flagfile={value}"]))
        else:
            groups[1].append(argument)
    for group in groups:
        _refuse_contradictions(group)
    return [*groups[0], *groups[1]]


def configure(experiment: ModuleType | Callable[..., Any], **values: Any) -> Config:
    """Returns the config of an experiment's command, for use without a command line.

    Args:
        experiment: the imported experiment, or its `build` (a study's `run_study`).
        values: flags that differ from their defaults.

    Raises:
        UsageError: there is no such flag, or a value is not valid.

    >>> configure(lambda config, data: None, latent_dim=2).latent_dim
    2
    """
    define_standard_flags()
    build: Callable[..., Any]
    if isinstance(experiment, ModuleType):
        build = experiment.build if hasattr(experiment, "build") else experiment.run_study
    else:
        build = experiment
    known = _flags_of(build)
    config = _defaults_of(build, known)
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"there is no flag {name!r}.{did_you_mean(name, known)}")
        try:
            config[name] = value if value is None else known[name].parser.parse(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"flag {name}={value!r}: {error}") from error
    return _with_data_defaults(config)


def defaults_of(build: Callable[..., Any], dataset: str) -> dict[str, Any]:
    """Returns the defaults of an experiment's flags, those that depend on data for a data set."""
    define_standard_flags()
    defaults = _defaults_of(build, _flags_of(build))
    found = _with_data_defaults({**defaults, "dataset": dataset})
    return {**found.as_dict(), "dataset": defaults["dataset"]}


def invalid_flag(values: Mapping[str, Any]) -> str | None:
    """Returns in words the first standard flag whose saved value no command could have given."""
    define_standard_flags()
    for name, defined in definitions.defined[STANDARD].items():
        flag = defined.flag
        if name in values and (values[name] is not None or flag.default is not None):
            try:
                flag.parser.parse(values[name])
            except (TypeError, ValueError) as error:
                return f"flag {name}={values[name]!r}: {error}"
    return None


def _with_data_defaults(values: dict[str, Any]) -> Config:
    if values["binarize"] is None:
        grey = values["dataset"] in GREY_DATASETS and values["dequantize"] != "uniform"
        values["binarize"] = "dynamic" if grey else "none"
    return Config(**values)


def is_parsed() -> bool:
    """Returns whether flags of a run or a study were parsed in this process."""
    return flags.FLAGS.is_parsed()


def is_given(name: str) -> bool:
    """Returns whether a flag was on the command line."""
    return name in flags.FLAGS and flags.FLAGS[name].present > 0


def may_change(build: Callable[..., Any]) -> set[str]:
    """Returns the flags that may differ between a run of an experiment and its resumption.

    Flags of the study that trains the run are among them; of two flags of one name, that of the
    experiment counts.

    Args:
        build: the experiment's function.
    """
    known = _flags_of(build)
    return {
        name
        for module in definitions.defined.values()
        for name, defined in module.items()
        if defined.may_change and known.get(name, defined.flag) is defined.flag
    }


def _flags_of(build: Callable[..., Any]) -> dict[str, flags.Flag]:
    """Returns the standard flags, those of the experiment's file and of modules that it imports.

    Flags that they define with absl's own functions are included.
    """
    of_absl = flags.FLAGS.flags_by_module_dict()
    found = {name: each.flag for name, each in definitions.defined[STANDARD].items()}
    for module in reversed(_modules_of(build)):  # the experiment's own flags come last
        name = sys.argv[0] if module == "__main__" else module
        found |= {flag.name: flag for flag in of_absl.get(name, []) if flag.name not in found}
        found |= {name: each.flag for name, each in definitions.defined.get(module, {}).items()}
    return found


def _modules_of(build: Callable[..., Any]) -> list[str]:
    """Returns the module of an experiment, and those of the user that it imports, in this order."""
    found: list[str] = []
    waiting = [function_of(build).__module__]
    while waiting:
        name = waiting.pop(0)
        if name in found or not _is_of_user(name):
            continue
        found.append(name)
        for value in list(vars(sys.modules[name]).values()):
            if isinstance(value, flags.FlagHolder):
                waiting += [
                    module
                    for module, names in definitions.defined.items()
                    if any(each.holder is value for each in names.values())
                ]
            elif isinstance(value, ModuleType):
                waiting.append(value.__name__)
            elif isinstance(getattr(value, "__module__", None), str):
                waiting.append(value.__module__)
    return found


def _is_of_user(name: str) -> bool:
    """Returns whether a module is neither Python's nor one of an installed package or of ours."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return name == "__main__" or bool(file and is_users(Path(file)))


def _defaults_of(build: Callable[..., Any], known: dict[str, flags.Flag]) -> dict[str, Any]:
    """Returns the default of every flag.

    Raises:
        ValueError: the experiment's `set_defaults` has an unknown name or an invalid value.
    """
    defaults = {name: flag.default for name, flag in known.items()}
    given: dict[str, Any] = {}
    for module in reversed(_modules_of(build)):
        given |= definitions.defaults.get(module, {})
    for name, value in given.items():
        if name not in definitions.defined[STANDARD]:
            raise ValueError(
                f"set_defaults({name}=...): there is no such standard flag."
                f"{did_you_mean(name, definitions.defined[STANDARD])}"
            )
        try:
            defaults[name] = known[name].parser.parse(value)
        except ValueError as error:
            raise ValueError(f"set_defaults({name}={value!r}): {error}") from error
    return defaults


def _refuse_contradictions(arguments: Sequence[str]) -> None:
    """Raises UsageError if a flag has two values, of which absl would silently take the last."""
    seen: dict[str, str] = {}
    for index, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        name, has_value, value = argument.lstrip("-").partition("=")
        if name == "undefok":
            raise UsageError("--undefok hides flags from these checks and is not used here.")
        if not has_value:
            following = arguments[index + 1 : index + 2]
            value = following[0] if following and not following[0].startswith("-") else "true"
            if name.startswith("no") and name[2:] in flags.FLAGS:
                name, value = name[2:], "false"
        if seen.setdefault(name, value) != value:
            raise UsageError(f"--{name} is given twice, as {seen[name]} and as {value}.")


def _help(build: Callable[..., Any]) -> str:
    document = sys.modules[function_of(build).__module__].__doc__ or ""
    known = _flags_of(build)
    defaults = _defaults_of(build, known)
    sections = {
        "Flags of this experiment": sorted(known.keys() - definitions.defined[STANDARD].keys())
    }
    for name, defined in definitions.defined[STANDARD].items():
        sections.setdefault(defined.section or "", []).append(name)
    lines = [document.strip(), ""]
    for title, names in sections.items():
        if names:
            described = [_help_line(known[name], defaults[name]) for name in names]
            lines += [f"{title}:", *described, ""]
    return "\n".join(lines).rstrip()


def _help_line(flag: flags.Flag, default: Any) -> str:
    kind = flag.parser.syntactic_help
    default = "" if default is None else f"={Serializer().serialize(default)}"
    return f"  --{flag.name}{default}\n        {flag.help}{f' ({kind})' if kind else ''}"
