"""Studies: several models and their comparison. Imports TensorFlow: the flags are valid by now.

A model that `runs.train` trains for a study is a run of its own, in a folder below the study's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.data import Data
from vae_research.runs.cli import signals
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.functions import experiment_file
from vae_research.runs.report import screen
from vae_research.runs.report.description import describe
from vae_research.runs.session import directory, resume
from vae_research.runs.session.fit.stopping import printed_warnings
from vae_research.runs.session.kept import provenance, sources
from vae_research.runs.session.kept.sources import Source


def carry_out(
    run_study: Callable[[Config, Data, Path], dict[str, Any]],
    experiment: str,
    config: Config,
    data: Data,
    run_dir: Path,
    device: str,
    source: Source,
) -> None:
    """Carries out a study in its locked directory and writes its summary."""
    keras.utils.set_random_seed(config.init_seed)
    keras.config.set_dtype_policy(config.precision)
    run_dir = directory.create(run_dir, may_exist=config.run_dir is not None)
    with directory.locked(run_dir):
        file = experiment_file(run_study)
        kept = sources.keep(run_dir, source)
        started_before = (run_dir / directory.CONFIG).exists()
        earlier = directory.read_config(run_dir).get("sessions", []) if started_before else []
        description = {
            **describe(experiment, file, config, data, device),
            "source": kept,
            "sessions": [*earlier, provenance.session(file.parent, kept)],
        }
        directory.write_config(run_dir, description)
        if config.verbose:
            screen.print_data(data)
            print(f"Device: {device}")
            screen.print_place(run_dir)
        (run_dir / "figures").mkdir(exist_ok=True)
        # TensorFlow warns of many traces, although every model is traced once.
        tf.get_logger().setLevel("ERROR")
        started = time.perf_counter()
        with printed_warnings():
            results = dict(run_study(config, data, run_dir) or {})
        signals.raise_if_received()
        seconds = round(time.perf_counter() - started, 3)
        tables = results.pop("tables", "")
        if tables:
            (run_dir / "tables.md").write_text(tables, encoding="utf-8")
        pictures = sorted((run_dir / "figures").glob("*.png"))
        _show(pictures, run_dir)
        directory.write_json(
            run_dir / directory.SUMMARY,
            {
                **results,
                "status": "done",
                "seconds_of_last_session": seconds,
                "evaluation": resume.results_of_study(config, kept),
            },
        )
        description["sessions"] = provenance.ended(description["sessions"])
        directory.write_config(run_dir, description)
        if config.verbose:
            names = [*(["tables.md"] if tables else []), *(f"figures/{p.name}" for p in pictures)]
            print(f"\n{tables}\nWritten to {run_dir}: {', '.join(names)}", flush=True)


def _show(pictures: list[Path], run_dir: Path) -> None:
    """Shows pictures of figures/ in TensorBoard, as the run `study`."""
    summaries = Summaries(run_dir)
    for path in pictures:
        picture = tf.io.decode_png(path.read_bytes(), channels=3)
        summaries.image("study", path.stem, tf.cast(picture, tf.float32).numpy() / 255.0, step=0)
    summaries.close()
