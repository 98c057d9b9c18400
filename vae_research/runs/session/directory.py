"""The run directory: its path, its lock, and the files that describe a run."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_research import files
from vae_research.checkpoints import CheckpointError
from vae_research.data import Data
from vae_research.runs.cli.errors import DirectoryInUseError, FileSystemError, UsageError

CONFIG, METRICS, SUMMARY, LOCK = "config.json", "metrics.jsonl", "summary.json", "lock"
# The step at which a run diverged.
NONFINITE = "nonfinite.json"


def choose(run_dir: str | None, experiment: str) -> Path:
    """Returns the absolute path of the run directory, after checking that it can be written.

    Nothing is created. The default is `runs/EXPERIMENT/YYYYMMDD-HHMMSS` in the current folder.

    Raises:
        UsageError: the name has control characters or is not valid text.
        FileSystemError: it is a file, or cannot be written.
    """
    if run_dir is None:
        path = Path("runs", experiment, datetime.datetime.now().strftime("%Y%m%d-%H%M%S"))
    else:
        # A name that cannot be printed could not appear in messages and logs either.
        if not run_dir.strip() or not run_dir.isprintable():
            raise UsageError(
                f"--run_dir={run_dir!r}: the name must not be empty or have line breaks, control "
                "characters or bytes that are not text."
            )
        try:
            path = Path(run_dir).expanduser()
        except RuntimeError as error:  # ~ of a user that does not exist
            raise FileSystemError(f"{run_dir} cannot be the run directory: {error}") from error
    path = path.absolute()
    existing = path
    try:
        while not existing.exists():
            existing = existing.parent
        is_directory = existing.is_dir()
    except OSError as error:
        raise FileSystemError(f"{path} cannot be used: {error.strerror}.") from error
    if not is_directory:
        raise FileSystemError(
            f"{path} cannot be the run directory: {existing} is a file. Give another --run_dir."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise FileSystemError(
            f"{path} cannot be the run directory: {existing} is not writable. Give another "
            "--run_dir."
        )
    if len(os.fsencode(path.name)) > 255:
        raise FileSystemError(f"The name of the run directory is too long: {path.name[:40]}...")
    return path


def create(path: Path, *, may_exist: bool) -> Path:
    """Makes the run directory and returns its path, with a number appended if the name is taken.

    Two runs that start in the same second would choose the same name.

    Args:
        path: what `choose` returned.
        may_exist: use the directory if it exists; the user named it, and it is the run to resume.
    """
    if may_exist:
        path.mkdir(parents=True, exist_ok=True)
        return path
    number, free = 1, path
    while True:
        try:
            free.mkdir(parents=True)
            return free
        except FileExistsError:
            number += 1
            free = path.with_name(f"{path.name}-{number}")


def refuse_full_disk(path: Path, needed: int) -> None:
    """Raises FileSystemError unless the disk of a run directory has room for its checkpoints.

    Args:
        path: the run directory, which need not exist.
        needed: size of the checkpoints in bytes.
    """
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < needed:
        raise FileSystemError(
            f"The disk of {path} has {free / 1e6:,.0f} MB free, and the checkpoints of this run "
            f"need {needed / 1e6:,.0f} MB. Make room, or give a --run_dir on another disk."
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns a JSON object, or None if the file does not exist.

    Raises:
        UsageError: the file cannot be read or is not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object.")
    return found


def read_config(run_dir: Path) -> dict[str, Any]:
    """Returns the config.json of a run or a study.

    Raises:
        UsageError: there is none.
    """
    description = read_json(run_dir / CONFIG)
    if description is None:
        raise UsageError(f"{run_dir} holds no run: there is no {CONFIG}.")
    return description


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replaces a file by a JSON object, atomically."""
    files.replace(path, (json.dumps(values, indent=2) + "\n").encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, without a last line that was cut off."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def refuse_changed_data(run_dir: Path, description: dict[str, Any], data: Data) -> None:
    """Raises CheckpointError unless the data are those that a run was trained on.

    Args:
        run_dir: the run, for the message.
        description: the contents of its config.json.
        data: its data set as it is now.
    """
    streamed = data.train.is_streamed
    if streamed != description["data"]["streamed"]:
        raise CheckpointError(
            f"{run_dir} was started with data "
            + ("in memory, give --nostream." if streamed else "that are streamed, give --stream.")
        )
    if data.fingerprint != description["data"]["fingerprint"]:
        raise CheckpointError(
            f"{data.name} has changed since {run_dir} was started (fingerprint). Give another "
            "--run_dir for a new run."
        )


def refuse_in_use(folder: Path) -> None:
    """Raises DirectoryInUseError if another process writes to a run directory."""
    if (folder / LOCK).exists():
        with locked(folder, writes=False):
            pass


@contextmanager
def locked(folder: Path, *, writes: bool = True) -> Iterator[None]:
    """Holds the lock of a run directory, which is also released if the process is killed.

    Args:
        folder: the run directory.
        writes: write a line into the lock file that says which process holds it.

    Raises:
        DirectoryInUseError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock
        yield
        return
    with open(folder / LOCK, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            raise DirectoryInUseError(
                f"{folder} is in use by {stream.read().strip() or 'another process'}. Wait for it, "
                "or give another --run_dir."
            ) from error
        if not writes:
            yield
            return
        stream.truncate(0)
        now = datetime.datetime.now().isoformat(timespec="seconds")
        stream.write(f"process {os.getpid()} on {os.uname().nodename} since {now}")
        stream.flush()
        yield


def as_plain(values: dict[str, Any]) -> dict[str, Any]:
    """Returns values as they come back from JSON, for a comparison with those of a saved run."""
    return json.loads(json.dumps(values))
