"""The run directory: its path, its lock, and the files that describe a run."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
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
from vae_research.schemas import NUMBER, TEXT_OR_NOTHING, mismatch

CONFIG, METRICS, SUMMARY, LOCK = "config.json", "metrics.jsonl", "summary.json", "lock"
PRIOR, REPORT = "prior.keras", "report.html"
# The value of every test example.
VALUES = "figures.npz"
# The step at which a run diverged.
NONFINITE = "nonfinite.json"
# Bounds of log p(x) by annealed importance sampling.
ANNEALING = "annealing.json"
# Scores of disentanglement, with the mutual information of codes and factors; the codes.
DISENTANGLEMENT = "disentanglement.json"
CODES = "codes.npz"
# Pictures of these scores, among the figures.
INFORMATION, TRAVERSED = "mutual_information", "factor_traversals"
# What says something of the weights, and must not stay if they are trained further.
OF_WEIGHTS = (
    *(SUMMARY, NONFINITE, ANNEALING, DISENTANGLEMENT, CODES),
    *(f"figures/{name}.png" for name in (INFORMATION, TRAVERSED)),
)

_CHECKSUM = "sha256"
_FILES = 100  # that a run makes, with room to spare: checkpoints, event files, figures
_RESTORE = "Restore it from a copy; nothing was changed."
_CONFIG_SCHEMA = {
    "experiment": str,
    "file": str,
    "flags": {"epochs": int, "batch_size": int, "precision": str},
    "data": {"fingerprint": str, "streamed": bool, "made_by?": (list, type(None))},
    "versions": {str: TEXT_OR_NOTHING},
    "identity?": TEXT_OR_NOTHING,
    "source?": TEXT_OR_NOTHING,
    "sessions?": [dict],
}
_NONFINITE_SCHEMA = {
    "epoch": int,
    "step": int,
    "causes": [str],
    "rows?": [int],
    "checkpoint?": str,
}
_SUMMARY_SCHEMA = {
    "status": str,
    "epochs?": int,
    "evaluation?": {"flags?": dict, "source?": TEXT_OR_NOTHING},
}
_METRICS_SCHEMA = {"epoch": int, "step": int, "validation/loss": NUMBER}
_FIGURES_SCHEMA = {str: (*NUMBER, type(None))}


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


def remove_unused(path: Path, source: str, *, keep_folder: bool) -> None:
    """Removes what a run has written before its first step, unless its directory has more.

    Args:
        path: the run directory.
        source: name of the folder of the kept source in it.
        keep_folder: remove what is in it only.
    """
    names = {found.name for found in path.iterdir()}
    if not names <= {LOCK, CONFIG, source}:
        return
    if not keep_folder:
        shutil.rmtree(path)
        return
    shutil.rmtree(path / source, ignore_errors=True)
    for name in (CONFIG, LOCK):
        (path / name).unlink(missing_ok=True)


def refuse_full_disk(path: Path, needed: int) -> None:
    """Raises FileSystemError unless the disk of a run directory has room for a run.

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
    if hasattr(os, "statvfs"):  # Windows has none
        disk = os.statvfs(path)
        if disk.f_files and disk.f_favail < _FILES:  # some file systems do not count files
            raise FileSystemError(
                f"The disk of {path} has room for {disk.f_favail} more files (inodes), and a run "
                f"needs up to {_FILES}. Remove files, or give a --run_dir on another disk."
            )


def refuse_links(folder: Path) -> None:
    """Raises FileSystemError if something in a run directory is a link to a place outside of it.

    A run would write to that place.
    """
    inside = folder.resolve()
    found = sorted([*folder.glob("*"), *folder.glob("*/*")])
    for path in found:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise FileSystemError(
                f"{path} is a symbolic link to {os.readlink(path)}, and a run writes into its own "
                "directory only. Remove the link, or give another --run_dir."
            )


def refuse_removed(folder: Path) -> None:
    """Raises FileSystemError if a run directory is gone: a save would make it again, in part."""
    if not (folder / CONFIG).exists():
        raise FileSystemError(
            f"{folder} was removed or renamed while the run was writing there. What is left of it "
            "ends at its last checkpoint."
        )


def read_json(path: Path, schema: Any = None) -> dict[str, Any] | None:
    """Returns a JSON object, or None if the file does not exist.

    Args:
        path: the file.
        schema: what it must contain; see `vae_research.schemas`.

    Raises:
        CheckpointError: the file cannot be read or contains something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). {_RESTORE}") from error
    problem = mismatch(found, {} if schema is None else schema)
    if problem is not None:
        raise CheckpointError(f"{path} is not what a run writes: {problem}. {_RESTORE}")
    return found


def read_config(run_dir: Path) -> dict[str, Any]:
    """Returns the config.json of a run or a study.

    Raises:
        UsageError: there is none, or a file is given.
        CheckpointError: it is damaged.
    """
    if run_dir.is_file():
        raise UsageError(f"{run_dir} is a file, not a run directory.")
    description = read_json(run_dir / CONFIG, _CONFIG_SCHEMA)
    if description is None:
        raise UsageError(f"{run_dir} holds no run: there is no {CONFIG}.")
    expected = description.pop(_CHECKSUM, None)
    if expected not in (None, _checksum(description)):
        raise CheckpointError(
            f"{run_dir / CONFIG} has changed since it was written (checksum). Restore it from a "
            f"copy. If you have edited it, remove its entry {_CHECKSUM}."
        )
    return description


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """Returns the summary.json of a run or a study, None if it is not finished.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_json(run_dir / SUMMARY, _SUMMARY_SCHEMA)


def read_nonfinite(run_dir: Path) -> dict[str, Any] | None:
    """Returns the record of the step at which a run diverged, None if it did not.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_json(run_dir / NONFINITE, _NONFINITE_SCHEMA)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replaces a file by a JSON object, atomically; numbers that are not finite become null."""
    files.replace(path, (json.dumps(_finite(values), indent=2) + "\n").encode())


def write_config(run_dir: Path, description: dict[str, Any]) -> None:
    """Replaces config.json, with a checksum: it says how a run is built again."""
    write_json(run_dir / CONFIG, {**description, _CHECKSUM: _checksum(_finite(description))})


def update_config(run_dir: Path, **values: Any) -> None:
    """Replaces entries of the config.json of a run."""
    write_config(run_dir, read_config(run_dir) | values)


def read_metrics(path: Path, length: int | None = None) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, without a last line that was cut off.

    Args:
        path: the file, which need not exist.
        length: how many bytes of it are read; default: all.

    Raises:
        CheckpointError: a line is damaged.
    """
    content = path.read_bytes()[:length] if path.exists() else b""
    complete, _, cut_off = content.rpartition(b"\n")
    lines = complete.split(b"\n") if complete else []
    if length is not None and cut_off:
        lines.append(cut_off)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode("utf-8"))
            problem = mismatch(record, _METRICS_SCHEMA) or mismatch(record, _FIGURES_SCHEMA)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem is not None:
            raise CheckpointError(
                f"line {number} of {path} is damaged ({problem}). Restore the file from a copy, or "
                "remove this line; the weights do not depend on it."
            )
        records.append(record)
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
        writes: hold it alone, and write a line into the lock file that says which process does;
            otherwise hold it beside others who only look, as all workers of a run do at its start.

    Raises:
        DirectoryInUseError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock
        yield
        return
    refuse_links(folder)
    with open(folder / LOCK, "a+", encoding="utf-8") as stream:
        try:
            kind = fcntl.LOCK_EX if writes else fcntl.LOCK_SH
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
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


def _checksum(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _finite(values: Any) -> Any:
    """Returns JSON values in which numbers that are not finite are None: JSON has none."""
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def as_plain(values: dict[str, Any]) -> dict[str, Any]:
    """Returns values as they come back from JSON, for a comparison with those of a saved run."""
    return json.loads(json.dumps(values))
