"""Pictures of a trained model for a paper: of a readable size, with labels. Imports TensorFlow.

Needs matplotlib, the extra `figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vae_research.callbacks.disentanglement import traversals_and_labels
from vae_research.callbacks.inference import Inference
from vae_research.callbacks.pictures import Pictures, conditions_of, deviations, sampled
from vae_research.callbacks.tensorboard.drawing import tile
from vae_research.evaluation.factor_scores import FactorScores
from vae_research.plots import make_canvas, save_canvas
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session import directory
from vae_research.runs.session.disentanglement import score_split
from vae_research.runs.session.factors import refuse_without_factors
from vae_research.runs.session.loading import Run

PICTURES = (
    *("samples", "reconstructions", "traversals"),
    *(directory.TRAVERSED, directory.INFORMATION),
)
# Test examples that decide which latent dimensions are used most.
_EXAMPLES = 500
_CELL = 0.62  # inches, the width of an image
_STEPS, _FRAMES, _MILLISECONDS = 7, 25, 80  # of a traversal: still, moving, and of each frame
_ROWS = 40  # of the heat map
_MOVING, _SIDE_BY_SIDE = 10, 5  # dimensions in an animation, and in a row of it


def save_picture(run: Run, name: str, path: Path, columns: int) -> None:
    """Writes samples, reconstructions or traversals of a model on its test images.

    Args:
        run: the loaded run.
        name: one of `PICTURES`.
        path: the file: PNG, SVG or PDF; traversals also GIF, an animation.
        columns: images side by side.

    Raises:
        UsageError: the run has no such picture.
    """
    scores = None
    if name in (directory.TRAVERSED, directory.INFORMATION):
        refuse_without_factors(run.data, name)
        scores = score_split(run.model, run.data, run.data.test, run.names, metrics={})
    if scores is not None and name == directory.INFORMATION:
        save_canvas(_heat_map(scores), path)
        return
    if not run.data.is_image:
        raise UsageError(f"the data of {run.path} are no images: there are only curves.")
    if name == "samples":
        save_canvas(_samples(run, columns), path)
        return
    moves = path.suffix.lower() == ".gif"
    test = run.data.test.tensors(slice(0, _EXAMPLES), run.names)
    pictures = Pictures(
        run.path, Inference(test, _EXAMPLES), columns=columns, steps=_FRAMES if moves else _STEPS
    )
    if scores is not None:
        title = "Traversals, and the factor of the largest mutual information"
        canvas = _grid(*traversals_and_labels(run.model, pictures, scores), [], title)
        canvas.axes[0].set_anchor("W")  # beside labels that are longer than those of others
        save_canvas(canvas, path)
        return
    images = pictures.images_of(run.model)
    if name == "reconstructions":
        save_canvas(_reconstructions(pictures.images, images["reconstructed"], columns), path)
        return
    if "traversals" not in images:
        raise UsageError(f"all latents of {run.path} are discrete: no dimension can be traversed.")
    labels = _labels(run, pictures)
    rows = images["traversals"].reshape([len(labels), -1, *images["traversals"].shape[1:]])
    if moves:
        _save_animation(path, rows[:_MOVING], labels)
    else:
        heads = [f"{place:g}" for place in deviations(_STEPS)]
        below = "standard deviations"
        save_canvas(_grid([*rows], labels, heads, "Traversals of latent dimensions", below), path)


def _samples(run: Run, columns: int) -> Any:
    if not run.model.bottleneck.has_prior and run.prior is None:
        raise UsageError(f"the model of {run.path} has no prior: it has no samples.")
    conditions = conditions_of(run.data.validation.tensors(slice(0, 80), run.names))
    images = sampled(run.model, 4 * columns, conditions, run.prior)
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    of = "the prior" if run.prior is None else "the prior that was fitted after training"
    return _grid(rows, [""] * len(rows), [], f"Means of p(x|z), z from {of}")


def _reconstructions(originals: np.ndarray, reconstructed: np.ndarray, columns: int) -> Any:
    rows, labels = [], []
    for start in range(0, len(originals), columns):
        part = slice(start, start + columns)
        rows += [originals[part], reconstructed[part]]
        labels += ["x", "mean of p(x|z)"]
    return _grid(rows, labels, [], "Test images and their reconstructions")


def _heat_map(scores: FactorScores) -> Any:
    """Draws the mutual information of codes and factors, those codes that say most."""
    codes = scores.most_informative(_ROWS)
    values, heads = scores.information[codes], scores.heads
    wide = 1.1 + max(0.095 * len(line) for head in heads for line in head.split("\n")) * len(heads)
    canvas, axes = make_canvas(max(wide, 4.5), 1.1 + 0.24 * len(codes))
    image = axes.imshow(values, cmap="inferno", vmin=0.0, aspect="auto", interpolation="nearest")
    for row, column in np.ndindex(*values.shape):
        ink = "black" if values[row, column] > 0.6 * np.nanmax(values) else "white"
        number = f"{values[row, column]:.2f}"
        axes.text(column, row, number, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(heads)), heads)
    axes.set_yticks(range(len(codes)), [scores.codes[code] for code in codes])
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    canvas.colorbar(image, label="mutual information, nats")
    return canvas


def _labels(run: Run, pictures: Pictures) -> list[str]:
    """Returns what stands beside each traversed dimension: its name and its KL divergence."""
    names, has_kl = run.model.code_layout.labels, "kl_of_columns" in pictures.inference(run.model)
    what, unit = ("KL", " nats") if has_kl else ("variance", "")
    names = [f"z[{name}]" if name.isdigit() else name for name in names]
    return [f"{names[at]}, {what} {pictures.use[at]:.2f}{unit}" for at in pictures.traversed]


def _grid(
    rows: Sequence[np.ndarray],
    labels: Sequence[str],
    heads: Sequence[str],
    title: str,
    below: str = "",
) -> Any:
    """Draws rows of images, each `[columns, height, width, channels]`, with labels beside them.

    Args:
        rows: the images; the first row is the longest.
        labels: of the rows.
        heads: of the columns; none if empty.
        title: above all.
        below: what the heads are, in one word or two.
    """
    columns, height, width = rows[0].shape[:3]
    picture, gap = tile(rows, columns), 2
    size = _CELL * columns, _CELL * len(rows) * height / width
    beside = 0.095 * max(map(len, labels)) + 0.2
    wide = max(size[0] + beside, 0.085 * len(title))
    canvas, axes = make_canvas(wide, size[1] + (0.9 if heads else 0.5))
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    middles = [(at + 0.5) * (height + gap) - gap for at in range(len(rows))]
    axes.set_yticks(middles, labels)
    axes.set_xticks([(at + 0.5) * (width + gap) - gap for at in range(len(heads))], heads)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    canvas.suptitle(title, fontsize=10)
    axes.set_xlabel(below)
    return canvas


def _save_animation(path: Path, rows: np.ndarray, labels: Sequence[str]) -> None:
    """Writes a GIF in which all dimensions move from -3 to 3 standard deviations and back.

    Args:
        path: the file.
        rows: `[dimensions, frames, height, width, channels]`.
        labels: of the dimensions.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    columns = min(_SIDE_BY_SIDE, len(rows))
    lines = -(-len(rows) // columns)
    aspect = rows.shape[2] / rows.shape[3]
    canvas, places = make_canvas(1.2 * columns, (1.2 * aspect + 0.3) * lines + 0.3, columns, lines)
    agg, shown = FigureCanvasAgg(canvas), []
    # As in `tile`: the range of standardised data, and the first of 2, 4 or more channels.
    low, high = min(0.0, float(rows.min())), max(1.0, float(rows.max()))
    rows = (rows[..., : 3 if rows.shape[-1] == 3 else 1] - low) / (high - low)
    for place in np.ravel(places):
        place.axis("off")
    for place, row, label in zip(np.ravel(places), rows, labels, strict=False):
        place.set_title(label, fontsize=8)
        shown.append(place.imshow(row[0].squeeze(), cmap="gray", vmin=0.0, vmax=1.0))
    frames = []
    for at, place_of_frame in enumerate(deviations(rows.shape[1])):
        canvas.suptitle(f"{place_of_frame:+.2f} standard deviations", fontsize=9)
        for image, row in zip(shown, rows, strict=True):
            image.set_data(row[at].squeeze())
        agg.draw()
        canvas.set_layout_engine("none")  # the layout of the first frame is that of all
        frame = Image.fromarray(np.asarray(agg.buffer_rgba())[..., :3])
        frames.append(frame.quantize(32))
    frames += frames[-2:0:-1]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=_MILLISECONDS, loop=0)
