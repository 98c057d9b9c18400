"""Loads a run back into Python."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_research import checkpoints
from vae_research.data import Data, load_data
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import Config
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


def load_run(path: str | Path, build: Callable[[Config, Data], VAE] | None = None) -> Run:
    """Returns the model, the data and the flags of a run.

    The experiment's own file builds the model as in the run; the values come from the newest intact
    checkpoint. If the run averages its weights, the averages are in place, as in its test figures.

    Args:
        path: the run directory.
        build: the experiment's `build`; needed only if its file has moved.

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
    model, data, config, _ = rebuild(path, build)
    checkpoints.restore(model, checkpoint)
    model.averaging.put()
    return Run(path, model, data, config, directory.read_json(path / directory.SUMMARY))


def rebuild(
    path: Path, build: Callable[[Config, Data], VAE] | None = None
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
    data = data_of(config)
    directory.refuse_changed_data(path, description, data)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        model = build_model(build or _build_of(Path(description["file"])), config, data)
    finally:
        keras.config.set_dtype_policy(policy)  # restore the caller's policy
    return model, data, config, description


def data_of(config: Config) -> Data:
    """Returns the data set that the flags of a run name.

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
    )


def _build_of(file: Path) -> Callable[[Config, Data], VAE]:
    """Returns the `build` of an experiment's file, which is imported unless it already is."""
    name = f"experiments.{file.stem}"
    module = sys.modules.get(name)
    if module is None or getattr(module, "__file__", None) != str(file):
        if not file.is_file():
            raise UsageError(
                f"the experiment's file is gone: {file}. Give its build function: "
                "load_run(path, build=...)."
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
    return module.build
