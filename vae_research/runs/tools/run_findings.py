"""Examines a run directory: what it holds, which checkpoints are intact, what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_research import checkpoints, manifests
from vae_research.checkpoints import CheckpointError
from vae_research.data import DATASETS, DataError
from vae_research.runs.cli.errors import DirectoryInUseError, FileSystemError
from vae_research.runs.session import directory
from vae_research.runs.session.kept import provenance, sources, tested
from vae_research.runs.session.loading import named_data, saved_config

# What to do about a problem, by the exit code of a command that meets it.
_CURES = {
    3: "restore the data with which the run was started.",
    4: "restore from a copy, or remove, what is damaged or not of this run.",
    7: "make room on the disk; the command then resumes.",
}


def examine(run_dir: Path) -> tuple[list[str], int]:
    """Returns the findings about a run, one line each, and the exit code.

    Raises:
        UsageError: there is no run.
        CheckpointError: its config.json is damaged.
        FileSystemError: something in the run directory is a link to a place outside of it.
    """
    directory.refuse_links(run_dir)
    description = directory.read_config(run_dir)
    flags = description["flags"]
    lines = [f"{run_dir}: {description['experiment']}, --epochs={flags['epochs']}"]
    in_use = _in_use(run_dir)
    lines.append(f"in use: {in_use or 'no'}")
    problems: list[int] = []
    found, newest = _checkpoints(run_dir, description, problems)
    lines += found
    is_another: list[str] = []
    lines += _told(problems, lambda: _source(run_dir, description, newest, is_another))
    lines += _told(problems, lambda: _logs(run_dir, newest))
    summary: dict[str, Any] = {}
    lines += _told(problems, lambda: _summary(run_dir, summary))
    lines += _left_over(run_dir)
    diverged = _told(problems, lambda: _divergence(run_dir))
    lines += diverged
    lines += _told(problems, lambda: _data(run_dir, description))
    if newest is not None and not summary:
        lines += _told(problems, lambda: _disk(run_dir, newest))
    lines += [f"  note: {warning}" for warning in tested.warnings_of(tested.installed())]
    advice, exit_code = _advice(
        description, in_use, bool(found[1:]), newest, summary, bool(is_another)
    )
    if diverged and not summary and exit_code == 0 and not in_use:
        advice = (
            f"{advice} It would diverge again. --on_nonfinite=skip leaves out a training step that "
            "fails; a smaller --learning_rate, or other data, needs another --run_dir."
        )
    if problems and not in_use:
        exit_code = 4 if 4 in problems else problems[0]
        advice = _CURES[exit_code]
    return [*lines, f"What to do: {advice}"], exit_code


def _told(problems: list[int], examine_part: Callable[[], list[str]]) -> list[str]:
    """Returns the findings about a part of a run, or its problem, whose code `problems` gets."""
    try:
        return examine_part()
    except CheckpointError as error:
        problems.append(4)
        return [f"  damaged: {error}"]
    except DataError as error:
        problems.append(3)
        return [f"  data cannot be used: {error}"]
    except FileSystemError as error:
        problems.append(7)
        return [f"  {error}"]


def _data(run_dir: Path, description: dict[str, Any]) -> list[str]:
    """Returns lines on the data, which are read as a run that resumes reads them.

    Raises:
        DataError: they cannot be used.
        CheckpointError: they have changed.
    """
    name, made_by = description["data"].get("name"), description["data"].get("made_by")
    if made_by is not None:
        file, function = made_by
        return [f"data: made by {function}() of {file}; scripts/doctor {file} looks at them"]
    config = saved_config(run_dir, description["flags"])
    if config.dataset in DATASETS:
        given = "" if name == config.dataset else ", given in Python"
        return [f"data: {name}{given}, not looked at"]
    data = named_data(config)
    directory.refuse_changed_data(run_dir, description, data)
    return [f"data: {config.dataset}, unchanged", *(f"  note: {each}" for each in data.warnings)]


def _disk(run_dir: Path, newest: dict[str, Any]) -> list[str]:
    """Raises FileSystemError if the disk has no room for what an unfinished run will write."""
    size = sum(file["size"] for file in newest["files"].values())
    directory.refuse_full_disk(run_dir, (checkpoints.KEPT + 2) * size)
    return []


def _summary(run_dir: Path, summary: dict[str, Any]) -> list[str]:
    """Returns lines on summary.json, whose content `summary` gets."""
    summary |= directory.read_summary(run_dir) or {}
    samples = summary.get("evaluation", {}).get("importance_samples")
    figures = "" if samples is None else f", test figures with --importance_samples={samples}"
    notes = summary.get("notes")  # a study may have any results of this name
    return [
        f"summary.json: {summary.get('status', 'missing')}{figures}",
        *(f"  note: {note}" for note in (notes if isinstance(notes, list) else ())),
    ]


def _divergence(run_dir: Path) -> list[str]:
    """Returns a line if the run diverged."""
    found = directory.read_nonfinite(run_dir)
    if found is None:
        return []
    line = (
        f"diverged in epoch {found['epoch']}, step {found['step']}: "
        f"{' and '.join(found['causes'])} not finite"
    )
    return [f"{line}; scripts/replay {run_dir} repeats it" if "checkpoint" in found else line]


def _source(
    run_dir: Path,
    description: dict[str, Any],
    newest: dict[str, Any] | None,
    is_another: list[str],
) -> list[str]:
    """Returns a line on the kept source, and one for each file that has changed since.

    Args:
        run_dir: the run directory.
        description: the contents of its config.json.
        newest: the content of the newest checkpoint, which names its source.
        is_another: gets what differs, for which a command asks for `--resume=changed`.

    Raises:
        CheckpointError: it is damaged, and the run has a checkpoint to resume.
    """
    folder = (description if newest is None else newest["progress"]).get("source")
    if folder is None:
        is_another.append("unknown")
        return ["source: not kept by the vae_research that made the run"]
    try:
        kept = sources.read(run_dir, folder)
    except CheckpointError as error:
        if newest is not None:
            raise
        return [f"source: {error}"]
    lines = [f"source: {folder}/{kept.main}, {len(kept.files)} files and vae_research"]
    experiment = Path(description["file"])
    if not experiment.is_file():
        return [*lines, f"  {experiment} is not there, and is not compared"]
    if kept.main.rpartition("/")[2] != experiment.name:
        return [*lines, f"  config.json names {experiment}, which is not executed"]
    found = sources.differences(kept, sources.now_of(kept, experiment))
    is_another += [each.what for each in found]
    return [*lines, *(f"  {each.what} since" for each in found)]


def _in_use(run_dir: Path) -> str | None:
    """Returns which process writes to a run directory, None if none does."""
    try:
        directory.refuse_in_use(run_dir)
    except DirectoryInUseError as error:
        return str(error).partition(" is in use by ")[2].partition(". ")[0]
    return None


def _checkpoints(
    run_dir: Path, description: dict[str, Any], found: list[int]
) -> tuple[list[str], dict[str, Any] | None]:
    """Returns a line for each checkpoint, and the content of the newest that can be resumed.

    Args:
        run_dir: the run directory.
        description: the contents of its config.json.
        found: gets the exit code of a command that refuses an intact checkpoint instead of
            skipping it.
    """
    folder = run_dir / "checkpoints"
    intact: dict[Path, dict[str, Any]] = {}
    problems: dict[Path, CheckpointError] = {}
    paths = manifests.listed(folder)
    for path in paths:
        try:
            content = manifests.verify(path)
        except CheckpointError as error:
            problems[path] = error
            continue
        try:
            progress = provenance.progress_of(content, path)
            provenance.refuse_other_run(run_dir, description, progress, path)
            intact[path] = content
        except CheckpointError as error:
            problems[path] = error
            if not intact:
                found.append(4)
    best = manifests.best(intact)
    lines = []
    for path in paths:
        if path in problems:
            lines.append(f"  {path.name}: cannot be used: {problems[path]}")
            continue
        content = intact[path]
        size = sum(file["size"] for file in content["files"].values())
        place = f"epoch {content['epoch']}"
        if content["position"]:
            place += f" and {content['position']} steps"
        mark = ", the best" if path == best else ""
        lines.append(f"  {path.name}: intact, {place}, {size / 1e6:.1f} MB{mark}")
    aside = sorted(folder.glob(f"*{manifests.DAMAGED}*")) if folder.is_dir() else []
    lines += [f"  {path.name}: was damaged, kept aside" for path in aside]
    newest = next(iter(intact.values()), None)
    return [f"checkpoints: {len(paths) or 'none'}", *lines], newest


def _logs(run_dir: Path, newest: dict[str, Any] | None) -> list[str]:
    """Returns a line for each log that is not as long as at the newest checkpoint."""
    lengths = {} if newest is None else newest["progress"].get("logs", {})
    # What comes later is cut off by a run that resumes.
    records = directory.read_metrics(run_dir / directory.METRICS, lengths.get(directory.METRICS))
    lines = [f"metrics.jsonl: {len(records)} epochs"]
    for name, length in lengths.items():
        path = run_dir / name
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            lines.append(f"  {name} has {size} bytes; it had {length} at the newest checkpoint")
        elif size > length:
            lines.append(f"  {name}: {size - length} bytes after the newest checkpoint")
    return lines


def _left_over(run_dir: Path) -> list[str]:
    """Returns a line for everything that an interrupted save has left."""
    places = [run_dir, run_dir / "checkpoints"]
    prefixes = (manifests.ASIDE, manifests.REMOVED)
    found = [
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.name.startswith(prefixes)
    ]
    return [
        f"interrupted save: {path.relative_to(run_dir)}; the next save removes it" for path in found
    ]


def _advice(
    description: dict[str, Any],
    in_use: str | None,
    has_checkpoints: bool,
    newest: dict[str, Any] | None,
    summary: dict[str, Any],
    is_another: bool,
) -> tuple[str, int]:
    """Returns what to do and the exit code.

    Args:
        description: the contents of config.json.
        in_use: which process writes to the run directory.
        has_checkpoints: whether there are any.
        newest: the content of the newest that can be resumed.
        summary: the contents of summary.json.
        is_another: whether the source has changed.
    """
    command = f"{description['file']} with the flags of config.json"
    if in_use:
        return "wait for the process that writes to this directory.", 0
    if newest is None and has_checkpoints:
        return (
            "no checkpoint is intact, and the run does not start again by itself. Restore an "
            "intact checkpoint from a copy, or start a new run in another --run_dir.",
            4,
        )
    if summary:
        if newest is not None and is_another:
            return (
                "nothing, the run is complete; with more --epochs the command refuses the source, "
                "which has changed.",
                0,
            )
        if newest is not None:
            return "nothing, the run is complete.", 0
        return "the run is complete, and its checkpoints are gone. Restore them to load it.", 4
    if newest is None and description.get("has_checkpoint"):
        return (
            "its checkpoints are gone. Restore the folder checkpoints, or start again with "
            "--resume=scratch.",
            4,
        )
    if newest is None:
        return f"it ended before its first checkpoint: {command} starts it again.", 0
    if is_another:
        return (
            f"the source has changed, so that the command refuses to resume at step "
            f"{newest['step']}. Undo that, or resume with --resume=changed: the run is then valid "
            "and not bit-exact.",
            4,
        )
    return f"{command} resumes at step {newest['step']}.", 0
