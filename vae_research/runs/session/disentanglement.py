"""`--disentanglement`: codes of a run beside the factors of its data. Imports TensorFlow."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vae_research import files
from vae_research.callbacks.disentanglement import (
    HEAT_MAP,
    TRAVERSALS,
    Disentanglement,
    factor_traversals,
    heat_map,
)
from vae_research.callbacks.inference import Inference
from vae_research.callbacks.pictures import Pictures
from vae_research.callbacks.tensorboard.summaries import Summaries
from vae_research.data import Data
from vae_research.data.split import Split
from vae_research.evaluation import tag_of
from vae_research.evaluation.encoding import encode_data, some_rows
from vae_research.evaluation.factor_scores import METRICS, FactorScores, Metric, factor_scores
from vae_research.model import VAE
from vae_research.plots import encode_png
from vae_research.runs.cli.config import Config
from vae_research.runs.session import directory
from vae_research.runs.session.factors import EXAMPLES
from vae_research.state import weights_sha256

_DECODED = 500  # images that decide which codes are used most, and the first of which is traversed


def disentanglement_callback(
    config: Config, data: Data, names: Sequence[str], run_dir: Path
) -> Disentanglement:
    """Returns what makes curves of the validation data, and pictures unless `--notensorboard`.

    Args:
        config, data: of the run.
        names: the further arrays that the model reads.
        run_dir: the run directory.
    """
    split = data.validation
    assert data.factors is not None
    return Disentanglement(
        run_dir if config.tensorboard else None,
        split.tensors_by_block(names),
        split.arrays["factors"],
        data.factors.names,
        every_epochs=config.disentanglement_every_epochs,
        examples=config.disentanglement_examples,
        pictures=_pictures(run_dir, data, split, names) if config.tensorboard else None,
    )


def score_split(
    model: VAE,
    data: Data,
    split: Split,
    names: Sequence[str],
    *,
    metrics: Mapping[str, Metric] = METRICS,
    examples: int = EXAMPLES,
    seed: int = 0,
    between_calls: Callable[[], None] | None = None,
) -> FactorScores:
    """Returns the scores of a model on a split of data that have factors; all by default."""
    rows = some_rows(len(split), examples)
    found = encode_data(
        model, split.tensors_by_block(names), rows=rows, between_calls=between_calls
    )
    assert data.factors is not None
    scores = factor_scores(
        found.codes,
        split.arrays["factors"][rows],
        model.code_layout.full_labels,
        data.factors.names,
        metrics=metrics,
        seed=seed,
        between_metrics=between_calls,
    )
    settings = {"examples": examples, "seed": seed, "metrics": [*metrics]}
    return dataclasses.replace(scores, encoded=found, settings=settings)


def save_scores(
    run_dir: Path,
    model: VAE,
    data: Data,
    names: Sequence[str],
    scores: FactorScores,
    *,
    tensorboard: bool,
) -> list[str]:
    """Writes scores of test data and their pictures.

    Args:
        run_dir: the run directory.
        model, data, names: of the run, as for `score_split`.
        scores: of the test data.
        tensorboard: also write the pictures for TensorBoard.

    Returns:
        The names of the files.
    """
    found = {"step": model.step, "weights_sha256": weights_sha256(model), **scores.as_dict()}
    directory.write_json(run_dir / directory.DISENTANGLEMENT, found)
    written = [directory.DISENTANGLEMENT]
    if scores.encoded is not None:
        codes, kl = scores.encoded.codes, scores.encoded.kl
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, codes=codes, **({} if kl is None else {"kl": kl}))
        files.replace(run_dir / directory.CODES, content.getvalue())
        written.append(directory.CODES)
    pictures = {directory.INFORMATION: (heat_map(scores), HEAT_MAP)}
    decoder = _pictures(run_dir, data, data.test, names)
    if decoder is not None:
        pictures[directory.TRAVERSED] = factor_traversals(model, decoder, scores), TRAVERSALS
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    summaries = Summaries(run_dir)
    for name, (picture, words) in pictures.items():
        (folder / f"{name}.png").write_bytes(encode_png(picture))
        if tensorboard:
            summaries.image("run", tag_of(name), picture, model.step, words)
    summaries.close()
    return [*written, *(f"figures/{name}.png" for name in pictures)]


def _pictures(run_dir: Path, data: Data, split: Split, names: Sequence[str]) -> Pictures | None:
    if not data.is_image:
        return None
    return Pictures(run_dir, Inference(split.tensors(slice(0, _DECODED), names), _DECODED))
