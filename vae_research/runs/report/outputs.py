"""The files of a finished run: figures and saved networks."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from vae_research import round_trip
from vae_research.callbacks.pictures import (
    SAMPLES_FITTED,
    conditions_of,
    reconstructions,
    samples,
)
from vae_research.data import Data
from vae_research.model import VAE
from vae_research.plots import encode_png, save_curves
from vae_research.priors.prior import Prior
from vae_research.randomness import evaluation_key
from vae_research.runs.session.directory import PRIOR
from vae_research.tensors import Named


def save_figures(
    folder: Path,
    model: VAE,
    data: Data,
    names: Sequence[str],
    records: list[dict[str, Any]],
    prior: Prior | None = None,
) -> list[str]:
    """Writes PNG pictures and returns their names; only the curves need matplotlib.

    Args:
        folder: the folder `figures` of the run directory; made if missing.
        model: the trained model.
        data: the data set; reconstructions and samples are written if it has images.
        names: the further arrays that the model reads. Samples of the prior are drawn with those of
            the first validation examples.
        records: the lines of metrics.jsonl, for the curves.
        prior: one that was fitted after training, whose samples are drawn, too.
    """
    folder.mkdir(exist_ok=True)
    written = []
    if data.is_image:
        shown = data.test.tensors(slice(0, 40), names)
        pictures = {"reconstructions": reconstructions(model, shown, 10)}
        conditions = conditions_of(data.validation.tensors(slice(0, 80), names))
        if model.bottleneck.has_prior:
            pictures["samples"] = samples(model, 10, conditions=conditions)
        if prior is not None:
            pictures[SAMPLES_FITTED] = samples(model, 10, conditions=conditions, prior=prior)
        for name, picture in pictures.items():
            (folder / f"{name}.png").write_bytes(encode_png(picture))
            written.append(f"figures/{name}.png")
    if importlib.util.find_spec("matplotlib") is None:
        return [*written, "no figures/curves.png (pip install 'vae_research[figures]')"]
    save_curves(folder / "curves.png", records)
    return [*written, "figures/curves.png"]


def save_networks(run_dir: Path, model: VAE, prior: Prior | None = None) -> list[str]:
    """Saves the model, its decoder as a Keras model that loads without this package, and a prior.

    Returns:
        The names of the files. A network that cannot be saved, or would load as another one, is
        left out with a warning: the checkpoint has its values.
    """
    decoder = model.decoder.network if isinstance(model.decoder, Named) else model.decoder
    saved = []
    networks = {"model.keras": model, "decoder.keras": decoder, PRIOR: prior}
    for name, network in networks.items():
        if network is None:
            continue
        try:
            _save(network, run_dir / name)
        except ValueError as error:
            print(f"warning: {error}", file=sys.stderr)
        else:
            saved.append(name)
    return saved


def _save(network: keras.layers.Layer, path: Path) -> None:
    if isinstance(network, VAE):
        network.save(path)
    elif isinstance(network, Prior):
        save = functools.partial(keras.saving.save_model, network)
        round_trip.save_checked(network, path, save, _samples_of)
    elif isinstance(network, keras.Model):
        round_trip.save_checked(network, path, network.save, round_trip.outputs_of)
    else:
        raise ValueError(
            f"{path.name} was not written: {network.name!r} is a layer and no model, and is saved "
            "in model.keras only."
        )


def _samples_of(prior: Prior) -> dict[str, tf.Tensor]:
    return {"sample": prior.sample(2, evaluation_key(0, 0))}
