"""How the functions of an experiment become a run.

Imports TensorFlow only when a run is about to start.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_research import checkpoints
from vae_research.data import DATASETS, Data
from vae_research.runs import cluster
from vae_research.runs.cli import signals, streams
from vae_research.runs.cli.config import Config, WatchedConfig
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import configure, may_change
from vae_research.runs.cli.functions import experiment_file, experiment_name
from vae_research.runs.cli.standard_flags import LABELS
from vae_research.runs.cli.startup import without_garbage_collection
from vae_research.runs.cluster.agreement import identity, refuse_difference, refuse_other_data
from vae_research.runs.session import directory, resume
from vae_research.runs.session.factors import metric_names, refuse_without_factors
from vae_research.runs.session.kept import sources, tested
from vae_research.runs.session.kept.sources import Source
from vae_research.runs.session.loading import Run, data_of, load_run, made_by, refuse_unknown_place
from vae_research.runs.session.parts import Parts

if TYPE_CHECKING:
    import keras

    from vae_research.model import VAE
    from vae_research.priors.prior import Prior

# Flags that only say what the data are.
FLAGS_OF_DATA = (
    *("dataset", "data_kind", "image_size", "channels", "bad_images", "background"),
    *("stream", "rescale", "binarize", "dequantize", "correlated_factors"),
)


@dataclasses.dataclass(frozen=True)
class Held:
    """What the directory of a run holds for a command.

    Attributes:
        run_dir: the directory, which need not exist.
        config: the flags, with the batch size, name and note of the run.
        source: of the command.
        checkpoint: what the command resumes from, None for a new run.
        complete: the summary of a run that has all that the command asks for, else None.
    """

    run_dir: Path
    config: Config
    source: Source
    checkpoint: checkpoints.Checkpoint | None
    complete: dict[str, Any] | None


def look_up(parts: Parts, experiment: str, config: Config, given: Collection[str]) -> Held:
    """Returns what the run directory of a command holds; writes nothing.

    Args:
        parts, experiment, config, given: as for `complete_run`.

    Raises:
        UsageError, DirectoryInUseError, CheckpointError, FileSystemError: the command cannot start
            or resume a run there.
    """
    run_dir = directory.choose(config.run_dir, experiment)
    config = with_kept_labels(with_reduced_batch_size(config, run_dir, given), run_dir, given)
    functions = (parts.callbacks, parts.evaluate, parts.fit_prior)
    more = [experiment_file(each) for each in functions if each is not None]
    source = sources.collect(parts.build, *more, data=made_by(parts.data))
    harmless = may_change(parts.build)
    checkpoint = resume.unfinished(config, run_dir, experiment, source, harmless)
    complete = resume.complete(config, run_dir, checkpoint, source)
    return Held(run_dir, config, source, checkpoint, complete)


def complete_run(
    parts: Parts, experiment: str, config: Config, given: Collection[str]
) -> tuple[Path, Data | Callable[[Config], Data] | None]:
    """Starts or resumes the run of an experiment, unless it is complete.

    With `--dry_run` the run is checked, and nothing is trained or written.

    Args:
        parts: of the experiment.
        experiment: its name.
        config: the flags.
        given: names of the flags that were given, and are not defaults.

    Returns:
        The run directory; and the data, or what makes them if they have not been needed.
    """
    metric_names(config.disentanglement_metrics)  # whether or not they are asked for
    _refuse_idle_devices(config)
    peers = cluster.peers()
    held = look_up(parts, experiment, config, given)
    run_dir, checkpoint = held.run_dir, held.checkpoint
    if peers.count > 1:
        refuse_difference(peers.gather("flags", identity(held)))
        if config.run_dir is None:  # it is named by the time
            run_dir = Path(peers.gather("run directory", str(run_dir))[0])
    if peers.number:
        config = config.replace(verbose=0)
        held = dataclasses.replace(held, config=held.config.replace(verbose=0))
    if held.complete is not None:
        if not config.dry_run and peers.number == 0:
            _write_labels(held.config, run_dir)
        if config.verbose:
            epochs = held.complete["epochs"]
            stopped = held.complete.get("stopped_early", False)
            print(
                f"{run_dir} is already complete: {epochs} epochs. "
                f"{_how_to_train_longer(config, epochs, stopped=stopped)}."
            )
        return run_dir, parts.data
    config, data = load_data(held.config, parts.data, given)
    if config.disentanglement:
        refuse_without_factors(data)
    if peers.count > 1:
        refuse_other_data(data, peers.gather("data", data.fingerprint))
    if checkpoint is not None:
        directory.refuse_changed_data(run_dir, directory.read_config(run_dir), data)
    signals.wait_for_steps()
    with streams.hide_startup_output(), without_garbage_collection():
        from vae_research.runs.session.building import choose_device, choose_strategy
        from vae_research.runs.session.training import Session

        device = choose_device(config.device, config.threads)
    strategy = choose_strategy(config.strategy)
    for warning in tested.warnings_of(tested.installed()):
        print(f"warning: {warning}", file=sys.stderr)
    session = Session(
        parts, experiment, config, data, run_dir, checkpoint, device, held.source, strategy
    )
    if config.dry_run:
        session.check()
    else:
        session.run()
    return session.run_dir, data


def _refuse_idle_devices(config: Config) -> None:
    """Raises UsageError for several devices without a strategy, which would use the first."""
    _, _, number = config.device.partition(":")
    if config.strategy == "none" and number and int(number) > 1:
        raise UsageError(
            f"--device={config.device} is {number} devices, of which a run without a strategy uses "
            "one. --strategy=mirrored shares each batch among them."
        )


def _how_to_train_longer(config: Config, epochs: int, *, stopped: bool) -> str:
    """Returns a sentence about a complete run of some epochs, which a callback may have ended."""
    if stopped and not config.early_stopping:
        return "A callback of the experiment ended it"
    larger = resume.what_trains_longer(config.as_dict(), epochs, stopped=stopped)
    if not larger:
        return (
            "More --epochs need another --run_dir, because the schedule of the learning rate is as "
            "long as the training"
        )
    if not stopped:
        return "To train longer, give more --epochs"
    how = "a larger value trains longer"
    if "epochs" in larger:
        how = "a larger value and more --epochs train longer"
    return f"A callback ended it; if that was --early_stopping, {how}"


def train(
    build: Callable[[Config, Data], VAE],
    *,
    config: Config | None = None,
    data: Data | Callable[[Config], Data] | None = None,
    run_dir: str | Path | None = None,
    callbacks: Callable[[Config, Data], Sequence[keras.callbacks.Callback]] | None = None,
    evaluate: Callable[[Run], Mapping[str, Any]] | None = None,
    fit_prior: Callable[[Run], Prior] | None = None,
    **values: Any,
) -> Run:
    """Trains a model as a run of its own, resumes it, or loads it if it is complete.

    For a notebook, and for a study, which trains several. The run has what the command of an
    experiment gives it; what is wrong raises the error of which the command prints the message.

        run = runs.train(build, data=data, run_dir="runs/first", epochs=20, latent_dim=8)

    Args:
        build: makes the model from the flags and the data.
        config: the flags of a study; `run_dir` is not used, and of `resume` only `changed` and
            `scratch`. By default the flags have their defaults.
        data: the data, or a function from the flags to them; by default the flags name them.
        run_dir: the folder of the run; by default that of a command. A study must give it.
        callbacks, evaluate, fit_prior: as for `main`.
        values: flags that differ from `config` or from their defaults.

    Raises:
        TypeError: `data` is a function, and not at the top level of a file or cell.
        UsageError: there is no such flag, a value is not valid, or the folder holds a run with
            other flags.
        DataError: the data cannot be used.
        CheckpointError: the folder holds a run on other data.
        DirectoryInUseError, DivergedError, FileSystemError, TerminatedError: as a command.
    """
    if config is not None and run_dir is None:
        raise TypeError("train(build, config=...) of a study needs run_dir=... for its run.")
    if callable(data):
        refuse_unknown_place(data)
    found = configure(build, **values)
    if found.strategy == "multiworker":
        raise UsageError(
            "strategy='multiworker': workers are processes, each of which runs the command of an "
            "experiment; scripts/launch starts them."
        )
    if found.dry_run:
        raise UsageError("dry_run=True: train() returns a trained run; a command has --dry_run.")
    if config is not None:
        allowed = config.resume if config.resume in ("changed", "scratch") else "auto"
        config = config.replace(resume=allowed)
        found = config.replace(**{name: found.as_dict()[name] for name in values})
    if run_dir is not None:
        found = found.replace(run_dir=str(Path(run_dir).expanduser().absolute()))
    parts = Parts(build, data, callbacks, evaluate, fit_prior)
    with streams.hide_startup_output():
        import keras

        from vae_research.runs.session.fit.stopping import printed_warnings
    policy = keras.config.dtype_policy()
    with signals.restored(), printed_warnings():
        try:
            found = with_absolute_dataset(found)
            path, used = complete_run(parts, experiment_name(build), found, values.keys())
            signals.raise_if_received()
        finally:
            if config is None:
                keras.config.set_dtype_policy(policy)
        return load_run(path, build, used)


def load_data(
    config: Config, make: Callable[[Config], Data] | Data | None, given: Collection[str]
) -> tuple[Config, Data]:
    """Returns the data set, and the flags with a batch size that suits it.

    Args:
        config: the flags.
        make: the data, or what makes them; None if the flags name them.
        given: names of the flags that were given.

    Raises:
        DataError: there is no such data set, or it cannot be used.
        UsageError: the batch size that was given is larger than the training data, or the
            experiment brings its data and does not read a flag that was given.
    """
    watched = WatchedConfig(config)
    if isinstance(make, Data):
        data = make
    elif make is not None and not callable(make):
        raise UsageError(
            f"data={type(make).__name__}: give a Data, which vr.Data.from_arrays(arrays) makes, or "
            "a function from the flags to it."
        )
    else:
        with streams.hide_startup_output():  # Keras may download Fashion-MNIST
            data = data_of(watched, make)
    ignored = [
        f"--{name}" for name in FLAGS_OF_DATA if name in given and name not in watched.names_read
    ]
    if ignored:
        raise UsageError(
            f"{' and '.join(ignored)}: this experiment brings its data and does not read "
            "what these flags say."
        )
    rows = len(data.train)
    if config.batch_size > rows and "batch_size" not in given:
        return config.replace(batch_size=rows), data
    if config.batch_size > rows:
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the {rows} training "
            f"examples of {data.name}."
        )
    return config, data


def with_absolute_dataset(config: Config) -> Config:
    """Returns the flags with which a run may be resumed and loaded from another folder."""
    dataset = os.path.expanduser(config.dataset)
    if config.dataset in DATASETS or not os.path.exists(dataset):
        return config
    return config.replace(dataset=os.path.abspath(dataset))


def with_reduced_batch_size(config: Config, run_dir: Path, given: Collection[str]) -> Config:
    """Returns the flags with the batch size of a run whose data are smaller than the default."""
    found = directory.read_json(run_dir / directory.CONFIG)
    if found is None or "batch_size" in given:
        return config
    try:
        rows, used = found["data"]["counts"]["train"], found["flags"]["batch_size"]
        reduced = used == rows < config.batch_size
    except (KeyError, TypeError):  # not written by a run; what follows says so
        return config
    return config.replace(batch_size=used) if reduced else config


def with_kept_labels(config: Config, run_dir: Path, given: Collection[str]) -> Config:
    """Returns the flags with the name and the note that a run has, if they were not given."""
    found = directory.read_json(run_dir / directory.CONFIG) or {}
    flags = found.get("flags")
    kept = {name: flags.get(name) for name in LABELS} if isinstance(flags, dict) else {}
    return config.replace(
        **{name: text for name, text in kept.items() if name not in given and text is not None}
    )


def _write_labels(config: Config, run_dir: Path) -> None:
    """Writes another name or note into the config.json of a complete run."""
    flags = directory.read_config(run_dir)["flags"]
    labels = {name: getattr(config, name) for name in LABELS}
    if any(flags.get(name) != text for name, text in labels.items()):
        with directory.locked(run_dir):
            directory.update_config(run_dir, flags=flags | labels)
