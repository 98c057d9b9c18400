"""scripts/compare --plot: what is drawn, and the files that are written."""

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from tests.run_directories import figure, write_run, write_sweep
from tests.test_plots import assert_whole
from vae_research.evaluation.replicates import mean_interval
from vae_research.runs.tools import compare

pytestmark = pytest.mark.slow


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "sweep")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Calls the command; returns the figure that it saved, and the file."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)

    def draw(folder, kind, *flags, ending=".png"):
        path = tmp_path / f"plot{ending}"
        assert compare.main([str(folder), f"--plot={kind}", f"--to={path}", *flags]) == 0
        return figures[-1], path

    return draw


def labels(canvas):
    (legend,) = [axes.get_legend() for axes in canvas.axes if axes.get_legend()]
    return [text.get_text() for text in legend.get_texts()]


def test_a_figure_against_a_setting_has_intervals_over_seeds(sweep, drawn):
    canvas, _ = drawn(sweep, "kl_weight")
    (axes,) = canvas.axes
    (bars,) = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]
    expected = [
        mean_interval([figure(weight, seed) for seed in range(4)]) for weight in (0.5, 1, 2)
    ]
    np.testing.assert_allclose(bars[0].get_xydata()[:, 0], [0.5, 1.0, 2.0])
    np.testing.assert_allclose(bars[0].get_xydata()[:, 1], [each.mean for each in expected])
    ends = np.array([segment[:, 1] for segment in bars[2][0].get_segments()])
    half_widths = [each.half_width for each in expected]
    np.testing.assert_allclose(np.diff(ends)[:, 0] / 2, half_widths)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("kl_weight", "NLL (nats)")
    assert_whole(canvas)


def test_further_settings_are_lines_and_texts_are_places(tmp_path, drawn):
    for network in ("dense", "convolutional"):
        for dim in (2, 20):
            more = {"network": network}
            write_run(
                tmp_path / "runs" / f"{network}{dim}", {"elbo": -dim}, latent_dim=dim, more=more
            )
    canvas, _ = drawn(tmp_path / "runs", "network", "--figures=elbo")
    assert sorted(labels(canvas)) == ["latent_dim=2", "latent_dim=20"]
    (axes,) = canvas.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["convolutional", "dense"]
    canvas, _ = drawn(tmp_path / "runs", "latent_dim", "--figures=elbo")
    assert sorted(labels(canvas)) == ["network=convolutional", "network=dense"]
    assert canvas.axes[0].get_xscale() == "log"
    assert_whole(canvas)


def test_curves_have_a_line_for_each_seed_and_their_mean(tmp_path, drawn):
    curves = {0: [-110.0, -105.0, -103.0], 1: [-112.0, -106.0]}  # one has stopped early
    for seed, curve in curves.items():
        write_run(tmp_path / "runs" / f"{seed}", seed=seed, curve=curve)
    write_run(tmp_path / "runs" / "wide", latent_dim=9, curve=[-108.0])
    canvas, _ = drawn(tmp_path / "runs", "curves")
    assert [axes.get_title() for axes in canvas.axes] == ["reconstruction", "KL divergence", "ELBO"]
    lines = [line.get_xydata().tolist() for line in canvas.axes[2].lines]
    assert [[1, -110.0], [2, -105.0], [3, -103.0]] in lines
    assert [[1, -111.0], [2, -105.5]] in lines
    assert [[1, -108.0]] in lines
    assert len(lines) == 4
    assert sorted(labels(canvas)) == ["latent_dim=2", "latent_dim=9"]
    assert_whole(canvas)


def test_rate_and_distortion_are_those_of_the_test_figures(tmp_path, drawn):
    points = {(1.0, 0): (25.0, 80.0), (1.0, 1): (27.0, 81.0), (4.0, 0): (12.0, 95.0)}
    for (weight, seed), (rate, distortion) in points.items():
        test = {"kl": rate, "reconstruction": distortion, "elbo": -rate - distortion}
        write_run(tmp_path / "runs" / f"{weight},{seed}", test, kl_weight=weight, seed=seed)
    canvas, _ = drawn(tmp_path / "runs", "rate_distortion")
    (axes,) = canvas.axes
    lines = [line.get_xydata() for line in axes.lines]
    assert any(np.array_equal(line, [[26.0, 80.5]]) for line in lines)  # the mean of two seeds
    assert any(np.array_equal(line, [[12.0, 95.0]]) for line in lines)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed
    for line, text in zip(dashed, axes.texts, strict=True):
        elbo = float(text.get_text().removeprefix("ELBO "))
        np.testing.assert_allclose(line.get_xydata().sum(axis=1), -elbo)
    assert_whole(canvas)


def test_more_than_ten_settings_have_colours_of_a_scale(tmp_path, drawn):
    for dim in range(2, 14):
        write_run(tmp_path / "runs" / f"{dim}", latent_dim=dim)
    canvas, _ = drawn(tmp_path / "runs", "curves")
    colours = {str(line.get_color()) for line in canvas.axes[2].lines}
    assert len(colours) == len(labels(canvas)) == 12


@pytest.mark.parametrize(
    ("ending", "start"),
    [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PDF", b"%PDF")],
)
def test_the_ending_of_the_file_decides_and_equal_runs_give_equal_files(
    sweep,
    drawn,
    ending,
    start,
):
    contents = {drawn(sweep, "kl_weight", ending=ending)[1].read_bytes() for _ in range(2)}
    (content,) = contents
    assert content.startswith(start)
