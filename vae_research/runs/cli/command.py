"""The command of an experiment or a study: from the command line to an exit code."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import print_exc
from typing import Any, NoReturn

from absl import flags

from vae_research import checkpoints
from vae_research.data import DATASETS, Data, DataError
from vae_research.runs.cli import signals, streams
from vae_research.runs.cli.errors import RunError, UsageError
from vae_research.runs.cli.flags import Config, WatchedConfig, experiment_file, is_given, parse
from vae_research.runs.cli.startup import without_garbage_collection
from vae_research.runs.session import directory, resume, sources
from vae_research.runs.session.loading import Run, data_of, load_run, refuse_unknown_place

flags.disclaim_key_flags()

# Flags that only say what the data are.
_OF_DATA = (
    *("dataset", "data_kind", "image_size", "channels", "bad_images", "background"),
    *("stream", "rescale", "binarize"),
)


def main(
    build: Callable[[Config, Data], Any],
    arguments: list[str] | None = None,
    *,
    data: Callable[[Config], Data] | None = None,
    after: Callable[[Run], None] | None = None,
) -> None:
    """Runs an experiment from the command line and exits.

    Flags are checked first, then the run directory and the data. TensorFlow is imported only after
    that, unless the experiment imports it. Nothing is created on disk until all of them are valid.

    Args:
        build: makes the model, a `VAE`, from the flags and the data. If it compiles the model, its
            optimizer is used, otherwise Adam with `--learning_rate`.
        arguments: the command line without the program; default: that of the process.
        data: makes the data set from the flags, in place of `--dataset`: a function at the top
            level of a file, which is called again when the run is resumed, loaded or replayed. It
            may change what the flags name, `runs.load_data(config)`. A flag of the data that it
            does not read is refused if it is given.
        after: called with the run when it is complete, for figures of the experiment's own.

    Raises:
        TypeError: `data` is not a function at the top level of a file.

    Exit codes: 0 done or already complete, 2 flags, 3 data, 4 checkpoint, 5 directory in use,
    6 diverged, 7 file system, 130 interrupted, 143 terminated.
    """
    if data is not None:
        refuse_unknown_place(data)
    _run_to_exit_code(build, functools.partial(_train_experiment, data, after), arguments)


def study(
    run_study: Callable[[Config, Data, Path], dict[str, Any]],
    arguments: list[str] | None = None,
    *,
    data: Callable[[Config], Data] | None = None,
    check: Callable[[Config, Data], None] | None = None,
    needs: Sequence[str] = (),
) -> None:
    """Runs a study, which trains several models, from the command line and exits.

    Like `main`, except that `run_study` decides what is trained. It gets the flags, the data and
    the run directory, which exists and is locked. Pictures that it writes into the folder `figures`
    of the run directory are also shown in TensorBoard. What it returns is written to summary.json,
    except for `tables`, which is Markdown: it is printed and written to tables.md. `runs.train`
    trains a model as a run of its own in a folder below, so that the same command resumes an
    interrupted study; a study that calls `fit` itself passes it the callbacks `runs.StopAtSignal`
    and `runs.StopWhenDiverged`.

    Args:
        run_study: the study.
        arguments, data: as for `main`.
        check: raises `UsageError` or `DataError` if flags or data do not suit the study; called
            before anything is written.
        needs: import names of the modules of the extra `figures` that the study requires.
    """
    if data is not None:
        refuse_unknown_place(data)
    command = functools.partial(_carry_out_study, data, check, needs)
    _run_to_exit_code(run_study, command, arguments)


def _run_to_exit_code(
    function: Callable[..., Any],
    command: Callable[[Callable[..., Any], str, Config], None],
    arguments: list[str] | None,
) -> None:
    """Parses the flags and runs a command; expected errors end it with one line and an exit code.

    Args:
        function: the experiment's `build` or the study's `run_study`.
        command: gets the function, the name of the experiment and the flags.
        arguments: as for `main`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    experiment = experiment_file(function).stem
    streams.redirect_closed_streams()
    with streams.tolerate_closed_streams():
        try:
            signals.listen()
            config = parse(function, arguments)
            dataset = os.path.expanduser(config.dataset)
            if config.dataset not in DATASETS and os.path.exists(dataset):
                # The run may be resumed and loaded from another folder.
                config = config.replace(dataset=os.path.abspath(dataset))
            command(function, experiment, config)
        except KeyboardInterrupt:
            message = f"interrupted; {signals.HOW_TO_RESUME}"
            _exit(experiment, 130, message, traceback=False)
        except RunError as error:
            _exit(experiment, error.exit_code, str(error))
        except DataError as error:
            _exit(experiment, 3, str(error))
        except checkpoints.CheckpointError as error:
            _exit(experiment, 4, str(error))
        except OSError as error:
            _exit(experiment, 7, f"{error.strerror or error}: {error.filename or ''}")


def _train_experiment(
    make: Callable[[Config], Data] | None,
    after: Callable[[Run], None] | None,
    build: Callable[[Config, Data], Any],
    experiment: str,
    config: Config,
) -> None:
    """Starts or resumes the run of an experiment, unless it is complete."""
    run_dir = directory.choose(config.run_dir, experiment)
    config = _with_reduced_batch_size(config, run_dir)
    source = sources.collect(build, *([] if make is None else [experiment_file(make)]))
    checkpoint = resume.unfinished(config, run_dir, experiment, source)
    complete = resume.complete(config, run_dir, checkpoint)
    if complete is not None:
        print(
            f"{run_dir} is already complete: {complete['epochs']} epochs. To train longer, give "
            "more --epochs."
        )
        _look_at(run_dir, build, make, after)
        return
    config, data = _load_data(config, make)
    if checkpoint is not None:
        description = directory.read_config(run_dir)
        directory.refuse_changed_data(run_dir, description, data)
    signals.wait_for_steps()
    with streams.hide_startup_output(), without_garbage_collection():
        from vae_research.runs.session.building import choose_device
        from vae_research.runs.session.training import Session

        device = choose_device(config.device)
    session = Session(build, experiment, config, data, run_dir, checkpoint, device, source)
    session.run()
    _look_at(session.run_dir, build, data, after)


def _look_at(
    run_dir: Path,
    build: Callable[[Config, Data], Any],
    data: Data | Callable[[Config], Data] | None,
    after: Callable[[Run], None] | None,
) -> None:
    """Calls what an experiment does with its complete run."""
    if after is not None:
        with streams.hide_startup_output():
            from vae_research.runs.session.stopping import printed_warnings

        with printed_warnings():
            after(load_run(run_dir, build, data))
        signals.raise_if_received()


def _carry_out_study(
    make: Callable[[Config], Data] | None,
    check: Callable[[Config, Data], None] | None,
    needs: Sequence[str],
    run_study: Callable[[Config, Data, Path], dict[str, Any]],
    experiment: str,
    config: Config,
) -> None:
    """Carries out a study, unless it is complete."""
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{experiment} needs {' and '.join(missing)}: pip install 'vae_research[figures]'."
        )
    run_dir = directory.choose(config.run_dir, experiment)
    config = _with_reduced_batch_size(config, run_dir)
    source = sources.collect(run_study, *([] if make is None else [experiment_file(make)]))
    if resume.completed_study(config, run_dir, experiment, source):
        print(f"{run_dir} is already complete.")
        return
    config, data = _load_data(config, make)
    if check is not None:
        check(config, data)
    signals.wait_for_steps()
    with streams.hide_startup_output(), without_garbage_collection():
        from vae_research.runs.session.building import choose_device
        from vae_research.runs.session.studies import carry_out

        device = choose_device(config.device)
    carry_out(run_study, experiment, config, data, run_dir, device, source)


def _load_data(config: Config, make: Callable[[Config], Data] | None) -> tuple[Config, Data]:
    """Returns the data set, and the flags with a batch size that suits it.

    The experiment makes the data set, or the flags name it.

    Raises:
        DataError: there is no such data set, or it cannot be used.
        UsageError: the batch size that was given is larger than the training data, or the
            experiment brings its data and does not read a flag that was given.
    """
    with streams.hide_startup_output():  # Keras may download Fashion-MNIST
        watched = WatchedConfig(config)
        data = data_of(watched, make)
    ignored = [f"--{n}" for n in _OF_DATA if is_given(n) and n not in watched.names_read]
    if ignored:
        raise UsageError(
            f"{' and '.join(ignored)}: this experiment brings its data and does not read "
            "what these flags say."
        )
    rows = len(data.train)
    if config.batch_size > rows and not is_given("batch_size"):
        return config.replace(batch_size=rows), data
    if config.batch_size > rows:
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the {rows} training "
            f"examples of {data.name}."
        )
    return config, data


def _with_reduced_batch_size(config: Config, run_dir: Path) -> Config:
    """Returns the flags with the batch size of a run whose data are smaller than the default."""
    found = directory.read_json(run_dir / directory.CONFIG)
    if found is None or is_given("batch_size"):
        return config
    try:
        rows, used = found["data"]["counts"]["train"], found["flags"]["batch_size"]
        reduced = used == rows < config.batch_size
    except (KeyError, TypeError):  # not written by a run; what follows says so
        return config
    return config.replace(batch_size=used) if reduced else config


def _exit(experiment: str, code: int, message: str, *, traceback: bool = True) -> NoReturn:
    """Prints one line and exits; with `--debug` the traceback comes first."""
    if traceback and "debug" in flags.FLAGS and flags.FLAGS["debug"].value:
        print_exc()
    print(f"{experiment}: {' '.join(message.split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)
