"""A finished run, back in Python."""

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
    """A run that was loaded: the model with its trained weights, its data and its flags.

    Attributes:
        summary: the contents of summary.json, None for a run that was not finished.
    """

    path: Path
    model: VAE
    data: Data
    config: Config
    summary: dict[str, Any] | None


def load_run(path: str | Path, build: Callable[[Config, Data], VAE] | None = None) -> Run:
    """Returns model, data and config of a run.

    The model is built as the run built it, by the experiment's own file, and then given the values
    of the newest whole checkpoint.

    Args:
        path: the run directory.
        build: the experiment's `build`, where its file has moved.

    Raises:
        UsageError: there is no run, or its experiment's file is gone.
        DataError: its data set is gone, or is not what it was.
        CheckpointError: it has no checkpoint, or one of another model.
    """
    path = Path(path).expanduser().absolute()
    _description(path)
    checkpoint = checkpoints.newest(path / "checkpoints")
    if checkpoint is None:
        runs = sorted(found.parent.name for found in path.glob(f"*/{directory.CONFIG}"))
        raise checkpoints.CheckpointError(
            f"{path} has no checkpoint."
            + (f" It is a study; load one of its runs: {', '.join(runs)}." if runs else "")
        )
    model, data, config, _ = rebuild(path, build)
    checkpoints.restore(model, checkpoint)
    return Run(path, model, data, config, directory.read_json(path / directory.SUMMARY))


def rebuild(
    path: Path, build: Callable[[Config, Data], VAE] | None = None
) -> tuple[VAE, Data, Config, dict[str, Any]]:
    """Returns the model of a run as it was built, its data, its flags and its config.json.

    Raises:
        UsageError, DataError, CheckpointError: as `load_run`.
    """
    import keras

    from vae_research.runs.session.building import build_model

    description = _description(path)
    # JSON has lists where a flag has a tuple.
    values = description["flags"].items()
    config = Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values})
    data = data_of(config)
    directory.refuse_changed_data(path, description, data)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        model = build_model(build or _build_of(Path(description["file"])), config, data)
    finally:
        keras.config.set_dtype_policy(policy)  # the caller's own models have the caller's
    return model, data, config, description


def data_of(config: Config) -> Data:
    """Returns the data set that the flags of a run name.

    Raises:
        DataError: no such data set, or one that cannot be used.
    """
    return load_data(
        config.dataset,
        rescale=config.rescale,
        binarize=config.binarize,
        image_size=config.image_size,
        channels=None if config.channels is None else int(config.channels),
        bad_images=config.bad_images,
    )


def _description(path: Path) -> dict[str, Any]:
    description = directory.read_json(path / directory.CONFIG)
    if description is None:
        raise UsageError(f"{path} holds no run: there is no {directory.CONFIG}.")
    return description


def _build_of(file: Path) -> Callable[[Config, Data], VAE]:
    name = f"experiments.{file.stem}"
    module = sys.modules.get(name)
    if module is None or getattr(module, "__file__", None) != str(file):
        if not file.is_file():
            raise UsageError(
                f"the experiment's file is gone: {file}. Give its build function: "
                "load_run(path, build=...)."
            )
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # a dataclass looks its own module up
        sys.path.insert(0, str(file.parent))  # as in the command: modules beside it can be imported
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(file.parent))
    return module.build
