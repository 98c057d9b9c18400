"""Flags: the standard ones of every experiment, and functions to define an experiment's own.

The flags are absl's. Unlike absl's own definitions, those here require numbers to be finite and in
range, name the nearest choice in messages, and let two experiments in one process define flags of
the same name. With `may_change=True` a resumed run may have another value than before, because it
changes nothing that has been computed. Importing this module defines no flag.

The flags of an experiment are the standard ones, its own, and those of every module that its file
imports, directly or by way of others.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from vae_research.arguments import LARGEST_SEED
from vae_research.data import DATASETS
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.functions import function_of, is_users
from vae_research.runs.cli.parsers import Auto, Choice, Number, Numbers, Range, Serializer
from vae_research.settings import did_you_mean

flags.disclaim_key_flags()  # a flag belongs to the module that calls define_...()

_STANDARD = "vae_research.runs"

LEARNING_RATE_SCHEDULES = ("constant", "cosine", "steps")


@dataclasses.dataclass(frozen=True)
class _Defined:
    """A flag, and what absl does not know of it."""

    flag: flags.Flag
    holder: flags.FlagHolder
    section: str | None
    may_change: bool


# Flags by the module that asked for them. absl has one flag per name and process, which would be
# the one of the experiment that was imported last.
_defined: dict[str, dict[str, _Defined]] = {}
# Titles of --help; standard flags that are defined next are listed under the last one.
_sections: list[str] = []
# Defaults of standard flags that an experiment overrides, by its module.
_defaults: dict[str, dict[str, Any]] = {}


class Config:
    """The values of all flags of a run, as attributes.

    Raises:
        AttributeError: there is no such flag; the message names the nearest.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"There is no flag {name!r}.{did_you_mean(name, self.__dict__)}")

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    def as_dict(self) -> dict[str, Any]:
        """Returns the values by name."""
        return dict(vars(self))

    def replace(self, **values: Any) -> Config:
        """Returns a config with some values changed or added."""
        return Config(**{**vars(self), **values})


class WatchedConfig(Config):
    """A copy of a config that knows which of its values were read.

    Attributes:
        names_read: names of the values; all of them if they were read together.
    """

    __slots__ = ("names_read",)  # not one of the flags

    def __init__(self, config: Config) -> None:
        self.names_read: set[str] = set()
        super().__init__(**vars(config))
        self.names_read.clear()

    def __getattribute__(self, name: str) -> Any:
        if name != "names_read":
            values = object.__getattribute__(self, "__dict__")
            self.names_read.update(values if name == "__dict__" else [name])
        return super().__getattribute__(name)


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


def define_boolean(
    name: str, default: bool | None, help: str, *, may_change: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is on (`--name`) or off (`--noname`)."""
    holder = flags.DEFINE_boolean(name, default, help, allow_override=True)
    return _register(name, holder, may_change)


def set_defaults(**values: Any) -> None:
    """Changes defaults of standard flags for the experiment whose file calls this."""
    _defaults[sys._getframe(1).f_globals["__name__"]] = values


def define_standard_flags() -> None:
    """Defines the flags that every experiment has."""
    if _STANDARD in _defined:
        return
    _sections.append("The run")
    define_string(
        "run_dir", None, "directory of the run; default runs/EXPERIMENT/DATE-TIME", may_change=True
    )
    define_choice(
        "resume",
        "auto",
        ("auto", "never", "must", "changed", "scratch"),
        "auto: resume an unfinished run in --run_dir, otherwise start a new one; never: fail if "
        "--run_dir holds a run; must: fail if there is nothing to resume; changed: as auto, also "
        "if the experiment or this package has been edited since, the run is then not bit-exact; "
        "scratch: as auto, also if the checkpoints of an unfinished run are gone: it starts again",
        may_change=True,
    )
    define_integer("seed", 0, "seed of initial weights, data order and noise", maximum=LARGEST_SEED)
    define_integer(
        "verbose",
        1,
        "0: print nothing; 1: a line per epoch, and a progress bar in a terminal; 2: lines only",
        maximum=2,
        may_change=True,
    )
    define_boolean("debug", False, "print the traceback of an error", may_change=True)
    _sections.append("Data")
    define_string(
        "dataset",
        "mnist",
        "mnist, fashion_mnist, a .npz or .npy file, or a folder of idx files or of images",
    )
    define_choice(
        "data_kind",
        None,
        ("images", "series", "table"),
        "what the rows of an array file are: images, series [time, features], or plain arrays; "
        "default: what the shape says, which is asked about if it may be either",
    )
    define_integer(
        "image_size",
        None,
        "side, in pixels, to which the images of a folder are resized; default: not resized",
        minimum=1,
    )
    define_choice(
        "channels",
        None,
        ("1", "3"),
        "channels to which the images of a folder are converted: 1 is grey, 3 is RGB; default: not "
        "converted",
    )
    define_integer(
        "bad_images", 0, "number of damaged images that may be left out of a folder of images"
    )
    define_string(
        "background",
        None,
        "colour behind the transparent images of a folder: white, black, #rrggbb; default: "
        "transparent images are refused",
    )
    define_boolean(
        "stream",
        None,
        "read rows of an .npy file or of a folder of images when steps need them; default: only if "
        "they do not fit in memory",
    )
    define_choice(
        "rescale",
        None,
        ("none", "unit", "standardize"),
        "scaling of the values: unit maps them to [0, 1], standardize to mean 0 and variance 1; "
        "default: unit for integer images and bytes (divided by 1, 15, 255, 4095 or 65535, the "
        "smallest that no value exceeds), none for other data",
    )
    define_choice(
        "binarize",
        None,
        ("none", "threshold", "static", "dynamic"),
        "how pixels become 0 or 1: by a threshold of 0.5, by one random draw (static), or by a new "
        "random draw in every epoch (dynamic); held-out images always get the same draw; default: "
        "dynamic for mnist and fashion_mnist, none for other data",
    )
    _sections.append("Model and training")
    define_integer("latent_dim", 20, "number of latent dimensions", minimum=1)
    define_integer("epochs", 10, "passes over the training data", minimum=1, may_change=True)
    define_integer(
        "batch_size",
        128,
        "examples in a training step; the default is reduced to the training examples there are",
        minimum=1,
    )
    define_float("learning_rate", 1e-3, "learning rate of Adam", above=0.0)
    define_choice(
        "learning_rate_schedule",
        "constant",
        LEARNING_RATE_SCHEDULES,
        "constant; cosine: falls to 0 at the end of the last epoch along half a cosine; steps: a "
        "tenth of it after half of the epochs, and a hundredth after three quarters",
    )
    define_integer(
        "early_stopping",
        0,
        "epochs without a better validation ELBO (or bound, if the model is trained with an "
        "importance-weighted one) after which training ends; they are counted from the epoch in "
        "which all schedules have settled; 0: never",
        may_change=True,
    )
    define_float(
        "ema",
        0.0,
        "momentum of exponential moving averages of the weights, below 1, for example 0.999; "
        "validation, test figures and saved networks then use the averages; 0: no averages",
        maximum=0.999999,
    )
    define_choice(
        "on_nonfinite",
        "stop",
        ("stop", "skip"),
        "what to do if a step makes anything NaN or infinite: stop undoes the step and ends the "
        "run, skip undoes it and continues",
        may_change=True,
    )
    _sections.append("Test figures")
    define_integer(
        "importance_samples",
        200,
        "samples of z per test image in the importance-weighted estimate of the NLL",
        minimum=1,
        may_change=True,
    )
    define_auto_integer(
        "evaluation_rows",
        "test images times samples that are decoded at once, which limits the memory needed; "
        "default auto: as many as have about two million pixels",
        may_change=True,
    )
    _sections.append("What is computed how")
    define_choice(
        "device",
        "auto",
        ("auto", "cpu", "gpu"),
        "where to compute; auto: on a GPU if there is one",
        may_change=True,
    )
    define_choice(
        "precision",
        "float32",
        ("float32", "mixed_bfloat16"),
        "number format of the networks' arithmetic, a dtype policy of Keras",
    )
    define_choice(
        "jit",
        "auto",
        ("auto", "on", "off"),
        "compile with XLA; auto: if XLA can compile the model, but no convolutions on a CPU, which "
        "would be slower",
        may_change=True,
    )
    define_auto_integer(
        "steps_per_call",
        "optimizer steps in one compiled call, a divisor of --log_every_steps and of "
        "--checkpoint_steps; default auto: about half a second of steps",
        may_change=True,
    )
    define_boolean(
        "run_eagerly", False, "run each step uncompiled in Python, for a debugger", may_change=True
    )
    _sections.append("TensorBoard")
    define_boolean(
        "tensorboard",
        True,
        "write event files; metrics.jsonl is written in any case",
        may_change=True,
    )
    define_integer(
        "log_every_steps",
        0,
        "steps between training figures in TensorBoard; 0: once per epoch",
        may_change=True,
    )
    define_integer(
        "gradients_every_steps",
        500,
        "steps between measurements of the gradient norm of each loss term, on one fixed batch, "
        "for TensorBoard; 0: never",
        may_change=True,
    )
    define_range(
        "profile_steps",
        None,
        "first and last optimizer step of a profile for TensorBoard; default: no profile",
        may_change=True,
    )
    _sections.append("Checkpoints")
    define_float(
        "checkpoint_minutes",
        0.5,
        "minutes between checkpoints, or 100 times the duration of the last save if that is "
        "longer; 0: not by time. The end of a run is always saved",
        may_change=True,
    )
    define_integer(
        "checkpoint_epochs", 0, "epochs between checkpoints; 0: not by epoch", may_change=True
    )
    define_integer(
        "checkpoint_steps",
        0,
        "optimizer steps between checkpoints; 0: not by step",
        may_change=True,
    )


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
    for name in set().union(*_defined.values()) - known.keys():
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


def invalid_flag(values: Mapping[str, Any]) -> str | None:
    """Returns in words the first standard flag whose saved value no command could have given."""
    define_standard_flags()
    for name, defined in _defined[_STANDARD].items():
        flag = defined.flag
        if name in values and (values[name] is not None or flag.default is not None):
            try:
                flag.parser.parse(values[name])
            except (TypeError, ValueError) as error:
                return f"flag {name}={values[name]!r}: {error}"
    return None


def _with_data_defaults(values: dict[str, Any]) -> Config:
    if values["binarize"] is None:
        values["binarize"] = "dynamic" if values["dataset"] in DATASETS else "none"
    return Config(**values)


def is_given(name: str) -> bool:
    """Returns whether a flag was on the command line."""
    return name in flags.FLAGS and flags.FLAGS[name].present > 0


def standard_names() -> set[str]:
    """Returns the names of the standard flags."""
    define_standard_flags()
    return set(_defined[_STANDARD])


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
        for module in _defined.values()
        for name, defined in module.items()
        if defined.may_change and known.get(name, defined.flag) is defined.flag
    }


def _define(
    parser: flags.ArgumentParser, name: str, default: Any, help: str, may_change: bool
) -> flags.FlagHolder:
    holder = flags.DEFINE(parser, name, default, help, serializer=Serializer(), allow_override=True)
    return _register(name, holder, may_change)


def _register(name: str, holder: flags.FlagHolder, may_change: bool) -> flags.FlagHolder:
    depth, module = 1, None
    while sys._getframe(depth).f_globals["__name__"] == __name__:
        if sys._getframe(depth).f_code.co_name == define_standard_flags.__name__:
            module = _STANDARD
        depth += 1
    section = _sections[-1] if module == _STANDARD else None
    module = module or sys._getframe(depth).f_globals["__name__"]
    _defined.setdefault(module, {})[name] = _Defined(flags.FLAGS[name], holder, section, may_change)
    return holder


def _flags_of(build: Callable[..., Any]) -> dict[str, flags.Flag]:
    """Returns the standard flags, those of the experiment's file and of modules that it imports.

    Flags that they define with absl's own functions are included.
    """
    of_absl = flags.FLAGS.flags_by_module_dict()
    found = {name: each.flag for name, each in _defined[_STANDARD].items()}
    for module in reversed(_modules_of(build)):  # the experiment's own flags come last
        name = sys.argv[0] if module == "__main__" else module
        found |= {flag.name: flag for flag in of_absl.get(name, []) if flag.name not in found}
        found |= {name: each.flag for name, each in _defined.get(module, {}).items()}
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
                    for module, names in _defined.items()
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
        given |= _defaults.get(module, {})
    for name, value in given.items():
        if name not in _defined[_STANDARD]:
            raise ValueError(
                f"set_defaults({name}=...): there is no such standard flag."
                f"{did_you_mean(name, _defined[_STANDARD])}"
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
    sections = {"Flags of this experiment": sorted(known.keys() - _defined[_STANDARD].keys())}
    for name, defined in _defined[_STANDARD].items():
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


def experiment_file(build: Callable[..., Any]) -> Path:
    """Returns the file that defines an experiment's `build`."""
    return Path(function_of(build).__code__.co_filename).absolute()


def experiment_name(build: Callable[..., Any]) -> str:
    """Returns the name of an experiment: that of its file, or `notebook` if there is no file."""
    file = experiment_file(build)
    return file.stem if file.is_file() else "notebook"
