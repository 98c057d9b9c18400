"""The files of a finished run: figures and saved networks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from vae_research import round_trip
from vae_research.callbacks.pictures import conditions_of, reconstructions, samples
from vae_research.data import Data
from vae_research.model import VAE
from vae_research.plots import encode_png, save_curves
from vae_research.tensors import Named


def save_figures(
    folder: Path, model: VAE, data: Data, names: Sequence[str], records: list[dict[str, Any]]
) -> list[str]:
    """Writes PNG pictures and returns their names; only the curves need matplotlib.

    Args:
        folder: the folder `figures` of the run directory; made if missing.
        model: the trained model.
        data: the data set; reconstructions and samples are written if it has images.
        names: the further arrays that the model reads. Samples of the prior are drawn with those of
            the first validation examples.
        records: the lines of metrics.jsonl, for the curves.
    """
    folder.mkdir(exist_ok=True)
    written = []
    if data.is_image:
        shown = data.test.tensors(slice(0, 40), names)
        pictures = {"reconstructions": reconstructions(model, shown, 10)}
        if model.bottleneck.has_prior:
            first = data.validation.tensors(slice(0, 80), names)
            pictures["samples"] = samples(model, 10, conditions=conditions_of(first))
        for name, picture in pictures.items():
            (folder / f"{name}.png").write_bytes(encode_png(picture))
            written.append(f"figures/{name}.png")
    if importlib.util.find_spec("matplotlib") is None:
        return [*written, "no figures/curves.png (pip install 'vae_research[figures]')"]
    save_curves(folder / "curves.png", records)
    return [*written, "figures/curves.png"]


def save_networks(run_dir: Path, model: VAE) -> list[str]:
    """Saves the model, and its decoder as a Keras model that loads without this package.

    Returns:
        The names of the files. A network that cannot be saved, or would load as another one, is
        left out with a warning: the checkpoint has its values.
    """
    decoder = model.decoder.network if isinstance(model.decoder, Named) else model.decoder
    saved = []
    for name, network in (("model.keras", model), ("decoder.keras", decoder)):
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
    elif isinstance(network, keras.Model):
        round_trip.save_checked(network, path, network.save, round_trip.outputs_of)
    else:
        raise ValueError(
            f"{path.name} was not written: {network.name!r} is a layer and no model, and is saved "
            "in model.keras only."
        )
