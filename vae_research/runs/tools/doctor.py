"""What is in a run directory, what of it can be relied on, and what to do. Changes nothing.

scripts/doctor RUN
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
    """Prints the findings; returns 0, 2 where there is no run, 4 where no checkpoint is whole."""
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
    """Returns the findings about a run, a line each, and the exit code.

    Raises:
        UsageError: there is no run.
    """
    description = directory.read_json(run_dir / directory.CONFIG)
    if description is None:
        raise UsageError(f"{run_dir} holds no run: there is no {directory.CONFIG}.")
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
    try:
        directory.refuse_in_use(run_dir)
    except DirectoryInUseError as error:
        return str(error).partition(" is in use by ")[2].partition(". ")[0]
    return None


def _checkpoints(folder: Path) -> tuple[list[str], dict[str, Any] | None]:
    """Returns a line for each checkpoint, and the content of the newest whole one."""
    lines, newest, contents = [], None, {}
    for path in manifests.listed(folder):
        try:
            contents[path] = manifests.verify(path)
        except CheckpointError as error:
            contents[path] = error
    scores = {
        path: content["score"]
        for path, content in contents.items()
        if isinstance(content, dict) and content["score"] is not None
    }
    best = max(scores, key=scores.get) if scores else None
    for path, content in contents.items():
        if isinstance(content, CheckpointError):
            lines.append(f"  {path.name}: cannot be used: {content}")
            continue
        newest = newest or content
        size = sum(file["size"] for file in content["files"].values())
        place = f"epoch {content['epoch']}"
        if content["position"]:
            place += f" and {content['position']} steps"
        mark = ", the best" if path == best else ""
        lines.append(f"  {path.name}: whole, {place}, {size / 1e6:.1f} MB{mark}")
    aside = sorted(folder.glob(f"*{manifests.DAMAGED}*")) if folder.is_dir() else []
    lines += [f"  {path.name}: was damaged, kept aside" for path in aside]
    return [f"checkpoints: {len(contents) or 'none'}", *lines], newest


def _logs(run_dir: Path, newest: dict[str, Any] | None) -> list[str]:
    records = directory.read_metrics(run_dir / directory.METRICS)
    lines = [f"metrics.jsonl: {len(records)} epochs"]
    for name, length in (newest or {}).get("progress", {}).get("logs", {}).items():
        path = run_dir / name
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            lines.append(f"  {name} has {size} bytes and had {length} when the newest was saved")
        elif size > length:
            lines.append(f"  {name}: {size - length} bytes after the newest checkpoint")
    return lines


def _left_over(run_dir: Path) -> list[str]:
    places = [run_dir, run_dir / "checkpoints"]
    prefixes = (manifests.ASIDE, manifests.REMOVED)
    found = [
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.name.startswith(prefixes)
    ]
    return [f"interrupted: {path.relative_to(run_dir)}; the next save removes it" for path in found]


def _advice(
    description: dict[str, Any],
    in_use: str | None,
    has_checkpoints: bool,
    newest: dict[str, Any] | None,
    summary: dict[str, Any] | None,
) -> tuple[str, int]:
    command = f"{description['file']} with the flags of config.json"
    if in_use:
        return "wait for the process that writes here.", 0
    if newest is None and has_checkpoints:
        return (
            "no checkpoint is whole, and the run is not begun anew in silence. Bring a whole one "
            "back from a copy, or begin a new run in another --run_dir.",
            4,
        )
    if summary is not None:
        return "nothing, the run is complete.", 0
    if newest is None:
        return f"it ended before its first checkpoint: {command} begins anew.", 0
    return f"{command} goes on from step {newest['step']}.", 0


if __name__ == "__main__":
    sys.exit(main())
