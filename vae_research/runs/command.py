"""The command of an experiment: from the command line to an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from vae_research import checkpoints
from vae_research.data import DATASETS, Data, DataError, load_data
from vae_research.runs import directory, signals
from vae_research.runs.errors import RunError, UsageError
from vae_research.runs.flags import Config, experiment_file, parse

flags.disclaim_key_flags()

# What may differ between an unfinished run and the command that goes on with it.
_HARMLESS = {"epochs", "run_dir", "resume", "verbose", "debug", "log_every_steps", "device"}
_HARMLESS |= {"importance_samples", "run_eagerly", "jit"}


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
    experiment = experiment_file(build).stem
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        signals.listen()
        _run(build, experiment, arguments)
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


def _run(build: Callable[[Config, Data], Any], experiment: str, arguments: list[str]) -> None:
    config = parse(build, arguments)
    dataset = os.path.expanduser(config.dataset)
    if config.dataset not in DATASETS and os.path.exists(dataset):
        # The run may be continued and loaded from another folder.
        config.dataset = os.path.abspath(dataset)
    run_dir = directory.choose(config.run_dir, experiment)
    checkpoint = _unfinished(config, run_dir, experiment)
    if checkpoint is not None and checkpoint.epoch >= config.epochs:
        summary = directory.read_json(run_dir / directory.SUMMARY)
        if summary is not None:
            print(
                f"{run_dir} is already complete: {summary['epochs']} epochs. To train on, give "
                "more --epochs."
            )
            return
    data = load_data(config.dataset, rescale=config.rescale, binarize=config.binarize)
    if checkpoint is not None:
        description = directory.read_json(run_dir / directory.CONFIG)
        directory.refuse_changed_data(run_dir, description, data)
    if config.batch_size > len(data.train):
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the {len(data.train)} training "
            f"examples of {config.dataset}."
        )
    signals.wait_for_steps()
    with _without_start_up_lines():
        from vae_research.runs.training import choose_device, train

        device = choose_device(config.device)
    train(build, experiment, config, data, run_dir, checkpoint, device)


def _unfinished(config: Config, run_dir: Path, experiment: str) -> checkpoints.Checkpoint | None:
    """Returns the checkpoint to go on from, None for a new run.

    Raises:
        UsageError: the directory holds something else, or a run with other flags.
        DirectoryInUseError: another process writes to it.
        CheckpointError: `--resume=must` and there is none, or none is whole.
    """
    directory.refuse_in_use(run_dir)
    found = directory.read_json(run_dir / directory.CONFIG)
    checkpoint = checkpoints.newest(run_dir / "checkpoints") if found is not None else None
    if found is None:
        ours = {directory.LOCK}  # all that a run leaves that stopped before it wrote its config
        if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} - ours:
            raise UsageError(f"{run_dir} is not empty and holds no run. Give another --run_dir.")
    elif config.resume == "never":
        raise UsageError(
            f"{run_dir} holds a run already. Give another --run_dir, or leave out --resume=never."
        )
    elif found.get("experiment") != experiment:
        raise UsageError(
            f"{run_dir} holds a run of {found.get('experiment')}, not of {experiment}. Give "
            "another --run_dir."
        )
    else:
        before, now = found["flags"], directory.as_plain(config.as_dict())
        changed = [
            f"--{name} was {before.get(name)}, now {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if name not in _HARMLESS and before.get(name) != now.get(name)
        ]
        if changed:
            raise UsageError(
                f"{run_dir} holds a run with other flags: {'; '.join(changed)}. Give another "
                "--run_dir for a new run."
            )
    if checkpoint is None and config.resume == "must":
        raise checkpoints.CheckpointError(f"--resume=must, and {run_dir} has no checkpoint.")
    return checkpoint


@contextmanager
def _without_start_up_lines() -> Iterator[None]:
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
