"""A VAE of sensor series: recurrent networks, a decoder that samples itself, scores of anomalies.

Paper: Bowman et al. 2016 (arXiv:1511.06349): a decoder that reads the values before, in training
those of the data. An and Cho 2015, Variational autoencoder based anomaly detection: a series is
abnormal if it is improbable; here by its estimate of -log p(x). Two sensors see one oscillation.

Command: scripts/run experiments/sequence_vae.py
Time: 0 minutes on 2 busy cores
Expect: test NLL 0.0
"""

import keras
import numpy as np
import tensorflow as tf

import vae_research as vr
from vae_research import runs

runs.set_defaults(epochs=40, batch_size=128, latent_dim=4, importance_samples=50)
runs.define_choice("decoder", "autoregressive", ("autoregressive", "independent"), "given z")
runs.define_integer("units", 32, "of each LSTM", minimum=1)
runs.define_integer("rows", 10000, "series, of which a tenth is for the test", minimum=30)
TIME = 40


def data(config):
    """Returns series [time, 2]: an oscillation, and the same, weaker, after four steps."""
    random = np.random.default_rng(0)
    period, phase, size = random.uniform([[12], [0], [0.5]], [[20], [20], [1.5]], (3, config.rows))
    angle = np.arange(TIME)[:, None] - [0, 4] + phase[:, None, None]
    waves = np.sin(2 * np.pi * angle / period[:, None, None]) * size[:, None, None] * [1.0, 0.5]
    series = (waves + 0.1 * random.normal(size=waves.shape)).astype("float32")
    return vr.Data.from_arrays(series, rescale="none", kind="series")


@keras.saving.register_keras_serializable(package="sequence_vae")
class Autoregressive(keras.layers.Layer):
    """Mean and log-variance of the values at each time, from z and the values before."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.cell, self.head = keras.layers.LSTMCell(units), keras.layers.Dense(4)
        self.recurrent = keras.layers.RNN(self.cell, return_sequences=True)

    def build(self, z_shape, targets_shape):
        self.recurrent.build([None, TIME, z_shape[-1] + 2])
        self.head.build([None, self.cell.units])

    def call(self, z, targets):
        before = tf.pad(targets, [[0, 0], [1, 0], [0, 0]])[:, :-1]
        read = tf.concat([before, tf.repeat(z[:, None], TIME, axis=1)], axis=-1)
        mean, log_var = tf.split(self.head(self.recurrent(read)), 2, axis=-1)
        return {"x_mean": mean, "x_log_var": log_var}

    def sample(self, z, seed):
        state, series = self.cell.get_initial_state(tf.shape(z)[0]), [tf.zeros_like(z[:, :2])]
        for noise in tf.unstack(vr.standard_normal([TIME, tf.shape(z)[0], 2], seed)):
            hidden, state = self.cell(tf.concat([series[-1], z], axis=-1), state)
            mean, log_var = tf.split(self.head(hidden), 2, axis=-1)
            series.append(mean + tf.exp(0.5 * log_var) * noise)
        return tf.stack(series[1:], axis=1)


def build(config, data):
    """Returns the model."""
    size, units, names = config.latent_dim, [config.units], ["x_mean", "x_log_var"]
    decoder = Autoregressive(config.units)
    if config.decoder == "independent":
        decoder = vr.recurrent_decoder(data.shape, size, units=units, outputs=names)
    encoder = vr.recurrent_encoder(data.shape, size, units=units)
    likelihood = vr.GaussianWithVariance(min_standard_deviation=0.01, max_standard_deviation=10.0)
    terms = [likelihood, vr.KLDivergence()]
    return vr.VAE(encoder, vr.GaussianBottleneck(size), decoder, terms, seed=config.seed)


def evaluate(run):
    """Returns, for each kind of anomaly, how often it is less probable than a normal series."""
    series = {"normal": run.data.test.prepare()}
    series |= {kind: series["normal"].copy() for kind in ("stuck", "drifting", "late")}
    series["stuck"][:, -8:, 1] = series["stuck"][:, -8:-7, 1]
    series["drifting"][..., 0] += np.linspace(0.0, 0.5, TIME)
    series["late"][:, 1:, 1] = series["normal"][:, :-1, 1]
    found = {
        k: vr.estimate(run.model, x, num_samples=20, per_example=True) for k, x in series.items()
    }
    scores = {kind: figures["negative_log_likelihood"].values for kind, figures in found.items()}
    normal = scores.pop("normal")
    return {f"auroc_{kind}": (x[:, None] > normal).mean() for kind, x in scores.items()}


if __name__ == "__main__":
    runs.main(build, data=data, evaluate=evaluate)
