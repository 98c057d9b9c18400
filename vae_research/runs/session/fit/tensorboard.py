"""What a run writes for TensorBoard. Imports TensorFlow: flags and data are valid by now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import keras

from vae_research.callbacks.gradients import Gradients
from vae_research.callbacks.inference import Inference
from vae_research.callbacks.latents import Latents
from vae_research.callbacks.overview import HParams, Overview
from vae_research.callbacks.pictures import Pictures
from vae_research.callbacks.profile import Profile
from vae_research.callbacks.projector import Projector
from vae_research.callbacks.scalars import Scalars
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.data import Data
from vae_research.evaluation import tag_of
from vae_research.evaluation.estimates import Estimate
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.standard_flags import LABELS

# Validation examples that are encoded after every epoch.
_EXAMPLES = 500
# Training examples whose gradients are measured. The norm of a mean depends on their number, so it
# is the same in every run; otherwise runs with different batch sizes could not be compared.
_EXAMPLES_OF_GRADIENTS = 64


def tensorboard_callbacks(
    config: Config,
    data: Data,
    names: Sequence[str],
    run_dir: Path,
    description: dict[str, Any],
    changing: Collection[str],
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that write for TensorBoard; none with `--notensorboard`.

    Args:
        config: the flags of the run.
        data: the data of the run.
        names: the further arrays that the model reads.
        run_dir: the run directory.
        description: the contents of config.json.
        changing: names of the flags that may change when the run resumes.
    """
    profile = [Profile(run_dir, *config.profile_steps)] if config.profile_steps else []
    if not config.tensorboard:
        return [*profile]
    settings = {k: v for k, v in description.items() if k not in ("flags", "sessions")}
    flags = config.as_dict()
    row = {name: flags[name] for name in LABELS if flags[name] is not None}
    row |= {name: value for name, value in flags.items() if name not in changing}
    rows = slice(0, _EXAMPLES)
    validation = data.validation.tensors(rows, names)
    inference = Inference(validation, _EXAMPLES)
    labels = None if data.validation.labels is None else data.validation.labels[rows]
    batch = data.train.tensors(slice(0, config.batch_size), names)
    callbacks = [
        *profile,
        HParams(run_dir, {"experiment": description["experiment"], **row}),
        Overview(run_dir, batch, {**settings, **description["flags"]}),
        Scalars(run_dir, every_steps=config.log_every_steps),
        Latents(run_dir, inference),
    ]
    if config.gradients_every_steps:
        few = data.train.tensors(slice(0, _EXAMPLES_OF_GRADIENTS), names)
        callbacks.append(Gradients(run_dir, few, every_steps=config.gradients_every_steps))
    if data.is_image:
        callbacks.append(Pictures(run_dir, inference))
    images = validation["inputs"] if data.is_image else None
    callbacks.append(Projector(run_dir, inference, labels, images))
    return callbacks


def write_test_figures(
    run_dir: Path, figures: dict[str, Estimate], notes: Sequence[str], step: int
) -> None:
    """Writes the test figures as scalars, for the run's row in the HParams table.

    The notes on them are the text `test/notes`.
    """
    summaries = Summaries(run_dir)
    values = {tag_of(name): figure.value for name, figure in figures.items()}
    summaries.scalars("run", values, step)
    if notes:
        summaries.text("run", "test/notes", "\n".join(f"- {note}" for note in notes), step)
    summaries.close()
