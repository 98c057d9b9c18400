"""Flags: the standard ones of every experiment, and functions to define an experiment's own.

The flags are absl's. Unlike absl's own definitions, those here require numbers to be finite and in
range, name the nearest choice in messages, and let two experiments in one process define flags of
the same name. Importing this module defines no flag.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from vae_research.arguments import LARGEST_SEED
from vae_research.data import DATASETS
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.parsers import Auto, Choice, Number, Numbers, Range, Serializer
from vae_research.settings import did_you_mean

flags.disclaim_key_flags()  # a flag belongs to the module that calls define_...()

_STANDARD = "vae_research.runs"

# Flags by the module that asked for them. absl has one flag per name and process, which would be
# the one of the experiment that was imported last.
_defined: dict[str, dict[str, flags.Flag]] = {}
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

    def __init__(self, config: Config) -> None:
        super().__init__(**vars(config))
        self.names_read: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        values = object.__getattribute__(self, "__dict__")
        read = values.get("names_read")
        if read is not None and name != "names_read":
            read.update(values if name == "__dict__" else [name])
        return super().__getattribute__(name)


def define_integer(
    name: str, default: int | None, help: str, *, minimum: int = 0, maximum: int | None = None
) -> flags.FlagHolder:
    """Defines a flag that is an integer from `minimum` to `maximum`."""
    return _define(Number(int, minimum, maximum), name, default, help)


def define_float(
    name: str,
    default: float | None,
    help: str,
    *,
    minimum: float | None = 0.0,
    maximum: float | None = None,
    above: float | None = None,
) -> flags.FlagHolder:
    """Defines a flag that is a finite number, `minimum` to `maximum` and greater than `above`."""
    return _define(Number(float, minimum, maximum, above), name, default, help)


def define_auto_integer(name: str, help: str, *, minimum: int = 1) -> flags.FlagHolder:
    """Defines a flag that is an integer or `auto`, the default, which becomes None."""
    return _define(Auto(Number(int, minimum)), name, None, help)


def define_choice(
    name: str, default: str | None, choices: Sequence[str], help: str
) -> flags.FlagHolder:
    """Defines a flag that is one of `choices`."""
    return _define(Choice(choices), name, default, help)


def define_integers(
    name: str, default: Sequence[int], help: str, *, minimum: int = 1
) -> flags.FlagHolder:
    """Defines a flag that is a comma-separated list of integers."""
    return _define(Numbers(Number(int, minimum)), name, tuple(default), help)


def define_floats(
    name: str, default: Sequence[float], help: str, *, minimum: float = 0.0
) -> flags.FlagHolder:
    """Defines a flag that is a comma-separated list of finite numbers."""
    return _define(Numbers(Number(float, minimum)), name, tuple(default), help)


def define_range(name: str, default: tuple[int, int] | None, help: str) -> flags.FlagHolder:
    """Defines a flag that is two integers `first,last` with 1 <= first <= last."""
    return _define(Range(), name, default, help)


def define_string(name: str, default: str | None, help: str) -> flags.FlagHolder:
    """Defines a flag that is any text."""
    return _define(flags.ArgumentParser(), name, default, help)


def define_boolean(name: str, default: bool | None, help: str) -> flags.FlagHolder:
    """Defines a flag that is on (`--name`) or off (`--noname`)."""
    return _register(name, flags.DEFINE_boolean(name, default, help, allow_override=True))


def set_defaults(**values: Any) -> None:
    """Changes defaults of standard flags for the experiment whose file calls this."""
    _defaults[sys._getframe(1).f_globals["__name__"]] = values


def define_standard_flags() -> None:
    """Defines the flags that every experiment has."""
    if _STANDARD in _defined:
        return
    define_string("run_dir", None, "directory of the run; default runs/EXPERIMENT/DATE-TIME")
    define_integer("epochs", 10, "passes over the training data", minimum=1)
    define_integer(
        "batch_size",
        128,
        "examples in a training step; the default is reduced to the training examples there are",
        minimum=1,
    )
    define_float("learning_rate", 1e-3, "learning rate of Adam", above=0.0)
    define_float(
        "ema",
        0.0,
        "momentum of exponential moving averages of the weights, below 1, for example 0.999; "
        "validation, test figures and saved networks then use the averages; 0: no averages",
        maximum=0.999999,
    )
    define_integer("seed", 0, "seed of initial weights, data order and noise", maximum=LARGEST_SEED)
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
    define_integer("latent_dim", 20, "number of latent dimensions", minimum=1)
    define_integer(
        "importance_samples",
        200,
        "samples of z per test image in the importance-weighted estimate of the NLL",
        minimum=1,
    )
    define_auto_integer(
        "evaluation_rows",
        "test images times samples that are decoded at once, which limits the memory needed; "
        "default auto: as many as have about two million pixels",
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
    )
    define_auto_integer(
        "steps_per_call",
        "optimizer steps in one compiled call, a divisor of --log_every_steps and of "
        "--checkpoint_steps; default auto: about half a second of steps",
    )
    define_choice(
        "device", "auto", ("auto", "cpu", "gpu"), "where to compute; auto: on a GPU if there is one"
    )
    define_boolean("run_eagerly", False, "run each step uncompiled in Python, for a debugger")
    define_integer(
        "log_every_steps",
        0,
        "steps between training figures in TensorBoard; 0: once per epoch",
    )
    define_integer(
        "gradients_every_steps",
        500,
        "steps between measurements of the gradient norm of each loss term, on one fixed batch, "
        "for TensorBoard; 0: never",
    )
    define_boolean("tensorboard", True, "write event files; metrics.jsonl is written in any case")
    define_range(
        "profile_steps",
        None,
        "first and last optimizer step of a profile for TensorBoard; default: no profile",
    )
    define_choice(
        "resume",
        "auto",
        ("auto", "never", "must", "changed", "scratch"),
        "auto: resume an unfinished run in --run_dir, otherwise start a new one; never: fail if "
        "--run_dir holds a run; must: fail if there is nothing to resume; changed: as auto, also "
        "if the experiment or this package has been edited since, the run is then not bit-exact; "
        "scratch: as auto, also if the checkpoints of an unfinished run are gone: it starts again",
    )
    define_choice(
        "on_nonfinite",
        "stop",
        ("stop", "skip"),
        "what to do if a step makes anything NaN or infinite: stop undoes the step and ends the "
        "run, skip undoes it and continues",
    )
    define_float(
        "checkpoint_minutes",
        0.5,
        "minutes between checkpoints, or 100 times the duration of the last save if that is "
        "longer; 0: not by time. The end of a run is always saved",
    )
    define_integer("checkpoint_epochs", 0, "epochs between checkpoints; 0: not by epoch")
    define_integer("checkpoint_steps", 0, "optimizer steps between checkpoints; 0: not by step")
    define_integer(
        "verbose",
        1,
        "0: print nothing; 1: a line per epoch, and a progress bar in a terminal; 2: lines only",
        maximum=2,
    )
    define_boolean("debug", False, "print the traceback of an error")


def parse(build: Callable[..., Any], arguments: Sequence[str]) -> Config:
    """Returns the values of all flags.

    Args:
        build: the experiment's function; the flags of its module are the experiment's own.
        arguments: the command line without the program. `--help` prints and exits with 0.

    Raises:
        UsageError: a flag is unknown or given twice, a value is not valid, or an argument is not a
            flag.
    """
    define_standard_flags()
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(arguments):
        print(_help(build))
        sys.exit(0)
    _refuse_contradictions(arguments)
    try:
        stray = flags.FLAGS([sys.argv[0], *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        known = _flags_of(build)
        raise UsageError(
            f"unknown flag --{error.flagname}.{did_you_mean(error.flagname, known)} --help lists "
            "all flags."
        ) from error
    except flags.Error as error:
        raise UsageError(str(error).replace("\n", " ")) from error
    if stray:
        raise UsageError(
            f"stray argument {stray[0]!r}: flags are written --name=value. --help lists them."
        )
    known = _flags_of(build)
    defaults = _defaults_of(build, known)
    return _with_data_defaults(
        {name: flag.value if flag.present else defaults[name] for name, flag in known.items()}
    )


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
    for name, flag in _defined[_STANDARD].items():
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


def _define(parser: flags.ArgumentParser, name: str, default: Any, help: str) -> flags.FlagHolder:
    holder = flags.DEFINE(parser, name, default, help, serializer=Serializer(), allow_override=True)
    return _register(name, holder)


def _register(name: str, holder: flags.FlagHolder) -> flags.FlagHolder:
    depth = 1
    while sys._getframe(depth).f_globals["__name__"] == __name__:
        if sys._getframe(depth).f_code.co_name == define_standard_flags.__name__:
            _defined.setdefault(_STANDARD, {})[name] = flags.FLAGS[name]
            return holder
        depth += 1
    module = sys._getframe(depth).f_globals["__name__"]
    _defined.setdefault(module, {})[name] = flags.FLAGS[name]
    return holder


def _flags_of(build: Callable[..., Any]) -> dict[str, flags.Flag]:
    """Returns the standard flags and those of the experiment's file, by name.

    Flags that the file defines with absl's own functions are included.
    """
    module = sys.argv[0] if build.__module__ == "__main__" else build.__module__
    absl_flags = {flag.name: flag for flag in flags.FLAGS.flags_by_module_dict().get(module, [])}
    return absl_flags | _defined[_STANDARD] | _defined.get(build.__module__, {})


def _defaults_of(build: Callable[..., Any], known: dict[str, flags.Flag]) -> dict[str, Any]:
    """Returns the default of every flag.

    Raises:
        ValueError: the experiment's `set_defaults` has an unknown name or an invalid value.
    """
    defaults = {name: flag.default for name, flag in known.items()}
    for name, value in _defaults.get(build.__module__, {}).items():
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
        if name in ("flagfile", "undefok"):
            raise UsageError(f"--{name} hides flags from these checks and is not used here.")
        if not has_value:
            following = arguments[index + 1 : index + 2]
            value = following[0] if following and not following[0].startswith("-") else "true"
            if name.startswith("no") and name[2:] in flags.FLAGS:
                name, value = name[2:], "false"
        if seen.setdefault(name, value) != value:
            raise UsageError(f"--{name} is given twice, as {seen[name]} and as {value}.")


def _help(build: Callable[..., Any]) -> str:
    document = sys.modules[build.__module__].__doc__ or ""
    known = _flags_of(build)
    defaults = _defaults_of(build, known)
    own = sorted(known.keys() - _defined[_STANDARD].keys())
    standard = sorted(_defined[_STANDARD])
    lines = [document.strip(), ""]
    for title, names in (("Flags of this experiment", own), ("Standard flags", standard)):
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
    return Path(build.__code__.co_filename).absolute()
