"""Codes beside known factors: the callback, `--disentanglement` in a run, and what shows it."""

import json
import re

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vae_research as vr
from tests import forks
from tests.run_directories import write_run
from vae_research.callbacks import pictures as pictures_module
from vae_research.callbacks.disentanglement import factor_traversals, heat_map
from vae_research.callbacks.tensorboard import labelled
from vae_research.evaluation import SCORES
from vae_research.evaluation.encoding import encode_data, some_rows
from vae_research.evaluation.factor_scores import FAST, METRICS, FactorScores, factor_scores
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session import factors as factors_module
from vae_research.runs.session.factors import METRIC_NAMES
from vae_research.runs.tools import compare

RNG = np.random.default_rng(0)
NAMES = ("x", "y", "size")


def squares(count, seed=0):
    """Images 8 x 8 of a square, and its place and size, `[count, 3]`."""
    random = np.random.default_rng(seed)
    factors = random.integers((5, 5, 2), size=(count, 3))
    images = np.zeros((count, 8, 8), np.uint8)
    for image, (x, y, size) in zip(images, factors, strict=True):
        image[y : y + 2 + size, x : x + 2 + size] = 255
    return images, factors


IMAGES, FACTORS = squares(400)


def knowing(factors, noise=0.05):
    """Codes of which each has one factor, and a last one that has none."""
    codes = np.concatenate([factors, np.zeros((len(factors), 1))], axis=1)
    return (codes + noise * RNG.normal(size=codes.shape)).astype(np.float32)


CODES = knowing(FACTORS)
LABELS = ["z[0]", "z[1]", "z[2]", "z[3]"]


# Scores.


@pytest.mark.slow
def test_all_scores_have_a_name_that_tables_and_tags_know():
    found = factor_scores(CODES, FACTORS, LABELS, NAMES, seed=1)
    assert set(found.figures) == set(SCORES)
    assert FAST.keys() <= METRICS.keys() == {*METRIC_NAMES}
    for name, each in found.figures.items():
        assert each.count == 400 and each.standard_error is not None, name
        least = 0.3 if name == "sap" else 0.6  # of five ordered values a line cuts off two
        assert least < each.value <= 1.0, name  # the codes are the factors, but for a small noise
    assert found.information.shape == (4, 3)
    (note,) = found.notes
    # The bias of mutual information in 20 bins, of the factor with most values: 19 * 4 / 800.
    assert "x, y, size" in note and "400 examples" in note and "0.10 nats too large" in note


def test_scores_are_those_of_the_metrics():
    found = factor_scores(CODES, FACTORS, LABELS, NAMES, seed=3, metrics=FAST, repeats=1)
    expected = vr.disentanglement.sap(CODES, FACTORS, seed=3, repeats=1)
    assert found.figures["sap"].value == expected.value
    assert found.figures["sap"].standard_error is None
    information = vr.disentanglement.mutual_information(CODES, FACTORS)
    np.testing.assert_array_equal(found.information, information)
    np.testing.assert_allclose(found.entropies, [np.log(5), np.log(5), np.log(2)], rtol=0.02)


def test_a_code_is_beside_the_factor_of_largest_information():
    permuted = CODES[:, [2, 3, 0, 1]]
    found = factor_scores(permuted, FACTORS, LABELS, NAMES, metrics={})
    assert [found.label([code]).split(",")[0] for code in (0, 2, 3)] == [
        *("z[0]: size", "z[2]: x", "z[3]: y")
    ]
    number = found.information[2, 0]
    assert found.label([2]) == f"z[2]: x, {number:.2f} nats"
    assert found.label([1, 2]) == f"z[1] to z[2]: x, {number:.2f} nats"
    np.testing.assert_array_equal(found.most_informative(3), [0, 2, 3])


def test_factors_of_one_value_and_metrics_that_fail_are_said():
    constant = np.column_stack([FACTORS[:, 0], np.zeros(400, int)])
    found = factor_scores(CODES, constant, LABELS, ["x", "hue"])
    assert found.factors == ["x"] and "(hue: one value only)" in found.notes[0]
    assert "mig" in found.figures and "dci_disentanglement" not in found.figures
    assert any("dci is left out: DCI" in note for note in found.notes)
    bad = CODES.copy()
    bad[3, 1] = np.nan
    found = factor_scores(bad, FACTORS, LABELS, NAMES)
    assert not found.figures and np.isnan(found.information).all()
    assert len(found.notes) == len(METRICS) and all("not finite" in note for note in found.notes)
    assert heat_map(found).min() >= 0.0  # a picture without numbers


def test_many_codes_leave_out_what_would_take_too_long():
    many = RNG.normal(size=(40, 65))
    factors = RNG.integers(2, size=(40, 2))
    metrics = {name: METRICS[name] for name in ("mig", "dci", "infomec")}
    found = factor_scores(many, factors, list(map(str, range(65))), "ab", metrics=metrics)
    assert list(found.figures) == ["mig"]
    assert [note for note in found.notes if "of 65 codes, over 64" in note] == found.notes[1:]


# Codes of a data set.


def make(bottleneck=None, size=3):
    keras.utils.set_random_seed(1)
    bottleneck = vr.GaussianBottleneck(size) if bottleneck is None else bottleneck
    model = vr.VAE(
        vr.dense_encoder((8, 8, 1), size, hidden_units=(16,)),
        bottleneck,
        vr.dense_decoder((8, 8, 1), size, hidden_units=(16,)),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    model.compile(keras.optimizers.Adam(0.01))
    return model


@pytest.fixture(scope="module")
def data():
    arrays = {"inputs": IMAGES, "factors": FACTORS}
    return vr.Data.from_arrays(arrays, arrays, arrays, factors=NAMES)


@pytest.fixture(scope="module")
def model(data):
    found = make()
    found.encode(data.test.prepare(slice(0, 1)))
    return found


def test_codes_are_those_of_encode_in_blocks(model, data):
    """700 rows, of two blocks, in any order."""
    rows = np.random.default_rng(1).integers(400, size=700)
    found = encode_data(model, data.test.tensors_by_block(), rows=rows)
    inputs = data.test.prepare(rows)
    np.testing.assert_allclose(found.codes, model.encode(inputs), atol=1e-6)
    kl = model.infer(inputs, num_samples=1)["kl"]
    np.testing.assert_allclose(found.kl, np.mean(kl, axis=0), rtol=1e-5)


def test_some_rows_are_random_and_always_the_same():
    np.testing.assert_array_equal(some_rows(5, 5), np.arange(5))
    found = some_rows(1000, 100)
    np.testing.assert_array_equal(found, some_rows(1000, 100))
    assert len(set(found)) == 100 and (np.diff(found) > 0).all()
    assert abs(found.mean() - 500) < 150  # not the first ones


# Pictures.


@pytest.fixture
def drawn(monkeypatch):
    """The words of every picture that is drawn."""
    found = []
    text = labelled.ImageDraw.ImageDraw.text

    def keep(self, place, words, *args, **options):
        found.append(words)
        return text(self, place, words, *args, **options)

    monkeypatch.setattr(labelled.ImageDraw.ImageDraw, "text", keep)
    return found


def test_a_heat_map_has_names_numbers_and_a_scale(drawn):
    scores = factor_scores(CODES, FACTORS, LABELS, NAMES, metrics={})
    picture = heat_map(scores)
    assert picture.ndim == 3 and picture.shape[-1] == 3
    assert {*LABELS, *NAMES} <= {*drawn}
    largest = scores.information.max()
    assert f"{largest:.3g} nats" in drawn and f"H {scores.entropies[0]:.2f}" in drawn
    assert sum(re.fullmatch(r"\d\.\d\d", words) is not None for words in drawn) == 12


def test_a_heat_map_has_the_codes_that_say_most(drawn):
    count = 50
    information = np.zeros((count, 1))
    information[5::1, 0] = np.arange(count - 5)
    labels = [f"c{code}" for code in range(count)]
    heat_map(FactorScores({}, information, np.ones(1), labels, ["x"], []))
    assert [words for words in drawn if words.startswith("c")] == labels[10:]


def test_the_largest_cell_is_the_brightest():
    values = np.array([[0.0, 1.0], [2.0, 0.5]])
    picture = labelled.heat_table(values, "ab", ["first", "second"], "nats")
    brightest = np.argwhere((picture == picture[..., :3]).all(axis=-1) & (picture[..., 0] > 0.98))
    table = picture[30:70, 20:120]
    assert brightest.size and table[25, 5].sum() > table[5, 5].sum()


def test_traversals_are_beside_the_factors_that_they_follow(model, data, drawn):
    shown = pictures_module.Pictures("unused", data.test.tensors(slice(0, 50)))
    labels = model.code_layout.full_labels
    scores = factor_scores(CODES[:, :3], FACTORS, labels, NAMES, metrics={})
    picture = factor_traversals(model, shown, scores)
    assert picture.shape[0] > 3 * 48  # images are enlarged
    assert drawn == [scores.label([code]) for code in shown.traversed]
    assert sorted(drawn)[0].startswith("z[0]: x, ")


def test_classes_of_a_discrete_variable_are_beside_its_factor(drawn):
    layers = keras.layers
    encoder = [layers.Flatten(), layers.Dense(8), layers.Reshape((2, 4))]
    decoder = [layers.Flatten(), layers.Dense(64), layers.Reshape((8, 8, 1))]
    model = vr.VAE(
        vr.named(keras.Sequential(encoder), "z_logits"),
        vr.RelaxedCategoricalBottleneck((2, 4)),
        vr.named(keras.Sequential(decoder), "logits"),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    images = IMAGES[:40, :, :, np.newaxis] / np.float32(255.0)
    model.report(images)
    labels = model.code_layout.full_labels
    codes = encode_data(model, {"inputs": images}).codes
    scores = factor_scores(codes, FACTORS[:40], labels, NAMES, metrics={})
    factor_traversals(model, pictures_module.Pictures("unused", images), scores)
    assert drawn == [scores.label([0, 1, 2, 3]), scores.label([4, 5, 6, 7])]
    assert drawn[0].startswith("z[0,0] to z[0,3]: ")


# The callback, alone with plain `fit`.


def fitted(folder, *callbacks, epochs=2, **options):
    model = make()
    watch = vr.Disentanglement(
        folder, {"inputs": IMAGES[:, :, :, np.newaxis] / np.float32(255.0)}, FACTORS, **options
    )
    images = IMAGES[:64, :, :, np.newaxis] / np.float32(255.0)
    history = model.fit(
        images, batch_size=32, epochs=epochs, verbose=0, callbacks=[watch, *callbacks]
    ).history
    return model, watch, history


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    metrics = vr.MetricsFile(folder / "metrics.jsonl")
    found = fitted(folder, vr.Scalars(folder), metrics, every_epochs=2, examples=100, epochs=5)
    return folder, *found


def test_curves_are_in_the_logs_of_every_other_epoch(watched):
    folder, _, callback, history = watched
    assert len(history["loss"]) == 5 and len(history["val_disentanglement/mig"]) == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = "validation/disentanglement/mig"
    assert [name in line for line in lines] == [False, True, False, True, False]
    assert [line[name] for line in lines if name in line] == history["val_disentanglement/mig"]
    assert {key.removeprefix("val_disentanglement/") for key in history if "/" in key} == {*FAST}
    assert len(callback.rows) == 100


def test_scores_of_an_epoch_are_those_of_the_codes_then(tmp_path):
    model, callback, history = fitted(tmp_path, epochs=1)
    codes = model.encode(IMAGES[:, :, :, np.newaxis] / np.float32(255.0)).numpy()
    expected = vr.disentanglement.mig(codes, FACTORS).value
    assert history["val_disentanglement/mig"] == [pytest.approx(expected, abs=1e-6)]
    assert callback.scores.factors == ["factor_0", "factor_1", "factor_2"]


def test_without_a_folder_there_are_scores_and_no_pictures(tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    _, callback, history = fitted(None, epochs=1)
    assert history["val_disentanglement/mig"] == [callback.scores.figures["mig"].value]
    assert not drawn and not list(tmp_path.iterdir())


def events(folder):
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def test_tensorboard_has_curves_and_pictures_at_their_steps(watched):
    folder, *_ = watched
    found = events(folder / "validation")
    for tag in ("disentanglement/mig", "disentanglement/mutual_information"):
        assert [event.step for event in found.Tensors(tag)] == [4, 8], tag
    assert "disentanglement/traversals" not in found.Tags()["tensors"]  # without `pictures`


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_epochs": 0}, "every_epochs must be an integer >= 1"),
        ({"examples": 2.5}, "examples must be an integer >= 1"),
    ],
)
def test_wrong_intervals_of_the_callback(options, message):
    with pytest.raises(ValueError, match=message):
        vr.Disentanglement("unused", {"inputs": IMAGES}, FACTORS, **options)


# In a run.

FLAGS = ["--batch_size=40", "--latent_dim=3", "--hidden_units=8", "--importance_samples=2"]
FLAGS += ["--jit=off", "--checkpoint_minutes=0", "--dataset=squares.npz"]


def command(folder, run_dir, *flags, **options):
    process = forks.run(
        forks.CHECKOUT / "experiments/vae_mnist.py",
        *FLAGS,
        f"--run_dir={run_dir}",
        *flags,
        cwd=folder,
        **options,
    )
    return process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run whose codes were compared, which was resumed, and the same without."""
    folder = tmp_path_factory.mktemp("runs")
    train, test = squares(80), squares(120, seed=1)
    arrays = {"train": train, "validation": test, "test": test}
    np.savez(
        folder / "squares.npz",
        **{name: images for name, (images, _) in arrays.items()},
        **{f"{name}_factors": factors for name, (_, factors) in arrays.items()},
    )
    for run_dir, *flags in (
        ("without", "--epochs=2", "--notensorboard"),
        ("with", "--epochs=1", "--disentanglement", "--disentanglement_metrics=mig"),
        ("with", "--epochs=2", "--disentanglement"),
    ):
        process = command(folder, run_dir, *flags)
        assert process.returncode == 0, process.stderr
    return folder


def summary(folder, name):
    return json.loads((folder / name / "summary.json").read_text())


def lines_of(folder, name):
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    clock = ("seconds", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@pytest.mark.slow
def test_a_run_has_scores_among_its_test_figures(folder):
    found = summary(folder, "with")
    assert set(SCORES) <= found["test"].keys()
    assert {found["units"][name] for name in SCORES} == {""}
    assert found["test"]["mig"]["standard_error"] > 0 and found["test"]["mig"]["count"] == 120
    assert found["evaluation"]["factor_examples"] == 10_000
    assert any("Scores of disentanglement compare" in note for note in found["notes"])
    run = vr.load_run(folder / "with")
    codes = run.model.encode(run.data.test.prepare()).numpy()
    expected = vr.disentanglement.mig(codes, run.data.test.arrays["factors"])
    assert found["test"]["mig"]["value"] == pytest.approx(expected.value, abs=1e-6)
    table = json.loads((folder / "with/disentanglement.json").read_text())
    assert table["codes"] == ["z[0]", "z[1]", "z[2]"]
    assert table["factors"] == ["factor_0", "factor_1", "factor_2"]
    np.testing.assert_allclose(table["mutual_information"], expected.matrix, atol=1e-5)
    assert table["weights_sha256"] == found["weights_sha256"]
    assert table["settings"] == {"examples": 10_000, "seed": 0, "metrics": [*METRIC_NAMES]}
    with np.load(folder / "with/codes.npz") as saved:
        np.testing.assert_allclose(saved["codes"], codes, atol=1e-5)
        assert saved["kl"].shape == (3,)


@pytest.mark.slow
def test_the_flag_changes_nothing_that_is_trained_and_resumed(folder):
    found, other = summary(folder, "with"), summary(folder, "without")
    for name in ("weights_sha256", "state_sha256"):
        assert found[name] == other[name]
    assert {n: v for n, v in found["test"].items() if n not in SCORES} == other["test"]
    assert "factor_examples" not in other["evaluation"]
    assert not (folder / "without/disentanglement.json").exists()
    lines, scores = lines_of(folder, "with"), "validation/disentanglement/"
    kept = [{k: v for k, v in line.items() if not k.startswith(scores)} for line in lines]
    assert kept == lines_of(folder, "without")
    run = vr.load_run(folder / "with")
    codes = run.model.encode(run.data.validation.prepare()).numpy()
    expected = vr.disentanglement.mig(codes, run.data.validation.arrays["factors"]).value
    assert lines[1][f"{scores}mig"] == pytest.approx(expected, abs=1e-6)
    assert lines[0][f"{scores}mig"] != lines[1][f"{scores}mig"]


@pytest.mark.slow
def test_a_finished_run_is_compared_afterwards_and_not_trained(folder):
    state = summary(folder, "without")["state_sha256"]
    flags = ["--epochs=2", "--notensorboard", "--disentanglement", "--disentanglement_metrics=mig"]
    process = command(folder, "without", *flags)
    assert process.returncode == 0 and "Training:" not in process.stdout
    found = summary(folder, "without")
    assert found["test"].keys() & {*SCORES} == {"mig"} and found["state_sha256"] == state
    assert found["test"]["mig"] == summary(folder, "with")["test"]["mig"]
    assert "already complete" in command(folder, "without", *flags).stdout


@pytest.mark.slow
def test_what_shows_a_run_has_the_scores(folder, capsys):
    run = events(folder / "with/run")
    tags = set(run.Tags()["tensors"])
    assert {f"test_disentanglement/{name}" for name in SCORES} <= tags
    assert {"test/mutual_information", "test/factor_traversals"} <= tags
    shown = set(events(folder / "with/validation").Tags()["tensors"])
    assert {f"disentanglement/{name}" for name in FAST} <= shown
    assert {"disentanglement/mutual_information", "disentanglement/traversals"} <= shown
    page = (folder / "with/report.html").read_text()
    assert "Mutual information of codes (rows) and factors" in page
    assert "the factor of the largest mutual information" in page
    assert "dci_disentanglement" in page and "validation/disentanglement/mig" in page
    assert compare.main([str(folder / "with")]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert "MIG  DCI disentanglement  factor vae score" in head


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mutual_information", "factor_traversals"])
def test_a_picture_for_a_paper(folder, name, tmp_path):
    file = tmp_path / f"{name}.svg"
    process = forks.run(
        "-m", "vae_research.runs.tools.figure", "without", name, f"--to={file}", cwd=folder
    )
    assert process.returncode == 0, process.stderr
    drawn = file.read_text()
    assert "<!-- factor_0" in drawn or "<!-- z[0]: factor_" in drawn


@pytest.mark.slow
def test_scores_of_a_run_that_was_trained_without(folder):
    process = forks.run(
        *("-m", "vae_research.runs.tools.evaluate", "without", "--disentanglement"),
        "--metrics=mig",
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr
    value = summary(folder, "with")["test"]["mig"]["value"]
    assert re.search(rf"^  mig +{value:.4f} \+- ", process.stdout, re.M)
    assert (folder / "without/disentanglement.json").exists()


@pytest.mark.slow
def test_a_run_without_the_flag_imports_none_of_it(tmp_path):
    """In a process of its own: the one that forks looks at all public names."""
    code = "import sys, vae_research.runs.session.training\nprint([*sys.modules])"
    process = forks.alone("-c", code, cwd=tmp_path)
    assert "vae_research.runs.session.fit.tensorboard" in process.stdout, process.stderr
    for name in ("disentanglement", "factor_scores", "labelled"):
        assert name not in process.stdout


# Wrong uses.


@pytest.mark.slow
def test_data_without_factors_are_refused_in_one_line(tmp_path, without_tensorflow):
    images, factors = squares(40)
    np.savez(tmp_path / "plain.npz", train=images, train_labels=factors[:, 0])
    np.savez(tmp_path / "few.npz", images=images, factors=factors)
    np.savez(tmp_path / "floats.npz", images=images, factors=factors.astype("float32"))
    for dataset, words in (
        ("plain.npz", "plain.npz has none (further arrays: labels)"),
        ("floats.npz", "has none (its array of this name is float32 [4, 3])"),
        ("few.npz", "needs 20 validation examples, and few.npz has 4"),
    ):
        flags = [f"--dataset={dataset}", "--disentanglement", "--run_dir=run"]
        process = forks.run(
            forks.CHECKOUT / "experiments/vae_mnist.py",
            *flags,
            cwd=tmp_path,
            first=without_tensorflow,
        )
        assert process.returncode == 2, process.stderr
        (line,) = [each for each in process.stderr.splitlines() if "--disentanglement" in each]
        assert words in line and "Traceback" not in process.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_names_of_scores_are_checked_whether_or_not_they_are_asked_for(
    tmp_path, without_tensorflow
):
    process = forks.run(
        forks.CHECKOUT / "experiments/vae_mnist.py",
        *("--disentanglement_metrics=migs", "--run_dir=run"),
        cwd=tmp_path,
        first=without_tensorflow,
    )
    assert process.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = process.stderr.splitlines()
    assert "there is no 'migs'" in line


def test_a_missing_extra_is_said(data, monkeypatch):
    monkeypatch.setattr(factors_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"scikit-learn: pip install 'vae_research\[disent"):
        factors_module.refuse_without_factors(data)


def test_scores_compare_whatever_the_likelihood_is(tmp_path, capsys):
    """And not if they are of another number of examples."""
    options = {"evaluation": {"factor_examples": 100}, "units": {"mig": ""}}
    write_run(tmp_path / "a", {"mig": 0.2}, kl_weight=1.0, **options)
    other = {"measure": "density of targets"}
    write_run(tmp_path / "b", {"mig": 0.4}, kl_weight=4.0, likelihood=other, **options)
    assert compare.main([str(tmp_path), "--figures=mig", "--format=csv"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("run,kl_weight,") and "mig,mig_standard_error" in rows[0]
    assert [row.split(",")[0] for row in rows[1:]] == ["b", "a"]  # the largest first
    options["evaluation"] = {"factor_examples": 50}
    write_run(tmp_path / "c", {"mig": 0.3}, kl_weight=2.0, **options)
    assert compare.main([str(tmp_path), "--figures=mig"]) == 2
    assert "--disentanglement_examples is 100 and 50" in capsys.readouterr().err
