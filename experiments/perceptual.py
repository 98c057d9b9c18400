"""A perceptual loss on MNIST: images are compared by what a frozen network sees in them as well.

Paper: Hou, Shen, Sun and Qiu 2017, Deep Feature Consistent Variational Autoencoder
(arXiv:1610.00291); the network has random weights, as in He, Wang and Hopcroft 2016
(arXiv:1606.04801), so that nothing has to be downloaded. Encoder and decoder are those of
vae_mnist.py.

Command: scripts/run experiments/perceptual.py --epochs=3 --importance_samples=20
Time: 83 s of processor time, 2.3 minutes on 2 busy cores
Expect: test ELBO -127.5 nats (standard error 0.3), perceptual 19.6 nats, sharpness 0.77 (seed 0).
"""

import keras
import numpy as np
from keras import ops

import vae_research as vr
from vae_research import runs

runs.define_integers("filters", (16, 32), "channels of the frozen network")
runs.define_float("perceptual_weight", 10.0, "weight of the squared distance of features")
runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")


def frozen_features(shape, filters):
    """Returns a module that writes the features of images and of their reconstructions."""
    settings = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
    network = keras.Sequential(
        [keras.layers.Conv2D(n, 3, 2, trainable=False, **settings) for n in filters]
    )
    seen, made = keras.Input(shape, name="targets"), keras.Input(shape, name="reconstruction")
    return keras.Model([seen, made], {"seen": network(seen), "made": network(made)})


class Perceptual(vr.LossTerm):
    """Half the squared distance of the features, nats up to a constant for a variance of 1."""

    def per_example(self, seen, made):
        return vr.sum_over_event(0.5 * ops.square(seen - made))


def sharpness(model, images):
    """Returns the mean difference of neighbouring pixels, `[count]`, divided by the image's."""
    pairs = model.reconstruct(images).numpy(), images
    made, seen = (np.abs(np.diff(each, axis=1)).mean(axis=(1, 2, 3)) for each in pairs)
    return made / np.maximum(seen, 1e-6)


class Sharpness(keras.callbacks.Callback):
    """Adds the sharpness of reconstructions of some images to the figures of an epoch."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def on_epoch_end(self, epoch, logs=None):
        logs["val_sharpness"] = float(sharpness(self.model, self.images).mean())


def build(config, data):
    """Returns the model."""
    size, units = config.latent_dim, config.hidden_units
    encoder = vr.dense_encoder(data.shape, size, hidden_units=units)
    decoder = vr.dense_decoder(data.shape, size, hidden_units=units[::-1])
    terms = [vr.Bernoulli(), vr.KLDivergence(), Perceptual(weight=config.perceptual_weight)]
    modules = [frozen_features(data.shape, config.filters)]
    bottleneck = vr.GaussianBottleneck(size)
    return vr.VAE(encoder, bottleneck, decoder, terms, modules=modules, seed=config.noise_seed)


def callbacks(config, data):
    return [Sharpness(data.validation.prepare(slice(0, 200)))]


def evaluate(run):
    return {"sharpness": sharpness(run.model, run.data.test.prepare())}


if __name__ == "__main__":
    runs.main(build, callbacks=callbacks, evaluate=evaluate)
