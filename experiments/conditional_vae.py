"""A conditional VAE on MNIST: encoder and decoder read the label of a digit.

Paper: Sohn, Lee and Yan 2015, Learning Structured Output Representation using Deep Conditional
Generative Models; Kingma et al. 2014 (arXiv:1406.5298), section 2, with observed labels. The prior
of z is standard normal whatever the label, and the figures are those of log p(x|label). The network
is that of vae_mnist.py, with the label as a one-hot vector beside the pixels and beside z.

Command: scripts/run experiments/conditional_vae.py
Time: 120 s of processor time, 1.4 minutes on 2 cores
Expect: test ELBO of p(x|label) -99.2 nats, NLL 94.5 (seed 0; standard error 0.26); without labels
vae_mnist.py has -102.8 and 98.0. figures/classes.png has ten digits of each class.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import vae_research as vr
from vae_research import runs

runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")
COLUMNS = 10  # samples of each class in the picture


def build(config, data):
    """Returns the model."""
    if "labels" not in data.names:
        raise runs.UsageError(f"{data.name} needs labels in every split.")
    classes = number_of_classes(data)
    labels = keras.Input([], dtype="int64", name="labels")
    one_hot = ops.one_hot(labels, classes)

    images = keras.Input(data.shape, name="inputs")
    pixels = keras.layers.Flatten()(images)
    seen = keras.layers.Concatenate()([pixels, one_hot])
    encoder = vr.dense_encoder(seen.shape[1:], config.latent_dim, hidden_units=config.hidden_units)

    z = keras.Input([config.latent_dim], name="z")
    code = keras.layers.Concatenate()([z, one_hot])
    units = config.hidden_units[::-1]
    decoder = vr.dense_decoder(data.shape, code.shape[1], hidden_units=units)
    return vr.VAE(
        keras.Model([images, labels], encoder(seen), name="encoder"),
        vr.GaussianBottleneck(config.latent_dim),
        keras.Model([z, labels], decoder(code), name="decoder"),
        [vr.Bernoulli(), vr.KLDivergence()],
        seed=config.noise_seed,
    )


def number_of_classes(data):
    """Returns how many classes there are, counted from 0."""
    return 1 + max(int(split.labels[:].max()) for split in data.splits)


def draw_classes(run):
    """Writes a picture with a row for each class; the codes of a column are the same."""
    classes = number_of_classes(run.data)
    codes = run.model.bottleneck.sample_prior(COLUMNS, tf.constant([0, 0]))
    labels = np.repeat(np.arange(classes), COLUMNS)
    images = run.model.decode(tf.tile(codes, [classes, 1]), labels=labels).numpy()
    rows = [np.concatenate(list(row), axis=1) for row in np.split(images, classes)]
    path = run.path / "figures" / "classes.png"
    keras.utils.save_img(path, np.concatenate(rows), data_format="channels_last")
    print(f"Written: {path}")


if __name__ == "__main__":
    runs.main(build, after=draw_classes)
