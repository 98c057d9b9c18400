"""VAE under Keras' `fit`: its terms, several samples, and models of other kinds."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small_models import (
    ENOUGH,
    FEW,
    IMAGES,
    LATENT,
    SHAPE,
    MeanSquare,
    NotANumber,
    Watched,
    again,
    assert_same_weights,
    build,
    compiled,
    copies,
    divergence,
    moved,
    negative_log_likelihood,
    only_means,
    standing,
    train,
)
from vae_research import (
    VAE,
    Bernoulli,
    CapacityKL,
    DeterministicBottleneck,
    FreeBits,
    GaussianWithVariance,
    KLDivergence,
    LossTerm,
    MonteCarloKL,
    dense_decoder,
)

# Terms.


@pytest.mark.slow
def test_monitors_leave_gradients_untouched():
    watched = compiled([Bernoulli(), KLDivergence(), Watched(), NotANumber()])
    plain = compiled()
    history, wanted = train(watched, FEW), train(plain, FEW)
    assert history["loss"] == wanted["loss"]
    assert_same_weights(copies(watched), copies(plain))
    assert np.isnan(history["not_a_number"][0])
    # The mutant: the same monitor, trained.
    spoilt = compiled([Bernoulli(), KLDivergence(), NotANumber(weight=0.0)])
    assert np.isnan(train(spoilt, FEW)["loss"][0])


@pytest.mark.slow
def test_a_term_of_ones_own_is_in_the_history_by_its_name_and_is_trained():
    def final(weight):
        terms = [Bernoulli(), KLDivergence(), MeanSquare(scale=2.0, weight=weight)]
        vae = compiled(terms, optimizer=keras.optimizers.Adam(0.05))
        start = 2.0 * np.square(vae.posterior(IMAGES)["z_mean"]).sum(axis=1).mean()
        assert start == pytest.approx(vae.train_on_batch(IMAGES, return_dict=True)["mean_square"])
        for _ in range(5):
            figures = vae.train_on_batch(IMAGES, return_dict=True)
        return figures["mean_square"]

    assert final(5.0) < 0.5 * final(None)


@pytest.mark.slow
def test_free_bits_train_and_stop_pushing():
    # Below 5 nats in both dimensions: the term is the constant 10 and has no gradient, so that the
    # training is that of the likelihood alone.
    bounded = compiled([Bernoulli(), FreeBits(nats_per_dimension=5.0)])
    free = compiled([Bernoulli()])
    assert divergence(bounded.posterior(IMAGES)).max() < 5.0
    history = train(bounded, FEW, epochs=2)
    train(free, FEW, epochs=2)
    assert history["free_bits"] == pytest.approx([10.0] * 2)
    assert history["loss"][-1] < history["loss"][0]
    assert_same_weights(copies(bounded), copies(free))


@pytest.mark.slow
def test_a_capacity_pulls_the_divergence_to_itself():
    vae = compiled(
        [Bernoulli(), CapacityKL(capacity=3.0, weight=100.0)],
        optimizer=keras.optimizers.Adam(0.03),
        run_eagerly=False,
    )
    first = vae.test_on_batch(IMAGES, return_dict=True)
    history = train(vae, again(IMAGES, 20), validation_data=IMAGES)
    assert first["kl"] < 1.0
    assert history["val_kl"][0] == pytest.approx(3.0, abs=0.3)
    assert history["val_loss"][0] < 0.2 * first["loss"]


@pytest.mark.slow
def test_outputs_that_nobody_reads_have_no_gradient_and_do_no_harm():
    vae = compiled([Bernoulli()], bottleneck=DeterministicBottleneck(LATENT))  # reads no z_log_var
    unread = vae.encoder.get_layer("z_log_var").kernel
    before, everything = unread.numpy(), copies(vae)
    history = train(vae, epochs=2)
    assert history["loss"][1] < history["loss"][0]
    np.testing.assert_array_equal(unread.numpy(), before)
    assert moved(everything, copies(vae))


# Several samples.


@pytest.mark.slow
def test_samples_are_joined_by_the_mean_or_by_importance():
    terms = [Bernoulli(), MonteCarloKL()]
    vae = standing(terms, num_samples=4)
    parts = (vae.encoder, vae.bottleneck, vae.decoder, terms)
    weighted = VAE(*parts, num_samples=4, importance_weighted=True)
    single = VAE(*parts)
    weighted.compile(run_eagerly=True)
    single.compile(run_eagerly=True)

    tensors = vae.forward(IMAGES)
    targets = np.repeat(IMAGES, 4, axis=0)  # the rows of an example are next to each other
    negative_log_weight = (
        negative_log_likelihood(targets, tensors["logits"])
        + np.asarray(tensors["log_posterior"], "float64")
        - np.asarray(tensors["log_prior"], "float64")
    ).reshape(-1, 4)
    mean = negative_log_weight.mean()
    bound = -np.log(np.exp(-negative_log_weight).mean(axis=1)).mean()

    def loss(model):
        return model.evaluate(IMAGES, batch_size=32, verbose=0, return_dict=True)["loss"]

    assert loss(vae) == pytest.approx(mean, rel=1e-5)
    assert loss(weighted) == pytest.approx(bound, rel=1e-5)
    assert loss(weighted) < loss(vae)  # Jensen, on the same samples
    assert loss(weighted) < loss(single)  # and against one sample, Burda et al. 2016, theorem 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terms", "importance_weighted"),
    [([Bernoulli(), KLDivergence()], False), ([Bernoulli(), MonteCarloKL()], True)],
    ids=["mean", "importance weighted"],
)
def test_several_samples_train(terms, importance_weighted):
    vae = compiled(
        terms,
        optimizer=keras.optimizers.Adam(0.1),
        num_samples=3,
        importance_weighted=importance_weighted,
    )
    first = vae.test_on_batch(IMAGES, return_dict=True)
    for _ in range(6):
        vae.train_on_batch(IMAGES)
    assert vae.test_on_batch(IMAGES, return_dict=True)["loss"] < 0.95 * first["loss"]
    assert vae.predict(IMAGES[:5], verbose=0).shape == (5, *SHAPE)
    assert vae.sample(2).shape == (2, *SHAPE)


# Models of another kind.


@pytest.mark.slow
def test_a_plain_autoencoder_has_neither_elbo_nor_kl_nor_samples():
    vae = compiled(
        [Bernoulli()],
        encoder=only_means,
        bottleneck=DeterministicBottleneck(LATENT),
    )
    history = train(vae, FEW, epochs=2, validation_data=FEW)
    assert history.keys() == {"loss", "reconstruction", "val_loss", "val_reconstruction"}
    assert history["loss"] == history["reconstruction"]
    assert history["loss"][1] < history["loss"][0]
    with pytest.raises(ValueError, match="no prior to sample from"):
        vae.sample(3)
    codes = vae.posterior(IMAGES)["z_mean"]
    np.testing.assert_array_equal(vae.decode(codes), vae.reconstruct(IMAGES))


@pytest.mark.slow
def test_targets_given_as_y_are_what_is_reconstructed():
    noisy, clean = IMAGES, 1.0 - IMAGES
    vae = compiled(optimizer=keras.optimizers.Adam(0.05), run_eagerly=False)
    figures = vae.test_on_batch(noisy, clean, return_dict=True)
    logits = vae.forward(noisy)["logits"]
    wanted = negative_log_likelihood(clean, logits).mean()
    assert figures["reconstruction"] == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(negative_log_likelihood(noisy, logits).mean(), rel=1e-2)

    history = train(vae, again(noisy, 20), y=again(clean, 20), validation_data=(noisy, clean))
    assert history["val_loss"][0] < figures["loss"]
    # 7 of 10 pixels are on in the targets and 3 of 10 in the inputs.
    assert vae.predict(noisy, verbose=0).mean() == pytest.approx(clean.mean(), abs=0.05)


def conditional_encoder():
    """A network of two inputs; the names decide, and their order is another than the data's."""
    labels, images = keras.Input((2,), name="labels"), keras.Input(SHAPE, name="inputs")
    features = keras.layers.Concatenate()([labels, keras.layers.Flatten()(images)])
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    return keras.Model([labels, images], heads)


def conditional_decoder():
    labels, z = keras.Input((2,), name="labels"), keras.Input((LATENT,), name="z")
    features = keras.layers.Concatenate()([labels, z])
    logits = keras.layers.Reshape(SHAPE)(keras.layers.Dense(16)(features))
    return keras.Model({"z": z, "labels": labels}, {"logits": logits})


@pytest.mark.slow
def test_a_conditional_model_learns_what_its_labels_say():
    patterns = np.stack([IMAGES[0], 1.0 - IMAGES[0]])
    classes = np.arange(32) % 2
    one_hot = np.eye(2, dtype="float32")
    data = {"inputs": patterns[classes], "labels": one_hot[classes]}
    # The weight closes the latent code: what is reconstructed came through the labels. With two
    # samples, labels that were repeated in another order than z would be those of other examples.
    vae = compiled(
        [Bernoulli(), KLDivergence(weight=30.0)],
        optimizer=keras.optimizers.Adam(0.1),
        run_eagerly=False,
        num_samples=2,
        encoder=conditional_encoder,
        decoder=conditional_decoder,
    )
    longer = {name: again(values, 40) for name, values in data.items()}
    history = train(vae, longer, validation_data=data)
    assert history["val_kl"][0] < 0.1
    code = tf.zeros([2, LATENT])
    np.testing.assert_allclose(vae.decode(code, labels=one_hot), patterns, atol=0.1)
    np.testing.assert_allclose(vae.sample(2, labels=one_hot), patterns, atol=0.1)
    np.testing.assert_allclose(vae.predict(data, verbose=0), patterns[classes], atol=0.1)
    with pytest.raises(ValueError, match="The decoder reads 'labels'"):
        vae.decode(code)


class Scaled(keras.layers.Layer):
    """Writes `scaled`: the logits times a weight of its own."""

    def build(self, input_shape):
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones")

    def call(self, logits):
        return {"scaled": logits * self.factor}


class Spread(keras.layers.Layer):
    """Writes `spread` from what the module before it wrote, and from the data."""

    def call(self, scaled, inputs):
        return {"spread": tf.reduce_mean(tf.square(scaled - inputs), axis=[1, 2, 3])}


class SpreadPenalty(LossTerm):
    def per_example(self, spread):
        return spread


@pytest.mark.slow
def test_modules_after_the_decoder_run_in_order_and_are_trained():
    terms = [Bernoulli(), KLDivergence(), SpreadPenalty()]
    vae = compiled(terms, modules=[Scaled(), Spread()], run_eagerly=False)
    scaled = vae.forward(IMAGES)["scaled"]
    wanted = np.square(scaled.numpy() - IMAGES).mean()
    assert vae.test_on_batch(IMAGES, return_dict=True)["spread_penalty"] == pytest.approx(
        wanted, rel=1e-5
    )
    train(vae)
    assert float(vae.further_modules[0].factor) != 1.0
    assert any(vae.further_modules[0].factor is weight for weight in vae.trainable_variables)
    wrong_order = compiled(terms, modules=[Spread(), Scaled()])
    with pytest.raises(ValueError, match="module 0 reads 'scaled'"):
        train(wrong_order)


class TargetVariance(keras.layers.Layer):
    """Writes the variance of the likelihood from the data, which a code alone does not have."""

    def call(self, targets):
        return {"x_log_var": tf.math.log1p(targets)}


class NeverRun(keras.layers.Layer):
    def call(self, z):
        raise AssertionError("not needed")


def test_a_likelihood_has_the_parameters_of_modules_and_a_mean_without_them():
    terms = [GaussianWithVariance(), KLDivergence()]
    vae = build(
        terms,
        decoder=lambda: dense_decoder(SHAPE, LATENT, hidden_units=(8,), outputs=["x_mean"]),
        modules=[TargetVariance(), NeverRun()],
    )
    tensors = vae.infer(IMAGES)
    code = tf.ones([len(IMAGES), LATENT])
    means = vae.decode(code).numpy()
    variances = 1.0 + IMAGES.astype("float64")
    density = np.square(IMAGES - means) / variances + np.log(2.0 * np.pi * variances)
    wanted = -0.5 * density.reshape(len(IMAGES), -1).sum(axis=1)
    np.testing.assert_allclose(vae.log_likelihood(tensors, code), wanted, **ENOUGH)
    assert vae.sample(3).shape == (3, *SHAPE)
    assert vae(IMAGES).shape == IMAGES.shape
    with pytest.raises(AssertionError, match="not needed"):
        vae.forward(IMAGES)
