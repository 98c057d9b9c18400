"""Averaged weights: whoever judges or saves a model uses them, and training never does."""

import keras
import numpy as np
import pytest

import vae_research as vr
from tests import proofs, trials
from vae_research import checkpoints
from vae_research.runs.session.loading import load_run

IMAGES = np.random.default_rng(0).random((12, 4, 4, 1)).astype("float32")
MOMENTUM, EPOCHS = 0.8, 3


def make(momentum=MOMENTUM):
    keras.utils.set_random_seed(1)
    model = vr.VAE(
        vr.dense_encoder(IMAGES.shape[1:], 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(IMAGES.shape[1:], 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    average = {"use_ema": True, "ema_momentum": momentum} if momentum else {}
    model.compile(keras.optimizers.Adam(0.05, **average), run_eagerly=True)
    return model


def weights(model):
    return [np.array(variable.value) for variable in model.trainable_variables]


class Weights(keras.callbacks.Callback):
    """The weights after every epoch and at the end of training, as other callbacks find them."""

    def __init__(self):
        super().__init__()
        self.found, self.at_end = [], None

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(weights(self.model))

    def on_train_end(self, logs=None):
        self.at_end = weights(self.model)


def fit(model, epochs=EPOCHS, **settings):
    """One step an epoch; returns the history and the weights after every step."""
    seen = Weights()
    history = model.fit(
        IMAGES,
        batch_size=len(IMAGES),
        shuffle=False,
        epochs=epochs,
        callbacks=[seen],
        verbose=0,
        **settings,
    )
    return history.history, seen


def assert_equal(left, right, rtol=0.0):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol)


@pytest.fixture(scope="module")
def trained():
    model = make()
    return model, *fit(model, validation_data=IMAGES)


@pytest.mark.slow
def test_training_is_that_without_averages(trained):
    _, _, seen = trained
    _, plain = fit(make(momentum=None))
    for one, other in zip(seen.found, plain.found, strict=True):
        assert_equal(one, other)
    assert_equal(seen.at_end, plain.found[-1])  # a callback that saves finds the trained weights


@pytest.mark.slow
def test_afterwards_the_averages_are_in_place(trained):
    model, _, seen = trained
    average = seen.found[0]
    for found in seen.found[1:]:
        average = [
            MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(average, found, strict=True)
        ]
    assert_equal(weights(model), average, rtol=1e-5)


@pytest.mark.slow
def test_validation_judges_the_averages(trained):
    model, history, _ = trained
    assert model.evaluate(IMAGES, batch_size=len(IMAGES), verbose=0, return_dict=True)[
        "loss"
    ] == pytest.approx(history["val_loss"][-1], rel=1e-6)


@pytest.mark.slow
def test_the_next_fit_continues_from_the_trained_weights(trained):
    _, _, whole = trained
    model = make()
    fit(model, epochs=1)
    _, seen = fit(model, epochs=EPOCHS - 1)
    assert_equal(seen.at_end, whole.at_end)


@pytest.mark.slow
def test_a_saved_model_continues_from_the_trained_weights(trained, tmp_path):
    _, _, whole = trained
    model = make()
    fit(model, epochs=1)
    averages = weights(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(weights(loaded), averages)
    _, seen = fit(loaded, epochs=EPOCHS - 1)
    assert_equal(seen.at_end, whole.at_end, rtol=1e-5)


@pytest.mark.slow
def test_another_optimizer_starts_from_the_weights_in_place():
    model = make()
    fit(model, epochs=2)
    averages = weights(model)
    model.encoder.trainable = False
    model.compile(keras.optimizers.SGD(0.0, use_ema=True), run_eagerly=True)
    fit(model, epochs=1)
    model.encoder.trainable = True
    assert_equal(weights(model), averages)


def test_best_weights_and_averages_are_refused_together():
    stop = keras.callbacks.EarlyStopping(monitor="loss", restore_best_weights=True)
    with pytest.raises(ValueError, match="averages of the last one would replace them"):
        make().fit(IMAGES, callbacks=[stop], verbose=0)


@pytest.mark.slow
def test_weights_that_somebody_gave_are_trained_instead():
    model = make(momentum=0.5)
    fit(model, epochs=1)
    given = [np.full_like(value, 0.25) for value in weights(model)]
    for variable, value in zip(model.trainable_variables, given, strict=True):
        variable.assign(value)
    _, seen = fit(model, epochs=1)
    change = max(np.abs(one - other).max() for one, other in zip(seen.at_end, given, strict=True))
    assert 0.0 < change < 0.2  # a step of Adam from what was given


def test_before_the_first_step_there_are_no_averages():
    model = make()
    model.evaluate(IMAGES, batch_size=len(IMAGES), verbose=0)
    model.build_optimizer()
    before = weights(model)
    with model.averaging.averages():
        assert_equal(weights(model), before)


@pytest.mark.slow
def test_a_run_says_that_it_judged_the_averages(dataset, tmp_path):
    """That it resumes from the weights themselves is in `test_survival.py`."""
    flags = [
        dataset,
        "--ema=0.9",
        *proofs.COMMON,
        *proofs.RUNS["dense"],
        "--epochs=1",
        "--notensorboard",
    ]
    assert trials.run(tmp_path / "run", *flags, whole=True)["status"] == 0
    run = load_run(tmp_path / "run", build=trials.build)
    assert checkpoints.weights_sha256(run.model) == run.summary["weights_sha256"]
    assert any("averaged weights" in note for note in run.summary["notes"])
