"""Loads a run back into Python."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vae_research import checkpoints, manifests
from vae_research.data import Data, DataError, load_data
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import RunError, UsageError
from vae_research.runs.cli.flags import invalid_flag
from vae_research.runs.cli.functions import experiment_file
from vae_research.runs.session import directory
from vae_research.runs.session.kept import provenance
from vae_research.runs.session.kept.kept_modules import KeptSource
from vae_research.state import sha256

if TYPE_CHECKING:
    from vae_research.model import VAE
    from vae_research.priors.prior import Prior


@dataclasses.dataclass(frozen=True)
class Run:
    """A loaded run: the model with its trained weights, its data and its flags.

    Attributes:
        path: the run directory.
        model: the model with its trained weights.
        data: the data set.
        config: the flags.
        summary: the contents of summary.json, None if the run is not finished.
        checkpoint: where the values of the model are from, None if from no checkpoint.
        prior: that the experiment's `fit_prior` has fitted to these values, None if none was.
    """

    path: Path
    model: VAE
    data: Data
    config: Config
    summary: dict[str, Any] | None
    checkpoint: checkpoints.Checkpoint | None = None
    prior: Prior | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the further arrays of the data that the model reads."""
        return tuple(name for name in self.data.names if name in self.model.data_names)


def load_run(
    path: str | Path,
    build: Callable[[Config, Data], VAE] | None = None,
    data: Data | Callable[[Config], Data] | None = None,
    *,
    which: Literal["best", "last"] = "last",
) -> Run:
    """Returns the model, the data and the flags of a run.

    The source that the run keeps builds the model, and makes the data if the experiment brings
    them, whatever has become of the experiment's file; the values come from the newest intact
    checkpoint. If the run averages its weights, the averages are in place, as in its test figures.

    Args:
        path: the run directory.
        build: the experiment's `build`, to be used instead of the kept source.
        data: the data of the run, or a function from its flags to them, to be used instead of what
            the kept source makes; needed if a study trained on arrays of its own.
        which: the newest intact checkpoint, of which the test figures and saved networks are if the
            run is complete; or, of those that were saved, the one that was best on validation data:
            by its importance-weighted bound if the model is trained with one, otherwise by its ELBO
            (by its loss without a posterior). With `--checkpoint_epochs=1` or `--early_stopping`
            the best epoch is always saved.

    Raises:
        ValueError: `which` is neither of the two.
        UsageError: there is no run, or it keeps no source that builds the model.
        DataError: its data set is gone or cannot be used.
        CheckpointError: there is no checkpoint, it is of another model or of another run, the kept
            source or the fitted prior is damaged, or the data set has changed.
    """
    path = Path(path).expanduser().absolute()
    if which not in ("best", "last"):
        raise ValueError(f"which must be 'best' or 'last', got {which!r}.")
    description = directory.read_config(path)  # "holds no run" comes before "has no checkpoint"
    folder = path / "checkpoints"
    checkpoint = checkpoints.newest(folder)
    if checkpoint is not None and which == "best":
        checkpoint = checkpoints.best_in(folder)
        if checkpoint is None:
            raise checkpoints.CheckpointError(
                f"no checkpoint of {path} was taken at the end of an epoch, after validation; "
                'which="last" loads the newest.'
            )
    if checkpoint is None:
        runs = sorted(found.parent.name for found in path.glob(f"*/{directory.CONFIG}"))
        raise checkpoints.CheckpointError(
            f"{path} has no checkpoint."
            + (f" It is a study; load one of its runs: {', '.join(runs)}." if runs else "")
        )
    content = manifests.read_manifest(checkpoint.path)
    progress = provenance.progress_of(content, checkpoint.path)
    provenance.refuse_other_run(path, description, progress, checkpoint.path)
    model, found, config, _ = rebuild(path, build, data, progress.get("source"))
    checkpoints.restore(model, checkpoint)
    model.averaging.put()
    summary = directory.read_summary(path)
    prior = None if summary is None else _fitted_prior(path, summary, model.step)
    return Run(path, model, found, config, summary, checkpoint, prior)


def _fitted_prior(path: Path, summary: dict[str, Any], step: int) -> Prior | None:
    """Returns the prior that a run has fitted after training, None if there is none of this step.

    Raises:
        CheckpointError: its file is missing or damaged.
    """
    import keras

    wanted = summary.get("fitted_prior_sha256")
    if wanted is None or summary.get("steps") != step:
        return None
    file = path / directory.PRIOR
    try:
        prior = keras.saving.load_model(file)
        found = sha256(prior.variables)
    except Exception as error:  # of Keras: a damaged file can raise anything
        raise checkpoints.CheckpointError(f"{file} cannot be loaded: {error}") from error
    if found != wanted:
        raise checkpoints.CheckpointError(
            f"{file} is damaged: its values are not those of {directory.SUMMARY}."
        )
    return prior


def rebuild(
    path: Path,
    build: Callable[[Config, Data], VAE] | None = None,
    data: Data | Callable[[Config], Data] | None = None,
    source: str | None = None,
    **changes: Any,
) -> tuple[VAE, Data, Config, dict[str, Any]]:
    """Returns the model of a run as it was before training, its data, flags and config.json.

    Args:
        path, build, data: as for `load_run`.
        source: the name of the folder of the kept source; default: that of the last session.
        changes: flags that differ from those of the run.

    Raises:
        UsageError, DataError, CheckpointError: as `load_run`.
    """
    import keras

    from vae_research.runs.session.building import build_model

    description = directory.read_config(path)
    folder = source or description.get("source")
    kept = functools.cache(lambda: None if folder is None else KeptSource(path, folder))
    config = saved_config(path, {**description["flags"], **changes})
    if not isinstance(data, Data):
        if data is None and description["data"].get("made_by") is not None:
            data = _kept(path, description, kept, "data")
        data = data_of(config, data)
    directory.refuse_changed_data(path, description, data)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        if build is None:
            build = _kept(path, description, kept, "build")
        model = build_model(build, config, data)
    finally:
        keras.config.set_dtype_policy(policy)  # restore the caller's policy
    return model, data, config, description


class _MissingFlagError(checkpoints.CheckpointError, AttributeError):
    """A flag that is read is not in config.json."""


class _SavedConfig(Config):
    """The flags of config.json."""

    def __getattr__(self, name: str) -> Any:
        raise _MissingFlagError(
            f"config.json has no flag {name!r}: it was edited, or the run is of another version of "
            "this package."
        )


def saved_config(path: Path, values: dict[str, Any]) -> Config:
    """Returns the flags of a run.

    Raises:
        CheckpointError: a flag has a value that no command could have given.
    """
    problem = invalid_flag(values)
    if problem is not None:
        raise checkpoints.CheckpointError(f"{path / directory.CONFIG} was edited: {problem}")
    # The tuples of flags are lists in JSON.
    return _SavedConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _kept(
    path: Path, description: dict[str, Any], read: Callable[[], KeptSource | None], wanted: str
) -> Callable[..., Any]:
    """Returns the function that builds the model of a run, or that makes its data.

    Args:
        path: the run directory.
        description: the contents of its config.json.
        read: returns its source, None if it keeps none.
        wanted: `build` or `data`, the argument of `load_run` that is used instead.

    Raises:
        UsageError: there is none.
        CheckpointError: the source is damaged.
    """
    kept = read()
    if kept is None:
        version = description.get("versions", {}).get("vae_research")
        problem = f"vae_research {version}, which made this run, did not keep the source of runs"
    else:
        try:
            return kept.build() if wanted == "build" else kept.data()
        except LookupError as error:
            problem = str(error.args[0])
    raise UsageError(f"{path}: {problem}. Give the function: load_run(path, {wanted}=...).")


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
    return dataclasses.replace(data, made_by=made_by(make))


def made_by(data: Callable[[Config], Data] | Data | None) -> tuple[str, str] | None:
    """Returns file and name of the function that makes a data set, None if none does."""
    if isinstance(data, Data):
        return data.made_by
    return (str(experiment_file(data)), data.__name__) if callable(data) else None


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
        dequantize=getattr(config, "dequantize", None)
        or "none",  # a run may be older than the flag
        correlated=getattr(config, "correlated_factors", None),
    )
