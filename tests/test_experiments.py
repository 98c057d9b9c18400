"""Every experiment, run as the command in its header says, on a few small images.

Each runs in a process of its own, a fork: flags are global to a process. Whatever needs no
TensorFlow runs with a `tensorflow` and a `keras` that end the process.
"""

import ast
import functools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests import forks
from tests.proofs import SOAK

CHECKOUT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((CHECKOUT / "experiments").glob("[!_]*.py"))
every_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
STUDIES = [path for path in EXPERIMENTS if "runs.study(" in path.read_text("utf-8")]


def imports_keras(path):
    """Whether importing an experiment imports Keras or TensorFlow."""
    imported = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        match node:
            case ast.Import():
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom():
                imported.add(node.module.partition(".")[0])
    return bool(imported & {"keras", "tensorflow"})


WITH_KERAS = [path for path in EXPERIMENTS if imports_keras(path)]
WITHOUT_KERAS = [path for path in EXPERIMENTS if not imports_keras(path)]

# What TensorFlow's C++ writes to standard error when an experiment imports it at the top.
START_UP = re.compile(r"(WARNING: All log messages before absl|[IWE]\d{4} |To enable the foll).*\n")

RANDOM = np.random.default_rng(0)
SMALLER = {
    "epochs": "1",
    "batch_size": "16",
    "latent_dim": "2",
    "importance_samples": "2",
    "hidden_units": "8",
    "critic_units": "8",
    "filters": "2,2",
    "flow_steps": "2",
    "flow_units": "8",
    "context_dim": "3",
    "variables": "3",
    "repeats": "1",
    "wide_latent_dim": "3",
    "rounds": "1",
    "block_steps": "1",
    "draws": "4",
    "labels_per_class": "2",
    "components": "3",
    "rows": "160",
    "prior_epochs": "1",
}
# Compiling is most of what is left: with `--soak` everything is compiled as the header has it. XLA
# compiles vae_mnist in test_repeatability.py.
COMPILE_LESS = {
    "conditional_vae": {"jit": "off"},
    "denoising": {"jit": "off"},
    "colour_vae": {"image_size": "8"},
    "own_data": {"jit": "off"},
    "semi_supervised": {"jit": "off"},
    "kl_formulations": {"timed": "Solution I", "filters": "2"},
    "latent_space": {"kl_factors": "6.5e-4"},
}
# Those whose event files are looked at; what others log has the same names in metrics.jsonl.
IN_TENSORBOARD = {"vae_mnist", "own_loss_term"}
# Started as a module; test_runs.py starts it as a file.
AS_MODULE = {"vae_mnist"}

SPLITS = "train", "validation"

# Of those whose images are in colour; the others have arrays with labels.
DATASETS = {"own_data": "pictures", "colour_vae": "pictures"}

# They make their data.
WITH_DATA = {"linear_gaussian", "sequence_vae", "table_vae"}

# Their codes have no noise, and there is no ELBO.
WITHOUT_ELBO = {"rae_mnist", "wae_gan"}

# Their codes are relaxed in training, which has no ELBO.
RELAXED = {"categorical_mnist"}


def said(process):
    """What a process wrote to standard error, without what TensorFlow says when it is imported."""
    return START_UP.sub("", process.stderr)


def header(path, label):
    """What follows `label:` in the docstring of a file, up to the next label or an empty line."""
    document = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    found = re.search(rf"^{label}:\s*(.+?)\s*(?=\n\s*\n|\n[A-Z]\w*:|\Z)", document, re.M | re.S)
    assert found, f"{path.name} has no line '{label}:' in its header"
    return found[1]


def header_flags(path):
    """The flags of the command in the header."""
    program, experiment, *flags = shlex.split(header(path, "Command").replace("\\\n", " "))
    assert (program, experiment) == ("scripts/run", f"experiments/{path.name}")
    return flags


@functools.cache
def parsed(path, without_tensorflow):
    """The flags of an experiment, as the command line in its header gives them."""
    entry = "run_study" if path in STUDIES else "build"
    code = f"""
import json
import sys
from experiments import {path.stem}
from vae_research.runs.cli.flags import parse

print(json.dumps(parse({path.stem}.{entry}, sys.argv[1:]).as_dict()))
"""
    first = None if path in WITH_KERAS else without_tensorflow
    process = forks.run("-c", code, *header_flags(path), cwd=CHECKOUT, first=first)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def save_pictures(folder):
    """Saves PNG files of 8x8 pixels, in part transparent: 32 to train, 16 for each other split."""
    from PIL import Image

    for split, count in {"train": 32, "validation": 16, "test": 16}.items():
        (folder / split).mkdir(parents=True)
        for number, pixels in enumerate(RANDOM.integers(0, 256, (count, 8, 8, 4), np.uint8)):
            Image.fromarray(pixels).save(folder / split / f"{number:02}.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, without_tensorflow):
    """Runs an experiment as its header says, but smaller: once, however many tests ask."""
    folder = tmp_path_factory.mktemp("finished")
    images = RANDOM.integers(0, 256, (3, 32, 8, 8), dtype=np.uint8)
    arrays = {"train": images[0], "validation": images[1][:16], "test": images[2][:16]}
    labels = {f"{name}_labels": 3 + np.arange(len(array)) % 4 for name, array in arrays.items()}
    np.savez(folder / "images.npz", **arrays, **labels)
    save_pictures(folder / "pictures")
    runs = {}

    def run(path):
        if path not in runs:
            run_dir = folder / path.stem
            flags = header_flags(path)
            known = parsed(path, without_tensorflow)
            ours = {name: value for name, value in SMALLER.items() if name in known}
            if not SOAK:
                ours |= COMPILE_LESS.get(path.stem, {}) | ({"jit": "off"} if "jit" in known else {})
                if "tensorboard" in known and path.stem not in IN_TENSORBOARD:
                    ours["tensorboard"] = "false"
            ours["run_dir"] = run_dir
            if path.stem not in WITH_DATA:
                ours["dataset"] = folder / DATASETS.get(path.stem, "images.npz")
            flags = [flag for flag in flags if flag.lstrip("-").partition("=")[0] not in ours]
            flags += [f"--{name}={value}" for name, value in ours.items()]
            as_module = path.stem in AS_MODULE
            program = ["-m", f"experiments.{path.stem}"] if as_module else [path]
            process = forks.run(*program, *flags, cwd=CHECKOUT if as_module else folder)
            runs[path] = run_dir, process
        return runs[path]

    return run


def tensors_of(run_dir, split):
    """The last value of every tag in the event files of a split, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    values = {}
    for path in (run_dir / split).glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["tensors"]:
            values[tag] = tensor_util.make_ndarray(events.Tensors(tag)[-1].tensor_proto)
    return values


def check_end(path, process):
    """Asserts that a process came to its end, and that warnings are one line each."""
    assert process.returncode == 0, process.stderr
    text = said(process) if path in WITH_KERAS else process.stderr
    odd = [line for line in text.splitlines() if not line.startswith("warning: ")]
    assert odd == []


def check_study(path, run_dir, process):
    """Asserts that a study wrote its summary, its tables, and its figures in TensorBoard, too."""
    check_end(path, process)
    assert json.loads((run_dir / "summary.json").read_text("utf-8"))["status"] == "done"
    assert (run_dir / "tables.md").read_text("utf-8") in process.stdout
    names = {path.stem for path in (run_dir / "figures").glob("*.png")}
    assert names
    assert names == {tag for tag in tensors_of(run_dir, "study") if tag != "step"}
    for name in names:
        assert f"figures/{name}.png" in process.stdout


def check_run(path, run_dir, process):
    """Asserts that a run came to its end, with figures on the screen, in files, in TensorBoard."""
    check_end(path, process)
    _, _, table = process.stdout.partition("Test figures:\n")
    summary = json.loads((run_dir / "summary.json").read_text("utf-8"))
    of_elbo = {"elbo", "negative_log_likelihood", "active_units"}
    assert of_elbo & set(summary["test"]) == (set() if path.stem in WITHOUT_ELBO else of_elbo)
    for name, figure in summary["test"].items():
        digits = 4 if name.startswith("bits_per_dimension") else 2
        value = f"{figure['value']:.{digits}f}"
        assert re.search(rf"^  {name} +{value} .*16 examples$", table, re.M), name

    terms = json.loads((run_dir / "config.json").read_text("utf-8"))["terms"]
    kl = set() if path.stem in WITHOUT_ELBO else {"kl"}
    assert {"reconstruction"} | kl <= set(terms)
    logged_only = re.compile(r"weight=None|^Perplexity")
    trained = [name for name, term in terms.items() if not logged_only.search(term)]
    expected = {"loss"} | ({"elbo"} if kl else set())
    logged = expected | set(terms) | {f"weight/{name}" for name in trained}
    (line,) = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    wanted = {f"{split}/{name}" for split in SPLITS for name in logged}
    assert set(json.loads(line)) & wanted == wanted - (
        {"train/elbo"} if path.stem in RELAXED else set()
    )
    if not (run_dir / "train").exists():
        assert path.stem not in IN_TENSORBOARD
        return
    train, validation = (tensors_of(run_dir, split) for split in SPLITS)
    expected |= {f"terms/{name}" for name in terms}
    expected |= {f"{kind}/{name}" for name in trained for kind in ("weight", "contribution")}
    assert set(train) >= expected | {"learning_rate", "images_per_second"}
    latent = {"latent/active_units"} | ({"latent/kl_total"} if kl else set())
    assert set(validation) >= expected | latent


def test_there_are_experiments():
    names = {path.stem for path in EXPERIMENTS}
    assert {"vae_mnist", "iwae_mnist", "own_loss_term"} <= names
    assert WITH_KERAS
    assert WITHOUT_KERAS
    assert {path.stem for path in STUDIES} >= {"kl_formulations", "latent_space"}


@every_experiment
def test_the_header_says_what_a_reader_needs(path, without_tensorflow):
    document = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert re.search(r"^(Paper|Idea|The idea): ", document, re.M)
    assert re.search(r"\d", header(path, "Time"))
    assert re.search(r"-?\d+\.\d", header(path, "Expect"))  # a figure, from a run that was made
    parsed(path, without_tensorflow)


@pytest.mark.slow
@every_experiment
def test_the_command_in_the_header_runs(path, finished):
    before = (CHECKOUT / "runs").exists()
    check = check_study if path in STUDIES else check_run
    check(path, *finished(path))
    assert (CHECKOUT / "runs").exists() == before


BAD_FLAGS = [
    ("--latent_dim=0", "--latent_dim=0"),
    ("--epoch=3", "'epochs'"),
    ("epochs", "'epochs'"),
]


@pytest.mark.parametrize("path", WITHOUT_KERAS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("given", "word"), BAD_FLAGS)
def test_a_bad_flag_is_answered_without_tensorflow(path, given, word, tmp_path, without_tensorflow):
    process = forks.run(path, given, cwd=tmp_path, first=without_tensorflow)
    assert re.fullmatch(rf"{path.stem}: [^\n]*{re.escape(word)}[^\n]*\n", process.stderr)
    assert (process.returncode, process.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", WITH_KERAS, ids=lambda path: path.stem)
def test_a_bad_flag_is_answered_when_keras_has_loaded(path, tmp_path):
    process = forks.run(path, "--latent_dim=0", cwd=tmp_path)
    assert re.fullmatch(rf"{path.stem}: [^\n]*--latent_dim=0[^\n]*\n", said(process))
    assert (process.returncode, process.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


def read_summary(folder):
    return json.loads((folder / "summary.json").read_text("utf-8"))


@pytest.mark.slow
def test_the_four_formulations_train_alike_and_are_timed(finished):
    run_dir, _ = finished(CHECKOUT / "experiments" / "kl_formulations.py")
    summary = read_summary(run_dir)
    losses = summary["losses"]
    assert set(losses) == {"Solution I", "strategy 1", "strategy 2", "strategy 3"}
    for name, found in losses.items():
        assert found["total_loss"] == pytest.approx(found["reco_loss"] + found["kl_loss"])
        for kind, value in found.items():
            assert value == pytest.approx(losses["Solution I"][kind], rel=1e-5, abs=1e-7), name
        tags = tensors_of(run_dir, name.replace(" ", "_"))
        assert set(tags) == {*found, "seconds_per_epoch"}
        assert float(tags["kl_loss"]) == pytest.approx(found["kl_loss"])
    times = summary["seconds_per_epoch"]["timed"]
    assert all(value > 0.0 for value in summary["seconds_per_epoch"]["trained"]["strategy 3"])
    # Solution I, with which the others are compared; all others with `--soak`.
    asked = {f"Solution I, {way}" for way in ("graph", "XLA", "eager")}
    assert set(times) > asked if SOAK else set(times) == asked
    changes = {"graph instead of eager, Solution I": ("Solution I, graph", "Solution I, eager")}
    changes["XLA instead of graph, Solution I"] = "Solution I, XLA", "Solution I, graph"
    if SOAK:
        variants = "loss in call, graph", "loss in a function, graph"
        changes["loss in call instead of a function"] = variants
    for change, (after, before) in changes.items():
        (ratio,) = summary["times_as_fast"][change]
        assert ratio == pytest.approx(times[before][0] / times[after][0])
    assert ("graph instead of eager, strategy 3" in summary["times_as_fast"]) == SOAK


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--latent_dim=3"], 2, "--wide_latent_dim"),
        (["--kl_factors=1e-4,0.0001"], 2, "each of them once"),
        (["--seed=4294967295", "--repeats=2"], 2, "no room for 2 seeds"),
        (["--init_seed=1", "--data_seed=1", "--repeats=2"], 2, "nothing that differs"),
        (["--dataset=plain.npy"], 3, "test images with labels"),
    ],
    ids=["latent_dim", "factors", "seeds", "equal_repeats", "labels"],
)
def test_latent_space_refuses_what_it_cannot_use(given, code, words, tmp_path, without_tensorflow):
    np.save(tmp_path / "plain.npy", RANDOM.integers(0, 256, (200, 8, 8), dtype=np.uint8))
    path = CHECKOUT / "experiments" / "latent_space.py"
    process = forks.run(path, "--run_dir=run", *given, cwd=tmp_path, first=without_tensorflow)
    assert process.returncode == code
    assert re.fullmatch(rf"latent_space: [^\n]*{re.escape(words)}[^\n]*\n", process.stderr)
    assert not (tmp_path / "run").exists()


def test_kl_formulations_refuses_what_is_no_image(tmp_path):
    np.save(tmp_path / "plain.npy", RANDOM.random((200, 8)).astype(np.float32))
    path = CHECKOUT / "experiments" / "kl_formulations.py"
    process = forks.run(path, "--dataset=plain.npy", "--run_dir=run", cwd=tmp_path)
    assert process.returncode == 3
    assert re.fullmatch(r"kl_formulations: plain.npy has no images[^\n]+\n", said(process))
    assert not (tmp_path / "run").exists()


def test_kl_formulations_names_the_models_that_can_be_timed(tmp_path):
    path = CHECKOUT / "experiments" / "kl_formulations.py"
    process = forks.run(path, "--timed=strategy 3,strategy 5", "--run_dir=run", cwd=tmp_path)
    assert process.returncode == 2
    wanted = r"kl_formulations: [^\n]*'strategy 5'; the models are Solution I, [^\n]+, or all.\n"
    assert re.fullmatch(wanted, said(process))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_formulations_that_diverge_end_the_study(tmp_path):
    images = RANDOM.integers(0, 256, (3, 32, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train=images[0], validation=images[1], test=images[2])
    path = CHECKOUT / "experiments" / "kl_formulations.py"
    flags = ["--dataset=images.npz", "--batch_size=16", "--latent_dim=2", "--filters=2,2"]
    process = forks.run(path, *flags, "--learning_rate=1e30", "--run_dir=run", cwd=tmp_path)
    assert process.returncode == 6
    assert re.fullmatch(r"kl_formulations: training diverged in epoch [^\n]+\n", said(process))
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_the_latent_space_is_that_of_the_runs_below_the_study(finished):
    from vae_research import load_run, neighbour_accuracy, occupied_area

    run_dir, process = finished(CHECKOUT / "experiments" / "latent_space.py")
    summary = read_summary(run_dir)
    found = {model["kl_factor"]: model for model in summary["models"]}
    assert set(found) == {None, 6.5e-4} | ({1e-4, 2.6e-3} if SOAK else set())
    assert found[6.5e-4]["effective_beta"] == pytest.approx(2 * 6.5e-4 * 64 / 2)  # 64 pixels, 2 z
    assert "KL factor 0.00065: effective beta 0.0416" in process.stdout
    run = load_run(run_dir / "factor_0.00065_z2_seed0")
    codes, labels = run.model.encode(run.data.test.prepare()).numpy(), run.data.test.labels
    others = codes[labels != 6]
    expected = {
        "area_95": occupied_area(codes),
        "box_area": np.prod(np.ptp(codes, axis=0)),
        "box_area_left_out": np.prod(np.ptp(others, axis=0)),
        "neighbour_accuracy": neighbour_accuracy(codes, labels),
    }
    for name, value in expected.items():
        assert found[6.5e-4][name] == pytest.approx(value, rel=1e-5), name
    assert found[None]["effective_beta"] is None
    assert "elbo" not in load_run(run_dir / "autoencoder_z2_seed0").summary["test"]
    (ratios,) = [each for each in summary["autoencoder_over_vae"] if each["kl_factor"] == 6.5e-4]
    assert ratios["area_95"] == pytest.approx(found[None]["area_95"] / expected["area_95"])
    assert summary["wide"]["latent_dim"] == 3
    folder = run_dir / "factor_0.00065_z2_seed0" / "validation"
    points = np.loadtxt(folder / "test_images.tsv")[:, :2]  # and a third of zeros
    np.testing.assert_allclose(points, codes, rtol=1e-4, atol=1e-6)
    assert (folder / "projector_config.pbtxt").is_file()


@pytest.mark.slow
def test_signal_to_noise_is_printed_for_every_estimator_after_the_run(finished):
    _, process = finished(CHECKOUT / "experiments" / "dreg_mnist.py")
    lines = re.findall(
        r"^Encoder's gradient by (\w+): signal-to-noise ([\d.]+)$", process.stdout, re.M
    )
    assert [name for name, _ in lines] == ["iwae", "dreg", "stl"]
    values = [float(value) for _, value in lines]
    assert all(value > 0.0 for value in values)
    assert len(set(values)) == 3
    # Each model of the measurement warns when it is built, if it is biased.
    warned = [
        line for line in said(process).splitlines() if "StickingTheLanding() are biased" in line
    ]
    assert len(warned) == 1


# ---------------------------------------------------------------- a loss term of one's own

OWN = CHECKOUT / "experiments" / "own_loss_term.py"


@pytest.fixture(scope="module")
def own(finished):
    """The run of own_loss_term: its directory, and what `load_run` makes of it."""
    from vae_research import load_run

    run_dir, process = finished(OWN)
    assert process.returncode == 0, process.stderr
    return run_dir, load_run(run_dir)


def own_classes():
    """The lines of the classes in own_loss_term.py by the name of their base."""
    classes = [
        node for node in ast.parse(OWN.read_text("utf-8")).body if isinstance(node, ast.ClassDef)
    ]
    return {ast.unparse(node.bases[0]): node.end_lineno - node.lineno + 1 for node in classes}


def test_a_term_and_a_schedule_are_a_few_lines():
    lines = own_classes()
    assert set(lines) == {"vr.LossTerm", "vr.Schedule"}
    assert lines["vr.LossTerm"] <= 8
    assert sum(lines.values()) < 25


@pytest.mark.slow
def test_the_own_term_is_logged_as_numpy_computes_it(own):
    run_dir, run = own
    tensors = run.model.forward(run.data.validation.prepare())  # with the noise of an evaluation
    expected = np.abs(tensors["z"].numpy().astype(np.float64)).sum(axis=1).mean()
    assert expected > 0
    last = json.loads((run_dir / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["validation/sparse_code"] == pytest.approx(expected, rel=1e-5)
    validation = tensors_of(run_dir, "validation")
    assert float(validation["terms/sparse_code"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_own_schedule_gives_the_weight_of_the_step(own):
    run_dir, run = own
    step = run.model.step
    assert step == 2
    weight = run.config.sparsity * step / (step + 500)
    for split in ("train", "validation"):
        tags = tensors_of(run_dir, split)
        assert float(tags["weight/sparse_code"]) == pytest.approx(weight, rel=1e-6)
        assert "contribution/sparse_code" in tags


@pytest.mark.slow
def test_the_own_term_is_trained_with_its_weight(own):
    import tensorflow as tf

    from vae_research import Bernoulli, KLDivergence, Objective

    _, run = own
    images = run.data.train.prepare(slice(0, 8))
    variables = run.model.encoder.trainable_variables
    own_term = next(type(term) for term in run.model.objective.terms if term.label == "sparse_code")

    def gradients(*terms, of):
        with tf.GradientTape() as tape:
            tensors = run.model.forward(images)
            loss = tf.reduce_mean(of(Objective(terms)(tensors), tensors))
        return [gradient.numpy() for gradient in tape.gradient(loss, variables)]

    def surrogate(report, tensors):
        return report.surrogate

    others = Bernoulli(), KLDivergence()
    without = gradients(*others, of=surrogate)
    off = gradients(*others, own_term(weight=0.0), of=surrogate)
    on = gradients(*others, own_term(weight=1.0), of=surrogate)
    alone = gradients(*others, of=lambda report, tensors: tf.reduce_sum(tf.abs(tensors["z"]), 1))
    for index, expected in enumerate(alone):
        np.testing.assert_allclose(off[index], without[index], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(on[index] - off[index], expected, rtol=1e-3, atol=1e-5)
    assert max(np.abs(gradient).max() for gradient in alone) > 0.01

    zero = gradients(
        *others, own_term(weight=0.0), of=lambda report, _: report.contributions["sparse_code"]
    )
    assert all((gradient == 0.0).all() for gradient in zero)


# ---------------------------------------------------------------- labels, and inputs with noise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "further"),
    [("conditional_vae", "labels"), ("denoising", "targets"), ("semi_supervised", "labels")],
)
def test_a_run_that_reads_more_than_images_is_loaded(name, further, finished):
    from vae_research import checkpoints, estimate, load_run

    run_dir, process = finished(CHECKOUT / "experiments" / f"{name}.py")
    assert process.returncode == 0, process.stderr
    run = load_run(run_dir)
    assert checkpoints.weights_sha256(run.model) == run.summary["weights_sha256"]
    assert run.model.data_names == (further,)
    test = run.data.test.tensors(names=run.names)
    figures = estimate(run.model, test, num_samples=run.config.importance_samples)
    assert figures["elbo"].value == pytest.approx(run.summary["test"]["elbo"]["value"], rel=1e-6)
    other = estimate(run.model, {**test, further: test[further][::-1]}, num_samples=2)
    assert figures["elbo"].value != other["elbo"].value
    if name == "conditional_vae":
        assert (run_dir / "figures" / "classes.png").is_file()
        assert run.model.sample(3, labels=test["labels"][:3]).shape == (3, 8, 8, 1)


@pytest.mark.slow
def test_training_sees_few_labels_and_the_accuracy_is_that_of_all_test_labels(finished):
    from vae_research import load_run

    run_dir, process = finished(CHECKOUT / "experiments" / "semi_supervised.py")
    run = load_run(run_dir)
    labels = run.data.train.labels
    seen, counts = np.unique(labels[labels >= 0], return_counts=True)
    assert (seen.tolist(), counts.tolist()) == ([3, 4, 5, 6], [100, 100, 100, 100])
    rows = run.data.train.raw[labels >= 0]
    assert len(np.unique(rows, axis=0)) == 8
    assert np.count_nonzero(labels < 0) == 24
    test = run.data.test
    predicted = run.model.posterior(test.prepare())["class_logits"].numpy().argmax(axis=1)
    accuracy = run.summary["test"]["accuracy"]
    assert accuracy["value"] == pytest.approx(100 * np.mean(predicted == test.labels))
    assert f"{accuracy['value']:.2f} +- {accuracy['standard_error']:.2f}" in process.stdout
    assert " percent, 16 examples\n" in process.stdout


@pytest.mark.slow
def test_the_bound_without_a_label_is_the_sum_over_classes(finished):
    """Also: with q(y|x) it is below the logarithm of the sum of p(x,y|z), and above any one."""
    from vae_research import Bernoulli, load_run

    run_dir, _ = finished(CHECKOUT / "experiments" / "semi_supervised.py")
    run = load_run(run_dir)
    inputs = run.data.test.prepare()
    tensors = run.model.forward({"inputs": inputs, "labels": np.full(len(inputs), -1)})
    likelihood = run.model.objective.likelihood
    log_p = np.stack(
        [
            Bernoulli().log_likelihood(tensors["targets"], tensors["logits"][:, each]).numpy()
            for each in range(10)
        ],
        axis=1,
    ) - np.log(10)
    q = np.exp(tensors["class_logits"].numpy().astype(np.float64))
    q /= q.sum(axis=1, keepdims=True)
    bound = -likelihood(tensors).numpy()
    np.testing.assert_allclose(bound, (q * (log_p - np.log(q))).sum(axis=1), rtol=1e-5)
    assert (bound <= np.logaddexp.reduce(log_p, axis=1) + 1e-4).all()
    known = {**tensors, "labels": np.full(len(inputs), 3)}
    np.testing.assert_allclose(-likelihood(known).numpy(), log_p[:, 3], rtol=1e-5)


# ---------------------------------------------------------------- images of one's own


@pytest.mark.slow
def test_images_are_streamed_and_their_figures_are_bits(finished):
    from vae_research import load_run

    run_dir, process = finished(CHECKOUT / "experiments" / "own_data.py")
    run = load_run(run_dir)
    assert run.data.train.is_streamed
    assert run.data.shape == (32, 32, 3)
    for name, of_bits in {"elbo": "elbo", "negative_log_likelihood": "nll"}.items():
        bits = abs(run.summary["test"][name]["value"]) / np.log(2.0) / (32 * 32 * 3)
        assert f"bits_per_dimension_{of_bits} {bits:.4f} " in " ".join(process.stdout.split())
