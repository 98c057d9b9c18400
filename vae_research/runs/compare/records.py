"""Run directories as flat records, which a table or a data-frame library takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_research.checkpoints import CheckpointError
from vae_research.evaluation import NOTE_ON_SCORES, SCORES
from vae_research.runs.cli.errors import DirectoryInUseError, UsageError
from vae_research.runs.session import directory
from vae_research.runs.session.kept import sources
from vae_research.schemas import NUMBER, mismatch

Scalar = bool | int | float | str | None
Record = dict[str, Scalar]

# The parts of config.json and summary.json that are in a record, those with a slash below a name.
_OF_CONFIG = ("data", "likelihood", "terms", "versions")
_OF_SUMMARY = (
    *("stopped_early", "best_epoch", "seconds", "images_per_second", "effective_beta"),
    *("parameters", "weights_sha256", "reproducibility"),
)
_OF_EVALUATION = ("importance_samples", "seed", "dequantize_draws", "factor_examples")
_ESTIMATE = {
    "value": (*NUMBER, type(None)),
    "standard_error": (*NUMBER, type(None)),
    "count": int,
}
_SCHEMA = {
    "epochs": int,
    "steps": int,
    "seconds": NUMBER,
    "notes": [str],
    "evaluation": {
        "importance_samples": int,
        "seed?": int,
        "dequantize_draws?": int,
        "factor_examples?": int,
    },
    "units?": {str: str},
    "test": {str: _ESTIMATE},
}
_SCORES = {
    "step": int,
    "settings?": {"examples": int, "seed": int, "metrics": [str]},
    "notes?": [str],
    "figures": {str: _ESTIMATE},
}
_SOURCE = {"sha256": {str: str}}


def load_runs(*folders: str | Path) -> list[Record]:
    """Returns a record of every run in some folders: a flat dictionary of numbers and texts.

    All records have the same keys, None where a run has no such value, so that
    `pandas.DataFrame(vr.load_runs("runs"))` and `polars.DataFrame(...)` are tables of runs:

    - `run`, its path below the folders; `path`, the absolute one; `experiment`, `name`, `note`.
    - `status`: `done`, `running`, `diverged` or `unfinished`. Only a run that is done has figures.
    - `flags/NAME`; of lists as on a command line, `500,200`.
    - `test/NAME`, a test figure, `test/NAME/standard_error`, `test/NAME/count`, `units/NAME`; and
      `train/NAME` and `validation/NAME`, the figures of the last epoch.
    - `epochs`, `steps`, `seconds` of training, `parameters`, `notes` and others of summary.json;
      `data/...`, `likelihood/...`, `terms/...`, `versions/...` of config.json; `source/FILE`, the
      checksum of a file of the source.

    A study is left out, the runs in its folder are not. Symbolic links are not followed.

    Args:
        folders: run directories, or folders of them at any depth.

    Raises:
        UsageError: a folder does not exist, or there is no run in it.
        CheckpointError: a file of a run is damaged.
    """
    found: dict[Path, tuple[Path, dict[str, Any]]] = {}  # the same run may be named twice
    for folder in folders:
        found |= {path.resolve(): (path, config) for path, config in _runs_in(folder)}
    if not found:
        raise UsageError("no folder was given.")
    above = os.path.commonpath([path.parent for path, _ in found.values()])
    records: list[Record] = [
        {"run": os.path.relpath(path, above), **_record(path, config)}
        for path, config in found.values()
    ]
    keys = dict.fromkeys(key for record in records for key in record)
    return [{key: record.get(key) for key in keys} for record in records]


def _runs_in(folder: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}.")
    found = list(_walk(path))
    if not found:
        raise UsageError(f"there is no run in {path}.")
    return found


def _walk(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Gives the run directories in a folder, sorted by name, each with its config.json."""
    for place, names, files in os.walk(path, onerror=_refuse):
        names.sort()
        if directory.CONFIG in files:
            config = directory.read_config(Path(place))
            if "terms" in config:  # that of a study has none
                names.clear()  # nothing in a run directory is another run
                yield Path(place), config


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _record(run_dir: Path, config: Mapping[str, Any]) -> Record:
    summary, flags = directory.read_summary(run_dir), config["flags"]
    if problem := mismatch(flags, {"seed": int}, "flags"):
        raise CheckpointError(f"{run_dir / directory.CONFIG} is not what a run writes: {problem}.")
    status = "done"
    if summary is None:
        status, summary = _status_of_unfinished(run_dir), {}
    elif problem := mismatch(summary, _SCHEMA):
        raise CheckpointError(
            f"{run_dir / directory.SUMMARY} is not what a run writes: {problem}. Leave the folder "
            "out, or restore the file from a copy."
        )
    metrics = directory.read_metrics(run_dir / directory.METRICS)
    last = metrics[-1] if metrics else {}
    record: Record = {
        "path": str(run_dir),
        "experiment": config["experiment"],
        "name": flags.get("name"),
        "note": flags.get("note"),
        "status": status,
        "epochs": summary.get("epochs", last.get("epoch", 0)),
        "steps": summary.get("steps", last.get("step", 0)),
        **{name: _scalar(summary.get(name)) for name in _OF_SUMMARY},
        "notes": "\n".join(summary.get("notes", ())) or None,
        **_flat("flags", flags),
    }
    for part in _OF_CONFIG:
        record |= _flat(part, config.get(part) or {})
    kept = run_dir / config.get("source", sources.FOLDER) / sources.RECORD
    record |= _flat("source", (directory.read_json(kept, _SOURCE) or {}).get("sha256", {}))
    evaluation = summary.get("evaluation", {})
    record |= {f"evaluation/{name}": evaluation.get(name) for name in _OF_EVALUATION}
    figures = summary.get("test", {})
    if (scores := read_scores(run_dir, summary.get("steps"))) is not None:
        # Those of the summary, if it has any, are older.
        others = {name: figure for name, figure in figures.items() if name not in SCORES}
        figures = {**scores["figures"], **others}
        if "settings" in scores:
            record["evaluation/factor_examples"] = scores["settings"]["examples"]
        if "notes" in scores:
            notes = [each for each in summary.get("notes", ()) if NOTE_ON_SCORES not in each]
            record["notes"] = "\n".join([*notes, *scores["notes"]]) or None
    for name, figure in figures.items():
        record[f"test/{name}"] = _number(figure["value"])
        record[f"test/{name}/standard_error"] = _number(figure["standard_error"])
        record[f"test/{name}/count"] = figure["count"]
        record[f"units/{name}"] = summary.get("units", {}).get(name)
    of_splits = {k: v for k, v in last.items() if k.startswith(("train/", "validation/"))}
    return record | {name: _number(value) for name, value in of_splits.items()}


def read_scores(run_dir: Path, steps: Any) -> dict[str, Any] | None:
    """Returns the scores of disentanglement that a run or `scripts/evaluate` has written.

    Args:
        run_dir: the run directory.
        steps: of the run. Scores of another step are of other weights, and None is returned.

    Raises:
        CheckpointError: the file is damaged.
    """
    found = directory.read_json(run_dir / directory.DISENTANGLEMENT, _SCORES)
    return found if found is not None and found["step"] == steps else None


def _status_of_unfinished(run_dir: Path) -> str:
    try:
        directory.refuse_in_use(run_dir)
    except DirectoryInUseError:
        return "running"
    except OSError:  # a directory that may only be read
        pass
    return "unfinished" if directory.read_nonfinite(run_dir) is None else "diverged"


def _flat(prefix: str, values: Mapping[str, Any]) -> Record:
    """Returns the values of nested objects, each under its path."""
    found: Record = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}/{name}", value)
        else:
            found[f"{prefix}/{name}"] = _scalar(value)
    return found


def _scalar(value: Any) -> Scalar:
    """Returns a value of a JSON file; a list as on a command line."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return value


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
