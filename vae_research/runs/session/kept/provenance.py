"""Which run a checkpoint belongs to, and where, when and with what each session of a run ran."""

from __future__ import annotations

import datetime
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vae_research.checkpoints import CheckpointError
from vae_research.schemas import TEXT_OR_NOTHING, mismatch

_PROGRESS = {
    "callbacks?": {str: dict},
    "claim?": str,
    "identity?": TEXT_OR_NOTHING,
    "logs?": {str: int},
    "profile?": {str: str},
    "running_sums?": list,
    "source?": TEXT_OR_NOTHING,
    "stopped_with?": (dict, type(None)),
}
# Besides Python: what this package requires or can use.
_PACKAGES = ("tensorflow", "keras", "numpy", "tensorboard", "pillow", "absl-py", "matplotlib")


def new_identity(experiment: str) -> str:
    """Returns a name for a run that no other run has."""
    return f"{experiment} {_now()} {secrets.token_hex(4)}"


def progress_of(content: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Returns what a run saved in a checkpoint beside the variables.

    Args:
        content: the content of the manifest.
        checkpoint: its folder, for the message.

    Raises:
        CheckpointError: it is not what a run saves.
    """
    problem = mismatch(content["progress"], _PROGRESS, "progress")
    if problem is not None:
        raise CheckpointError(f"{checkpoint} cannot be resumed: {problem}.")
    return content["progress"]


def refuse_other_run(
    run_dir: Path, description: Mapping[str, Any], progress: Mapping[str, Any], checkpoint: Path
) -> None:
    """Raises CheckpointError unless a checkpoint was saved by the run that it lies in.

    Args:
        run_dir: the run directory.
        description: the contents of its config.json.
        progress: what was saved in the checkpoint beside the variables.
        checkpoint: the folder of the checkpoint.
    """
    ours, theirs = description.get("identity"), progress.get("identity")
    if ours != theirs:
        raise CheckpointError(
            f"{checkpoint} is of the run '{theirs}', and {run_dir} is the run '{ours}'. Remove "
            "what was copied there, or give another --run_dir."
        )


def session(folder: Path, source: str) -> dict[str, Any]:
    """Returns where, when and with what a session of a run runs; `ended` is None until it does.

    Args:
        folder: the experiment's.
        source: name of the folder of the kept source.
    """
    return {
        "started": _now(),
        "ended": None,
        "command": shlex.join(sys.orig_argv),
        "host": platform.node(),
        "process": os.getpid(),
        "source": source,
        "git_commit": git(folder, "rev-parse", "HEAD"),
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def ended(sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the sessions of a run with the time at which the last of them ended: now."""
    return [*sessions[:-1], sessions[-1] | {"ended": _now()}]


def git(folder: Path, *arguments: str) -> str | None:
    """Returns what git answers in a folder, None if it has no answer."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=10,
            check=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
