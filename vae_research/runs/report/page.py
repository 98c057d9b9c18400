"""report.html of a run: one file that says what the run found, what made it, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_research import files
from vae_research.runs.report import html
from vae_research.runs.session import directory, resume
from vae_research.runs.session.directory import REPORT

# What `Latents` found at the end of the last epoch.
DIAGNOSIS = Path("validation", "diagnosis.txt")

_EPOCHS_SHOWN = 50
_CAPTIONS = {
    "curves": "Training and validation by epoch.",
    "reconstructions": "Test images (odd rows) above their reconstructions (even rows).",
    "samples": "Images decoded from codes of the prior.",
    "samples_fitted_prior": "Images decoded from codes of the prior that was fitted afterwards.",
    directory.INFORMATION: "Mutual information of codes (rows) and factors (columns) of test data, "
    "nats; H is the entropy of a factor.",
    directory.TRAVERSED: "A row for each code, which moves while the others stay, and the factor "
    "of the largest mutual information with it.",
}
# Pictures that are no tiles of small images, and are shown in their own size.
_NO_TILES = ("curves", directory.INFORMATION, directory.TRAVERSED)
# They say where and how a run is trained, and not what.
_OF_THE_PLACE = ("run_dir", "resume", "verbose", "debug", "dry_run", "name", "note")


def write_report(run_dir: Path, summary: Mapping[str, Any]) -> str:
    """Writes report.html of a finished run and returns its name.

    Everything in it is in other files of the run directory, too.

    Args:
        run_dir: the run directory.
        summary: the contents of its summary.json.
    """
    config = directory.read_config(run_dir)
    records = directory.read_metrics(run_dir / directory.METRICS)
    name = config["flags"].get("name") or config["experiment"]
    parts = [
        html.text(_lead(config, summary), kind="lead"),
        html.text(config["flags"].get("note") or ""),
        *_results(run_dir, summary),
        *_curves_and_pictures(run_dir, records),
        *_settings(config),
        *_origin(run_dir, config, summary),
        *_onward(run_dir, config, summary),
    ]
    content = html.page(name, parts).encode("utf-8", "replace")
    files.replace(run_dir / REPORT, content, durable=False)
    return REPORT


def _lead(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    data = config["data"]
    counts = ", ".join(f"{count:,} {split}" for split, count in data["counts"].items())
    stopped = ", stopped early" if summary["stopped_early"] else ""
    return (
        f"{config['experiment']} on {data['name']} ({counts}); trained for {summary['epochs']:,} "
        f"epochs{stopped}, {summary['steps']:,} steps, {summary['parameters']:,} parameters, in "
        f"{summary['seconds']:,.0f} seconds on {config['device']}."
    )


def _results(run_dir: Path, summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, figure in summary["test"].items():
        error, count = figure["standard_error"], figure["count"]
        rows.append(
            [
                name,
                _number(figure["value"]),
                "" if error is None else f"± {_number(error)}",
                summary["units"].get(name, ""),
                f"{count:,}",
            ]
        )
    found = []
    if (run_dir / DIAGNOSIS).exists():
        found = (run_dir / DIAGNOSIS).read_text(encoding="utf-8").splitlines()
    return [
        html.text("Test figures", "h2"),
        html.table(["figure", "mean", "standard error", "unit", "examples"], rows, (1, 2, 4)),
        html.bullets(summary["notes"]),
        html.text("Verdicts", "h2"),
        html.bullets(
            [
                *(f"Latent space, on validation data: {line}" for line in found),
                f"Reproducibility: {summary['reproducibility']}.",
                f"Best epoch on validation data: {summary['best_epoch']} of {summary['epochs']}.",
            ]
        ),
    ]


def _curves_and_pictures(run_dir: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = []
    for path in sorted((run_dir / "figures").glob("*.png")):
        caption = _CAPTIONS.get(path.stem, path.stem.replace("_", " "))
        kind = "" if path.stem in _NO_TILES else "pixels"
        shown.append(html.picture(path, caption, kind))
    every = -(-len(records) // _EPOCHS_SHOWN) or 1
    chosen = [*records[: len(records) - 1 : every], *records[-1:]]
    names = list(dict.fromkeys(key for each in chosen for key in each))
    rows = [[_number(each[name]) if name in each else "" for name in names] for each in chosen]
    title = "Figures by epoch" if every == 1 else f"Figures of every {every}th epoch"
    return [
        html.text("Curves and pictures", "h2"),
        *shown,
        html.folded(title, html.table(names, rows, range(len(names)))),
    ]


def _settings(config: Mapping[str, Any]) -> list[str]:
    values, defaults = config["flags"], config.get("defaults", {})
    known = [name for name in values if name in defaults and name not in _OF_THE_PLACE]
    changed = [name for name in known if values[name] != defaults[name]]
    rows = [[name, _setting(values[name]), _setting(defaults[name])] for name in changed]
    critics = {
        f"critic {name}": f"{'; '.join(each['terms'].values())}, {each['optimizer']}"
        for name, each in config["critics"].items()
    }
    model = config["terms"] | critics | {"optimizer": config["optimizer"]}
    return [
        html.text("Settings", "h2"),
        html.table(["differs from its default", "value", "default"], rows)
        or html.text("All settings have their defaults."),
        html.table(["part", "as it was built"], model.items()),
        html.folded(
            "All settings",
            html.table(["setting", "value"], [[k, _setting(v)] for k, v in values.items()]),
        ),
    ]


def _origin(run_dir: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    folder = run_dir / config["source"]
    listed = [
        html.folded(f"{path.relative_to(folder)}", html.text(_read(path), "pre"))
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".diff")
    ]
    sessions = config["sessions"]
    of_session = ["started", "host", "git_commit", "python", "tensorflow", "keras"]
    return [
        html.text("What made it", "h2"),
        html.table(
            of_session, [[each.get(name) or "" for name in of_session] for each in sessions]
        ),
        html.text("\n".join(dict.fromkeys(each["command"] for each in sessions)), "pre"),
        html.table(
            ["what", "value"],
            [
                ["weights_sha256", summary["weights_sha256"]],
                ["state_sha256", summary["state_sha256"]],
                ["fingerprint of the data", config["data"]["fingerprint"]],
                ["version of vae_research", config["versions"]["vae_research"]],
                ["its commit", config["versions"]["git_commit"]],
            ],
        ),
        *listed,
    ]


def _onward(run_dir: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    place = shlex.quote(str(run_dir))
    commands = (
        f"scripts/tensorboard {place}  # curves, pictures and codes\n"
        f"{_training(place, config, summary)}"
        f"scripts/replay {place}  # repeat its last steps from a checkpoint\n"
        f"scripts/doctor {place}  # what is there, and whether it is whole\n"
    )
    python = (
        "import vae_research as vr\n\n"
        f"run = vr.load_run({str(run_dir)!r})\n"
        "codes = run.model.encode(run.data.test.prepare(slice(0, 100)))\n"
    )
    return [
        html.text("How to go on", "h2"),
        html.text(commands, "pre"),
        html.text("In Python:"),
        html.text(python, "pre"),
    ]


def _training(place: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Returns the line that trains a run further; empty if no value of its flags does."""
    flags, stopped = config["flags"], summary["stopped_early"]
    larger = resume.what_trains_longer(flags, summary["epochs"], stopped=stopped)
    if not larger:
        return ""
    given = {"epochs": flags["epochs"]} | {name: 2 * flags[name] for name in larger}
    words = [_command(config, given), *(f"--{name}={value}" for name, value in given.items())]
    why = ", if --early_stopping has ended it" if stopped else ""
    return f"scripts/run {' '.join(words)} --run_dir={place}  # train it longer{why}\n"


def _command(config: Mapping[str, Any], without: Collection[str]) -> str:
    """Returns the experiment's file and the flags that differ from their defaults, but for some."""
    values, defaults = config["flags"], config.get("defaults", {})
    given = []
    for name, value in values.items():
        if name not in defaults or value == defaults[name] or name in (*_OF_THE_PLACE, *without):
            continue
        if isinstance(value, bool):
            given.append(f"--{'' if value else 'no'}{name}")
        else:
            given.append(f"--{name}={shlex.quote(_setting(value))}")
    return " ".join([shlex.quote(config["file"]), *given])


def _setting(value: Any) -> str:
    """Returns the value of a flag as a command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: Any) -> str:
    if value is None:
        return "not finite"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
