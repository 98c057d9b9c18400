"""What comes of a trained model: a fitted prior, test figures, and what a run leaves on disk."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from vae_research import checkpoints
from vae_research.callbacks.pictures import conditions_of, write_samples
from vae_research.data import Data
from vae_research.evaluation.estimates import Estimate
from vae_research.evaluation.test_figures import estimate
from vae_research.model import VAE
from vae_research.priors.prior import Prior
from vae_research.runs.cli import signals
from vae_research.runs.cli.config import Config, WatchedConfig
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.report import outputs, screen
from vae_research.runs.report.description import notes_of, notes_on_batches, notes_on_samples
from vae_research.runs.report.page import write_report
from vae_research.runs.session import directory, resume
from vae_research.runs.session.building import names_read
from vae_research.runs.session.figures import own_figures, save_values
from vae_research.runs.session.fit.stopping import printed_warnings
from vae_research.runs.session.fit.tensorboard import write_test_figures
from vae_research.runs.session.loading import Run
from vae_research.runs.session.parts import Parts
from vae_research.runs.session.scores import score
from vae_research.state import sha256

if TYPE_CHECKING:
    from vae_research.evaluation.factor_scores import FactorScores

# Validation has no gradients to keep: larger batches than those of training cost less.
_VALIDATION_BATCH = 500


def validation_batch_size(data: Data) -> int:
    """Returns the rows of a batch of validation data."""
    return min(_VALIDATION_BATCH, len(data.validation))


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a training has ended.

    Attributes:
        epochs_before: that were finished when this session began.
        has_stopped: whether a callback has ended it before all epochs.
        seconds: how long it took.
        claim: what is claimed of its reproducibility.
        source: the folder of the kept source.
    """

    epochs_before: int
    has_stopped: bool
    seconds: float
    claim: str
    source: str


@dataclasses.dataclass
class Results:
    """What comes of a trained model; the methods are called in their order.

    Attributes:
        parts: the functions of the experiment.
        config: the flags.
        data: the data set.
        run_dir: the run directory.
        model: trained.
        prior: that the experiment's `fit_prior` has fitted, added by the method of this name.
        estimates: the test figures, added by `test`.
        unitless: names of those of the experiment's own, added by `test`.
        read_by_evaluation: names of the flags that the experiment's `fit_prior` and `evaluate`
            read, added by `fit_prior` and `test`.
        scores: of disentanglement, added by `test`; None without `--disentanglement`.
    """

    parts: Parts
    config: Config
    data: Data
    run_dir: Path
    model: VAE
    prior: Prior | None = None
    estimates: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    unitless: tuple[str, ...] = ()
    read_by_evaluation: Collection[str] = ()
    scores: FactorScores | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the further arrays that the model reads."""
        return names_read(self.model, self.data)

    def fit_prior(self) -> None:
        """Fits the experiment's prior to the codes of the trained model, if it has one.

        A signal ends it at once: the last checkpoint has the model, and the next session fits the
        prior again.

        Raises:
            UsageError: what the experiment returns is not a prior, or not a fitted one of these
                codes.
            TerminatedError, KeyboardInterrupt: a signal came.
        """
        if self.parts.fit_prior is None:
            return
        if self.config.verbose:
            print("Fitting a prior to the codes.", flush=True)
        watched = WatchedConfig(self.config)
        try:
            with signals.raised_at_once(), printed_warnings():
                run = Run(self.run_dir, self.model, self.data, watched, None)
                prior = self.parts.fit_prior(run)
            if not isinstance(prior, Prior):
                raise TypeError(f"fit_prior() returned {prior!r}; it must return a Prior.")
            self.model.codes_from_prior(1, [0, 0], prior)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{error} (--debug shows where)") from error
        self.prior, self.read_by_evaluation = prior, watched.names_read

    def test(self) -> None:
        """Computes the test figures, and writes them for TensorBoard.

        Raises:
            UsageError: the experiment's own cannot be figures.
        """
        config = self.config
        if config.verbose:
            print("Test figures:", flush=True)
        estimates = estimate(
            self.model,
            self.data.test,
            num_samples=config.importance_samples,
            seed=config.evaluation_seed,
            prior=self.prior,
            rows_per_call=config.evaluation_rows,
            per_example=True,
            # Compiling takes longer than it saves: the time is spent in large matrix products.
            jit_compile=config.jit == "on",
            between_calls=signals.raise_if_received,
            verbose=int(config.verbose == 1 and sys.stdout.isatty()),
            dequantize_draws=config.dequantize_draws,
            warn=False,  # they are in the notes
        )
        if config.disentanglement:
            self.scores = self.score_factors()
            estimates |= self.scores.figures
        if self.parts.evaluate is not None:
            watched = WatchedConfig(config)
            run = Run(self.run_dir, self.model, self.data, watched, None, prior=self.prior)
            with printed_warnings():
                found = self.parts.evaluate(run)
            own = own_figures(found, len(self.data.test), estimates.keys())
            self.unitless, estimates = tuple(own), estimates | own
            self.read_by_evaluation = {*self.read_by_evaluation, *watched.names_read}
            signals.raise_if_received()
        self.estimates = estimates
        if config.tensorboard:
            write_test_figures(self.run_dir, estimates, self.notes, self.model.step)
            if self.prior is not None and self.data.is_image:
                first = conditions_of(self.data.validation.tensors(slice(0, 40), self.names))
                write_samples(self.run_dir, self.model, self.prior, first)

    def score_factors(self) -> FactorScores:
        """Returns the scores of disentanglement of the test data."""
        from vae_research.evaluation.factor_scores import METRICS
        from vae_research.runs.session.disentanglement import score_split
        from vae_research.runs.session.factors import metric_names

        config = self.config
        return score_split(
            self.model,
            self.data,
            self.data.test,
            self.names,
            metrics={name: METRICS[name] for name in metric_names(config.disentanglement_metrics)},
            examples=config.disentanglement_examples,
            seed=self.config.evaluation_seed,
            between_calls=signals.raise_if_received,
        )

    @property
    def notes(self) -> list[str]:
        """What a reader of the test figures needs to know."""
        sizes = self.config.batch_size, validation_batch_size(self.data)
        return [
            *notes_of(self.model, self.data),
            *notes_on_batches(self.model, self.estimates, *sizes),
            *notes_on_samples(self.estimates),
            *(() if self.scores is None else self.scores.notes),
        ]

    def write(self, ending: Ending) -> None:
        """Writes pictures, networks and, last, summary.json: it says that everything is there.

        Args:
            ending: of the training.
        """
        model, data, run_dir, estimates = self.model, self.data, self.run_dir, self.estimates
        seconds = ending.seconds
        directory.refuse_removed(run_dir)
        before = directory.read_summary(run_dir)
        if before is not None:  # only the test figures are new
            seconds = before.get("seconds", seconds)
        records = directory.read_metrics(run_dir / directory.METRICS)
        last = max([ending.epochs_before, *(found["epoch"] for found in records)])
        scores = {found["epoch"]: score(found, "validation/") for found in records}
        best = max(scores, key=lambda epoch: _or_least(scores[epoch]), default=None)
        saved = checkpoints.best_in(run_dir / "checkpoints")
        notes = self.notes
        if best not in (None, last) and saved is not None:
            notes.append(
                f"Figures and saved networks are of the last epoch, {last}; on validation data "
                f"epoch {best} was the best. load_run(path, which='best') has the best one that "
                f"was saved, epoch {saved.epoch}."
            )
        bad = [name for name, figure in estimates.items() if not math.isfinite(figure.value)]
        if bad:
            notes.append(
                f"Not finite on the test data, and null in summary.json: {', '.join(bad)}."
            )
        with model.averaging.weights():  # as in the last checkpoint
            state = checkpoints.state_sha256(model)
        of_factors = () if self.scores is None else self.scores.figures
        units = dict.fromkeys((*self.unitless, *of_factors), "")
        units |= {term.label: term.unit for term in model.objective.terms}
        units = screen.units_of(estimates, units)
        summary = {
            "status": "done",
            "epochs": last,
            "steps": model.step,
            "stopped_early": ending.has_stopped,
            "best_epoch": best,
            "best_checkpoint_epoch": None if saved is None else saved.epoch,
            "test_figures_of_epoch": last,
            "seconds": round(seconds, 3),
            "images_per_second": _median([found.get("images_per_second") for found in records]),
            "effective_beta": model.effective_beta(),
            "parameters": model.count_params(),
            "weights_sha256": checkpoints.weights_sha256(model),
            "state_sha256": state,
            "reproducibility": ending.claim,
            "notes": notes,
            "evaluation": resume.evaluation(self.config, self.read_by_evaluation, ending.source),
            "units": units,
            "test": {name: value.as_dict() for name, value in estimates.items()},
        }
        kept = [save_values(run_dir, estimates)]
        kept += outputs.save_figures(
            run_dir / "figures", model, data, self.names, records, self.prior
        )
        if self.scores is not None:
            from vae_research.runs.session.disentanglement import save_scores

            tensorboard = self.config.tensorboard
            kept += save_scores(
                run_dir, model, data, self.names, self.scores, tensorboard=tensorboard
            )
        kept += outputs.save_networks(run_dir, model, self.prior)
        if self.prior is not None and directory.PRIOR in kept:
            summary["fitted_prior_sha256"] = sha256(self.prior.variables)
        kept.append(write_report(run_dir, summary))
        directory.write_json(run_dir / directory.SUMMARY, summary)
        if self.config.verbose:
            screen.print_figures(estimates, notes, self.config.importance_samples, units)
            print(f"Written to {run_dir}: {', '.join(kept)}", flush=True)


def _or_least(value: float | None) -> float:
    return -math.inf if value is None else value


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
