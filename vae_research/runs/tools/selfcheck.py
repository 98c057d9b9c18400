"""Checks the parts of a model against computations of another kind, and prints one table.

    scripts/selfcheck RUN
    scripts/selfcheck EXPERIMENT.py [FLAGS]

Densities against integrals and samples, divergences against Monte Carlo, gradients against
differences, test figures against NumPy, and a resumed training against an unbroken one. Nothing is
written.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_research.data import Data
from vae_research.runs.cli import command, forks, streams
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import parse
from vae_research.runs.cli.tools import exit_code_of
from vae_research.runs.session.experiment import load_data, with_absolute_dataset
from vae_research.runs.session.loading import load_run, rebuild
from vae_research.runs.session.parts import Parts
from vae_research.selfcheck.outcome import FAILED, NOT_APPLICABLE, OK, Outcome

if TYPE_CHECKING:
    from vae_research.model import VAE
    from vae_research.selfcheck.checks import Subject

_USAGE = "Usage: scripts/selfcheck RUN, or EXPERIMENT.py with flags"
_WIDTHS = (24, 58, 9, 9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0, 1 if a check failed, or the exit code of a run for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr)
        return 0 if arguments else 2
    subject, *flags = arguments
    path = Path(subject).expanduser().absolute()
    check = check_experiment if path.suffix == ".py" else check_run
    return exit_code_of("selfcheck", lambda: check(path, flags))


def check_run(path: Path, flags: Sequence[str] = ()) -> int:
    """Checks the model of a run with its trained values; returns 0, or 1 if a check failed.

    Raises:
        UsageError: there are flags, which only an experiment takes; or as `load_run`.
        DataError, CheckpointError: as `load_run`.
    """
    if flags:
        raise UsageError(f"{' '.join(flags)}: the flags of a run are in it. {_USAGE}.")
    with streams.hide_startup_output():
        run = load_run(path)
    assert run.checkpoint is not None
    print(f"{path}: checkpoint of step {run.checkpoint.step}")

    def fresh(**changes: Any) -> VAE:
        return rebuild(path, data=run.data, **changes)[0]

    return print_table(_subject(run.model, run.data, run.config, fresh, run.checkpoint.path))


def check_experiment(path: Path, flags: Sequence[str]) -> int:
    """Checks the new model of an experiment; returns 0, or 1 if a check failed.

    Raises:
        UsageError: there is no such file, it runs no experiment, or flags are not valid.
        DataError: the data are not valid.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}.")
    with command.taken_parts() as taken:
        forks.interpret([str(path), *flags])
    if not taken or taken[0] is None:
        raise UsageError(f"{path} did not call runs.main: it is no experiment with one model.")
    config = with_absolute_dataset(parse(taken[0].build, flags))
    return _check_parts(taken[0], config, command.given_flags(config))


def _check_parts(parts: Parts, config: Config, given: set[str]) -> int:
    config, data = load_data(config, parts.data, given)
    with streams.hide_startup_output():
        import keras

        from vae_research.runs.session.building import build_model, choose_device

    choose_device(config.device)
    keras.config.set_dtype_policy(config.precision)

    def fresh(**changes: Any) -> VAE:
        keras.utils.set_random_seed(config.init_seed)
        return build_model(parts.build, config.replace(**changes), data)

    return print_table(_subject(fresh(), data, config, fresh, None))


def _subject(
    model: VAE, data: Data, config: Config, fresh: Any, checkpoint: Path | None
) -> Subject:
    from vae_research.runs.session.building import names_read
    from vae_research.selfcheck.checks import Subject

    def of_size(values: int) -> VAE:
        if "latent_dim" not in config.as_dict():
            raise ValueError("the experiment has no --latent_dim to make codes smaller")
        return fresh(latent_dim=values)

    return Subject(
        model=model,
        train=data.train,
        test=data.test,
        names=names_read(model, data),
        batch_size=config.batch_size,
        seed=config.data_seed,
        fresh=fresh,
        of_size=of_size,
        checkpoint=checkpoint,
    )


def print_table(subject: Subject) -> int:
    """Prints a line for each check when it is done; returns 0, or 1 if one failed."""
    from vae_research.selfcheck.checks import checked

    print(_line(("check", "what was compared", "differ.", "tolerance"), "result"))
    found = []
    for outcome in checked(subject):
        print(line_of(outcome), flush=True)
        found.append(outcome)
    print(_counted(found))
    return int(any(each.verdict == FAILED for each in found))


def line_of(outcome: Outcome) -> str:
    """Returns the line of an outcome in the table.

    >>> line_of(Outcome("ELBO", "with all weights 1 and all 3.7, nats", 0.0, 0.0)).split()[-3:]
    ['0', '0', 'ok']
    """
    numbers = (_number(outcome.difference), _number(outcome.tolerance))
    result = f"{outcome.verdict}: {outcome.reason}" if outcome.reason else outcome.verdict
    return _line((outcome.name, outcome.compared, *numbers), result)


def _line(cells: tuple[str, str, str, str], result: str) -> str:
    name, compared, difference, tolerance = cells
    widths = _WIDTHS
    return (
        f"{name:<{widths[0]}} {compared:<{widths[1]}} {difference:>{widths[2]}} "
        f"{tolerance:>{widths[3]}}  {result}"
    )


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2g}"


def _counted(found: Iterable[Outcome]) -> str:
    verdicts = [each.verdict for each in found]
    counts = [f"{verdicts.count(each)} {each}" for each in (OK, FAILED, NOT_APPLICABLE)]
    return f"{len(verdicts)} checks: {', '.join(counts)}."


if __name__ == "__main__":
    sys.exit(main())
