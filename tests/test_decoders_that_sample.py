"""Decoders that are trained with teacher forcing, and make data by themselves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research import callbacks

SHAPE = (2, 3, 1)
IMAGES = np.random.default_rng(0).integers(0, 2, (24, *SHAPE)).astype(np.float32)


@keras.saving.register_keras_serializable(package="test_decoders_that_sample")
class Chain(keras.layers.Layer):
    """The logit of a pixel is `of_code * z + of_last * (2 x - 1)`, of the pixel x before it."""

    def build(self, *shapes):
        self.of_code = self.add_weight(shape=(1,), initializer="ones", name="of_code")
        self.of_last = self.add_weight(shape=(1,), initializer="ones", name="of_last")

    def logits(self, z, before):
        return self.of_code * z[:, 0] + self.of_last * before

    def call(self, z, targets):
        signs = 2.0 * tf.reshape(targets, [-1, 6]) - 1.0
        before = tf.unstack(tf.pad(signs, [[0, 0], [1, 0]])[:, :6], axis=1)
        logits = tf.stack([self.logits(z, value) for value in before], axis=1)
        return {"logits": tf.reshape(logits, [-1, *SHAPE])}

    def sample(self, z, seed):
        noise = tf.random.stateless_uniform([6, tf.shape(z)[0]], seed, alg="philox")
        pixels = [tf.zeros_like(z[:, 0])]
        for draw in tf.unstack(noise):
            on = draw < tf.sigmoid(self.logits(z, pixels[-1]))
            pixels.append(tf.where(on, 1.0, -1.0))
        return tf.reshape(0.5 * (tf.stack(pixels[1:], axis=1) + 1.0), [-1, *SHAPE])


@keras.saving.register_keras_serializable(package="test_decoders_that_sample")
class OnlyTeacherForced(Chain):
    sample = None


def model(decoder=None):
    vae = vr.VAE(
        vr.dense_encoder(SHAPE, 1, hidden_units=(4,)),
        vr.GaussianBottleneck(1),
        decoder or Chain(),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    vae.report(IMAGES)  # makes the variables
    return vae


def test_training_is_teacher_forced_and_data_are_drawn_one_value_after_the_other():
    vae = model()
    vae.decoder.of_code.assign([0.7])
    vae.decoder.of_last.assign([1.5])
    z = np.full([20000, 1], 0.4, np.float32)
    signs = 2 * vae.decode(z).numpy().reshape(-1, 6) - 1
    assert set(np.unique(signs)) == {-1.0, 1.0}
    logits = {before: 0.28 + 1.5 * before for before in (-1.0, 1.0)}
    for before, logit in logits.items():
        following = signs[:, 1:][signs[:, :-1] == before] > 0
        p = 1 / (1 + np.exp(-logit))
        assert abs(following.mean() - p) < 4 * np.sqrt(p * (1 - p) / len(following))
    tensors = vae.infer(IMAGES)
    found = vae.log_likelihood(tensors, np.full([24, 1], 0.4, np.float32)).numpy()
    truth = 2 * IMAGES.reshape(-1, 6) - 1
    by_pixel = 0.28 + 1.5 * np.pad(truth, [[0, 0], [1, 0]])[:, :6]
    np.testing.assert_allclose(found, -np.log1p(np.exp(-truth * by_pixel)).sum(axis=1), rtol=1e-5)


def test_draws_are_those_of_their_seed():
    vae = model()
    first, again, other = (vae.sample(9, seed=seed).numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    # Of equal codes the draws differ from row to row, and from those of other noise.
    constant = vae.decode(np.zeros([9, 1], np.float32)).numpy()
    assert len(np.unique(constant.reshape(9, -1), axis=0)) > 1


def test_a_reconstruction_does_not_see_the_data():
    vae = model()
    vae.encoder.get_layer("z_mean").set_weights([np.zeros([4, 1]), np.ones(1)])
    reconstructed = vae.reconstruct(IMAGES)
    np.testing.assert_array_equal(reconstructed, vae.reconstruct(1.0 - IMAGES))
    assert set(np.unique(reconstructed)) == {0.0, 1.0}


def test_a_decoder_that_cannot_sample_says_what_is_missing():
    vae = model(OnlyTeacherForced())
    for decoded in (lambda: vae.sample(2), lambda: vae.reconstruct(IMAGES)):
        with pytest.raises(ValueError, match=r"decoder reads 'targets'.*defines sample\(self, z"):
            decoded()
    vae = model()
    vae.decoder.sample = lambda z: {"logits": z}
    with pytest.raises(TypeError, match=r"Chain.sample returned dict; .*\[rows, ...\]"):
        vae.sample(1)


@pytest.mark.slow
def test_such_a_model_is_trained_watched_saved_and_loaded(tmp_path):
    vae = model()
    vae.compile("adam", jit_compile=False)
    watching = [callbacks.Pictures(tmp_path, IMAGES, columns=4)]
    vae.fit(IMAGES, batch_size=8, callbacks=watching, validation_data=IMAGES, verbose=0)
    assert vr.estimate(vae, IMAGES, num_samples=4)["elbo"].value < 0.0
    vae.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.sample(5, seed=3), vae.sample(5, seed=3))
