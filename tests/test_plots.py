"""Pictures as PNG files: each is read back, and the figure behind it is looked at.

`drawn` keeps the figure that a function saves. Bounding boxes are in inches, as is a figure's size.
"""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from vae_research import save_bars, save_plane, save_scatter
from vae_research.plots import save_curves

CODES = np.random.default_rng(0).normal(size=(300, 2)) * [1.0, 3.0]
BARS = {"slow": [30.0, 10.0, 20.0], "fast": [4.0, 3.0, 5.0, 9.0], "other": [7.0]}
RECORDS = [
    {
        "epoch": epoch,
        **{f"train/{name}": 10.0 * epoch for name in ("loss", "elbo", "kl", "reconstruction")},
        **{f"validation/{name}": 11.0 * epoch for name in ("loss", "elbo", "kl")},
    }
    for epoch in (1, 2, 3)
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Calls a function with a path; returns the figure it saved there, and the pixels."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)

    def draw(function, *args, **options):
        path = tmp_path / "picture.png"
        function(path, *args, **options)
        assert path.read_bytes().startswith(b"\x89PNG")
        return figures[-1], matplotlib.image.imread(path)

    return draw


def assert_whole(figure):
    """Nothing of a figure is beyond its edges."""
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0.0
    assert box.x1 <= width
    assert box.y1 <= height


def legend_of(plot):
    """Returns `{text: colour}` of a legend."""
    legend = plot.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    colours = [handle.get_facecolor() for handle in legend.legend_handles]
    return dict(zip(texts, colours, strict=True))


@pytest.mark.slow
def test_every_function_draws_without_display_pyplot_and_tensorflow(tmp_path, without_tensorflow):
    code = f"""
import sys
from vae_research import save_bars, save_plane, save_scatter
from vae_research.plots import save_curves

codes = [[0.0, 1.0], [2.0, 3.0], [4.0, 7.0]]
import numpy as np
save_scatter("scatter.png", np.array(codes), np.array([0, 1, 1]), title="title")
save_plane("plane.png", np.eye(4)[..., None], (0, 0), (1, 1), title="title")
save_bars("bars.png", {BARS}, title="title", unit="ms")
save_curves("curves.png", {RECORDS})
assert "matplotlib.pyplot" not in sys.modules
"""
    hidden = {"DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    checkout = Path(__file__).resolve().parents[1]
    environment["PYTHONPATH"] = os.pathsep.join([str(without_tensorflow), str(checkout)])
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert (process.returncode, process.stderr, process.stdout) == (0, "", "")
    for name in ("scatter", "plane", "bars", "curves"):
        pixels = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
        assert (pixels[..., 3] == 1.0).all()  # on a dark page letters must have their white ground


# ---------------------------------------------------------------- codes


@pytest.mark.parametrize("count", [1, 2, 10, 11, 13, 20])
def test_classes_have_colours_of_their_own(drawn, count):
    # Labels have gaps and the smallest comes last.
    labels = 3 * (count - np.arange(len(CODES)) % count)
    figure, _ = drawn(save_scatter, CODES, labels, title="a title")
    (plot,) = figure.axes
    points = plot.collections[0]
    np.testing.assert_array_equal(points.get_offsets(), CODES)
    legend = legend_of(plot)
    assert list(legend) == [str(label) for label in sorted(set(labels))]
    assert len({to_hex(colour) for colour in legend.values()}) == count
    for index in range(count):
        # A point and its mark differ by how far one sees through the point.
        assert to_hex(points.get_facecolors()[index]) == to_hex(legend[str(labels[index])][0])
    assert_whole(figure)


def test_a_colour_is_that_of_the_class_and_not_of_its_frequency(drawn):
    """The same two of three classes, whichever comes first."""
    few = np.arange(len(CODES)) % 3
    first, _ = drawn(save_scatter, CODES, few, title="")
    again, _ = drawn(save_scatter, CODES[::-1], np.flip(few), title="")
    colours = [
        {text: to_hex(colour[0]) for text, colour in legend_of(figure.axes[0]).items()}
        for figure in (first, again)
    ]
    assert colours[0] == colours[1]


def test_a_scatter_says_what_it_shows(drawn):
    labels = np.arange(len(CODES)) % 4
    figure, _ = drawn(save_scatter, CODES, labels, title="a title")
    (plot,) = figure.axes
    found = (plot.get_title(), plot.get_xlabel(), plot.get_ylabel())
    assert found == ("a title", "z[0]", "z[1]")
    assert plot.get_legend().get_title().get_text() == "label"
    figure, _ = drawn(save_scatter, CODES, labels, title="a title", axes=("first", "second"))
    (plot,) = figure.axes
    assert (plot.get_xlabel(), plot.get_ylabel()) == ("first", "second")


def test_a_unit_is_as_long_on_both_axes(drawn):
    figure, _ = drawn(save_scatter, CODES, np.zeros(len(CODES), int), title="")
    (plot,) = figure.axes
    (left, bottom), (right, top) = plot.transData.transform([(0.0, 0.0), (1.0, 1.0)])
    assert right - left == pytest.approx(top - bottom, rel=0.01)  # 22 pixels
    low, high = plot.viewLim.min, plot.viewLim.max
    assert (low < CODES.min(axis=0)).all()
    assert (high > CODES.max(axis=0)).all()


def test_the_legend_of_many_classes_is_whole(drawn):
    figure, _ = drawn(save_scatter, CODES, np.arange(len(CODES)) % 30, title="")
    assert len(legend_of(figure.axes[0])) == 30
    assert_whole(figure)


def test_the_title_of_the_t_sne_picture_is_whole(drawn):
    title = "t-SNE of 16 latent dimensions, VAE, factor 0.00065 (beta 0.031): test images"
    figure, _ = drawn(save_scatter, CODES, np.arange(len(CODES)) % 10, title=title)
    assert_whole(figure)


# ---------------------------------------------------------------- plane


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_plane_has_z0_to_the_right_and_z1_upwards(drawn, channels, row, column):
    """One quarter of the picture is white: it must be at the same corner of the axes."""
    picture = np.zeros((30, 40, channels))
    picture[15 * row : 15 * row + 15, 20 * column : 20 * column + 20] = 1.0
    low, high = (-1.0, 2.0), (3.0, 9.0)
    figure, pixels = drawn(save_plane, picture, low, high, title="a title")
    (plot,) = figure.axes
    found = (plot.get_title(), plot.get_xlabel(), plot.get_ylabel())
    assert found == ("a title", "z[0]", "z[1]")
    assert (*plot.get_xlim(), *plot.get_ylim()) == (-1.0, 3.0, 2.0, 9.0)
    assert_whole(figure)
    # The centres of the quarters are at z[0] = 0 and 2, z[1] = 7.25 and 3.75.
    height, width = pixels.shape[:2]
    size = figure.get_size_inches() * figure.dpi
    for j, z1 in enumerate((7.25, 3.75)):
        for i, z0 in enumerate((0.0, 2.0)):
            x, y = plot.transData.transform((z0, z1)) / size
            shown = pixels[int((1.0 - y) * height), int(x * width), :3]
            np.testing.assert_allclose(shown, float((j, i) == (row, column)), atol=0.01)


def test_grey_is_not_stretched(drawn):
    figure, pixels = drawn(save_plane, np.full((8, 8, 1), 0.25), (0.0, 0.0), (1.0, 1.0), title="")
    (image,) = figure.axes[0].images
    assert image.get_clim() == (0.0, 1.0)
    height, width = pixels.shape[:2]
    np.testing.assert_allclose(pixels[height // 2, width // 2, :3], 0.25, atol=0.01)


# ---------------------------------------------------------------- bars


def test_bars_are_medians_and_lines_run_from_min_to_max(drawn):
    figure, _ = drawn(save_bars, BARS, title="a title", unit="time, ms")
    (plot,) = figure.axes
    assert (plot.get_title(), plot.get_xlabel()) == ("a title", "time, ms")
    assert [bar.get_width() for bar in plot.patches] == [20.0, 4.5, 7.0]
    assert [bar.get_x() for bar in plot.patches] == [0.0, 0.0, 0.0]
    assert plot.get_xlim()[0] == 0.0
    lines = [segment for lines in plot.collections for segment in lines.get_segments()]
    ends = [(line[:, 0].min(), line[:, 0].max()) for line in lines]
    assert ends == [(10.0, 30.0), (3.0, 9.0), (7.0, 7.0)]
    assert plot.get_xlim()[1] > 30.0
    assert plot.get_legend() is None
    assert_whole(figure)


def test_bars_are_named_from_the_top(drawn):
    figure, _ = drawn(save_bars, BARS, title="", unit="ms")
    (plot,) = figure.axes
    shown = sorted(
        (plot.transData.transform((0.0, row))[1], text.get_text())
        for row, text in zip(plot.get_yticks(), plot.get_yticklabels(), strict=True)
    )
    assert [text for _, text in shown[::-1]] == ["slow", "fast", "other"]
    # A bar is beside its own name, and the number after it is its median.
    for row, bar in enumerate(plot.patches):
        assert bar.get_y() + bar.get_height() / 2.0 == pytest.approx(row)
    assert [text.get_text() for text in plot.texts] == ["20", "4.5", "7"]
    assert [text.xy for text in plot.texts] == [(30.0, 0), (9.0, 1), (7.0, 2)]


def test_groups_have_a_colour_and_a_line_in_the_legend(drawn):
    groups = {"slow": "compiled", "fast": "with XLA", "other": "compiled"}
    figure, _ = drawn(save_bars, BARS, title="", unit="ms", groups=groups)
    (plot,) = figure.axes
    colours = [to_hex(bar.get_facecolor()) for bar in plot.patches]
    assert colours[0] == colours[2] != colours[1]
    legend = plot.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["compiled", "with XLA"]
    assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == colours[:2]
    assert_whole(figure)


@pytest.mark.slow
def test_many_bars_with_long_names_are_whole(drawn):
    values = {f"the formulation number {row} of thirty": [1.0, 100.0 * row] for row in range(30)}
    groups = {name: f"a group {len(name)}" for name in values}
    figure, _ = drawn(save_bars, values, title="a title", unit="ms", groups=groups)
    assert_whole(figure)


def test_small_medians_can_be_read(drawn):
    figure, _ = drawn(save_bars, {"kernel": [0.04, 0.04]}, title="", unit="ms")
    assert [float(text.get_text()) for text in figure.axes[0].texts] == [0.04]


# ---------------------------------------------------------------- curves


def test_curves_of_a_vae(drawn):
    figure, _ = drawn(save_curves, RECORDS)
    titles = [plot.get_title() for plot in figure.axes]
    assert titles == ["reconstruction", "KL divergence", "ELBO"]
    for plot, splits in zip(figure.axes, [1, 2, 2], strict=True):
        labels = ["train", "validation"][:splits]
        assert [line.get_label() for line in plot.lines] == labels
        for line, factor in zip(plot.lines, (10.0, 11.0), strict=False):
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
            np.testing.assert_allclose(line.get_ydata(), factor * np.array([1, 2, 3]))
        assert [text.get_text() for text in plot.get_legend().get_texts()] == labels
        assert (plot.get_xlabel(), plot.get_ylabel()) == ("epoch", "nats per example")
    assert_whole(figure)


def test_curves_of_a_model_without_elbo(drawn):
    names = ("epoch", "train/loss", "validation/loss", "train/reconstruction")
    records = [{name: record[name] for name in names} for record in RECORDS]
    figure, _ = drawn(save_curves, records)
    (plot,) = figure.axes
    assert plot.get_title() == "loss"
    assert [len(line.get_xdata()) for line in plot.lines] == [3, 3]


def test_curves_of_one_epoch_have_a_point(drawn):
    figure, _ = drawn(save_curves, RECORDS[:1])
    for line in figure.axes[0].lines:
        assert line.get_marker() == "o"


def test_the_epochs_of_one_epoch_are_integers(drawn):
    figure, _ = drawn(save_curves, RECORDS[:1])
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())
