"""What an experiment may replace of a run: callbacks, test figures, and when training ends."""

import dataclasses
import json
import shutil
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research import checkpoints, manifests, runs
from vae_research.evaluation.estimates import Estimate
from vae_research.keras_inputs import ScheduleLengths, _set_direction, one_by_one
from vae_research.runs.cli import signals
from vae_research.runs.cli.errors import TerminatedError, UsageError
from vae_research.runs.report.page import _training
from vae_research.runs.session import resume
from vae_research.runs.session.building import choose_device, learning_rate
from vae_research.runs.session.experiment import _how_to_train_longer
from vae_research.runs.session.figures import own_figures
from vae_research.runs.session.fit.own_callbacks import OwnCallbacks
from vae_research.runs.session.fit.stopping import StopEarly
from vae_research.runs.session.kept import sources
from vae_research.runs.session.resume import has_stopped, stops_with
from vae_research.runs.session.scores import score

FLAGS = {
    "batch_size": 8,
    "latent_dim": 2,
    "importance_samples": 10,
    "verbose": 0,
    "jit": "off",
    "tensorboard": False,
    "device": "cpu",
    "checkpoint_minutes": 0.0,
}
DATA = vr.Data.from_arrays(np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8))


runs.define_float("largest_value", 1.0, "of the test figures", may_change=True)
runs.define_integer("patience", 1, "of a callback", may_change=True)


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=(4,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(4,)),
        [vr.Bernoulli(), vr.MonteCarloKL()],
        num_samples=2,
        importance_weighted=True,
        seed=config.seed,
    )


class Worsens(keras.callbacks.Callback):
    """Adds a figure of its own, and spoils the decoder from the second epoch on."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch:
            self.model.decoder.trainable_variables[-1].assign_add(tf.fill([16], 5.0))

    def on_epoch_end(self, epoch, logs=None):
        logs["val_twice"] = 2 * logs["val_loss"]


def callbacks(config, data):
    assert config.run_dir.endswith("run")
    # If this is killed, the directory holds a run that has not begun, and not something else.
    assert (
        json.loads(Path(config.run_dir, "config.json").read_text("utf-8"))["flags"]["epochs"] == 9
    )
    # Keras asks which direction is the better one, and raises an error if it is not told.
    return [Worsens(), keras.callbacks.ReduceLROnPlateau("val_elbo", patience=50)]


def evaluate(run):
    images = run.data.test.prepare()
    errors = np.abs(run.model.reconstruct(images).numpy() - images).mean(axis=(1, 2, 3))
    if run.config.largest_value < 1.0:
        raise ValueError("the experiment's own evaluation fails")
    return {"error": errors, "largest_error": errors.max()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "run"
    return runs.train(
        build,
        data=DATA,
        run_dir=path,
        callbacks=callbacks,
        evaluate=evaluate,
        epochs=9,
        early_stopping=2,
        **FLAGS,
    )


@pytest.mark.slow
def test_a_run_in_python_has_what_the_command_gives_it(run):
    assert keras.config.dtype_policy().name == "float32"
    assert run.config.as_dict().keys() == runs.configure(build).as_dict().keys()
    found = json.loads((run.path / "config.json").read_text("utf-8"))
    assert (found["flags"]["epochs"], found["experiment"]) == (9, "test_parts")
    assert run.summary["weights_sha256"] == checkpoints.weights_sha256(run.model)
    again = runs.train(build, data=DATA, run_dir=run.path, epochs=9, early_stopping=2, **FLAGS)
    assert again.summary == run.summary  # it was complete, and was not trained again


@pytest.mark.slow
def test_early_stopping_ends_a_run_and_keeps_its_best_epoch(run):
    summary = run.summary
    assert (summary["epochs"], summary["stopped_early"], summary["best_epoch"]) == (3, True, 1)
    assert (summary["best_checkpoint_epoch"], summary["test_figures_of_epoch"]) == (1, 3)
    assert any("of the last epoch, 3; on validation data epoch 1" in n for n in summary["notes"])
    assert run.checkpoint.epoch == 3
    best = vr.load_run(run.path, build, DATA, which="best")
    assert best.checkpoint.epoch == 1
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    bound = "validation/importance_weighted_bound"
    values = best.model.evaluate(DATA.validation.on_device(4), return_dict=True, verbose=0)
    np.testing.assert_allclose(values["importance_weighted_bound"], records[0][bound], rtol=1e-5)
    assert records[0][bound] > records[2][bound]
    for record in records:  # what a callback adds to the logs is a figure of the epoch
        assert record["validation/twice"] == 2 * record["validation/loss"]
        # The bound of two samples is at least the mean of both, and is the loss of this model.
        assert record[bound] >= record["validation/elbo"]
        assert record[bound] == pytest.approx(-record["validation/loss"], rel=1e-6)
    with pytest.raises(ValueError, match="which must be 'best' or 'last', got 'first'"):
        vr.load_run(run.path, build, DATA, which="first")


@pytest.mark.slow
def test_a_run_that_ended_early_is_evaluated_again_and_keeps_its_results_until_then(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run.path, path)
    assert run.summary["evaluation"]["flags"] == {"largest_value": 1.0}
    before = (path / "summary.json").read_bytes()
    given = FLAGS | {"epochs": 9, "early_stopping": 2}
    functions = {"callbacks": callbacks, "evaluate": evaluate}
    with pytest.raises(ValueError, match="own evaluation fails"):  # and has not trained on
        runs.train(build, data=DATA, run_dir=path, largest_value=0.5, **given, **functions)
    assert (path / "summary.json").read_bytes() == before

    config = runs.configure(build, run_dir=str(path), **given)
    source = sources.collect(build)
    checkpoint = checkpoints.newest(path / "checkpoints")

    def complete(**values):
        return resume.complete(config.replace(**values), path, checkpoint, source) is not None

    assert complete()
    assert complete(epochs=99, resume="changed")
    assert not complete(largest_value=2.0)
    assert not complete(patience=2)
    progress = manifests.read_manifest(checkpoint.path)["progress"]
    assert has_stopped(config.replace(largest_value=2.0), progress, {"largest_value"})
    assert not has_stopped(config.replace(patience=2), progress, {"largest_value"})
    edited = source.files | {source.main: b"def evaluate(run):\n    return {}\n"}
    source = dataclasses.replace(source, files=edited)
    assert not complete(resume="changed")


@pytest.mark.slow
def test_a_run_without_its_source_is_loaded_by_what_is_given(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (kept,) = (tmp_path / "run/source").rglob("test_parts.py")
    kept.write_text("damaged")
    found = vr.load_run(tmp_path / "run", build, DATA)
    assert checkpoints.weights_sha256(found.model) == run.summary["weights_sha256"]
    with pytest.raises(checkpoints.CheckpointError, match=r"test_parts\.py has changed"):
        vr.load_run(tmp_path / "run", data=DATA)


@pytest.mark.slow
def test_every_test_example_keeps_its_values(run):
    values, figures = np.load(run.path / "figures.npz"), run.summary["test"]
    named = {"reconstruction", "kl", "elbo", "negative_log_likelihood", "error"}
    assert set(values) == {*named, "effective_sample_size", "importance_weighted_bound"}
    for name in values:
        assert (values[name].dtype, values[name].shape) == (np.float32, (len(DATA.test),))
        exact = values[name].astype(np.float64)
        assert figures[name]["value"] == exact.mean()
        error = exact.std(ddof=1) / np.sqrt(len(exact))
        assert figures[name]["standard_error"] == pytest.approx(error, rel=1e-12)
    np.testing.assert_array_equal(values["error"], evaluate(run)["error"])
    count = len(DATA.test)
    largest = {"value": float(values["error"].max()), "standard_error": None, "count": count}
    assert figures["largest_error"] == largest
    # In the order of the test set: one example at a time gives the same reconstruction error.
    images = DATA.test.prepare()
    ones = [run.model.reconstruct(images[i : i + 1]).numpy()[0] for i in range(count)]
    errors = [np.abs(one - image).mean() for one, image in zip(ones, images, strict=True)]
    np.testing.assert_allclose(values["error"], errors, rtol=1e-5)


@pytest.mark.slow
def test_a_run_is_compared_with_another_example_by_example(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run.path, other)
    with np.load(run.path / "figures.npz") as found:
        values = dict(found)
    moved = values["elbo"] + np.linspace(0.0, 2.0, len(values["elbo"]), dtype=np.float32)
    np.savez(other / "figures.npz", elbo=moved)
    found = vr.paired_difference(other, run, "elbo")
    assert found.value == pytest.approx(1.0, rel=1e-5)
    assert found.standard_error == pytest.approx(
        (moved - values["elbo"]).std(ddof=1) / found.count**0.5
    )
    assert found == vr.paired_difference(moved, values["elbo"])
    for figure, what in (("elbow", "has no 'elbow'"), ("kl", "has no 'kl'")):
        with pytest.raises(runs.UsageError, match=what):
            vr.paired_difference(other, run, figure)
    config = json.loads((other / "config.json").read_text())
    del config["sha256"]
    config["data"]["binarize"] = "threshold"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(runs.UsageError, match="binarize is 'threshold' and"):
        vr.paired_difference(other, run, "elbo")
    with pytest.raises(runs.UsageError, match="two values of each example"):
        vr.paired_difference(moved, moved[1:])


@pytest.mark.parametrize(
    ("wanted", "visible", "expected"),
    [("cpu", ["G"], "A100"), ("auto", ["G"], "A100"), ("auto", [], "CPU (the GPU is hidden)")],
)
def test_a_process_that_computes_keeps_its_devices(wanted, visible, expected, monkeypatch, capsys):
    """As in a notebook: TensorFlow refuses to change them, which is not an error of the run."""

    def refuse(*arguments):
        raise RuntimeError("cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["G"])
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: visible)
    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    details = {"device_name": "A100"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert choose_device(wanted) == expected
    assert f"warning: --device={wanted}: TensorFlow has begun" in capsys.readouterr().err
    if not visible:
        with pytest.raises(UsageError, match="this process hides the GPU"):
            choose_device("gpu")


def test_a_run_has_the_threads_that_it_is_given(monkeypatch, capsys):
    asked = []
    for name in ("intra", "inter"):
        setter = f"set_{name}_op_parallelism_threads"
        monkeypatch.setattr(
            tf.config.threading, setter, lambda count, name=name: asked.append(name)
        )
    choose_device("auto")
    assert asked == []
    choose_device("auto", threads=3)
    assert asked == ["intra", "inter"]

    def refuse(count):
        raise RuntimeError("cannot be modified after initialization")

    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", refuse)
    capsys.readouterr()
    choose_device("auto", threads=3)
    assert "warning: --device=auto --threads=3: TensorFlow has begun" in capsys.readouterr().err


def test_a_study_says_where_its_run_is():
    with pytest.raises(TypeError, match="needs run_dir"):
        runs.train(build, config=runs.configure(build))


def test_data_that_are_arrays_are_answered_with_the_function_that_takes_them(tmp_path):
    with pytest.raises(UsageError, match=r"data=ndarray: give a Data, which vr\.Data\.from_arrays"):
        runs.train(build, data=np.zeros((9, 4, 4)), run_dir=tmp_path / "run")


def test_ctrl_c_in_a_notebook_ends_a_run_and_not_the_process():
    before = signal.getsignal(signal.SIGINT)
    with signals.restored():
        signals.wait_for_steps()
        signal.raise_signal(signal.SIGINT)
        assert signals.is_received()  # the next step saves and raises
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert not signals.is_received()


def test_a_signal_within_what_has_no_steps_is_raised_where_it_arrives():
    with signals.restored():
        signals.wait_for_steps()
        with pytest.raises(TerminatedError), signals.raised_at_once():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it was only recorded")
    with signals.restored():
        signals.wait_for_steps()
        with signals.raised_at_once():
            pass
        signal.raise_signal(signal.SIGTERM)  # recorded again
        with pytest.raises(TerminatedError), signals.raised_at_once():
            pytest.fail("one that was recorded comes first")
    assert not signals.is_received()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"latent_dims": 2}, "there is no flag 'latent_dims'. Did you mean 'latent_dim'"),
        ({"epochs": 0}, "flag epochs=0: must be an integer >= 1"),
        ({"batch_size": 99}, "--batch_size=99 is more than the 32 training"),
        ({"rescale": "unit"}, "--rescale: this experiment brings its data"),
        ({"dry_run": True}, "dry_run=True: .* a command has --dry_run"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(values, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        runs.train(build, data=DATA, run_dir=tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0], "returned list; it must return a dictionary"),
        ({"a b": 1.0}, "a figure called 'a b'"),
        ({"elbo": 1.0}, "a figure called 'elbo'. .* that is not one of elbo, kl"),
        ({"a": "b"}, "no number as 'a'"),
        ({"a": np.zeros(4)}, r"'a' of shape \(4,\); .* each of the 3 test examples, \(3,\)"),
    ],
)
def test_what_is_no_test_figure_is_refused(returned, words):
    with pytest.raises(UsageError, match=words):
        own_figures(returned, 3, ["elbo", "kl"])


def test_test_figures_are_numbers_and_means():
    found = own_figures({"a": 2, "b": [1, 2, 6], "c": tf.constant([0.5] * 3)}, 3, [])
    assert found["a"] == Estimate(2.0, None, 3)
    assert found["b"].value == 3.0
    assert found["b"].standard_error == pytest.approx(np.sqrt(7.0 / 3.0))  # variance 7, n = 3
    assert found["c"] == Estimate(0.5, 0.0, 3)
    assert found["b"].values.dtype == np.float32


def test_a_test_figure_that_is_not_finite_costs_no_other():
    with warnings.catch_warnings(action="error"):
        assert Estimate.mean_of(np.array([1.0, np.inf])).value == np.inf  # as those of every model
        found = own_figures({"a": [1.0, np.nan, 2.0], "b": [np.inf, 1.0, 2.0], "c": -np.inf}, 3, [])
    assert [np.isnan(found["a"].value), found["b"].value, found["c"].value] == [1, np.inf, -np.inf]
    np.testing.assert_array_equal(found["a"].values, np.float32([1.0, np.nan, 2.0]))


def test_what_is_trained_decides_which_epoch_is_the_best():
    figures = {"val_loss": 1.0, "val_elbo": -3.0, "val_importance_weighted_bound": -2.0}
    assert score(figures, "val_") == -2.0
    assert score({"val_loss": 1.0, "val_elbo": -3.0}, "val_") == -3.0
    assert score({"val_loss": 1.0}, "val_") == -1.0
    assert score({"loss": 1.0}, "val_") is None


@pytest.mark.parametrize("name", ["constant", "cosine", "steps"])
def test_learning_rate_schedules(name):
    config = runs.configure(build, learning_rate=0.1, learning_rate_schedule=name, epochs=4)
    schedule = learning_rate(config, 10)
    rates = [float(schedule(step)) if callable(schedule) else schedule for step in range(40)]
    expected = {
        "constant": [0.1] * 40,
        "cosine": [0.05 * (1 + np.cos(np.pi * step / 40)) for step in range(40)],
        "steps": [0.1] * 20 + [0.01] * 10 + [0.001] * 10,
    }
    np.testing.assert_allclose(rates, expected[name], rtol=1e-4)


class Warming:
    """As much of a model as `StopEarly` asks for: 10 steps an epoch, a warm-up of 25 steps."""

    steps_per_epoch = 10

    def __init__(self, settled):
        self.objective = self
        self.settled, self.stop_training = settled, False

    def settled_at(self):
        return self.settled


@pytest.fixture(scope="module")
def warming():
    """A model whose KL weight rises for 25 steps; an epoch has 10."""
    model = vr.VAE(
        vr.dense_encoder([2], 1, hidden_units=(2,)),
        vr.GaussianBottleneck(1),
        vr.dense_decoder([2], 1, hidden_units=(2,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=vr.LinearWarmup(steps=25))],
    )
    model.compile("adam")
    return model


def begins(model, *callbacks):
    """Begins a training with callbacks, some of them inside of others."""
    lengths = ScheduleLengths(0, one_by_one(list(callbacks)))
    lengths.set_model(model)
    lengths.set_params({"steps": 10, "epochs": 9})
    lengths.on_train_begin()


def test_callbacks_of_keras_are_told_what_is_better(warming):
    names = {"val_elbo": "max", "elbo": "max", "val_importance_weighted_bound": "max"}
    names |= {"val_kl": "min", "val_reconstruction": "min", "own": "auto"}
    monitors = {name: keras.callbacks.EarlyStopping(name) for name in names}
    given = keras.callbacks.EarlyStopping("val_elbo", mode="min")
    inside = OwnCallbacks(monitors.values(), resumes=False, position=0)
    begins(warming, inside, [given])
    assert {name: found.mode for name, found in monitors.items()} == names
    assert given.mode == "min"


@pytest.mark.parametrize(
    ("weight", "mode"),
    [
        (2.0, "min"),
        (-2.0, "max"),
        (vr.LinearWarmup(peak=-1.0, steps=5), "max"),
        (vr.LinearWarmup(start=-1.0, steps=5), "auto"),
        (vr.Cyclical(start=0.5, peak=-1.0, steps=10), "auto"),
        (lambda step: 20.0 - step, "auto"),
        (lambda step: -1.0 - step, "max"),
        (vr.PIDControl(target=3.0), "min"),
    ],
)
def test_a_term_with_a_negative_weight_grows(weight, mode):
    term = SimpleNamespace(label="own", weight=weight)
    model = SimpleNamespace(objective=SimpleNamespace(terms=[term]))
    early = keras.callbacks.EarlyStopping("val_own")
    _set_direction(early, model, 90)
    assert early.mode == mode


def test_a_monitor_of_a_loss_whose_weights_change_is_warned_of(warming, recwarn):
    early = keras.callbacks.EarlyStopping
    with pytest.warns(UserWarning, match="EarlyStopping monitors 'val_loss'") as found:
        begins(warming, early("val_loss", start_from_epoch=2))
    assert len(found) == 1
    text = str(found[0].message)
    assert "the weights in it change until step 25" in text
    assert text.endswith("always 1; start_from_epoch=3 waits for them.")
    with pytest.warns(UserWarning, match=r"ReduceLROnPlateau monitors 'loss'.* always 1\.$"):
        begins(warming, keras.callbacks.ReduceLROnPlateau("loss"))
    recwarn.clear()
    begins(warming, early("val_loss", start_from_epoch=3), early("val_elbo"))
    assert len(recwarn) == 0


@pytest.mark.parametrize(("settled", "last"), [(0, 2), (20, 3), (25, 4), (31, 5)])
def test_early_stopping_waits_for_warm_ups(settled, last):
    callback = StopEarly(2)
    callback.set_model(Warming(settled))
    callback.on_train_begin()
    for epoch in range(9):
        callback.on_epoch_end(epoch, {"val_elbo": -float(epoch), "val_loss": 1.0})
        if callback.model.stop_training:
            break
    # The epoch in which the warm-up settles is the best one of those that count; two are waited.
    assert epoch == last


def test_early_stopping_says_that_it_cannot_wait():
    callback = StopEarly(2)
    callback.set_model(Warming(None))
    with pytest.warns(UserWarning, match="counts from the first epoch"):
        callback.on_train_begin()


# Schedule, --early_stopping, epochs of 9, and whether a callback has ended the run; the flags that
# train it further, and what the command says.
LONGER = [
    ("constant", 0, 9, False, "--epochs=18", "To train longer, give more --epochs"),
    ("constant", 3, 9, False, "--epochs=18", "To train longer, give more --epochs"),
    ("constant", 3, 5, True, "--epochs=9 --early_stopping=6", "a larger value trains longer"),
    ("constant", 3, 9, True, "--epochs=18 --early_stopping=6", "value and more --epochs train"),
    ("constant", 0, 5, True, None, "A callback of the experiment ended it"),
    ("cosine", 0, 9, False, None, "More --epochs need another --run_dir"),
    ("steps", 3, 9, False, None, "More --epochs need another --run_dir"),
    ("steps", 3, 9, True, None, "More --epochs need another --run_dir"),
    ("cosine", 3, 5, True, "--epochs=9 --early_stopping=6", "a larger value trains longer"),
    ("cosine", 0, 5, True, None, "A callback of the experiment ended it"),
]


@pytest.mark.parametrize(("schedule", "patience", "epochs", "stopped", "flags", "words"), LONGER)
def test_how_a_complete_run_is_trained_further(schedule, patience, epochs, stopped, flags, words):
    given = {"epochs": 9, "early_stopping": patience, "learning_rate_schedule": schedule}
    config = runs.configure(build, **given)
    said = _how_to_train_longer(config, epochs, stopped=stopped)
    assert words in said
    assert ("--early_stopping" in said) == bool(flags and "--early_stopping" in flags)
    kept = {
        "file": "own.py",
        "flags": config.as_dict(),
        "defaults": runs.configure(build).as_dict(),
    }
    line = _training("place", kept, {"epochs": epochs, "stopped_early": stopped})
    assert line.count("\n") == (flags is not None)
    if flags is not None:
        rest = "" if schedule == "constant" else f"--learning_rate_schedule={schedule} "
        if "early_stopping" not in flags and patience:
            rest = f"--early_stopping={patience} {rest}"
        assert line.partition("  #")[0] == f"scripts/run own.py {rest}{flags} --run_dir=place"


def test_a_run_that_stopped_goes_on_with_other_flags_of_its_callbacks():
    config = runs.configure(build, early_stopping=3)
    progress = {"stopped_with": stops_with(config)}
    assert has_stopped(config.replace(epochs=99), progress)
    assert not has_stopped(config.replace(early_stopping=4), progress)
    assert not has_stopped(config, {"stopped_with": None})
    assert not has_stopped(config, {})
