"""Pictures as PNG, and plots with matplotlib (the extra `figures`), which need no display."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.extras import require

# The beginning of the names of scores of disentanglement in metrics.jsonl.
_SCORES = "validation/disentanglement/"


def encode_png(picture: np.ndarray, *, compression: int = -1) -> bytes:
    """Returns a picture as the bytes of an 8-bit PNG file.

    Args:
        picture: `[height, width, channels]`; values outside of [0, 1] are clipped.
        compression: from 0 (none) to 9 (smallest file); -1 is zlib's default.
    """
    import tensorflow as tf  # imported here: the plots do not need it

    pixels = np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
    return tf.io.encode_png(pixels, compression=compression).numpy()


def save_scatter(
    path: str | Path,
    codes: np.ndarray,
    labels: np.ndarray,
    *,
    title: str,
    axes: Sequence[str] = ("z[0]", "z[1]"),
) -> None:
    """Writes a scatter plot of codes in a plane, coloured by label.

    Args:
        path: the PNG file.
        codes: `[count, 2]`.
        labels: `[count]` integers; the colours of more than 20 classes are hard to tell apart.
        title: title of the plot.
        axes: labels of the axes.
    """
    canvas, plot = make_canvas(6.4, 5.6)
    classes = np.unique(labels)
    # Up to 20 classes, palettes with colours that are easy to tell apart.
    colours, number = {0: ("tab10", 10), 1: ("tab20", 20)}.get(
        (len(classes) - 1) // 10, ("turbo", len(classes))
    )
    # In the order of the data, not of the labels, so that no class covers the others.
    points = plot.scatter(
        *np.asarray(codes).T, c=np.searchsorted(classes, labels), s=3, alpha=0.7, cmap=colours
    )
    points.set_clim(-0.5, number - 0.5)
    marks = [
        plot.scatter([], [], s=25, color=points.to_rgba(index), label=str(label))
        for index, label in enumerate(classes)
    ]
    plot.legend(
        handles=marks,
        title="label",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=-(-len(classes) // 18),
    )
    plot.set(title=textwrap.fill(title, 60), xlabel=axes[0], ylabel=axes[1])
    plot.set_aspect("equal", adjustable="datalim")
    plot.grid(alpha=0.3)
    canvas.savefig(path, dpi=110)


def save_plane(
    path: str | Path,
    picture: np.ndarray,
    low: Sequence[float],
    high: Sequence[float],
    *,
    title: str,
) -> None:
    """Writes a plot of images over the part of the latent plane that they were decoded from.

    Args:
        path: the PNG file.
        picture: `[height, width, 1 or 3]` in [0, 1], as `decoded_plane` returns it.
        low: the code of the lower left corner.
        high: the code of the upper right corner.
        title: title of the plot.
    """
    canvas, plot = make_canvas(6.0, 5.8)
    plot.imshow(
        picture.squeeze(),
        extent=(low[0], high[0], low[1], high[1]),
        aspect="auto",
        cmap="gray",
        vmin=0.0,
        vmax=1.0,
    )
    plot.set(title=textwrap.fill(title, 60), xlabel="z[0]", ylabel="z[1]")
    canvas.savefig(path, dpi=110)


def save_bars(
    path: str | Path,
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    unit: str,
    groups: Mapping[str, str] | None = None,
) -> None:
    """Writes a bar chart of medians, with a line from the smallest to the largest value.

    Args:
        path: the PNG file.
        values: measurements by the name of their bar, none negative.
        title: title of the plot.
        unit: label of the axis: the measured quantity with its unit.
        groups: the group of each bar by the bar's name; each group has its own colour.
    """
    canvas, plot = make_canvas(8.4, 0.42 * len(values) + 1.6)
    groups = groups or {}
    kinds = list(dict.fromkeys(groups.get(name, "") for name in values))
    seen: set[str] = set()
    for row, (name, found) in enumerate(values.items()):
        middle, kind = float(np.median(found)), groups.get(name, "")
        spread = [[middle - min(found)], [max(found) - middle]]
        label = kind if kind and kind not in seen else None
        seen.add(kind)
        plot.barh(row, middle, xerr=spread, color=f"C{kinds.index(kind)}", capsize=3, label=label)
        plot.annotate(
            f"{middle:.3g}", (max(found), row), (5, 0), textcoords="offset points", va="center"
        )
    plot.set_yticks(range(len(values)), list(values))
    plot.invert_yaxis()
    plot.set(title=title, xlabel=unit)
    plot.margins(x=0.12)
    plot.set_xlim(left=0.0)
    plot.grid(alpha=0.3, axis="x")
    if len(kinds) > 1:
        plot.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    canvas.savefig(path, dpi=110)


def save_curves(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the curves of reconstruction, KL divergence and ELBO, or of the loss, by epoch.

    Scores of disentanglement are further curves, of the epochs that have them.

    Args:
        path: the file, PNG, SVG or PDF.
        records: the lines of metrics.jsonl, parsed.
    """
    names = [name for name in ("reconstruction", "kl", "elbo") if f"train/{name}" in records[0]]
    names = names if "elbo" in names else ["loss"]
    scores = dict.fromkeys(key for each in records for key in each if key.startswith(_SCORES))
    canvas, plots = make_canvas(4 * (len(names) + bool(scores)), 3.2, len(names) + bool(scores))
    for plot, name in zip(np.ravel(plots), names, strict=False):
        for split, style in (("train", "C0-"), ("validation", "C1--")):
            if f"{split}/{name}" in records[0]:
                _curve(plot, records, f"{split}/{name}", style, split)
        plot.set_title({"kl": "KL divergence", "elbo": "ELBO"}.get(name, name))
        plot.set_ylabel("nats per example")
    for at, name in enumerate(scores):
        plot = np.ravel(plots)[-1]
        _curve(plot, records, name, f"C{at}--", name.removeprefix(_SCORES))
        plot.set_title("disentanglement, validation")
    for plot in np.ravel(plots):
        plot.set_xlabel("epoch")
        plot.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        plot.grid(alpha=0.3)
        plot.legend()
    save_canvas(canvas, path, dpi=120)


def _curve(
    plot: Any, records: Sequence[Mapping[str, Any]], name: str, style: str, label: str
) -> None:
    there = [record for record in records if name in record]
    epochs, values = [each["epoch"] for each in there], [each[name] for each in there]
    plot.plot(epochs, values, style, marker="o", markersize=3, label=label)


def make_canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """Returns a figure of matplotlib, in inches, and its axes; it needs no display."""
    require("a plot", "figures", {"matplotlib": "matplotlib"})
    from matplotlib.figure import Figure  # no global state

    canvas = Figure(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns)


# By the ending of the file: what makes equal figures equal files.
_WITHOUT_DATE = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
ENDINGS = tuple(_WITHOUT_DATE)


def save_canvas(canvas: Any, path: str | Path, dpi: int = 150) -> None:
    """Writes a figure as PNG, SVG or PDF, by the ending of the path; equal figures, equal bytes.

    Fonts of a PDF are embedded as TrueType, as journals ask.
    """
    import matplotlib

    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "vae_research"}):
        canvas.savefig(path, dpi=dpi, metadata=_WITHOUT_DATE[Path(path).suffix.lower()])
