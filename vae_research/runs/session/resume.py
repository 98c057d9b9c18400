"""What a run directory already holds, and whether a command may resume it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vae_research import checkpoints, manifests
from vae_research.runs.cli.config import SEEDS_OF_PARTS, Config
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.standard_flags import standard_names
from vae_research.runs.session import directory
from vae_research.runs.session.kept import provenance, sources
from vae_research.runs.session.kept.sources import Source


def unfinished(
    config: Config, run_dir: Path, experiment: str, source: Source, harmless: Collection[str]
) -> checkpoints.Checkpoint | None:
    """Returns the checkpoint to resume from, None for a new run.

    Args:
        config: the flags.
        run_dir: the run directory.
        experiment: the name of the experiment.
        source: of the command.
        harmless: names of the flags that may change.

    Raises:
        UsageError: the directory holds something else, or a run with other flags.
        DirectoryInUseError: another process writes to it.
        CheckpointError: there is no checkpoint but `--resume=must`, none is intact, the newest was
            saved by another run, or by another source and not `--resume=changed`.
    """
    found = _held(config, run_dir, experiment, harmless)
    checkpoint = checkpoints.newest(run_dir / "checkpoints") if found is not None else None
    if checkpoint is None and config.resume == "must":
        raise checkpoints.CheckpointError(f"--resume=must, and {run_dir} has no checkpoint.")
    if found is not None and checkpoint is None:
        _refuse_lost_checkpoints(config, run_dir, found)
    if found is not None and checkpoint is not None:
        content = manifests.read_manifest(checkpoint.path)
        progress = provenance.progress_of(content, checkpoint.path)
        provenance.refuse_other_run(run_dir, found, progress, checkpoint.path)
        _refuse_changed_source(config, run_dir, progress.get("source"), source)
        length = progress.get("logs", {}).get(directory.METRICS, 0)
        directory.read_metrics(run_dir / directory.METRICS, length)  # raises if it is damaged
    return checkpoint


def complete(
    config: Config, run_dir: Path, checkpoint: checkpoints.Checkpoint | None, source: Source
) -> dict[str, Any] | None:
    """Returns the summary of a run that has all that `config` asks for, else None.

    That is all the epochs, unless a callback has ended it, and the test figures by the same flags
    and, with `--resume=changed`, by the same source.
    """
    summary = directory.read_summary(run_dir)
    if summary is None or "epochs" not in summary:
        return None
    if checkpoint is None:
        if summary["epochs"] >= config.epochs:
            print(f"warning: {run_dir} has no checkpoint any more", file=sys.stderr)
            return summary
        return None
    done = summary.get("evaluation", {})
    read, folder = done.get("flags", {}), done.get("source")
    if done and done != evaluation(config, read, folder):
        return None
    if config.resume == "changed" and sources.changes_since(run_dir, folder, source):
        return None
    content = manifests.read_manifest(checkpoint.path)
    stopped = has_stopped(config, provenance.progress_of(content, checkpoint.path), read)
    return summary if checkpoint.epoch >= config.epochs or stopped else None


def evaluation(config: Config, read: Collection[str], source: str | None) -> dict[str, Any]:
    """Returns what test figures depend on; summary.json says it.

    Args:
        config: the flags.
        read: names of the flags that the experiment's `fit_prior` and `evaluate` read; its own ones
            count.
        source: the name of the folder of the kept source.
    """
    own = {name: value for name, value in _own(config).items() if name in read}
    scores = _of_scores(config) if config.disentanglement else {}
    return {
        "importance_samples": config.importance_samples,
        "seed": config.evaluation_seed,
        "dequantize_draws": config.dequantize_draws,
        **scores,
        "flags": directory.as_plain(own),
        "source": source,
    }


def stops_with(config: Config) -> dict[str, Any]:
    """Returns the flags that decide whether a callback ends a run, and may change on resume."""
    return directory.as_plain({"early_stopping": config.early_stopping, **_own(config)})


def has_stopped(
    config: Config, progress: Mapping[str, Any], read_by_evaluation: Collection[str] = ()
) -> bool:
    """Returns whether a callback has ended a run, and would end it with these flags as well.

    Args:
        config: the flags.
        progress: of a checkpoint.
        read_by_evaluation: names of flags on which test figures depend, and no training.
    """
    before = progress.get("stopped_with")
    return before is not None and all(
        name in read_by_evaluation or before.get(name) == value
        for name, value in stops_with(config).items()
    )


def what_trains_longer(flags: Mapping[str, Any], epochs: int, *, stopped: bool) -> list[str]:
    """Returns the flags that must be larger so that a complete run is trained further.

    There are none if a callback of the experiment has ended it, or if it would need more epochs and
    the learning rate follows a schedule of their length.

    Args:
        flags: of the run.
        epochs: how many it has been trained.
        stopped: whether a callback has ended it.
    """
    found = ["early_stopping"] if stopped else []
    if not stopped or epochs >= flags["epochs"]:
        found.append("epochs")
    can_help = {"early_stopping"} if flags["early_stopping"] else set()
    can_help |= _harmless(flags, ["epochs"])
    return found if can_help.issuperset(found) else []


def _harmless(flags: Mapping[str, Any], may_change: Collection[str]) -> set[str]:
    """Returns which of the flags that may change in most runs may change in this one."""
    is_fixed = flags["learning_rate_schedule"] != "constant"  # its length is --epochs
    return set(may_change) - ({"epochs"} if is_fixed else set())


def _own(config: Config) -> dict[str, Any]:
    """Returns the values of the experiment's own flags."""
    standard = standard_names()
    return {name: value for name, value in config.as_dict().items() if name not in standard}


def completed_study(
    config: Config, run_dir: Path, experiment: str, source: Source, harmless: Collection[str]
) -> bool:
    """Returns whether the directory holds this study and it is complete.

    Args:
        config, run_dir, experiment, source, harmless: as for `unfinished`.

    Raises:
        UsageError: the directory holds something else, or a study with other flags.
        DirectoryInUseError: another process writes to it.
        CheckpointError: there is no study but `--resume=must`, or its source differs and not
            `--resume=changed`.
    """
    found = _held(config, run_dir, experiment, harmless)
    if found is None and config.resume == "must":
        raise checkpoints.CheckpointError(f"--resume=must, and {run_dir} holds no study.")
    if found is not None:
        _refuse_changed_source(config, run_dir, found.get("source"), source)
    summary = None if found is None else directory.read_summary(run_dir)
    if summary is None:
        return False
    done = summary.get("evaluation", {})
    folder = done.get("source")
    changed = config.resume == "changed" and sources.changes_since(run_dir, folder, source)
    return done == results_of_study(config, folder) and not changed


def results_of_study(config: Config, source: str | None) -> dict[str, Any]:
    """Returns what the results of a study depend on; its summary.json says it.

    Args:
        config: the flags.
        source: the name of the folder of the kept source.
    """
    deciding = {"epochs": config.epochs} | stops_with(config)
    return evaluation(config, (), source) | {"flags": deciding}


def _refuse_lost_checkpoints(config: Config, run_dir: Path, found: dict[str, Any]) -> None:
    """Raises CheckpointError if a run had checkpoints, and has none.

    A finished run is left as it is; an unfinished one starts again if `--resume=scratch` says so.
    """
    summary = directory.read_summary(run_dir)
    if summary is not None and summary.get("epochs", 0) < config.epochs:
        raise checkpoints.CheckpointError(
            f"{run_dir} is complete with {summary.get('epochs')} epochs and has no checkpoint any "
            "more, from which to train further. Nothing was changed. Restore its folder "
            "checkpoints, or give another --run_dir."
        )
    if summary is None and found.get("has_checkpoint") and config.resume != "scratch":
        raise checkpoints.CheckpointError(
            f"the checkpoints of {run_dir} are gone, and the run would start from scratch. Nothing "
            "was changed. Restore its folder checkpoints, give another --run_dir, or start again "
            "there with --resume=scratch."
        )


def _refuse_changed_source(
    config: Config, run_dir: Path, folder: str | None, source: Source
) -> None:
    """Raises CheckpointError if the source of a run has changed and this was not allowed.

    What differs is shown on standard error, a few lines of it.
    """
    found = sources.changes_since(run_dir, folder, source)
    if not found or config.resume == "changed":
        return
    for difference in found:
        if difference.lines:
            print(f"{difference.what}:", *difference.lines, sep="\n", file=sys.stderr)
    raise checkpoints.CheckpointError(
        f"{run_dir} was made by another source: {sources.in_words(found)}. Undo that, give another "
        "--run_dir for a new run, or resume with --resume=changed: the run is then valid and not "
        "bit-exact."
    )


def _held(
    config: Config, run_dir: Path, experiment: str, harmless: Collection[str]
) -> dict[str, Any] | None:
    """Returns the config.json of what the directory holds, None if it holds nothing."""
    directory.refuse_links(run_dir)
    directory.refuse_in_use(run_dir)
    found = None
    if (run_dir / directory.CONFIG).exists():
        found = directory.read_config(run_dir)
    if found is None:
        # A run that stopped before it wrote its config leaves only these files.
        names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
        ours = {directory.LOCK, sources.FOLDER}
        if names - ours - {f"{manifests.ASIDE}{name}" for name in (directory.CONFIG, *ours)}:
            raise UsageError(f"{run_dir} is not empty and holds no run. Give another --run_dir.")
        return None
    if config.resume == "never":
        raise UsageError(
            f"{run_dir} holds a run already. Give another --run_dir, or leave out --resume=never."
        )
    if found.get("experiment") != experiment:
        raise UsageError(
            f"{run_dir} holds a run of {found.get('experiment')}, not of {experiment}. Give "
            "another --run_dir."
        )
    harmless = _harmless(config.as_dict(), harmless)
    before, now = _with_seeds(found["flags"], directory.as_plain(config.as_dict()))
    changed = [
        f"--{name} was {before.get(name)}, now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if name not in harmless and before.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"{run_dir} holds a run with other flags: {'; '.join(changed)}. Give another "
            "--run_dir for a new run."
        )
    return found


def _with_seeds(*flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns flags of commands in which a seed that another of them gives is never None."""
    given = {name for each in flags for name in SEEDS_OF_PARTS if each.get(name) is not None}
    return [
        each | {name: each.get("seed") for name in given if each.get(name) is None}
        for each in flags
    ]


def _of_scores(config: Config) -> dict[str, Any]:
    some = config.disentanglement_metrics
    metrics = {} if some is None else {"factor_metrics": some}
    return {"factor_examples": config.disentanglement_examples, **metrics}
