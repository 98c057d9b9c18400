"""Examines a run directory: what it holds, which checkpoints are intact, what to do.

    scripts/doctor RUN

It changes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vae_research import manifests
from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli.errors import DirectoryInUseError, UsageError
from vae_research.runs.session import directory


def main(arguments: list[str] | None = None) -> int:
    """Prints the findings; returns 0, 2 if there is no run, or 4 if no checkpoint is intact."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("Usage: scripts/doctor RUN", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        lines, exit_code = examine(Path(arguments[0]).expanduser().absolute())
    except UsageError as error:
        print(f"doctor: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return exit_code


def examine(run_dir: Path) -> tuple[list[str], int]:
    """Returns the findings about a run, one line each, and the exit code.

    Raises:
        UsageError: there is no run.
    """
    description = directory.read_config(run_dir)
    flags = description["flags"]
    lines = [f"{run_dir}: {description['experiment']}, --epochs={flags['epochs']}"]
    in_use = _in_use(run_dir)
    lines.append(f"in use: {in_use or 'no'}")
    found, newest = _checkpoints(run_dir / "checkpoints")
    lines += found
    lines += _logs(run_dir, newest)
    summary = directory.read_json(run_dir / directory.SUMMARY)
    lines.append(f"summary.json: {'missing' if summary is None else summary['status']}")
    lines += _left_over(run_dir)
    advice, exit_code = _advice(description, in_use, bool(found[1:]), newest, summary)
    diverged = directory.read_json(run_dir / directory.NONFINITE)
    if diverged is not None:
        lines.append(
            f"diverged in epoch {diverged['epoch']}, step {diverged['step']}: "
            f"{' and '.join(diverged['causes'])} not finite; scripts/replay {run_dir} repeats it"
        )
    return [*lines, f"What to do: {advice}"], exit_code


def _in_use(run_dir: Path) -> str | None:
    """Returns which process writes to a run directory, None if none does."""
    try:
        directory.refuse_in_use(run_dir)
    except DirectoryInUseError as error:
        return str(error).partition(" is in use by ")[2].partition(". ")[0]
    return None


def _checkpoints(folder: Path) -> tuple[list[str], dict[str, Any] | None]:
    """Returns a line for each checkpoint, and the content of the newest intact one."""
    intact: dict[Path, dict[str, Any]] = {}
    problems: dict[Path, CheckpointError] = {}
    paths = manifests.listed(folder)
    for path in paths:
        try:
            intact[path] = manifests.verify(path)
        except CheckpointError as error:
            problems[path] = error
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
    records = directory.read_metrics(run_dir / directory.METRICS)
    lines = [f"metrics.jsonl: {len(records)} epochs"]
    for name, length in (newest or {}).get("progress", {}).get("logs", {}).items():
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
    summary: dict[str, Any] | None,
) -> tuple[str, int]:
    """Returns what to do and the exit code."""
    command = f"{description['file']} with the flags of config.json"
    if in_use:
        return "wait for the process that writes to this directory.", 0
    if newest is None and has_checkpoints:
        return (
            "no checkpoint is intact, and the run does not start again by itself. Restore an "
            "intact checkpoint from a copy, or start a new run in another --run_dir.",
            4,
        )
    if summary is not None:
        return "nothing, the run is complete.", 0
    if newest is None:
        return f"it ended before its first checkpoint: {command} starts it again.", 0
    return f"{command} resumes at step {newest['step']}.", 0


if __name__ == "__main__":
    sys.exit(main())
