"""Callbacks that write scalars: those of epochs and steps, of speed, and of gradients."""

import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.traced import as_new
from tests.watched import (
    ENOUGH,
    LATENT,
    ONE_STEP,
    SHAPE,
    SIZES,
    STEPS,
    VALIDATION,
    MeanSquare,
    autoencoder,
    float32,
    lines,
    make,
    scalars,
    train,
    usual,
    values,
)
from vae_research import (
    VAE,
    Bernoulli,
    Cyclical,
    FreeBits,
    GaussianBottleneck,
    Gradients,
    KLDivergence,
    LinearWarmup,
    LossTerm,
    MetricsFile,
    MonteCarloKL,
    Scalars,
    dense_decoder,
    dense_encoder,
)
from vae_research.callbacks import base as base_module
from vae_research.runs.session import logs as logs_of_a_run

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


@pytest.mark.slow
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
