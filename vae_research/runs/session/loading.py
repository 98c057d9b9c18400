"""Loads a run back into Python."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vae_research import checkpoints
from vae_research.data import Data, DataError, load_data
from vae_research.runs.cli.errors import RunError, UsageError
from vae_research.runs.cli.flags import Config, experiment_file
from vae_research.runs.session import directory

if TYPE_CHECKING:
    from vae_research.model import VAE


@dataclasses.dataclass(frozen=True)
class Run:
    """A loaded run: the model with its trained weights, its data and its flags.

    Attributes:
        path: the run directory.
        model: the model, with the values of the newest intact checkpoint.
        data: the data set.
        config: the flags.
        summary: the contents of summary.json, None if the run is not finished.
    """

    path: Path
    model: VAE
    data: Data
    config: Config
    summary: dict[str, Any] | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the further arrays of the data that the model reads."""
        return tuple(name for name in self.data.names if name in self.model.data_names)


def load_run(
    path: str | Path,
    build: Callable[[Config, Data], VAE] | None = None,
    data: Data | Callable[[Config], Data] | None = None,
) -> Run:
    """Returns the model, the data and the flags of a run.

    The experiment's own file builds the model as in the run, and makes the data if it brings them;
    the values come from the newest intact checkpoint. If the run averages its weights, the averages
    are in place, as in its test figures.

    Args:
        path: the run directory.
        build: the experiment's `build`; needed only if its file has moved.
        data: the data of the run, or a function from its flags to them; needed only if the file
            that makes them has moved, or if a study trained on arrays of its own.

    Raises:
        UsageError: there is no run, or the file of its experiment is gone.
        DataError: its data set is gone or cannot be used.
        CheckpointError: there is no checkpoint, it is of another model, or the data set has
            changed.
    """
    path = Path(path).expanduser().absolute()
    directory.read_config(path)  # "holds no run" comes before "has no checkpoint"
    checkpoint = checkpoints.newest(path / "checkpoints")
    if checkpoint is None:
        runs = sorted(found.parent.name for found in path.glob(f"*/{directory.CONFIG}"))
        raise checkpoints.CheckpointError(
            f"{path} has no checkpoint."
            + (f" It is a study; load one of its runs: {', '.join(runs)}." if runs else "")
        )
    model, found, config, _ = rebuild(path, build, data)
    checkpoints.restore(model, checkpoint)
    model.averaging.put()
    return Run(path, model, found, config, directory.read_json(path / directory.SUMMARY))


def rebuild(
    path: Path,
    build: Callable[[Config, Data], VAE] | None = None,
    data: Data | Callable[[Config], Data] | None = None,
) -> tuple[VAE, Data, Config, dict[str, Any]]:
    """Returns the model of a run as it was before training, its data, flags and config.json.

    Raises:
        UsageError, DataError, CheckpointError: as `load_run`.
    """
    import keras

    from vae_research.runs.session.building import build_model

    description = directory.read_config(path)
    # The tuples of flags are lists in JSON.
    values = description["flags"].items()
    config = Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values})
    if not isinstance(data, Data):
        data = data_of(config, data or _maker_of(description))
    directory.refuse_changed_data(path, description, data)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        model = build_model(build or _build_of(Path(description["file"])), config, data)
    finally:
        keras.config.set_dtype_policy(policy)  # restore the caller's policy
    return model, data, config, description


def data_of(config: Config, make: Callable[[Config], Data] | None = None) -> Data:
    """Returns the data set of a run, which `make` makes, or which the flags name.

    Raises:
        DataError: it cannot be used, or a file of it cannot be read.
        UsageError: `make` failed.
    """
    if make is None:
        return named_data(config)
    where = f"{make.__name__}() of {experiment_file(make).name}"
    try:
        data = make(config)
    except (DataError, RunError):
        raise
    except OSError as error:
        raise DataError(f"{where}: {error.strerror or error}: {error.filename or ''}") from error
    except Exception as error:
        raise UsageError(
            f"{where} failed: {type(error).__name__}: {error} (--debug shows where)"
        ) from error
    if not isinstance(data, Data):
        raise UsageError(f"{where} returned {type(data).__name__}; it must return a Data.")
    return dataclasses.replace(data, made_by=(str(experiment_file(make)), make.__name__))


def refuse_unknown_place(make: Callable[[Config], Data]) -> None:
    """Raises TypeError unless a run that is loaded can find the function again."""
    code = getattr(make, "__code__", None)
    if code is None or make.__qualname__ != make.__name__ or make.__name__ == "<lambda>":
        raise TypeError(
            f"data={make!r} must be a function at the top level of a file, as `build` is: a run "
            "that is loaded calls it again by its name."
        )


def named_data(config: Config) -> Data:
    """Returns the data set that the flags of a run name: `--dataset` and those beside it.

    Raises:
        DataError: there is no such data set, or it cannot be used.
    """
    return load_data(
        config.dataset,
        rescale=config.rescale,
        binarize=config.binarize,
        image_size=config.image_size,
        channels=None if config.channels is None else int(config.channels),
        bad_images=config.bad_images,
        background=config.background,
        kind=config.data_kind,
        stream=config.stream,
    )


def _maker_of(description: dict[str, Any]) -> Callable[[Config], Data] | None:
    """Returns the function that made the data of a run, or None if its flags name them."""
    made_by = description["data"].get("made_by")
    if made_by is None:
        return None
    file, name = made_by
    make = getattr(_module_of(Path(file), "data"), name, None)
    if make is None:
        raise UsageError(
            f"{file} has no function {name!r} any more, which made the data. Give them: "
            "load_run(path, data=...)."
        )
    return make


def _build_of(file: Path) -> Callable[[Config, Data], VAE]:
    return _module_of(file, "build").build


def _module_of(file: Path, wanted: str) -> ModuleType:
    """Returns the module of an experiment's file, which is imported unless it already is.

    Args:
        file: of Python.
        wanted: the argument of `load_run` that makes do without it.
    """
    name = f"experiments.{file.stem}"
    module = sys.modules.get(name)
    if module is None or getattr(module, "__file__", None) != str(file):
        if not file.is_file():
            raise UsageError(
                f"the experiment's file is gone: {file}. Give its {wanted} function: "
                f"load_run(path, {wanted}=...)."
            )
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise UsageError(f"{file} is not a Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # a dataclass looks up its own module
        sys.path.insert(0, str(file.parent))  # as in the command: it may import modules beside it
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(file.parent))
    return module
