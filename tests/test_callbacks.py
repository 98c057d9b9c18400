"""Callbacks, each alone with plain `fit`: what they write is what was trained, at the right step.

Event files are read back with TensorBoard's own reader. Scalars in them are float32, as are the
figures of the history, so that the two are compared by `==`.
"""

import json
import math
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from tests.traced import as_new
from vae_research import (
    VAE,
    Bernoulli,
    Console,
    Cyclical,
    DeterministicBottleneck,
    FreeBits,
    GaussianBottleneck,
    Gradients,
    HParams,
    KLDivergence,
    Latents,
    LinearWarmup,
    LossTerm,
    MetricsFile,
    MonteCarloKL,
    Overview,
    Pictures,
    Profile,
    Projector,
    Scalars,
    Summaries,
    decoded_plane,
    dense_decoder,
    dense_encoder,
)
from vae_research.callbacks import base as base_module
from vae_research.callbacks.base import EpochCallback
from vae_research.callbacks.latents import kl_over_time
from vae_research.callbacks.pictures import reconstructions, samples
from vae_research.callbacks.tensorboard.drawing import heat, sprite, tile
from vae_research.checkpoints import weights_sha256
from vae_research.data import Data
from vae_research.evaluation.estimates import active_units
from vae_research.runs.session import logs as logs_of_a_run

SHAPE = (4, 4, 1)
LATENT = 2
BATCH = 5
IMAGES = (np.random.default_rng(0).random((24, *SHAPE)) < 0.3).astype("float32")
VALIDATION = (np.random.default_rng(1).random((13, *SHAPE)) < 0.3).astype("float32")
STEPS = 5  # four batches of 5 and a last one of 4
ONE_STEP = {"data": IMAGES[:BATCH], "epochs": 1, "validation": None}
SIZES = [5, 5, 5, 5, 4]
ENOUGH = {"rel": 2e-6}  # sums of a few float32


def make(
    terms=None, *, shape=SHAPE, bottleneck=None, optimizer=None, run_eagerly=True, encoder=None
):
    """A compiled model; the initial weights are the same at every call."""
    keras.utils.set_random_seed(7)
    vae = VAE(
        encoder() if encoder else dense_encoder(shape, LATENT, hidden_units=(8,)),
        bottleneck or GaussianBottleneck(LATENT),
        dense_decoder(shape, LATENT, hidden_units=(8,)),
        [Bernoulli(), KLDivergence(weight=0.5)] if terms is None else terms,
    )
    optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
    vae.compile(optimizer, run_eagerly=run_eagerly, jit_compile=False)
    return vae


def make_usual():
    return make(run_eagerly=False)


def usual(learning_rate=0.1):
    """The model of `make()`, for tests to which it does not matter that it is traced."""
    model = as_new(make_usual)
    model.optimizer.learning_rate = learning_rate
    return model


def make_autoencoder():
    return make(
        [Bernoulli()],
        encoder=lambda: dense_encoder(SHAPE, LATENT, outputs=("z_mean",)),
        bottleneck=DeterministicBottleneck(LATENT),
        run_eagerly=False,
    )


def autoencoder():
    return as_new(make_autoencoder)


def train(model, *callbacks, validation=VALIDATION, **options):
    """The history of two epochs in the order of the data."""
    options = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, **options}
    if validation is not None:
        options |= {"validation_data": validation, "validation_batch_size": 8}
    data = options.pop("data", IMAGES)
    return model.fit(data, callbacks=list(callbacks), **options).history


def float32(values):
    return [float(np.float32(value)) for value in values]


def read(folder):
    """Returns `{tag: [(step, value), ...]}` of the event files in a folder."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def scalars(folder):
    found = {}
    for tag, written in read(folder).items():
        if all(value.shape == () and value.dtype.kind == "f" for _, value in written):
            found[tag] = [(step, float(value)) for step, value in written]
    return found


def values(written):
    return [value for _, value in written]


class AtEpochEnd(keras.callbacks.Callback):
    """Keeps what a function says of the model after every epoch."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(self.function(self.model))


class MeanSquare(LossTerm):
    """Squared length of the posterior mean."""

    def per_example(self, z_mean):
        return tf.reduce_sum(tf.square(z_mean), axis=-1)


# All of them.


def dropout_encoder():
    inputs = keras.Input(SHAPE, name="inputs")
    features = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(inputs))
    features = keras.layers.Dropout(0.4)(keras.layers.BatchNormalization()(features))
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    return keras.Model(inputs, heads)


@pytest.mark.slow
def test_watching_changes_nothing(tmp_path):
    """A callback that draws from Keras' generator, or runs the networks as in training, would."""

    def make_plain():
        return make(encoder=dropout_encoder, run_eagerly=False)

    def hash_after(model, *callbacks):
        keras.utils.set_random_seed(11)
        history = train(model, *callbacks, shuffle=True, batch_size=8)
        return weights_sha256(model), history

    watched = hash_after(
        make_plain(),
        Scalars(tmp_path, every_steps=2),
        Latents(tmp_path, VALIDATION),
        Pictures(tmp_path, VALIDATION),
        Gradients(tmp_path, IMAGES[:BATCH], every_steps=2),
        Projector(tmp_path, VALIDATION),
        Overview(tmp_path, IMAGES),
        HParams(tmp_path, {"latent_dim": LATENT}),
        MetricsFile(tmp_path / "metrics.jsonl"),
        Console(bar=True),
    )
    assert watched == hash_after(as_new(make_plain))
    # The mutant.
    disturbing = AtEpochEnd(lambda model: model.encoder(VALIDATION, training=True))
    assert hash_after(as_new(make_plain), disturbing) != watched


@pytest.mark.slow
def test_a_record_that_nobody_writes_is_refused():
    with pytest.raises(TypeError):
        train(usual(), EpochCallback(), validation=None, epochs=1)


# Scalars.

FIGURES = {"loss", "elbo"} | {
    f"{kind}/{name}"
    for kind in ("terms", "weight", "contribution")
    for name in ("reconstruction", "kl")
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two epochs in graph mode: the model's history and both folders."""
    folder = tmp_path_factory.mktemp("scalars")
    history = train(usual(), Scalars(folder))
    return history, scalars(folder / "train"), scalars(folder / "validation")


@pytest.mark.slow
def test_tags_are_those_of_the_contract(written):
    _, training, validation = written
    assert training.keys() == FIGURES | {"learning_rate", "images_per_second"}
    assert validation.keys() == FIGURES


def test_the_axis_is_the_optimizer_step(written):
    for split in written[1:]:
        for tag, found in split.items():
            assert [step for step, _ in found] == [STEPS, 2 * STEPS], tag


def test_values_are_those_of_the_history(written):
    history, training, validation = written
    for prefix, split in (("", training), ("val_", validation)):
        for name in ("loss", "elbo"):
            assert values(split[name]) == float32(history[prefix + name])
        for name in ("reconstruction", "kl"):
            assert values(split[f"terms/{name}"]) == float32(history[prefix + name])
    assert values(training["loss"]) != values(validation["loss"])


def test_a_contribution_is_weight_times_value_and_all_of_them_are_the_loss(written):
    for split in written[1:]:
        assert values(split["weight/kl"]) == [0.5, 0.5]
        assert values(split["weight/reconstruction"]) == [1.0, 1.0]
        for at in range(2):
            figure = {tag: found[at][1] for tag, found in split.items()}
            assert figure["contribution/kl"] == pytest.approx(0.5 * figure["terms/kl"], **ENOUGH)
            assert figure["contribution/reconstruction"] == figure["terms/reconstruction"]
            total = figure["contribution/kl"] + figure["contribution/reconstruction"]
            assert total == pytest.approx(figure["loss"], **ENOUGH)
            # The ELBO has no weight in it.
            elbo = -figure["terms/reconstruction"] - figure["terms/kl"]
            assert figure["elbo"] == pytest.approx(elbo, **ENOUGH)


@pytest.mark.slow
def test_contributions_of_an_estimated_divergence_are_the_loss_too(tmp_path):
    train(make([Bernoulli(), MonteCarloKL(weight=0.5)]), Scalars(tmp_path), epochs=1)
    for split in ("train", "validation"):
        figure = {tag: found[0][1] for tag, found in scalars(tmp_path / split).items()}
        total = figure["contribution/kl"] + figure["contribution/reconstruction"]
        assert total == pytest.approx(figure["loss"], **ENOUGH)
        # `terms/kl` is in closed form, as in the ELBO.
        elbo = -figure["terms/reconstruction"] - figure["terms/kl"]
        assert figure["elbo"] == pytest.approx(elbo, **ENOUGH)
        assert figure["contribution/kl"] != pytest.approx(0.5 * figure["terms/kl"], rel=1e-3)


@pytest.mark.slow
def test_a_weight_that_moves_is_that_of_the_step_and_its_contribution_that_of_every_step(tmp_path):
    schedule = LinearWarmup(start=0.2, peak=3.2, steps=2 * STEPS)
    model = make([Bernoulli(weight=Cyclical(steps=7, cycles=None)), KLDivergence(weight=schedule)])
    history = train(model, Scalars(tmp_path))
    training, validation = scalars(tmp_path / "train"), scalars(tmp_path / "validation")
    # 0.2 + 3 * step / 10.
    for split in (training, validation):
        assert values(split["weight/kl"]) == pytest.approx([1.7, 3.2], **ENOUGH)
        for at in range(2):
            total = split["contribution/kl"][at][1] + split["contribution/reconstruction"][at][1]
            assert total == pytest.approx(split["loss"][at][1], **ENOUGH)
    for at in range(2):
        # Validation is made with one weight, that of the step.
        product = validation["weight/kl"][at][1] * validation["terms/kl"][at][1]
        assert validation["contribution/kl"][at][1] == pytest.approx(product, **ENOUGH)
        # Training is not: the mutant takes the product all the same.
        product = training["weight/kl"][at][1] * training["terms/kl"][at][1]
        assert training["contribution/kl"][at][1] != pytest.approx(product, rel=1e-2)
    assert values(training["contribution/kl"]) == float32(history["contribution/kl"])


@pytest.mark.slow
def test_what_is_only_watched_has_a_value_and_no_weight(tmp_path):
    terms = [Bernoulli(), KLDivergence(), MeanSquare(weight=None)]
    train(make(terms), Scalars(tmp_path), epochs=1)
    for split in ("train", "validation"):
        found = scalars(tmp_path / split)
        assert "terms/mean_square" in found
        assert not {"weight/mean_square", "contribution/mean_square"} & found.keys()
        assert found["loss"][0][1] == pytest.approx(-found["elbo"][0][1], **ENOUGH)


@pytest.mark.slow
def test_regularization_counts_with_weight_one(tmp_path):
    def encoder():
        inputs = keras.Input(SHAPE, name="inputs")
        features = keras.layers.Flatten()(inputs)
        head = keras.layers.Dense(LATENT, kernel_regularizer=keras.regularizers.L2(0.1))
        return keras.Model(
            inputs, {"z_mean": head(features), "z_log_var": keras.layers.Dense(LATENT)(features)}
        )

    history = train(make(encoder=encoder), Scalars(tmp_path), epochs=1)
    training = scalars(tmp_path / "train")
    assert values(training["terms/regularization"]) == float32(history["regularization"])
    assert training["terms/regularization"] == training["contribution/regularization"]
    assert values(training["weight/regularization"]) == [1.0]
    total = sum(found[0][1] for tag, found in training.items() if tag.startswith("contribution/"))
    assert total == pytest.approx(training["loss"][0][1], **ENOUGH)


@pytest.mark.slow
def test_divergence_that_is_no_term_is_shown_without_a_weight(tmp_path):
    terms = [Bernoulli(), FreeBits(nats_per_dimension=1.0)]
    train(make(terms), Scalars(tmp_path), validation=None, epochs=1)
    training = scalars(tmp_path / "train")
    assert training.keys() >= {"terms/kl", "terms/free_bits", "weight/free_bits"}
    assert not {"weight/kl", "contribution/kl"} & training.keys()
    assert training["terms/free_bits"][0][1] > training["terms/kl"][0][1]


@pytest.mark.slow
def test_a_plain_autoencoder_has_no_elbo(tmp_path):
    train(autoencoder(), Scalars(tmp_path), epochs=1)
    assert scalars(tmp_path / "validation").keys() == {
        "loss",
        *(f"{kind}/reconstruction" for kind in ("terms", "weight", "contribution")),
    }


@pytest.mark.slow
def test_the_learning_rate_is_that_of_the_schedule_at_the_step(tmp_path):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, STEPS, 0.5)
    train(make(optimizer=keras.optimizers.SGD(schedule)), Scalars(tmp_path), validation=None)
    assert scalars(tmp_path / "train")["learning_rate"] == [
        (5, pytest.approx(0.05)),
        (10, pytest.approx(0.025)),
    ]


@pytest.mark.slow
def test_the_learning_rate_of_a_callback_is_no_term(tmp_path):
    halve = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)
    train(usual(), halve, Scalars(tmp_path))
    training = scalars(tmp_path / "train")
    assert training.keys() == FIGURES | {"learning_rate", "images_per_second"}
    assert values(training["learning_rate"]) == pytest.approx([0.1, 0.05])


@pytest.mark.slow
def test_without_validation_data_there_is_no_validation(tmp_path):
    history = train(usual(), Scalars(tmp_path), validation=None)
    assert not (tmp_path / "validation").exists()
    assert values(scalars(tmp_path / "train")["loss"]) == float32(history["loss"])


@pytest.mark.slow
def test_validation_every_other_epoch_is_written_when_it_was_made(tmp_path):
    history = train(usual(), Scalars(tmp_path), epochs=3, validation_freq=2)
    assert [step for step, _ in scalars(tmp_path / "train")["loss"]] == [5, 10, 15]
    assert scalars(tmp_path / "validation")["loss"] == [(10, *float32(history["val_loss"]))]


@pytest.mark.slow
def test_a_second_fit_goes_on_at_its_step(tmp_path):
    model, callback = usual(), Scalars(tmp_path)
    first = train(model, callback, epochs=1)
    second = train(model, callback, epochs=3, initial_epoch=1)
    losses = float32(first["loss"] + second["loss"])
    assert scalars(tmp_path / "train")["loss"] == list(zip([5, 10, 15], losses, strict=True))


# Scalars of every so many steps.


@pytest.fixture(scope="module")
def step_by_step(tmp_path_factory):
    """Every figure of every step, and the history of the epochs."""
    folder = tmp_path_factory.mktemp("steps")
    history = train(warming_up(), Scalars(folder, every_steps=1))
    return scalars(folder / "train"), history


def make_warming_up():
    terms = [Bernoulli(), KLDivergence(weight=LinearWarmup(start=0.2, steps=8))]
    return make(terms, run_eagerly=False)


def warming_up():
    return as_new(make_warming_up)


MEANS = ("loss", "elbo", "terms/reconstruction", "terms/kl", "contribution/kl")


@pytest.mark.slow
def test_single_steps_average_back_to_the_epoch(step_by_step):
    found, history = step_by_step
    for tag in MEANS:
        assert [step for step, _ in found[tag]] == list(range(1, 11)), tag
        for epoch in range(2):
            of_epoch = values(found[tag])[epoch * STEPS : (epoch + 1) * STEPS]
            mean = np.average(of_epoch, weights=SIZES)
            name = tag.removeprefix("terms/")
            assert mean == pytest.approx(history[name][epoch], **ENOUGH), tag
            # A running mean since the start of the epoch, the mutant, has the last one equal.
            assert of_epoch[-1] != pytest.approx(history[name][epoch], rel=1e-3), tag
    # The weight of a step is the next one's: it is that of the axis, after the update.
    steps = np.arange(1, 11)
    assert values(found["weight/kl"]) == pytest.approx(0.2 + 0.8 * np.minimum(steps / 8, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every_steps", "intervals"),
    [
        # Steps of each interval: up to a multiple of the interval, and up to the end of an epoch.
        (2, [(1, 2), (3, 4), (5,), (6,), (7, 8), (9, 10)]),
        (3, [(1, 2, 3), (4, 5), (6,), (7, 8, 9), (10,)]),
        (5, [(1, 2, 3, 4, 5), (6, 7, 8, 9, 10)]),
        (100, [(1, 2, 3, 4, 5), (6, 7, 8, 9, 10)]),
    ],
)
def test_an_interval_is_the_mean_over_its_own_examples(
    every_steps, intervals, step_by_step, tmp_path
):
    train(warming_up(), Scalars(tmp_path, every_steps=every_steps))
    training = scalars(tmp_path / "train")
    assert training.keys() == FIGURES | {"learning_rate", "images_per_second"}
    for tag in (*MEANS, "contribution/reconstruction"):
        single = dict(step_by_step[0][tag])
        wanted = [
            np.average(
                [single[step] for step in interval],
                weights=[SIZES[(step - 1) % STEPS] for step in interval],
            )
            for interval in intervals
        ]
        assert [step for step, _ in training[tag]] == [interval[-1] for interval in intervals]
        assert values(training[tag]) == pytest.approx(wanted, rel=1e-5), tag
    # Once an epoch all the same: speed, learning rate and validation.
    for tag in ("learning_rate", "images_per_second"):
        assert [step for step, _ in training[tag]] == [5, 10]
    assert [step for step, _ in scalars(tmp_path / "validation")["loss"]] == [5, 10]


@pytest.mark.parametrize("every_steps", [-1, -100])
def test_a_negative_interval_is_refused(every_steps, tmp_path):
    with pytest.raises(ValueError, match=f"must be an integer >= 0, got {every_steps}"):
        Scalars(tmp_path, every_steps=every_steps)


# Speed.


class Clock(keras.callbacks.Callback):
    """Seconds that pass as training goes: 2 in a training step, 1000 in a validation step."""

    def __init__(self):
        super().__init__()
        self.now = 50.0

    def on_train_batch_begin(self, batch, logs=None):
        self.now += 2.0

    def on_test_batch_begin(self, batch, logs=None):
        self.now += 1000.0

    def on_epoch_end(self, epoch, logs=None):
        self.now += 7.0


@pytest.mark.slow
@pytest.mark.parametrize("validation", [VALIDATION, None], ids=["validation", "none"])
def test_speed_is_that_of_training_without_validation(validation, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(base_module, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    file = tmp_path / "metrics.jsonl"
    # In either order: what other callbacks do at the end of an epoch is no training either.
    train(usual(), MetricsFile(file), Scalars(tmp_path), clock, validation=validation)
    assert [line["seconds"] for line in lines(file)] == [2.0 * STEPS] * 2
    assert [line["images_per_second"] for line in lines(file)] == [24 / 10.0] * 2
    assert values(scalars(tmp_path / "train")["images_per_second"]) == pytest.approx([2.4, 2.4])


def test_speed_is_measured_by_a_real_clock_too(written):
    assert all(speed > 0.0 for speed in values(written[1]["images_per_second"]))


# Latents.


LATENT_TAGS = {"latent/active_units", "latent/permuted_code_gap"}


@pytest.mark.slow
def test_latents_are_those_of_the_data_after_every_epoch(tmp_path):
    wanted = AtEpochEnd(lambda model: active_units(model.encode(VALIDATION).numpy()).value)
    history = train(usual(), wanted, Latents(tmp_path, VALIDATION))
    assert not (tmp_path / "train").exists()
    found = scalars(tmp_path / "validation")
    assert found.keys() == LATENT_TAGS | {"latent/mutual_information", "latent/kl_total"}
    assert found["latent/active_units"] == list(zip([5, 10], wanted.found, strict=True))
    # Closed form: no noise in it, so the validation of Keras has the very number.
    assert found["latent/kl_total"] == list(zip([5, 10], float32(history["val_kl"]), strict=True))


def linear_encoder(kernel):
    """Posterior means are the inputs' first pixels, times the kernel."""
    inputs = keras.Input(SHAPE, name="inputs")
    features = keras.layers.Flatten()(inputs)
    heads = {name: keras.layers.Dense(LATENT, name=name) for name in ("z_mean", "z_log_var")}
    model = keras.Model(inputs, {name: head(features) for name, head in heads.items()})
    matrix = np.zeros([16, LATENT])
    matrix[:LATENT] = np.diag(kernel)
    heads["z_mean"].set_weights([matrix, np.ones(LATENT)])
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "count"), [([1.0, 1.0], 2), ([1.0, 0.0], 1), ([0.1, 0.1], 0)], ids=str
)
def test_active_units_are_counted(kernel, count, tmp_path):
    # The variance of a pixel is 0.2: with 0.1 for a weight, that of the mean is 0.002.
    model = make(encoder=lambda: linear_encoder(kernel), optimizer=keras.optimizers.SGD(0.0))
    train(model, Latents(tmp_path, IMAGES), **ONE_STEP)
    assert scalars(tmp_path / "validation")["latent/active_units"] == [(1, count)]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "active"), [(499, 2), (500, 0)])
def test_the_first_five_hundred_examples_are_used(place, active, tmp_path):
    # One alone is another one: the last that counts, or the first that does not.
    images = np.zeros([501, *SHAPE], np.float32)
    images[place] = 1.0
    model = make(encoder=lambda: linear_encoder([10.0, 10.0]), optimizer=keras.optimizers.SGD(0.0))
    train(model, Latents(tmp_path, images), **ONE_STEP)
    assert scalars(tmp_path / "validation")["latent/active_units"] == [(1, active)]
    assert active_units(model.encode(images).numpy()).value == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_deviation_that_is_too_large_to_compute_is_left_out(tmp_path):
    images = VALIDATION.copy()
    images[0] = 1000.0
    model = make(encoder=lambda: linear_encoder([1.0, 1.0]), optimizer=keras.optimizers.SGD(0.0))
    latents = Latents(tmp_path, images)
    train(model, latents, **ONE_STEP)
    assert latents.inference(model)["z_log_var"].max() > 2 * np.log(np.finfo(np.float32).max)
    found = read(tmp_path / "validation")
    assert "latent/kl_over_time" in found  # its divergence is infinite, too
    ((_, buckets),) = found["latent/posterior_std"]
    assert np.isfinite(buckets).all()
    assert 0 < buckets[:, 2].sum() < VALIDATION.shape[0] * 2


@pytest.mark.slow
def test_without_a_posterior_there_is_no_divergence(tmp_path):
    train(autoencoder(), Latents(tmp_path, VALIDATION), epochs=1)
    assert scalars(tmp_path / "validation").keys() == LATENT_TAGS


@pytest.mark.slow
def test_without_validation_the_divergence_of_training_does_not_stand_in_for_it(tmp_path):
    history = train(usual(), Latents(tmp_path, VALIDATION), validation=None, epochs=1)
    assert "kl" in history
    found = scalars(tmp_path / "validation").keys()
    assert found == LATENT_TAGS | {"latent/mutual_information"}


# Pictures.


def pictures(folder):
    """Returns `{tag: [(step, picture), ...]}` with pictures `[height, width, channels]`, 8 bits."""
    found = {}
    for tag, written in read(folder).items():
        if written[0][1].shape != (3,):
            continue
        found[tag] = []
        for step, (width, height, encoded) in written:
            picture = tf.io.decode_png(encoded).numpy()
            assert picture.shape[:2] == (int(height), int(width))
            found[tag].append((step, picture))
    return found


def assert_same_picture(found, wanted):
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    # Within the step of 8 bits, whichever way it was rounded.
    np.testing.assert_allclose(found / 255.0, wanted, atol=1.001 / 255.0)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_are_those_of_the_model_after_every_epoch(channels, tmp_path):
    shape = (4, 3, channels)
    images = np.random.default_rng(2).random((24, *shape)).astype("float32")
    wanted = AtEpochEnd(
        lambda model: (reconstructions(model, images[:6], 3), samples(model, 3, rows=4))
    )
    pictured = Pictures(tmp_path, images, columns=3)
    train(make(shape=shape), pictured, wanted, data=images[: 2 * BATCH], validation=None)
    assert not (tmp_path / "train").exists()
    found = pictures(tmp_path / "validation")
    assert found.keys() == {"reconstructions", "errors", "samples", "traversals", "plane"}
    for place, tag in enumerate(("reconstructions", "samples")):
        assert [step for step, _ in found[tag]] == [2, 4]
        for (_, picture), epoch in zip(found[tag], wanted.found, strict=True):
            # Of other numbers of channels than one and three, the first is shown.
            assert picture.shape[-1] == {1: 1, 2: 1, 3: 3}[channels]
            assert_same_picture(picture, epoch[place])
    assert not np.array_equal(found["reconstructions"][0][1], found["reconstructions"][1][1])


@pytest.mark.slow
def test_originals_are_above_what_the_model_makes_of_them(tmp_path):
    model = usual()
    train(model, Pictures(tmp_path, IMAGES, columns=3), epochs=1)
    ((_, picture),) = pictures(tmp_path / "validation")["reconstructions"]
    made = model.reconstruct(IMAGES[:6]).numpy()
    assert picture.shape == (4 * 6 - 2, 3 * 6 - 2, 1)  # four rows of 4 pixels and gaps of 2
    for index in range(6):
        line, column = divmod(index, 3)
        left = 6 * column
        for top, wanted in ((12 * line, IMAGES[index]), (12 * line + 6, made[index])):
            assert_same_picture(picture[top : top + 4, left : left + 4], wanted)


@pytest.mark.slow
def test_images_and_codes_are_the_same_at_every_epoch(tmp_path):
    model = usual(0.0)
    train(model, Pictures(tmp_path, IMAGES), shuffle=True)
    for tag, ((_, first), (_, second)) in pictures(tmp_path / "validation").items():
        np.testing.assert_array_equal(first, second, err_msg=tag)
        assert len(np.unique(first)) > 10, tag  # it is no empty picture


@pytest.mark.slow
def test_a_deterministic_bottleneck_has_no_samples(tmp_path):
    train(autoencoder(), Pictures(tmp_path, IMAGES))
    assert pictures(tmp_path / "validation").keys() == {
        "reconstructions",
        "errors",
        "traversals",
        "plane",
    }


@pytest.mark.slow
def test_fewer_images_than_columns_are_shown_all_the_same(tmp_path):
    train(usual(), Pictures(tmp_path, IMAGES[:2], columns=5), epochs=1)
    ((_, picture),) = pictures(tmp_path / "validation")["reconstructions"]
    assert picture.shape == (2 * 6 - 2, 5 * 6 - 2, 1)
    assert (picture[:, 12:] == 255).all()


@pytest.mark.slow
def test_as_many_samples_as_the_prior_is_measured_with(tmp_path):
    drawn = Pictures(tmp_path, IMAGES, columns=250).draw(make())
    assert drawn["samples"].shape == (4 * 6 - 2, 250 * 6 - 2, 1)


@pytest.mark.slow
def test_errors_are_those_of_the_pixels(tmp_path):
    model = usual(0.0)
    train(model, Pictures(tmp_path, IMAGES, columns=3), epochs=1)
    ((_, picture),) = pictures(tmp_path / "validation")["errors"]
    # Its scale and the words of its scale are to the right and below.
    assert picture.shape[0] > 2 * 6 - 2 and picture.shape[1] > 3 * 6 - 2
    wanted = heat(np.abs(IMAGES[:6] - model.reconstruct(IMAGES[:6]).numpy())[..., 0])
    for index in range(6):
        line, column = divmod(index, 3)
        found = picture[6 * line : 6 * line + 4, 6 * column : 6 * column + 4]
        assert_same_picture(found, wanted[index])


def decode_of_codes():
    """A decoder whose image shows its code: the first pixels are logistic functions of z."""
    z = keras.Input([3], name="z")
    logits = keras.layers.Dense(16, use_bias=False)
    decoder = keras.Model(z, {"logits": keras.layers.Reshape(SHAPE)(logits(z))})
    logits.set_weights([np.eye(3, 16)])
    return decoder


@pytest.mark.slow
def test_traversals_move_one_dimension_a_row_and_those_with_most_divergence_come_first(tmp_path):
    keras.utils.set_random_seed(7)
    encoder = dense_encoder(SHAPE, 3, hidden_units=(8,))
    # Of the dimensions 0, 1, 2 the middle one has the largest divergence and the first has none.
    for name in ("z_mean", "z_log_var"):
        kernel, bias = encoder.get_layer(name).get_weights()
        kernel[:, 0] = 0.0
        if name == "z_mean":
            kernel[:, 1], kernel[:, 2] = 5.0 * kernel[:, 1], 0.5 * kernel[:, 2]
        encoder.get_layer(name).set_weights([kernel, bias])
    model = VAE(encoder, GaussianBottleneck(3), decode_of_codes(), [Bernoulli(), KLDivergence()])
    model.compile(keras.optimizers.SGD(0.0))
    drawn = Pictures(tmp_path, IMAGES).draw(model)
    divergence = model.infer(IMAGES)["kl"].numpy().mean(axis=0)
    assert np.argsort(-divergence).tolist() == [1, 2, 0]
    code = model.encode(IMAGES[:1]).numpy()[0]
    prior = model.bottleneck.sample_prior(1000, tf.constant([1, 0])).numpy()
    picture = drawn["traversals"]
    assert picture.shape == (3 * 6 - 2, 7 * 6 - 2, 1)
    for row, dimension in enumerate([1, 2, 0]):
        for at in range(7):
            wanted = code.copy()
            wanted[dimension] = prior[:, dimension].mean() + prior[:, dimension].std() * (-3.0 + at)
            pixels = picture[6 * row, 6 * at : 6 * at + 3, 0]
            np.testing.assert_allclose(pixels, 1.0 / (1.0 + np.exp(-wanted)), atol=1e-5)


def test_at_most_twenty_dimensions_are_traversed(tmp_path):
    keras.utils.set_random_seed(7)
    model = VAE(
        dense_encoder(SHAPE, 25, hidden_units=(8,)),
        GaussianBottleneck(25),
        dense_decoder(SHAPE, 25, hidden_units=(8,)),
        [Bernoulli(), KLDivergence()],
    )
    drawn = Pictures(tmp_path, IMAGES).draw(model)
    assert drawn["traversals"].shape == (20 * 6 - 2, 7 * 6 - 2, 1)
    assert "plane" not in drawn


@pytest.mark.slow
def test_the_plane_is_that_of_the_prior_and_that_of_the_codes_without_one(tmp_path):
    model = make()
    prior = model.bottleneck.sample_prior(1000, tf.constant([1, 0])).numpy()
    low = prior.mean(axis=0) - 3.0 * prior.std(axis=0)
    wanted = decoded_plane(model, low, low + 6.0 * prior.std(axis=0), columns=16)
    np.testing.assert_allclose(Pictures(tmp_path, IMAGES).draw(model)["plane"], wanted, atol=1e-5)
    model = autoencoder()
    codes = model.encode(IMAGES).numpy()
    low = codes.mean(axis=0) - 3.0 * codes.std(axis=0)
    wanted = decoded_plane(model, low, low + 6.0 * codes.std(axis=0), columns=16)
    np.testing.assert_allclose(Pictures(tmp_path, IMAGES).draw(model)["plane"], wanted, atol=1e-5)


# The picture and the histograms of latent dimensions.


@pytest.mark.slow
def test_the_divergence_of_dimensions_over_time_goes_on_after_an_interruption(tmp_path):
    def rows():
        lines = (tmp_path / "validation" / "kl_per_dimension.tsv").read_text().splitlines()
        return np.array([line.split("\t") for line in lines], float)

    kept = AtEpochEnd(lambda model: model.infer(VALIDATION)["kl"].numpy().mean(axis=0))
    model = usual()
    train(model, Latents(tmp_path, VALIDATION), kept)
    # Another process, which goes on after the second epoch, and does the third one twice.
    train(model, Latents(tmp_path, VALIDATION), kept, epochs=3, initial_epoch=2)
    np.testing.assert_array_equal(rows()[:, 0], [5, 10, 15])
    np.testing.assert_allclose(rows()[:, 1:], kept.found, rtol=1e-5)
    model.step_counter.assign(10)
    train(model, Latents(tmp_path, VALIDATION), kept, epochs=3, initial_epoch=2)
    picture = pictures(tmp_path / "validation")["latent/kl_over_time"][-1][1]
    history = np.stack([*kept.found[:2], kept.found[3]])
    assert_same_picture(picture, kl_over_time(history))


@pytest.mark.slow
def test_histograms_have_every_example_and_dimension(tmp_path):
    train(usual(), Latents(tmp_path, VALIDATION), epochs=1)
    found = read(tmp_path / "validation")
    for tag, count in (
        ("latent/kl_per_dimension", LATENT),
        ("latent/posterior_mean", len(VALIDATION) * LATENT),
        ("latent/posterior_std", len(VALIDATION) * LATENT),
    ):
        buckets = next(value for _, value in found[tag])
        assert buckets[:, 2].sum() == count


@pytest.mark.slow
def test_pictures_of_another_model_are_of_its_own_prior(tmp_path):
    pictures = Pictures(tmp_path, IMAGES)
    other = VAE(
        dense_encoder(SHAPE, 3), GaussianBottleneck(3), dense_decoder(SHAPE, 3), [Bernoulli()]
    )
    pictures.draw(usual())
    drawn = pictures.draw(other)["samples"]
    assert np.array_equal(drawn, Pictures(tmp_path, IMAGES).draw(other)["samples"])


class Codebook(GaussianBottleneck):
    """Writes what has no row for every example, and a code beside z."""

    def call(self, z_mean, z_log_var, seed):
        found = super().call(z_mean, z_log_var, seed)
        return found | {"perplexity": tf.constant(3.0), "codebook": tf.zeros([500, 2])}


@pytest.mark.slow
def test_a_bottleneck_may_write_what_has_no_rows(tmp_path):
    model = VAE(
        dense_encoder(SHAPE, LATENT, hidden_units=(8,)),
        Codebook(LATENT),
        dense_decoder(SHAPE, LATENT, hidden_units=(8,)),
        [Bernoulli(), KLDivergence()],
    )
    model.compile("adam", run_eagerly=True)
    train(model, Latents(tmp_path, VALIDATION), **ONE_STEP)
    assert "latent/permuted_code_gap" in scalars(tmp_path / "validation")


# Gradients.


@pytest.mark.slow
def test_gradients_are_those_of_the_terms(tmp_path):
    terms = [Bernoulli(), KLDivergence(weight=0.5), MeanSquare(weight=2.0), MeanSquareOfLogs()]
    model = make(terms, optimizer=keras.optimizers.SGD(0.0))
    train(model, Gradients(tmp_path, VALIDATION, every_steps=3), validation=None)
    found = scalars(tmp_path / "train")
    assert [step for step, _ in found["gradients/total"]] == [3, 6, 9, 10]

    def gradients(name, variables):
        with tf.GradientTape() as tape:
            report = model.objective(model.forward(VALIDATION))
            value = report.loss if name is None else report.contributions[name]
            value = tf.reduce_mean(value)
        parts = tape.gradient(value, variables)
        pairs = zip(parts, variables, strict=True)
        return np.concatenate(
            [np.zeros(v.shape).ravel() if part is None else np.ravel(part) for part, v in pairs]
        )

    total = np.linalg.norm(gradients(None, model.trainable_variables))
    assert values(found["gradients/total"]) == pytest.approx([total] * 4, rel=1e-4)
    of_encoder = {}
    for name in ("reconstruction", "kl", "mean_square"):
        of_encoder[name] = gradients(name, model.encoder.trainable_variables)
        in_encoder = np.linalg.norm(of_encoder[name])
        assert found[f"gradients/encoder/{name}"][0][1] == pytest.approx(in_encoder, rel=1e-4)
        if name != "reconstruction":
            cosine = of_encoder["reconstruction"] @ of_encoder[name]
            cosine /= np.linalg.norm(of_encoder["reconstruction"]) * in_encoder
            assert found[f"gradients/cosine/{name}"][0][1] == pytest.approx(cosine, abs=1e-4)
    in_decoder = np.linalg.norm(gradients("reconstruction", model.decoder.trainable_variables))
    assert found["gradients/decoder/reconstruction"][0][1] == pytest.approx(in_decoder, rel=1e-4)
    assert "gradients/decoder/kl" not in found  # it has no part in it
    assert not any("mean_square_of_logs" in tag for tag in found)  # is only watched


@pytest.mark.slow
def test_the_last_gradients_are_in_the_file_when_a_run_saves_its_last_epoch(tmp_path):
    lengths = []
    save = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: lengths.append(logs_of_a_run.lengths(tmp_path)),
        on_train_end=lambda logs: lengths.append(logs_of_a_run.lengths(tmp_path)),
    )
    train(make(), Gradients(tmp_path, VALIDATION, every_steps=100), save, validation=None)
    assert lengths[0] == {}
    assert lengths[1] == lengths[2] != {}  # nothing that a kill during the test figures would lose


class MeanSquareOfLogs(LossTerm):
    weight = None

    def per_example(self, z_log_var):
        return tf.reduce_sum(tf.square(z_log_var), axis=-1)


@pytest.mark.slow
def test_the_gradient_of_an_importance_weighted_bound_is_no_sum_of_its_terms(tmp_path):
    keras.utils.set_random_seed(7)
    model = VAE(
        dense_encoder(SHAPE, LATENT, hidden_units=(8,)),
        GaussianBottleneck(LATENT),
        dense_decoder(SHAPE, LATENT, hidden_units=(8,)),
        [Bernoulli(), MonteCarloKL()],
        num_samples=5,
        importance_weighted=True,
    )
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    train(model, Gradients(tmp_path, VALIDATION, every_steps=100), **ONE_STEP)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model.objective(model.forward(VALIDATION)).loss)
    total = float(tf.linalg.global_norm(tape.gradient(loss, model.trainable_variables)))
    ((step, found),) = scalars(tmp_path / "train")["gradients/total"]
    assert (step, found) == (1, pytest.approx(total, rel=1e-4))


@pytest.mark.slow
def test_weights_that_encoder_and_decoder_share_count_once(tmp_path):
    size = math.prod(SHAPE)
    tied = keras.layers.Dense(size, activation="tanh")
    flat = keras.layers.Flatten()
    inputs, z = keras.Input(SHAPE, name="inputs"), keras.Input((LATENT,), name="z")
    features = tied(flat(inputs))
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    logits = keras.layers.Reshape(SHAPE)(tied(keras.layers.Dense(size)(z)))
    model = VAE(
        keras.Model(inputs, heads),
        GaussianBottleneck(LATENT),
        keras.Model(z, {"logits": logits}),
        [Bernoulli(), KLDivergence()],
    )
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    train(model, Gradients(tmp_path, VALIDATION, every_steps=100), **ONE_STEP)
    with tf.GradientTape(persistent=True) as tape:
        report = model.objective(model.forward(VALIDATION))
        loss, kl = tf.reduce_mean(report.loss), tf.reduce_mean(report.contributions["kl"])
    wanted = {
        "total": tape.gradient(loss, model.trainable_variables),
        "encoder/kl": tape.gradient(kl, model.encoder.trainable_variables),
        "decoder/kl": [tape.gradient(kl, variable) for variable in tied.variables],
    }
    found = scalars(tmp_path / "train")
    for tag, gradients in wanted.items():
        norm = float(tf.linalg.global_norm(gradients))
        assert values(found[f"gradients/{tag}"]) == pytest.approx([norm], rel=1e-4)


# What a run is.


@pytest.mark.slow
def test_the_graph_is_that_of_one_step(tmp_path):
    train(make(run_eagerly=False), Overview(tmp_path, IMAGES), epochs=2)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    graph = events.Graph()
    operations = [node.op for node in graph.node]
    # The products of one forward and one backward pass through four layers, not a loop of them.
    assert 10 <= operations.count("MatMul") <= 14
    assert not {"While", "StatelessWhile", "PartitionedCall"} & set(operations)


@pytest.mark.slow
def test_the_graph_of_a_step_is_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_research.callbacks.overview.graph_of_one_step", None)
    data = Data.from_arrays(IMAGES, VALIDATION, VALIDATION)
    batches = data.train.on_device(len(IMAGES) - 1, seed=0)  # and a last one of a single image
    model = make(run_eagerly=False)
    assert model.graph_of_one_step is None
    model.fit(batches, callbacks=[Overview(tmp_path, IMAGES)], verbose=0)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    operations = [node.op for node in events.Graph().node]
    assert 10 <= operations.count("MatMul") <= 14
    assert not {"While", "StatelessWhile", "PartitionedCall"} & set(operations)


@pytest.mark.slow
def test_text_has_the_layers_the_terms_and_the_settings(tmp_path):
    train(usual(), Overview(tmp_path, IMAGES, {"latent_dim": 2, "data": "a|b"}), epochs=1)
    found = {tag: written[0][1] for tag, written in read(tmp_path / "run").items()}
    text = {tag: str(value.item(), "utf-8") for tag, value in found.items() if "/" in tag}
    assert "z_log_var (Dense)" in text["model/summary"]
    assert "logits" in text["model/summary"]
    assert "| kl | KLDivergence(weight=0.5) |" in text["model/terms"]
    assert "| latent_dim | 2 |\n| data | a&#124;b |" in text["run/settings"]


@pytest.mark.slow
def test_every_tag_of_the_layout_is_written(tmp_path):
    train(
        usual(),
        Overview(tmp_path, IMAGES),
        Scalars(tmp_path),
        Latents(tmp_path, VALIDATION),
        Gradients(tmp_path, IMAGES),
        epochs=1,
    )
    written = {tag for split in ("train", "validation") for tag in scalars(tmp_path / split)}
    (tag,) = (tag for tag in read(tmp_path / "run") if "custom_scalars" in tag)
    layout = layout_pb2.Layout.FromString(read(tmp_path / "run")[tag][0][1].item())
    charts = {chart.title: chart for group in layout.category for chart in group.chart}
    for chart in charts.values():
        for expression in chart.multiline.tag:
            assert any(re.match(expression, tag) for tag in written), expression
    together = charts["reconstruction, KL and ELBO (nats)"].multiline.tag
    shown = {tag for tag in written if any(re.match(each, tag) for each in together)}
    assert shown == {"terms/reconstruction", "terms/kl", "elbo"}


@pytest.mark.slow
def test_a_run_is_a_row_of_settings_and_final_figures(tmp_path):
    settings = {"epochs": 2, "rate": 0.1, "on": True, "units": (8, 4), "name": "x", "none": None}
    history = train(usual(), HParams(tmp_path, settings))
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    found = events.PluginTagToContent("hparams")
    row = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_start_info"])
    shown = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in row.session_start_info.hparams.items()
    }
    assert shown == settings | {"units": "8, 4", "none": ""}
    end = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_end_info"])
    assert end.session_end_info.status == api_pb2.STATUS_SUCCESS
    final = scalars(tmp_path / "run")
    assert final["trained/validation/elbo"] == [(10, *float32(history["val_elbo"][-1:]))]
    assert final["trained/epochs"] == [(10, 2.0)]
    assert final["trained/train/loss"] == [(10, *float32(history["loss"][-1:]))]


@pytest.mark.slow
def test_a_row_counts_the_epochs_that_were_made(tmp_path):
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1)
    )
    model = usual()
    train(model, HParams(tmp_path, {}), stop, epochs=5)
    assert [value for _, value in scalars(tmp_path / "run")["trained/epochs"]] == [2.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorBoard will have no graph")
def test_a_step_that_cannot_be_traced_has_no_graph(tmp_path):
    class Eager(LossTerm):
        weight = None

        def per_example(self, z_mean):
            return tf.constant(z_mean.numpy().sum(axis=1))

    model = make([Bernoulli(), KLDivergence(), Eager()])
    with pytest.warns(UserWarning, match="will have no graph of the step"):
        train(model, Overview(tmp_path, IMAGES), validation=None, epochs=1)
    assert model.step == STEPS


# The projector.


@pytest.mark.slow
def test_points_are_the_codes_of_the_last_epoch_with_labels_and_thumbnails(tmp_path):
    labels = np.arange(13) % 3
    model = usual()
    train(model, Projector(tmp_path, VALIDATION, labels, VALIDATION), epochs=3)
    folder = tmp_path / "validation"
    codes = np.loadtxt(folder / "codes.tsv", delimiter="\t")
    wanted = model.encode(VALIDATION).numpy()
    np.testing.assert_allclose(codes[:, :LATENT], wanted, rtol=1e-5, atol=1e-6)
    # Of fewer than three columns the projector draws nothing.
    np.testing.assert_array_equal(codes[:, LATENT:], np.zeros([len(VALIDATION), 1]))
    assert (folder / "codes_labels.tsv").read_text().split() == [str(label) for label in labels]
    picture = tf.io.decode_png((folder / "codes_sprite.png").read_bytes()).numpy()
    assert_same_picture(picture, sprite(VALIDATION)[0])
    config = (folder / "projector_config.pbtxt").read_text()
    for part in ("codes.tsv", "codes_labels.tsv", "codes_sprite.png", "single_image_dim: 4"):
        assert part in config
    assert list(folder.glob("events.*"))  # without one the plugin does not see the folder


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "written"), [(1, 2), (2, 2), (3, 3), (4, 3)])
def test_points_are_written_every_so_many_epochs_and_at_the_end(
    epochs, written, tmp_path, monkeypatch
):
    count = []
    monkeypatch.setattr(Summaries, "vectors", lambda *arguments: count.append(1))
    train(usual(), Projector(tmp_path, VALIDATION, every_epochs=2), epochs=epochs)
    assert len(count) == written


# A profile.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The profile will be written")
@pytest.mark.parametrize(
    ("steps_per_call", "recorded"), [(1, [3, 4, 5, 6]), (2, [4, 5, 7])], ids=str
)
def test_a_profile_covers_the_calls_of_the_chosen_steps(
    steps_per_call, recorded, tmp_path, monkeypatch
):
    running, seen = [], []
    profiler = types.SimpleNamespace(start=running.append, stop=running.clear)
    monkeypatch.setattr(tf.profiler, "experimental", profiler)

    class See(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if running:
                seen.append(self.model.step)

    model = make(run_eagerly=False)
    model.steps_per_execution = steps_per_call
    train(model, See(), Profile(tmp_path, 3, 6), validation=None)
    assert seen == recorded
    assert not running


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The profile will be written")
def test_a_profile_is_a_file_that_the_dashboard_knows(tmp_path):
    train(make(run_eagerly=False), Profile(tmp_path, 2, 3), validation=None, epochs=1)
    assert list((tmp_path / "train" / "plugins" / "profile").glob("*/*.xplane.pb"))


@pytest.mark.slow
def test_a_second_profile_at_the_same_time_is_told_and_ends_nothing(tmp_path):
    tf.profiler.experimental.start(str(tmp_path / "other"))
    try:
        with pytest.warns(UserWarning, match="There is no profile: .*Training continues"):
            train(usual(), Profile(tmp_path, 2, 3), validation=None, epochs=1)
    finally:
        tf.profiler.experimental.stop()


@pytest.mark.parametrize(("first", "last"), [(0, 3), (4, 3)])
def test_steps_of_a_profile_have_an_order(first, last, tmp_path):
    with pytest.raises(ValueError, match=f"got {first},{last}"):
        Profile(tmp_path, first, last)


# The geometry of a picture.


def numbered(count, shape, first=1):
    """Images of one value each, tenths."""
    return np.stack([np.full(shape, (first + index) / 10.0) for index in range(count)])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("gap", [1, 2, 5])
def test_tile_puts_every_image_at_its_place(channels, gap):
    height, width, columns = 3, 2, 2
    groups = [
        numbered(3, (height, width, channels), first=1),
        numbered(1, (height, width, channels), first=5),
        numbered(2, (height, width, channels), first=7),
    ]
    picture = tile(groups, columns, gap=gap)
    shown = 3 if channels == 3 else 1
    # Two lines for the first group, one for each other.
    assert picture.shape == (4 * height + 3 * gap, columns * width + gap, shown)
    wanted = np.ones(picture.shape)
    for line, column, value in [
        (0, 0, 0.1),
        (0, 1, 0.2),
        (1, 0, 0.3),
        (2, 0, 0.5),
        (3, 0, 0.7),
        (3, 1, 0.8),
    ]:
        top, left = line * (height + gap), column * (width + gap)
        wanted[top : top + height, left : left + width] = value
    np.testing.assert_allclose(picture, wanted, atol=1e-7)


def test_tile_without_gaps_is_the_images_side_by_side():
    picture = tile([numbered(4, (3, 2, 1))], 2, gap=0)
    np.testing.assert_allclose(picture[:3, :, 0], [[0.1, 0.1, 0.2, 0.2]] * 3, atol=1e-7)


def test_tile_shows_the_first_of_two_channels_and_all_of_three():
    image = np.random.default_rng(0).random([1, 3, 3, 3]).astype("float32")
    np.testing.assert_array_equal(tile([image], 1), image[0])
    np.testing.assert_array_equal(tile([image[..., :2]], 1), image[0, ..., :1])


def test_tile_leaves_values_that_can_be_shown_and_brings_in_others():
    inside = np.linspace(0.2, 0.7, 4).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(tile([inside], 1), inside[0], atol=1e-7)
    # Standardised data: from -2 to 3, by one scale for all groups.
    outside = [
        np.array([[-2.0, 0.5]]).reshape(1, 1, 2, 1),
        np.array([[3.0, 1.0]]).reshape(1, 1, 2, 1),
    ]
    picture = tile(outside, 1, gap=1)[..., 0]
    np.testing.assert_allclose(picture, [[0.0, 0.5], [1.0, 1.0], [1.0, 0.6]], atol=1e-7)


# The metrics file.


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_line_an_epoch_with_the_keys_of_the_contract(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"epoch": 2}\n')
    terms = [Bernoulli(), KLDivergence(weight=0.5), MeanSquare(weight=None)]
    history = train(make(terms), MetricsFile(file), epochs=4, initial_epoch=2)
    # What was there is kept, and every line ends.
    assert file.read_text().startswith('{"epoch": 2}\n')
    assert file.read_text().endswith("}\n")
    found = lines(file)[1:]
    assert [line["epoch"] for line in found] == [3, 4]
    assert [line["step"] for line in found] == [5, 10]
    figures = ("loss", "elbo", "reconstruction", "kl", "mean_square")
    for at, line in enumerate(found):
        assert line.keys() == {"epoch", "step", "seconds", "images_per_second"} | {
            f"{split}/{name}"
            for split in ("train", "validation")
            for name in (*figures, "weight/reconstruction", "weight/kl")
        }
        for name in figures:
            assert line[f"train/{name}"] == history[name][at]
            assert line[f"validation/{name}"] == history[f"val_{name}"][at]
        for split in ("train", "validation"):
            assert line[f"{split}/weight/kl"] == 0.5
            assert line[f"{split}/weight/reconstruction"] == 1.0
        assert line["images_per_second"] > 0.0


@pytest.mark.slow
def test_the_weight_in_the_metrics_file_is_that_of_the_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    terms = [Bernoulli(), KLDivergence(weight=LinearWarmup(steps=8))]
    train(make(terms), MetricsFile(file), validation=None)
    assert [line["train/weight/kl"] for line in lines(file)] == [0.625, 1.0]


@pytest.mark.slow
def test_without_validation_data_the_line_has_none(tmp_path):
    train(usual(), MetricsFile(tmp_path / "metrics.jsonl"), validation=None, epochs=1)
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert "train/loss" in line
    assert not any(name.startswith("validation/") for name in line)


@pytest.mark.slow
def test_every_line_is_on_disk_when_its_epoch_is_over(tmp_path):
    file = tmp_path / "metrics.jsonl"
    count = AtEpochEnd(lambda model: len(lines(file)))
    train(usual(), MetricsFile(file), count, validation=None)
    assert count.found == [1, 2]


class NotANumber(LossTerm):
    weight = None

    def per_example(self, z_mean):
        return tf.math.log(-tf.abs(z_mean[:, 0]) - 1.0)


@pytest.mark.slow
def test_a_figure_that_is_no_number_leaves_the_line_json(tmp_path):
    file = tmp_path / "metrics.jsonl"
    train(make([Bernoulli(), KLDivergence(), NotANumber()]), MetricsFile(file), epochs=1)

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    (line,) = (json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines())
    assert [name for name, value in line.items() if value is None] == [
        "train/not_a_number",
        "validation/not_a_number",
    ]


def test_a_name_that_begins_as_keras_marks_validation_is_refused():
    # A record tells the splits apart by that prefix.
    with pytest.raises(ValueError, match=r"'val_square' cannot be the name.*validation"):
        MeanSquare(name="val_square", weight=None)


# The screen.


@pytest.mark.slow
def test_a_line_an_epoch_has_the_figures_of_both_splits(capsys):
    history = train(usual(), Console(bar=False), epochs=12, initial_epoch=10)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    for at, line in enumerate(printed):
        splits = []
        for split, prefix in (("train", ""), ("validation", "val_")):
            shown = [history[prefix + name][at] for name in ("reconstruction", "kl", "elbo")]
            splits.append("{} reconstruction {:.2f} KL {:.2f} ELBO {:.2f}".format(split, *shown))
        assert line.startswith(f"epoch {11 + at}/12 | {splits[0]} | {splits[1]} nats | ")
        speed = re.fullmatch(r".* \| ([\d,]+) images/s", line)
        assert int(speed[1].replace(",", "")) > 0


def test_without_validation_data_the_line_is_of_training(capsys):
    train(usual(), Console(bar=False), validation=None, epochs=1)
    assert re.fullmatch(
        r"epoch 1/1 \| train reconstruction [\d.]+ KL [\d.]+ ELBO -[\d.]+ nats \| .*\n",
        capsys.readouterr().out,
    )


@pytest.mark.slow
def test_without_an_elbo_the_line_has_the_loss(capsys):
    history = train(autoencoder(), Console(bar=False), epochs=1)
    assert capsys.readouterr().out.startswith(
        f"epoch 1/1 | train loss {history['loss'][0]:.2f} | "
        f"validation loss {history['val_loss'][0]:.2f} nats | "
    )


@pytest.mark.slow
def test_the_bar_is_for_a_terminal(monkeypatch, capsys):
    train(usual(), Console(), epochs=1, validation=None)
    without = capsys.readouterr().out
    assert without.count("\n") == 1
    assert "\r" not in without
    assert "\x08" not in without
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    train(usual(), Console(), epochs=2, validation=None)
    shown = capsys.readouterr().out
    assert "5/5" in shown
    # The bar ends before the line of the epoch begins.
    assert len(re.findall(r"^epoch [12]/2 \|", shown, flags=re.MULTILINE)) == 2
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert Console().bar is False
    assert Console(bar=True).bar is True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_the_bar_ends_where_the_length_of_the_data_is_not_known(capsys):
    data = tf.data.Dataset.from_generator(
        lambda: (IMAGES[start : start + 8] for start in range(0, 24, 8)),
        output_signature=tf.TensorSpec((8, *SHAPE)),
    )
    make().fit(data, epochs=2, verbose=0, callbacks=[Console(bar=True)])
    assert len(re.findall(r"^epoch [12]/2 \|", capsys.readouterr().out, flags=re.MULTILINE)) == 2
