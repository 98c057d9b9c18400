"""Several runs in one plot: curves, a figure against a setting, rate against distortion.

Needs matplotlib, the extra `figures`. PNG, SVG or PDF by the ending of the file.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.evaluation.replicates import mean_interval
from vae_research.plots import make_canvas, save_canvas
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.records import Record, Scalar
from vae_research.runs.compare.settings import Setting, in_words, shown
from vae_research.runs.compare.tabulate import short
from vae_research.runs.session import directory
from vae_research.settings import did_you_mean

RATE, DISTORTION, NLL = "test/kl", "test/reconstruction", "test/negative_log_likelihood"
_TITLES = {"reconstruction": "reconstruction", "kl": "KL divergence", "elbo": "ELBO"}


def plot(kind: str, path: Path, settings: Sequence[Setting], figure: str) -> None:
    """Writes the plot that `--plot` asks for.

    Args:
        kind: `curves`, `rate_distortion`, or the name of a setting.
        path: the file.
        settings: of all runs, in the order of the legend.
        figure: name of the test figure that is drawn against a setting.

    Raises:
        UsageError: there is no such plot of these runs.
    """
    kinds: dict[str, Callable[[], Any]] = {
        name: functools.partial(_against, settings, name, figure) for name in settings[0].values
    }
    kinds |= {
        "curves": functools.partial(_curves, settings),
        "rate_distortion": functools.partial(_rate_distortion, settings),
    }
    if kind not in kinds:
        raise UsageError(
            f"--plot={kind}: there is curves, rate_distortion, or a setting that differs between "
            f"the runs ({', '.join(settings[0].values) or 'none does'}).{did_you_mean(kind, kinds)}"
        )
    save_canvas(kinds[kind](), path)


def _curves(settings: Sequence[Setting]) -> Any:
    """Draws validation figures by epoch: a thin line for each seed, a thick one for their mean."""
    records = [[_metrics(run) for run in setting.runs.values()] for setting in settings]
    first = records[0][0][0] if records[0][0] else {}
    names = [name for name in _TITLES if f"validation/{name}" in first]
    names = names if "elbo" in names else ["loss"]
    canvas, axes = make_canvas(4.0 * len(names), 3.6, len(names))
    for place, name in zip(np.ravel(axes), names, strict=True):
        for setting, colour, runs in zip(settings, _colours(len(settings)), records, strict=True):
            curves = [_curve(lines, f"validation/{name}") for lines in runs]
            for curve in curves if len(curves) > 1 else ():
                place.plot(*zip(*curve.items(), strict=True), color=colour, lw=0.7, alpha=0.5)
            common = [at for at in curves[0] if all(at in curve for curve in curves)]
            means = [statistics.fmean(curve[at] for curve in curves) for at in common]
            mark = "o" if len(common) == 1 else ""
            place.plot(common, means, color=colour, lw=1.8, marker=mark, label=str(setting))
        place.set(title=_TITLES.get(name, name), xlabel="epoch", ylabel="nats per example")
        place.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        place.grid(alpha=0.3)
    _legend(canvas, place, len(settings))
    return canvas


def _against(settings: Sequence[Setting], name: str, figure: str) -> Any:
    """Draws a test figure against a setting: a dot for each seed, means with 95 % t intervals."""
    values = sorted({each.values[name] for each in settings}, key=_in_line)
    numbers = all(isinstance(value, int | float) for value in values)
    at = {
        value: float(value) if isinstance(value, int | float) and numbers else float(number)
        for number, value in enumerate(values)
    }
    lines: dict[str, list[Setting]] = {}
    for setting in settings:
        others = {key: value for key, value in setting.values.items() if key != name}
        lines.setdefault(in_words(others), []).append(setting)
    canvas, place = make_canvas(6.4 if len(lines) == 1 else 7.6, 4.2)
    for (label, line), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        line = [each for each in line if each.figure(f"test/{figure}")]
        line.sort(key=lambda each: at[each.values[name]])
        seeds = [[*each.figure(f"test/{figure}").values()] for each in line]
        places = [at[each.values[name]] for each in line]
        intervals = [mean_interval(found) for found in seeds]
        for x, found in zip(places, seeds, strict=True):
            place.plot([x] * len(found), found, ".", color=colour, alpha=0.5, ms=5)
        place.errorbar(
            places,
            [interval.mean for interval in intervals],
            yerr=[interval.half_width or 0.0 for interval in intervals],
            color=colour,
            capsize=3,
            marker="o",
            label=label,
        )
    if numbers and min(at.values()) > 0 and max(at.values()) / min(at.values()) >= 8:
        place.set_xscale("log", base=2)
    if not numbers or len(values) <= 8:
        place.set_xticks([at[value] for value in values], [shown(value) for value in values])
    place.set(xlabel=name, ylabel=_with_unit(settings, figure))
    place.grid(alpha=0.3)
    if len(lines) > 1:
        _legend(canvas, place, len(lines))
    return canvas


def _rate_distortion(settings: Sequence[Setting]) -> Any:
    """Draws distortion against rate (Alemi et al. 2018, arXiv:1711.00464).

    One line joins the settings on the frontier: mixtures of two models reach what lies between
    them. Another line is a bound: for every model distortion + rate is at least the entropy of the
    data, which is at most the smallest NLL that was found. Dashed lines are of equal ELBO.
    """
    with_both = [each for each in settings if each.figure(RATE) and each.figure(DISTORTION)]
    if not with_both:
        raise UsageError(
            "--plot=rate_distortion: no run has both test figures, kl and reconstruction."
        )
    canvas, place = make_canvas(7.6, 4.8)
    means = []
    for setting, colour in zip(with_both, _colours(len(with_both)), strict=True):
        rates, distortions = setting.figure(RATE), setting.figure(DISTORTION)
        pairs = [(rates[seed], distortions[seed]) for seed in rates if seed in distortions]
        if len(pairs) > 1:
            place.plot(*zip(*pairs, strict=True), ".", color=colour, alpha=0.5, ms=5)
        rate, distortion = (statistics.fmean(values) for values in zip(*pairs, strict=True))
        place.plot(rate, distortion, "o", color=colour, label=str(setting))
        means.append((rate, distortion))
    frontier = frontier_of(means)
    if len(frontier) > 1:
        place.plot(*zip(*frontier, strict=True), color="0.2", lw=1.2, zorder=1, label="frontier")
    place.margins(0.12)
    _lines_of_equal_elbo(place)
    likelihoods = [value for each in with_both for value in each.figure(NLL).values()]
    if likelihoods:
        _line_of_entropy(place, min(likelihoods))
    place.set(xlabel="rate: KL divergence (nats)", ylabel="distortion: -log p(x|z) (nats)")
    place.grid(alpha=0.3)
    _legend(canvas, place, len(with_both) + 2)
    return canvas


def frontier_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the corners of the convex hull of points that no mixture of others dominates.

    They are the lower side of the hull from the smallest x to the smallest y. Further right, y is
    larger as well.

    >>> frontier_of([(0.0, 4.0), (1.0, 2.0), (2.0, 2.0), (3.0, 0.0), (3.0, 5.0), (4.0, 1.0)])
    [(0.0, 4.0), (1.0, 2.0), (3.0, 0.0)]
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and hull[-1][0] == x:
            continue  # above the last one
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                break
            hull.pop()
        hull.append((x, y))
    lowest = min(range(len(hull)), key=lambda at: hull[at][1])
    return hull[: lowest + 1]


def _line_of_entropy(place: Any, nll: float) -> None:
    """Draws the line of rate + distortion = `nll` across a plot, whose limits stay."""
    (left, right), limits = place.get_xlim(), place.get_ylim()
    place.plot(
        [left, right],
        [nll - left, nll - right],
        color="C3",
        lw=1.2,
        ls="-.",
        zorder=1,
        label=f"entropy of the data, at most {nll:.1f}",
    )
    place.set(xlim=(left, right), ylim=limits)


def _lines_of_equal_elbo(place: Any) -> None:
    """Draws lines of equal rate + distortion, the negative ELBO, across a plot."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (low, high) = place.get_xlim(), place.get_ylim()
    for total in MaxNLocator(6).tick_values(left + low, right + high):
        x = np.clip([total - high, total - low], left, right)
        if x[0] < min(x[1], right - 0.12 * (right - left)):  # there is room for the words
            place.plot(x, total - x, color="0.6", lw=0.8, ls="--", zorder=0)
            place.annotate(
                f"ELBO {-total:g}",
                (x[0], total - x[0]),
                (3, -2),
                textcoords="offset points",
                fontsize=7,
                color="0.4",
                va="top",
            )
    place.set(xlim=(left, right), ylim=(low, high))


def _metrics(run: Record) -> list[dict[str, Any]]:
    return directory.read_metrics(Path(str(run["path"]), directory.METRICS))


def _curve(records: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    return {each["epoch"]: each[key] for each in records if each.get(key) is not None}


def _colours(count: int) -> list[Any]:
    """Returns colours that are easy to tell apart; of more than ten, those of a scale."""
    import matplotlib

    if count <= 10:
        return [f"C{at}" for at in range(count)]
    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, count)))


def _legend(canvas: Any, place: Any, count: int) -> None:
    columns = -(-count // 16)
    place.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), ncols=columns, fontsize=8)


def _with_unit(settings: Sequence[Setting], figure: str) -> str:
    units = [run[f"units/{figure}"] for each in settings for run in each.runs.values()]
    unit = next((unit for unit in units if unit), None)
    return f"{short(figure)} ({unit})" if unit else short(figure)


def _in_line(value: Scalar) -> tuple[bool, bool, float, str]:
    """Returns by what values are ordered along an axis: numbers, then texts, then none."""
    number = float(value) if isinstance(value, int | float) else None
    return value is None, number is None, number or 0.0, str(value)
