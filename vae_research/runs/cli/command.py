"""The command of an experiment or a study: from the command line to an exit code."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from vae_research import checkpoints
from vae_research.data import DATASETS, Data, DataError
from vae_research.runs.cli import signals, streams
from vae_research.runs.cli.errors import RunError, UsageError
from vae_research.runs.cli.flags import Config, experiment_file, parse
from vae_research.runs.session import directory, resume
from vae_research.runs.session.loading import data_of

flags.disclaim_key_flags()


def main(build: Callable[[Config, Data], Any], arguments: list[str] | None = None) -> None:
    """Runs an experiment from the command line and exits.

    Flags are checked first, then the run directory and the data, and only then is TensorFlow
    imported. Nothing is created on disk before all of it is valid.

    Args:
        build: makes the model, a `VAE`, from the flags and the data. If it compiles the model, its
            optimizer is kept; otherwise it is Adam with `--learning_rate`.
        arguments: the command line without the program; by default that of the process.

    Exit codes: 0 done or already complete, 2 flags, 3 data, 4 checkpoint, 5 directory in use,
    6 diverged, 7 file system, 130 interrupted, 143 terminated.
    """
    _answer(build, _train, arguments)


def study(
    run_study: Callable[[Config, Data, Path], dict[str, Any]],
    arguments: list[str] | None = None,
    *,
    check: Callable[[Config, Data], None] | None = None,
    needs: Sequence[str] = (),
) -> None:
    """Runs a study from the command line and exits: several models, and what comes of them.

    As `main`, but what is trained is up to `run_study`. It gets the flags, the data and the run
    directory, which exists and is locked; it writes pictures into its `figures`, from where they
    also go to TensorBoard, and returns what belongs into summary.json. Markdown that it returns as
    `tables` is printed and written to tables.md instead. `runs.train` trains a model as a run of
    its own in a folder below, so that the same command goes on where it stopped; a study that
    calls `fit` itself gives it the callbacks `runs.StopAtSignal` and `runs.StopWhenDiverged`.

    Args:
        run_study: the study.
        arguments: as for `main`.
        check: raises `UsageError` or `DataError` where flags or data are not for this study, before
            anything is written.
        needs: modules of the extra `figures` that the study cannot do without, by the names under
            which they are imported.
    """
    _answer(run_study, functools.partial(_study, check, needs), arguments)


def _answer(
    function: Callable[..., Any],
    command: Callable[[Callable[..., Any], str, Config], None],
    arguments: list[str] | None,
) -> None:
    """Carries out a command, whether anybody listens to what it says or not."""
    arguments = sys.argv[1:] if arguments is None else arguments
    streams.open_what_is_closed()
    with streams.may_be_closed():
        _carry_out(function, command, arguments)


def _carry_out(
    function: Callable[..., Any],
    command: Callable[[Callable[..., Any], str, Config], None],
    arguments: list[str],
) -> None:
    """Turns what a command raises into one line and an exit code."""
    experiment = experiment_file(function).stem
    try:
        signals.listen()
        config = parse(function, arguments)
        dataset = os.path.expanduser(config.dataset)
        if config.dataset not in DATASETS and os.path.exists(dataset):
            # The run may be continued and loaded from another folder.
            config.dataset = os.path.abspath(dataset)
        command(function, experiment, config)
    except KeyboardInterrupt:
        _end(
            experiment,
            130,
            "interrupted; a run that has begun goes on with the same command and --run_dir.",
        )
    except RunError as error:
        _end(experiment, error.exit_code, str(error), arguments)
    except DataError as error:
        _end(experiment, 3, str(error), arguments)
    except checkpoints.CheckpointError as error:
        _end(experiment, 4, str(error), arguments)
    except OSError as error:
        _end(experiment, 7, f"{error.strerror or error}: {error.filename or ''}", arguments)


def _train(build: Callable[[Config, Data], Any], experiment: str, config: Config) -> None:
    run_dir = directory.choose(config.run_dir, experiment)
    checkpoint = resume.unfinished(config, run_dir, experiment)
    complete = resume.complete(config, run_dir, checkpoint)
    if complete is not None:
        print(
            f"{run_dir} is already complete: {complete['epochs']} epochs. To train on, give more "
            "--epochs."
        )
        return
    data = _load(config)
    if checkpoint is not None:
        description = directory.read_json(run_dir / directory.CONFIG)
        directory.refuse_changed_data(run_dir, description, data)
    signals.wait_for_steps()
    with without_start_up_lines():
        from vae_research.runs.session.building import choose_device
        from vae_research.runs.session.training import Session

        device = choose_device(config.device)
    Session(build, experiment, config, data, run_dir, checkpoint, device).run()


def _study(
    check: Callable[[Config, Data], None] | None,
    needs: Sequence[str],
    run_study: Callable[[Config, Data, Path], dict[str, Any]],
    experiment: str,
    config: Config,
) -> None:
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{experiment} needs {' and '.join(missing)}: pip install 'vae_research[figures]'."
        )
    run_dir = directory.choose(config.run_dir, experiment)
    if resume.completed_study(config, run_dir, experiment):
        print(f"{run_dir} is already complete.")
        return
    data = _load(config)
    if check is not None:
        check(config, data)
    signals.wait_for_steps()
    with without_start_up_lines():
        from vae_research.runs.session.building import choose_device
        from vae_research.runs.session.studies import carry_out

        device = choose_device(config.device)
    carry_out(run_study, experiment, config, data, run_dir, device)


def _load(config: Config) -> Data:
    with without_start_up_lines():  # images are decoded by TensorFlow
        data = data_of(config)
    if config.batch_size > len(data.train):
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the {len(data.train)} training "
            f"examples of {config.dataset}."
        )
    return data


@contextmanager
def without_start_up_lines() -> Iterator[None]:
    """Keeps the lines off the screen that TensorFlow prints when it is loaded and looks for GPUs.

    They come from C++ before any log level is in force. Where loading fails they are shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what goes wrong raises in Python
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), 2)
        try:
            yield
        except ImportError:
            lines.seek(0)
            os.write(standard_error, lines.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


def _end(experiment: str, code: int, message: str, arguments: list[str] | None = None) -> None:
    """Prints one line and exits; with `--debug` the traceback comes first."""
    if arguments is not None and "debug" in flags.FLAGS and flags.FLAGS["debug"].value:
        import traceback

        traceback.print_exc()
    print(f"{experiment}: {' '.join(message.split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)
