"""VAE under Keras' `fit`: weights of examples, losses of layers, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.proofs import SOAK
from tests.small_models import (
    BATCH,
    ENOUGH,
    IMAGES,
    LATENT,
    SHAPE,
    assert_same_weights,
    build,
    compiled,
    copies,
    moved,
    only_means,
    standing,
    train,
)
from vae_research import (
    Bernoulli,
    DeterministicBottleneck,
    dense_decoder,
    dense_encoder,
    keras_inputs,
)

# Weights of examples.

WEIGHTS = np.concatenate([np.ones(5), np.zeros(3)]).astype("float32")


def weighted_step(vae, images, how):
    """One step on a batch of 8 whose last three examples have weight 0."""
    if how == "train_on_batch":
        vae.train_on_batch(images, sample_weight=WEIGHTS)
    elif how == "fit with y":
        train(vae, images, y=images, sample_weight=WEIGHTS)
    elif how == "fit without y":
        train(vae, images, sample_weight=WEIGHTS)
    elif how == "fit with a dictionary":
        train(vae, {"inputs": images}, sample_weight=WEIGHTS)
    else:
        vae.fit(tf.data.Dataset.from_tensors((images, images, WEIGHTS)), verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    ["train_on_batch", "fit without y", "fit with a dictionary"]
    + (["fit with y", "tf.data"] if SOAK else []),
)
@pytest.mark.filterwarnings("ignore:.*shuffle")
def test_an_example_of_weight_zero_has_no_gradient(how):
    other = IMAGES[:BATCH].copy()
    other[5:] = 1.0 - other[5:]
    assert WEIGHTS[5:].sum() == 0.0
    first, second, unweighted = compiled(), compiled(), compiled()
    weighted_step(first, IMAGES[:BATCH], how)
    weighted_step(second, other, how)
    unweighted.train_on_batch(IMAGES[:BATCH])
    assert_same_weights(copies(first), copies(second))
    assert moved(copies(first), copies(unweighted))


@pytest.mark.slow
def test_weight_two_is_the_example_twice():
    def step(images, sample_weight=None):
        vae = compiled(
            [Bernoulli()],
            encoder=only_means,
            bottleneck=DeterministicBottleneck(LATENT),  # noise would differ between the batches
        )
        before = copies(vae)
        loss = vae.train_on_batch(images, sample_weight=sample_weight, return_dict=True)["loss"]
        return loss, [new - old for old, new in zip(before, copies(vae), strict=True)]

    twice_loss, twice = step(IMAGES[[0, 0, 1]])
    weighted_loss, weighted = step(IMAGES[[0, 1]], np.array([2.0, 1.0], "float32"))
    assert weighted_loss == pytest.approx(twice_loss, rel=1e-5)
    for one, other in zip(weighted, twice, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_equal_weights_of_examples_change_no_figure():
    vae = standing()
    plain = vae.evaluate(IMAGES, IMAGES, verbose=0, return_dict=True)
    half = np.full(len(IMAGES), 0.5, "float32")
    figures = vae.evaluate(IMAGES, IMAGES, sample_weight=half, verbose=0, return_dict=True)
    assert figures == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_the_loss_of_an_evaluation_is_the_weighted_mean_over_all_batches():
    vae, weights = standing(), np.arange(len(IMAGES), dtype="float32")
    of_batches = []
    for start in range(0, len(IMAGES), 8):
        _, report = vae.report(IMAGES[start : start + 8], seed=vae.evaluation_key(start))
        of_batches.append(report.loss.numpy())
    losses = np.concatenate(of_batches)
    found = vae.evaluate(IMAGES, sample_weight=weights, batch_size=8, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    assert found["loss"] != pytest.approx(losses.mean(), rel=1e-4)
    # The others are unweighted, and the noise of a batch does not depend on the weights.
    plain = vae.evaluate(IMAGES, batch_size=8, verbose=0, return_dict=True)
    assert found["elbo"] == plain["elbo"] == pytest.approx(-losses.mean(), rel=1e-5)


def test_weights_of_examples_do_not_scale_the_regularization():
    # As in Keras: a regulariser belongs to the weights of the network and not to an example.
    vae = standing(encoder=regularised_encoder)
    plain = vae.test_on_batch(IMAGES, return_dict=True)
    some = np.zeros(len(IMAGES), "float32")
    some[:2] = 5.0
    assert plain["regularization"] > 0.1
    _, report = vae.report(IMAGES)
    found = keras_inputs.weighted_mean(report.loss, report, some)
    wanted = report.loss[:2].numpy().mean()  # which has the regularization once
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    found = keras_inputs.weighted_mean(report.loss, report, 0.0 * some)
    assert float(found) == pytest.approx(plain["regularization"], rel=1e-5)


@pytest.mark.parametrize("shape", [(BATCH, 1), (BATCH, 16)])
def test_weights_of_another_rank_are_refused(shape):
    with pytest.raises(ValueError, match=r"sample_weight has shape.*one weight per example"):
        standing().train_on_batch(IMAGES[:BATCH], sample_weight=np.ones(shape, "float32"))


@pytest.mark.parametrize("targets", [None, IMAGES], ids=["without y", "with y"])
def test_class_weight_is_refused_by_its_name(targets):
    with pytest.raises((TypeError, ValueError), match="class_weight"):
        train(standing(), y=targets, class_weight={0: 1.0, 1: 2.0})


# Losses of layers.


def regularised_encoder():
    inputs = keras.Input(SHAPE)
    features = keras.layers.Flatten()(inputs)
    mean = keras.layers.Dense(
        LATENT, kernel_regularizer=keras.regularizers.L2(0.5), name="regularised"
    )(features)
    log_var = keras.layers.Dense(LATENT)(features)
    return keras.Model(inputs, {"z_mean": mean, "z_log_var": log_var})


class Penalty(keras.layers.Layer):
    """Adds three times its own weight to the loss, if it likes only in training."""

    def __init__(self, only_in_training=False, **kwargs):
        super().__init__(**kwargs)
        self.only_in_training = only_in_training

    def build(self, input_shape):
        self.value = self.add_weight(name="value", shape=(), initializer="ones")

    def call(self, inputs, training=False):
        if training or not self.only_in_training:
            self.add_loss(3.0 * self.value)
        return inputs


def penalised_decoder(**options):
    z = keras.Input((LATENT,), name="z")
    features = Penalty(**options, name="penalty")(z)
    logits = keras.layers.Reshape(SHAPE)(keras.layers.Dense(16)(features))
    return keras.Model(z, {"logits": logits})


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True] if SOAK else [False])
def test_a_regulariser_is_in_loss_gradient_logs_and_validation(run_eagerly):
    rate = 0.1
    vae = compiled(encoder=regularised_encoder, run_eagerly=run_eagerly)
    plain = compiled(encoder=regularised_encoder, run_eagerly=run_eagerly)
    plain.encoder.get_layer("regularised").kernel_regularizer = None
    kernel = vae.encoder.get_layer("regularised").kernel
    plain_kernel = plain.encoder.get_layer("regularised").kernel
    plain_kernel.regularizer = None
    before = kernel.numpy()
    np.testing.assert_array_equal(before, plain_kernel.numpy())

    first = vae.train_on_batch(IMAGES, return_dict=True)
    without = plain.train_on_batch(IMAGES, return_dict=True)
    penalty = 0.5 * np.sum(before.astype("float64") ** 2)
    assert first["regularization"] == pytest.approx(penalty, rel=1e-5)
    assert first["loss"] == pytest.approx(without["loss"] + penalty, rel=1e-5)
    # d(0.5 w^2)/dw = w.
    np.testing.assert_allclose(kernel.numpy(), plain_kernel.numpy() - rate * before, **ENOUGH)

    figures = vae.test_on_batch(IMAGES, return_dict=True)
    penalty = 0.5 * np.sum(kernel.numpy().astype("float64") ** 2)
    assert figures["regularization"] == pytest.approx(penalty, rel=1e-5)
    total = figures["reconstruction"] + figures["kl"] + figures["regularization"]
    assert figures["loss"] == pytest.approx(total, rel=1e-5)
    assert figures["elbo"] == pytest.approx(-figures["reconstruction"] - figures["kl"], rel=1e-5)
    assert "regularization" not in without


@pytest.mark.slow
def test_what_a_layer_adds_is_differentiated_once_in_every_step():
    vae = compiled(decoder=penalised_decoder, run_eagerly=False)
    value = vae.decoder.get_layer("penalty").value
    steps = [vae.train_on_batch(IMAGES, return_dict=True)["regularization"] for _ in range(3)]
    # 3 w, and gradient descent with rate 0.1 takes 0.3 off w at every step.
    assert steps == pytest.approx([3.0, 2.1, 1.2], rel=1e-5)
    assert float(value) == pytest.approx(0.1, rel=1e-4)
    figures = vae.test_on_batch(IMAGES, return_dict=True)
    assert figures["regularization"] == pytest.approx(0.3, rel=1e-4)


@pytest.mark.slow
def test_what_a_layer_adds_in_training_alone_starts_anew_at_every_epoch():
    vae = compiled(decoder=lambda: penalised_decoder(only_in_training=True), run_eagerly=False)
    one_step = {"batch_size": len(IMAGES), "epochs": 3}
    history = train(vae, **one_step, validation_data=IMAGES)
    assert history["regularization"] == pytest.approx([3.0, 2.1, 1.2], rel=1e-5)
    assert "val_regularization" not in history


# What is refused.


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "mse"},
        {"metrics": ["mae"]},
        {"loss_weights": [1.0]},
        {"weighted_metrics": ["mae"]},
    ],
    ids=lambda given: next(iter(given)),
)
def test_compile_refuses_what_the_terms_say(given):
    name = next(iter(given))
    with pytest.raises(ValueError, match=rf"compile\({name}=\.\.\.\).*Add a LossTerm.*weight=None"):
        build().compile("adam", **given)


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("form", ["arrays", "tf.data"])
def test_labels_as_y_are_refused(form, run_eagerly):
    labels = np.arange(len(IMAGES))
    vae = standing(run_eagerly=run_eagerly)
    with pytest.raises(ValueError, match="Labels go into a dictionary"):
        if form == "arrays":
            train(vae, y=labels)
        else:
            data = tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(BATCH)
            vae.fit(data, verbose=0)


def test_one_hot_labels_as_targets_of_vectors_are_refused():
    vae = standing(
        encoder=lambda: dense_encoder([16], LATENT), decoder=lambda: dense_decoder([16], LATENT)
    )
    one_hot = np.eye(10, dtype="float32")[np.arange(len(IMAGES)) % 10]
    with pytest.raises(ValueError, match=r"targets of shape \(8, 10\) with 'logits'"):
        train(vae, IMAGES.reshape(-1, 16), y=one_hot)


def test_targets_given_twice_are_refused():
    with pytest.raises(ValueError, match="given twice"):
        train(standing(), {"inputs": IMAGES, "targets": IMAGES}, y=IMAGES)


def test_a_dictionary_without_inputs_is_refused():
    with pytest.raises(ValueError, match="no 'inputs'; got images"):
        train(standing(), {"images": IMAGES})
