"""The command of an experiment or a study: from the command line to an exit code."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import print_exc
from typing import Any, NoReturn

from absl import flags

from vae_research import checkpoints
from vae_research.data import Data, DataError
from vae_research.runs import cluster
from vae_research.runs.cli import signals, streams
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import RunError, UsageError
from vae_research.runs.cli.flags import is_given, may_change, parse
from vae_research.runs.cli.functions import experiment_name
from vae_research.runs.cli.startup import without_garbage_collection
from vae_research.runs.session import directory, resume
from vae_research.runs.session.experiment import (
    complete_run,
    load_data,
    with_absolute_dataset,
    with_reduced_batch_size,
)
from vae_research.runs.session.kept import sources
from vae_research.runs.session.loading import Run, load_run, made_by, refuse_unknown_place
from vae_research.runs.session.parts import Parts

flags.disclaim_key_flags()

# What `taken_parts` has given, while it holds.
_takes_parts: list[list[Parts | None]] = []


@contextmanager
def taken_parts() -> Iterator[list[Parts | None]]:
    """Gives a list to which `main` appends its functions, instead of running; `study` a None."""
    _takes_parts.append([])
    try:
        yield _takes_parts[-1]
    finally:
        _takes_parts.pop()


def main(
    build: Callable[[Config, Data], Any],
    arguments: list[str] | None = None,
    *,
    data: Callable[[Config], Data] | None = None,
    callbacks: Callable[[Config, Data], Sequence[Any]] | None = None,
    evaluate: Callable[[Run], Mapping[str, Any]] | None = None,
    fit_prior: Callable[[Run], Any] | None = None,
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
        callbacks: makes Keras callbacks from the flags and the data. `config.run_dir` is then the
            run directory. They are called before those of the run: what they add to the logs of an
            epoch, numbers by name, is in metrics.jsonl and TensorBoard. Their state is saved and
            restored with the run's; see `vae_research.callbacks`.
        evaluate: returns test figures of the experiment's own by name, of the `Run` that is
            complete but for them: numbers, or arrays with a value for each test example, of which
            the mean is taken. They are in summary.json, figures.npz and TensorBoard.
        fit_prior: returns a `Prior` that is fitted to the codes of the `Run`, for example
            `vr.fit_prior(run.model, run.data.train.prepare(), vr.MixturePrior(10))`. It is called
            after training, before the test figures, which include those under this prior; its
            samples are among the pictures, and `load_run` returns it as `run.prior`.
        after: called with the complete `Run`, as `load_run` returns it, for anything that comes
            after training: an export, figures. It is also called if the run was complete before.

    Raises:
        TypeError: `data` is not a function at the top level of a file.

    Exit codes: 0 done or already complete, 2 flags, 3 data, 4 checkpoint, 5 directory in use,
    6 diverged, 7 file system, 8 another worker was lost, 130 interrupted, 143 terminated.
    """
    if data is not None:
        refuse_unknown_place(data)
    parts = Parts(build, data, callbacks, evaluate, fit_prior)
    if _takes_parts:
        _takes_parts[-1].append(parts)
        return
    _run_to_exit_code(build, functools.partial(_train_experiment, parts, after), arguments)


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
    if _takes_parts:
        _takes_parts[-1].append(None)
        return
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
    experiment = experiment_name(function)
    streams.redirect_closed_streams()
    with streams.tolerate_closed_streams():
        try:
            signals.listen()
            command(function, experiment, with_absolute_dataset(parse(function, arguments)))
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
    parts: Parts,
    after: Callable[[Run], None] | None,
    build: Callable[[Config, Data], Any],
    experiment: str,
    config: Config,
) -> None:
    """Starts or resumes the run of an experiment, unless it is complete."""
    with cluster.joined(config):
        run_dir, data = complete_run(parts, experiment, config, given_flags(config))
        is_chief = cluster.peers().number == 0
    if after is not None and not config.dry_run and is_chief:
        with streams.hide_startup_output():
            from vae_research.runs.session.fit.stopping import printed_warnings

        with printed_warnings():
            after(load_run(run_dir, build, data))
        signals.raise_if_received()


def given_flags(config: Config) -> set[str]:
    """Returns the names of the flags on the command line."""
    return {name for name in config.as_dict() if is_given(name)}


def _carry_out_study(
    make: Callable[[Config], Data] | None,
    check: Callable[[Config, Data], None] | None,
    needs: Sequence[str],
    run_study: Callable[[Config, Data, Path], dict[str, Any]],
    experiment: str,
    config: Config,
) -> None:
    """Carries out a study, unless it is complete."""
    if config.strategy == "multiworker":
        raise UsageError(
            f"--strategy=multiworker: {experiment} trains several models, one after the other. "
            "Workers share the training of an experiment; --strategy=mirrored shares its batches "
            "among the devices of this machine."
        )
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{experiment} needs {' and '.join(missing)}: pip install 'vae_research[figures]'."
        )
    run_dir = directory.choose(config.run_dir, experiment)
    config = with_reduced_batch_size(config, run_dir, given_flags(config))
    source = sources.collect(run_study, data=made_by(make))
    if resume.completed_study(config, run_dir, experiment, source, may_change(run_study)):
        print(f"{run_dir} is already complete.")
        return
    config, data = load_data(config, make, given_flags(config))
    if check is not None:
        check(config, data)
    if config.dry_run:
        print(f"Flags, data and source are as the study needs them. Directory: {run_dir}.")
        return
    signals.wait_for_steps()
    with streams.hide_startup_output(), without_garbage_collection():
        from vae_research.runs.session.building import choose_device
        from vae_research.runs.session.studies import carry_out

        device = choose_device(config.device, config.threads)
    carry_out(run_study, experiment, config, data, run_dir, device, source)


def _exit(experiment: str, code: int, message: str, *, traceback: bool = True) -> NoReturn:
    """Prints one line and exits; with `--debug` the traceback comes first."""
    if traceback and "debug" in flags.FLAGS and flags.FLAGS["debug"].value:
        print_exc()
    print(f"{experiment}: {' '.join(message.split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)
