"""Bounds of log p(x) of a trained model by annealed importance sampling, or its codes and factors.

    scripts/evaluate RUN --ais
    scripts/evaluate RUN|FOLDER ... --disentanglement

With --ais: of test images it is a lower bound, beside the one of importance sampling; of images
that the model has made, a lower and an upper one (bidirectional Monte Carlo). A state is saved
every few seconds in RUN/annealing: the same command resumes an interrupted evaluation bit for bit,
and prints the figures of a finished one. The figures describe the newest intact checkpoint, and are
in RUN/annealing.json; figures of other weights are removed from there. If the run has fitted a
prior with a density, the figures use it instead of the model's own prior.

With --disentanglement: scores of the codes of the test data beside the known factors of these data,
as a run with the flag of this name has them, in RUN/disentanglement.json, which scripts/compare
reads. Of several runs also the rank correlation of the scores, and of seeds of a setting UDR;
scores that they have are made again if --examples, --seed or --metrics ask for others.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vae_research.arguments import LARGEST_SEED, checked_integer
from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli import signals, streams
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.tools import exit_code_of
from vae_research.runs.session import directory

if TYPE_CHECKING:
    import numpy as np

    from vae_research.evaluation.estimates import Estimate
    from vae_research.priors.prior import Prior
    from vae_research.runs.session.loading import Run

STATES = "annealing"
_TEST, _SIMULATED = "test", "simulated"
_SCHEMA = {"results": [{"data": str, "settings": {str: int}}]}

# The figures that a density also has in the units of the values as stored.
_BOUNDS = ("lower_bound", "upper_bound", "importance_sampled")

# What is printed of the figures, by name: the words, and the unit.
_LINES = {
    "lower_bound": ("log p(x), annealed, lower bound", "nats"),
    "lower_bound_in_stored_units": ("  of values as stored", "nats"),
    "upper_bound": ("log p(x), annealed, upper bound", "nats"),
    "upper_bound_in_stored_units": ("  of values as stored", "nats"),
    "gap": ("upper minus lower bound", "nats"),
    "importance_sampled": ("log p(x), importance-sampled, lower bound", "nats"),
    "importance_sampled_in_stored_units": ("  of values as stored", "nats"),
    "annealed_minus_importance_sampled": ("annealed minus importance-sampled", "nats"),
    "importance_sampled_minus_upper_bound": ("importance-sampled minus upper bound", "nats"),
    "effective_sample_size": ("effective sample size", "chains"),
    "effective_sample_size_reverse": ("effective sample size, reverse", "chains"),
    "acceptance_rate": ("acceptance rate", ""),
    "acceptance_rate_reverse": ("acceptance rate, reverse", ""),
}


class _Parser(argparse.ArgumentParser):
    """A parser of which a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the flags)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates a run; returns 0, or the exit code of a run that fails in the same way."""
    return exit_code_of("evaluate", lambda: _dispatch_unless_interrupted(arguments))


def _dispatch_unless_interrupted(arguments: Sequence[str] | None) -> int:
    try:
        signals.listen()
        _dispatch(_parsed(arguments))
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command resumes it.", file=sys.stderr)
        return 130
    return 0


def _dispatch(settings: argparse.Namespace) -> None:
    if settings.disentanglement:
        from vae_research.runs.tools.evaluate_factors import evaluate_factors

        evaluate_factors(settings.run, settings.seed, settings.examples, settings.metrics)
    else:
        evaluate(settings)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the flags.

    Raises:
        UsageError: a flag is not valid.
    """
    parser = _Parser(
        prog="scripts/evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", nargs="+", metavar="RUN", help="the run directory, or folders of runs with factors"
    )
    parser.add_argument("--ais", action="store_true", help="annealed importance sampling")
    parser.add_argument("--disentanglement", action="store_true", help="codes beside known factors")
    parser.add_argument("--metrics", help="some scores of these codes, separated by commas (all)")
    parser.add_argument("--examples", type=int, help="of these codes, at most (10000)")
    parser.add_argument(
        "--data",
        choices=("both", _TEST, _SIMULATED),
        default="both",
        help="images of the test set, images that the model makes, or both (default)",
    )
    for name, default, text in (
        ("images", 100, "how many, the first of the test set"),
        ("chains", 16, "of each image"),
        ("temperatures", 1000, "transitions of each chain"),
        ("leapfrog_steps", 10, "gradients of the decoder in a transition"),
        ("importance_samples", 5000, "of the bound of importance sampling, for each image"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--seed", type=int, help="of all noise (0)")
    found = parser.parse_args(arguments)
    if found.ais == found.disentanglement:
        asked = "both are given" if found.ais else "nothing to evaluate"
        raise UsageError(f"{asked}: give --ais or --disentanglement.")
    if found.ais and len(found.run) > 1:
        raise UsageError(f"--ais evaluates one run, and {len(found.run)} are given.")
    if found.ais and (found.metrics or found.examples):
        raise UsageError("--metrics and --examples are those of --disentanglement.")
    try:
        for name in ("images", "chains", "temperatures", "leapfrog_steps", "importance_samples"):
            checked_integer(f"--{name}", getattr(found, name), 1)
        if found.ais and found.seed is None:
            found.seed = 0
        if found.seed is not None:
            checked_integer("--seed", found.seed, 0, LARGEST_SEED)
        if found.examples is not None:
            checked_integer("--examples", found.examples, 20)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return found


def evaluate(settings: argparse.Namespace) -> None:
    """Evaluates a run as the flags say, prints the figures and writes them.

    Raises:
        RunError, DataError, CheckpointError: it cannot be done.
    """
    run_dir = Path(settings.run[0]).expanduser().absolute()
    directory.read_config(run_dir)  # before TensorFlow is loaded
    with streams.hide_startup_output():
        from vae_research.evaluation.test_figures import notes_on_figures
        from vae_research.runs.session.loading import load_run

    run = load_run(run_dir)
    most = len(run.data.test)
    if settings.data != _SIMULATED and settings.images > most:
        raise UsageError(f"--images={settings.images}: the test set has {most:,} examples.")
    notes = notes_on_figures(run.model, run.data.test)
    whole = "" if run.summary is not None else "; the run is not finished"
    print(f"Weights of step {run.model.step:,}{whole}. Prior: {_prior_in_words(run)}", flush=True)
    folder = run_dir / STATES
    folder.mkdir(exist_ok=True)
    with directory.locked(folder):
        signals.wait_for_steps()
        for kind in (_TEST, _SIMULATED):
            if settings.data in ("both", kind):
                try:
                    figures = _evaluate(run, kind, settings)
                except CheckpointError:  # a ValueError, too
                    raise
                except (ValueError, TypeError) as error:
                    raise UsageError(str(error)) from error
                _print(figures, notes)
                _write(run, kind, settings, figures, notes)
    print(f"Written to {run_dir / directory.ANNEALING}")


def _fitted_prior(run: Run) -> Prior | None:
    """Returns the prior from `fit_prior`, if there is one and it has a density."""
    return run.prior if run.prior is not None and run.prior.has_density else None


def _prior_in_words(run: Run) -> str:
    if (fitted := _fitted_prior(run)) is not None:
        return f"{type(fitted).__name__}, fitted after training"
    own = type(getattr(run.model.bottleneck, "prior", None)).__name__
    unused = "" if run.prior is None else f" (the fitted {type(run.prior).__name__} has no density)"
    return f"{own}, the model's own{unused}"


def _evaluate(run: Run, kind: str, settings: argparse.Namespace) -> dict[str, Estimate]:
    """Returns the figures of one kind of images."""
    from vae_research.evaluation import FITTED, marginal_likelihood
    from vae_research.evaluation.estimates import estimate_arrays
    from vae_research.evaluation.simulation import simulate

    names = ("chains", "temperatures", "leapfrog_steps", "seed")
    prior = _fitted_prior(run)
    common: dict[str, Any] = {
        "prior": prior,
        **{name: getattr(settings, name) for name in names},
        "state": run.path / STATES / _state_name(run, kind, settings),
        "jit_compile": run.config.jit == "on",
        "verbose": 1,
        "between_calls": signals.raise_if_received,
    }
    print(
        f"{settings.images} {kind} images, {settings.chains} chains each, "
        f"{settings.temperatures} temperatures, {settings.leapfrog_steps} leapfrog steps",
        flush=True,
    )
    data = run.data.test.tensors(slice(0, settings.images), run.names)
    if kind == _TEST:
        figures = marginal_likelihood.annealed_importance_sampling(run.model, data, **common)
    else:
        compared = {each.target for each in run.model.objective.likelihood.factors}
        given: dict[str, Any] = {
            name: each for name, each in data.items() if name not in {"inputs", *compared}
        }
        simulated = simulate(run.model, settings.images, seed=settings.seed, prior=prior, **given)
        data = simulated.data
        figures = marginal_likelihood.bidirectional_monte_carlo(run.model, simulated, **common)
    other = estimate_arrays(
        run.model,
        data,
        num_samples=settings.importance_samples,
        seed=settings.seed,
        prior=prior,
        per_example=True,
        between_calls=signals.raise_if_received,
    ).get("negative_log_likelihood" if prior is None else f"negative_log_likelihood{FITTED}")
    if other is not None:
        figures |= _beside(figures, -_values(other))
    return figures | _in_stored_units(run, figures, settings.images)


def _in_stored_units(run: Run, figures: dict[str, Estimate], count: int) -> dict[str, Estimate]:
    """Returns the bounds for the values as stored, of the first examples of the test set.

    Images that the model has made have the same scaling and the same missing values.
    """
    from vae_research.evaluation import units
    from vae_research.evaluation.marginal_likelihood import estimate_of

    added = units.log_jacobian(run.model.objective.likelihood, run.data.test)
    if added is None:
        return {}
    return {
        f"{name}_in_stored_units": dataclasses.replace(
            estimate_of(_values(figures[name]) + added[:count]),
            monte_carlo_error=figures[name].monte_carlo_error,
        )
        for name in _BOUNDS
        if name in figures
    }


def _beside(figures: dict[str, Estimate], sampled: np.ndarray) -> dict[str, Estimate]:
    """Returns the bound of importance sampling, and its paired differences from the annealed."""
    from vae_research.evaluation.marginal_likelihood import estimate_of

    found = {
        "importance_sampled": estimate_of(sampled),
        "annealed_minus_importance_sampled": estimate_of(_values(figures["lower_bound"]) - sampled),
    }
    if "upper_bound" in figures:
        above = sampled - _values(figures["upper_bound"])
        found["importance_sampled_minus_upper_bound"] = estimate_of(above)
    return found


def _values(figure: Estimate) -> np.ndarray:
    assert figure.values is not None
    return figure.values


def _state_name(run: Run, kind: str, settings: argparse.Namespace) -> str:
    from vae_research.state import model_variables, sha256

    numbers = (settings.images, settings.chains, settings.temperatures, settings.leapfrog_steps)
    prior = _fitted_prior(run)
    of_prior = [] if prior is None else prior.variables
    weights = sha256([*model_variables(run.model), *of_prior])[:12]
    return f"{kind}-{'x'.join(map(str, numbers))}-seed{settings.seed}-{weights}.npz"


def _print(figures: dict[str, Estimate], notes: Sequence[str]) -> None:
    for name, (words, unit) in _LINES.items():
        if name in figures:
            figure = figures[name]
            error = "" if figure.standard_error is None else f" +- {figure.standard_error:.3f}"
            print(f"  {words:<42} {figure.value:9.3f}{error:<10} {unit}".rstrip())
    for note in notes:
        print(f"  Note: {note}")


def _write(
    run: Run,
    kind: str,
    settings: argparse.Namespace,
    figures: dict[str, Estimate],
    notes: Sequence[str],
) -> None:
    """Adds a result to those of the same weights and prior; it replaces one with equal settings."""
    from vae_research.state import sha256, weights_sha256

    flags = {
        name: value
        for name, value in vars(settings).items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    fitted = _fitted_prior(run)
    weights = {
        "step": run.model.step,
        "weights_sha256": weights_sha256(run.model),
        "prior": _prior_in_words(run),
        "fitted_prior_sha256": None if fitted is None else sha256(fitted.variables),
    }
    entry = {"data": kind, "settings": flags}
    path = run.path / directory.ANNEALING
    before = (directory.read_json(path, _SCHEMA) or {}).get("results", [])
    kept = [
        each
        for each in before
        if all(each.get(key) == weights[key] for key in weights)
        and any(each[key] != entry[key] for key in entry)
    ]
    values = {
        name: figure.as_dict()
        | {"monte_carlo_error": figure.monte_carlo_error, "values": _values(figure).tolist()}
        for name, figure in figures.items()
    }
    found = entry | weights | {"figures": values, "notes": list(notes)}
    directory.write_json(path, {"results": [*kept, found]})


if __name__ == "__main__":
    sys.exit(main())
