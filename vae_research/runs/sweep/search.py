"""A search for the best settings, by Optuna: what it draws is asked, what came of it is told.

Optuna's own storage holds the trials, so that several machines can work on one study. How good a
point is, is its validation score: the ELBO of the last epoch, or what decides the best checkpoint
of such a model otherwise. Test figures play no part.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shlex
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_research.runs.cli.errors import PrunedError, UsageError
from vae_research.runs.session import directory
from vae_research.runs.sweep.points import (
    OWN_FLAGS,
    Point,
    fixed_flags,
    name_of,
    parse_assignment,
)
from vae_research.runs.sweep.record import SWEEP, Record

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
PRUNERS = ("median", "none")
_RANGE = re.compile(r"((?:int:|log:)*)([^.|]\S*?)\.\.(\S+)")
# Flags whose values change what an ELBO measures.
_UNITS = (
    *("likelihood", "binarize", "rescale", "dequantize", "dataset"),
    *("image_size", "channels", "background", "correlated_factors"),
)
# Flags whose values change which bound is the score.
_BOUNDS = ("num_samples", "importance_weighted")
# A run may be trained further with other values of these, but the scores of a search would then be
# of trials of different lengths.
_LENGTHS = ("epochs", "early_stopping")
_OWNER, _LOST, _SETTINGS = "sweep", "lost", "settings"


def parse_search(text: str) -> tuple[str, BaseDistribution]:
    """Returns flag and distribution of `flag=low..high`, or `flag=choice|choice`.

    `log:` before a range draws uniformly in the logarithm, `int:` draws integers.

    Raises:
        UsageError: it is something else, the range is empty, or Optuna is missing.
    """
    refuse_missing()
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    name, rest = parse_assignment("--search", text)
    if name in OWN_FLAGS:
        raise UsageError(f"--search {text!r}: {OWN_FLAGS[name]}.")
    found = _RANGE.fullmatch(rest)
    if not found:
        choices = [choice.strip() for choice in rest.split("|")]
        if len(choices) < 2 or "" in choices or len({*choices}) < len(choices):
            raise UsageError(
                f"--search {text!r}: write a range, such as 0.1..2, log:1e-4..1e-2 or int:2..64, "
                "or different choices, such as bernoulli|gaussian."
            )
        return name, CategoricalDistribution(choices)
    kinds = found[1].split(":")[:-1]
    log, kind = "log" in kinds, int if "int" in kinds else float
    try:
        low, high = kind(found[2]), kind(found[3])
    except ValueError as error:
        raise UsageError(f"--search {text!r}: {error}.") from error
    if not (math.isfinite(low) and math.isfinite(high)) or not low < high:
        raise UsageError(f"--search {text!r}: the range must be finite, and begin below its end.")
    if log and low <= 0:
        raise UsageError(f"--search {text!r}: a log: range must begin above 0.")
    if kind is int:
        return name, IntDistribution(int(low), int(high), log=log)
    return name, FloatDistribution(low, high, log=log)


def refuse_missing() -> None:
    """Raises UsageError if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("--search needs Optuna: pip install 'vae_research[sweep]'.")


def corners(space: Mapping[str, BaseDistribution]) -> list[Point]:
    """Returns points that are examined before a search: each end of a range, and each choice."""
    choices = {
        name: list(getattr(found, "choices", ())) or [found.low, found.high]  # type: ignore
        for name, found in space.items()
    }
    return [
        Point(f"corner {number}", _texts({n: c[number % len(c)] for n, c in choices.items()}))
        for number in range(max(map(len, choices.values())))
    ]


def warning_of(space: Mapping[str, Any]) -> str | None:
    """Returns a warning if the scores of a search over these flags cannot be compared."""

    def named(flags: Sequence[str]) -> str:
        return " and ".join(f"--{name}" for name in space if name in flags)

    found = []
    if units := named(_UNITS):
        found.append(
            f"ELBOs under different values of {units} cannot be compared: the densities are of "
            "other data or in other units"
        )
    if bounds := named(_BOUNDS):
        found.append(
            f"validation scores under different values of {bounds} may be different bounds: "
            "the importance-weighted bound of the same model rises with its number of samples, "
            "and that of one sample is the ELBO"
        )
    return "; ".join([*found, "the search prefers the larger number"]) if found else None


def open_study(
    place: str, name: str, pruner: str, record: Record, may_change: Collection[str] = ()
) -> optuna.Study:
    """Returns the study of a search, which is made unless it is there.

    A study that is refused is left as it was.

    Args:
        place: URL of a database, or the path of a journal file.
        name: of the study.
        pruner: one of `PRUNERS`.
        record: of the sweep.
        may_change: names of the flags that may differ when a run is resumed. In a search those of
            them may not that say how long a trial is.

    Raises:
        UsageError: the place cannot be used, or the study is of another search.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
    try:
        options: dict[str, Any] = {
            "storage": place
            if "://" in place
            else JournalStorage(JournalFileBackend(str(Path(place).expanduser().absolute()))),
            "study_name": name,
            "pruner": pruners[pruner](),
        }
        try:
            study = optuna.load_study(**options)  # creating it again would add to a journal
        except KeyError:
            study = optuna.create_study(**options, direction="maximize", load_if_exists=True)
    except Exception as error:  # of a database or of the file system, whichever it is
        words = str(error).partition("\n")[0]
        raise UsageError(f"--storage {place}: {type(error).__name__}: {words}") from error
    changing = {*may_change} - {*_LENGTHS}
    settings: dict[str, Any] = {
        "experiment": Path(record.experiment).stem,
        "arguments": [*fixed_flags(record.arguments, changing).values()],
        "search": record.settings["search"],
    }
    before = study.user_attrs.get(_SETTINGS)
    if before is None:
        study.set_user_attr(_SETTINGS, settings)
        return study
    # Written by another version, it may have all flags in the order of the command.
    before["arguments"] = [*fixed_flags(before.get("arguments", ()), changing).values()]
    for key, now in settings.items():
        if before.get(key) != now:
            differ = f"{key} was {before.get(key)}, now {now}"
            if key == "arguments":
                differ = _differences(before[key], now)
            raise UsageError(
                f"the study {name!r} in {place} was made with other settings: {differ}. "
                f"{_what_to_give(record)}"
            )
    return study


def _differences(before: Sequence[str], now: Sequence[str]) -> str:
    """Returns in words the flags of which commands have different values."""
    old, new = (
        " ".join(each for each in these if each not in others) or "without them"
        for these, others in ((before, now), (now, before))
    )
    return f"flags were {old}, now {new}"


def _what_to_give(record: Record) -> str:
    """Returns in words which options make another search of a command."""
    if "storage" not in record.settings:
        return "Give another --into for a new search."
    if (record.into / SWEEP).exists():
        return "Give another --study and another --into for a new search."
    return "Give another --study for a new search."


class Search:
    """Where the points of a search come from, and where their results go.

    Args:
        record: of the sweep.
        study: its study.
        space: distributions by flag.
        trials: how many the study has in the end, those of other machines among them.
        seed: of what is drawn.
    """

    def __init__(
        self,
        record: Record,
        study: optuna.Study,
        space: Mapping[str, BaseDistribution],
        trials: int,
        seed: int,
    ) -> None:
        import optuna

        self._optuna, self._record, self._study, self._space = optuna, record, study, dict(space)
        self._trials, self._seed = trials, seed
        is_private = "storage" not in record.settings
        # Of a process that was killed before it had written them down.
        for trial in self._found():
            ours = is_private or trial.user_attrs.get(_OWNER) == record.identity
            known = {point["trial"] for point in record.points.values()}
            if ours and not trial.state.is_finished() and trial.number not in known:
                optuna.Trial(study, trial._trial_id).set_user_attr(_LOST, True)
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        for name in record.names("done", "pruned", "failed"):
            self.ended(record.point(name), record.points[name]["state"])
        self._unfinished = record.names("waiting", "running", "interrupted")

    @property
    def total(self) -> int:
        """How many points this folder has, and may get."""
        return len(self._record.points) + max(0, self._trials - self._count())

    def next(self) -> Point | None:
        """Returns a point that is to run, None if there is none."""
        while self._unfinished:
            point = self._record.point(self._unfinished.pop(0))
            if not self._trial(point).should_prune():
                return point
            # Its process could not be told any more.
            self._record.change(point.name, state="pruned", exit_code=PrunedError.exit_code)
            self.ended(point, "pruned")
        if self._count() >= self._trials:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            # Drawn anew for each trial, so that a search that was interrupted draws the same.
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=self._seed + len(self._found()), constant_liar=True
            )
            trial = self._study.ask(self._space)
        trial.set_user_attr(_OWNER, self._record.identity)
        flags = _texts(trial.params)
        shown = {name: _short(value) for name, value in trial.params.items()}
        point = Point(f"trial={trial.number},{name_of(shown)}", flags, trial.number)
        self._record.add(point)
        return point

    def reported(self, point: Point, epoch: int, value: float | None) -> bool:
        """Takes the validation score of an epoch; returns whether the point is to end."""
        trial = self._trial(point)
        if value is None or not math.isfinite(value):
            return False
        if epoch not in self._frozen(point).intermediate_values:  # a resumed run repeats epochs
            trial.report(value, epoch)
        return trial.should_prune()

    def ended(self, point: Point, state: str) -> None:
        """Tells what came of a point: done, pruned or failed; one that was interrupted resumes."""
        states = self._optuna.trial.TrialState
        value = self._value(point) if state == "done" else None
        told: dict[str, Any] = {"values": value}
        if value is None:
            told = {"state": states.PRUNED if state == "pruned" else states.FAIL}
        if point.trial is not None and state != "interrupted":
            self._study.tell(point.trial, skip_if_finished=True, **told)

    def conclusion(self) -> str:
        """Returns in words which point is the best, and how to train it with several seeds."""
        done = [t for t in self._found() if t.state == self._optuna.trial.TrialState.COMPLETE]
        if not done:
            return "No point is complete."
        best = max(done, key=lambda trial: (trial.value, -trial.number))
        settings = " ".join(f"{name}={value}" for name, value in _texts(best.params).items())
        record = self._record
        command = [record.experiment, "--point", settings, "--seeds=5", *record.arguments]
        return (
            f"Best of {len(done)} complete trials: trial {best.number}, validation score "
            f"{best.value:.2f}\n"
            f"With several seeds: scripts/sweep {shlex.join(command)} --into FOLDER"
        )

    def _count(self) -> int:
        """Returns how many trials the study has, those of other machines among them."""
        return sum(
            _OWNER in trial.user_attrs and _LOST not in trial.user_attrs for trial in self._found()
        )

    def _found(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _frozen(self, point: Point) -> FrozenTrial:
        assert point.trial is not None
        return self._found()[point.trial]

    def _trial(self, point: Point) -> optuna.Trial:
        return self._optuna.Trial(self._study, self._frozen(point)._trial_id)

    def _value(self, point: Point) -> float | None:
        """Returns the validation score of a point after its last epoch."""
        from vae_research.runs.session.scores import score  # which imports TensorFlow

        metrics = directory.read_metrics(self._record.into / point.name / directory.METRICS)
        value = score(metrics[-1], "validation/") if metrics else None
        return value if value is not None and math.isfinite(value) else None


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Returns values as a command line has them."""
    return {name: v if isinstance(v, str) else repr(v) for name, v in params.items()}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
