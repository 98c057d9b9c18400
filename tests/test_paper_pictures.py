"""scripts/figure: pictures with labels, animations, curves, and wrong uses."""

import json

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

import vae_research as vr
from tests import forks
from tests.run_directories import write_run
from tests.test_plots import assert_whole
from vae_research.runs.cli.config import Config
from vae_research.runs.report import paper_pictures
from vae_research.runs.session import loading
from vae_research.runs.session.loading import Run
from vae_research.runs.tools import figure

RNG = np.random.default_rng(0)
DATA = vr.Data.from_arrays(RNG.integers(0, 256, (60, 6, 8, 1), dtype=np.uint8), kind="images")
LATENT = 3


def model_of(bottleneck, data, outputs=("z_mean", "z_log_var"), **options):
    import keras

    width = 8
    encoder = keras.Sequential(
        [keras.Input(data.shape), keras.layers.Flatten(), keras.layers.Dense(len(outputs) * LATENT)]
    )
    decoder = keras.Sequential(
        [
            keras.Input((LATENT,)),
            keras.layers.Dense(width),
            keras.layers.Dense(int(np.prod(data.shape))),
            keras.layers.Reshape(data.shape),
        ]
    )
    terms = [vr.Bernoulli(), *([vr.KLDivergence()] if bottleneck.has_prior else [])]
    return vr.VAE(
        vr.named(encoder, *outputs), bottleneck, vr.named(decoder, "logits"), terms, **options
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose model is not trained."""
    path = write_run(tmp_path_factory.mktemp("figure") / "run", status="unfinished")
    return Run(path, model_of(vr.GaussianBottleneck(LATENT), DATA), DATA, Config(), None)


@pytest.fixture
def saved(monkeypatch):
    """The figures that were saved, in order."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def words(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def image_of(figure):
    (axes,) = figure.axes
    (image,) = axes.get_images()
    return axes, np.asarray(image.get_array())


@pytest.mark.slow
def test_reconstructions_are_labelled_pairs(run, saved, tmp_path):
    paper_pictures.save_picture(run, "reconstructions", tmp_path / "a.png", 4)
    axes, picture = image_of(saved[-1])
    assert words(axes) == ["x", "mean of p(x|z)"] * 2
    images = DATA.test.prepare(slice(0, 8))
    shown = run.model.reconstruct(images).numpy()
    assert picture.shape == (4 * 8 - 2, 4 * 10 - 2)  # images of 6 x 8, gaps of 2
    np.testing.assert_allclose(picture[:6, :8], images[0, ..., 0], rtol=1e-6)
    np.testing.assert_allclose(picture[8:14, 10:18], shown[1, ..., 0], rtol=1e-5)
    np.testing.assert_allclose(picture[24:30, :8], shown[4, ..., 0], rtol=1e-5)
    # A label stands at the middle of its row.
    np.testing.assert_allclose(axes.get_yticks(), [2.0, 10.0, 18.0, 26.0])
    assert_whole(saved[-1])
    assert Image.open(tmp_path / "a.png").size[0] >= 4 * 90  # pixels


@pytest.mark.slow
def test_traversals_name_dimension_and_divergence(run, saved, tmp_path):
    paper_pictures.save_picture(run, "traversals", tmp_path / "a.pdf", 4)
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    axes, picture = image_of(saved[-1])
    kl = run.model.infer(DATA.test.prepare())["kl"].numpy().mean(axis=0)
    order = np.argsort(-kl)
    assert words(axes) == [f"z[{at}], KL {kl[at]:.2f} nats" for at in order]
    heads = [text.get_text() for text in axes.get_xticklabels()]
    assert heads == ["-3", "-2", "-1", "0", "1", "2", "3"]
    # The first picture of the second row: its dimension at -3 deviations of the prior.
    code = run.model.encode(DATA.test.prepare(slice(0, 1))).numpy()
    prior = run.model.codes_from_prior(1000, [1, 0])["z"].numpy()
    code[0, order[1]] = prior[:, order[1]].mean() - 3 * prior[:, order[1]].std()
    expected = run.model.decode(code).numpy()[0, ..., 0]
    np.testing.assert_allclose(picture[8:14, :8], expected, rtol=1e-4)
    assert_whole(saved[-1])


@pytest.mark.slow
def test_an_animation_moves_to_and_fro(run, tmp_path):
    paper_pictures.save_picture(run, "traversals", tmp_path / "a.gif", 4)
    with Image.open(tmp_path / "a.gif") as found:
        assert found.info["loop"] == 0
        assert found.info["duration"] == 80
        frames = []
        for at in range(found.n_frames):
            found.seek(at)
            frames.append(np.asarray(found.convert("RGB"), np.float32))
    assert len(frames) == 48  # 25 there, 23 back
    there, back = frames[1], frames[-1]
    np.testing.assert_array_equal(there, back)
    assert np.abs(frames[0] - frames[24]).max() > 50


@pytest.mark.slow
def test_samples_are_those_of_the_model(run, saved, tmp_path):
    paper_pictures.save_picture(run, "samples", tmp_path / "a.svg", 3)
    _, picture = image_of(saved[-1])
    expected = run.model.sample(12, seed=0).numpy()
    np.testing.assert_allclose(picture[24:30, 20:28], expected[11, ..., 0], rtol=1e-5)


@pytest.mark.slow
def test_what_a_model_lacks_is_said(run, saved, tmp_path):
    path = tmp_path / "a.png"
    plain = model_of(vr.DeterministicBottleneck(LATENT), DATA, outputs=("z_mean",))
    with pytest.raises(vr.runs.UsageError, match=r"has no prior: it has no samples\."):
        paper_pictures.save_picture(Run(run.path, plain, DATA, Config(), None), "samples", path, 4)
    paper_pictures.save_picture(Run(run.path, plain, DATA, Config(), None), "traversals", path, 4)
    assert all(" variance " in label for label in words(saved[-1].axes[0]))
    table = vr.Data.from_arrays(RNG.normal(size=(60, 5)))
    with pytest.raises(vr.runs.UsageError, match="are no images: there are only curves"):
        paper_pictures.save_picture(Run(run.path, plain, table, Config(), None), "samples", path, 4)


@pytest.mark.slow
def test_curves_need_no_tensorflow(run, tmp_path, without_tensorflow):
    metrics = run.path / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    for record in records:
        record |= {"train/elbo": -120.0, "train/loss": 120.0}
    copy = write_run(tmp_path / "run", status="unfinished")
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    process = forks.run(
        *("-m", "vae_research.runs.tools.figure", copy, "curves", "--format=pdf"),
        cwd=tmp_path,
        first=without_tensorflow,
    )
    assert (process.returncode, process.stderr) == (0, "")
    path = copy / "figures/paper_curves.pdf"
    assert process.stdout == f"Written to {path}\n"
    assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_command_loads_the_checkpoint_that_it_was_asked_for(run, tmp_path, monkeypatch, capsys):
    asked = []

    def load_run(path, which):
        asked.append((path, which))
        return run

    monkeypatch.setattr(loading, "load_run", load_run)
    to = tmp_path / "a.png"
    arguments = [str(run.path), "samples", f"--to={to}", "--which=best", "--columns=2"]
    assert figure.main(arguments) == 0
    assert asked == [(run.path, "best")]
    assert capsys.readouterr().out == f"Written to {to}\n"
    assert to.exists()


def test_every_wrong_use_is_one_line_and_an_exit_code(run, tmp_path, capsys):
    empty = write_run(tmp_path / "run", status="unfinished")
    (empty / "metrics.jsonl").write_text("")
    damaged = write_run(tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    for arguments, exit_code, message in (
        ([], 2, "give a run and one of samples, reconstructions, traversals, curves"),
        ([run.path], 2, "give a run and one of"),
        ([run.path, "sample"], 2, "Did you mean 'samples'?"),
        ([run.path, "samples", "curves"], 2, "give a run and one of"),
        ([tmp_path / "no", "samples"], 2, "holds no run: there is no config.json"),
        ([empty, "curves"], 2, "has no curves: no epoch is complete"),
        ([empty, "samples"], 4, "has no checkpoint"),
        ([damaged, "curves"], 4, "config.json cannot be read"),
        ([run.path, "curves", "--format=jpg"], 2, "must be one of png, svg, pdf, gif"),
        ([run.path, "curves", "--format=gif"], 2, "only traversals are animated"),
        ([run.path, "curves", "--to=a.jpg"], 2, "the file must end in one of png, svg, pdf, gif"),
        ([run.path, "curves", "--to=a.png", "--format=pdf"], 2, "the file must end in pdf"),
        ([run.path, "curves", f"--to={tmp_path}/no/a.png"], 2, "there is no folder"),
        ([run.path, "samples", "--columns=0"], 2, "--columns=0: must be an integer >= 1"),
        ([run.path, "samples", "--wich=best"], 2, "unknown flag --wich. Did you mean 'which'?"),
        ([run.path, "samples", "--which=first"], 2, "--which=first: must be one of last, best"),
    ):
        assert figure.main([str(argument) for argument in arguments]) == exit_code
        output = capsys.readouterr()
        assert (output.out, output.err.count("\n")) == ("", 1)
        assert output.err.startswith("figure: ")
        assert message in output.err
    assert sorted(tmp_path.rglob("*")) == before
