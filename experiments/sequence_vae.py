"""A VAE of sensor series: a recurrent decoder that samples itself, and scores of anomalies.

Paper: Bowman et al. 2016 (arXiv:1511.06349): a decoder that reads the values before, in training
those of the data. An and Cho 2015, Variational autoencoder based anomaly detection: what is
improbable is abnormal, here by an estimate of -log p(x). Two sensors see one oscillation.

Command: scripts/run experiments/sequence_vae.py
Time: 10 minutes on 2 busy cores
Expect: test NLL -56.5 nats, area under the ROC curve 0.97 (stuck), 1.00, 0.99 (late) (seed 0)
"""

import keras
import numpy as np
import tensorflow as tf

import vae_research as vr
from vae_research import runs

runs.set_defaults(epochs=40, batch_size=128, latent_dim=4, importance_samples=50)
runs.define_integer("rows", 10000, "series, of which a tenth is for the test", minimum=30)
TIME, UNITS, NOISE, KINDS = 40, 32, 0.1, ("normal", "stuck", "drifting", "late")


def data(config):
    """Returns series [time, 2]: an oscillation, and the same, weaker, after four steps."""
    random = np.random.default_rng(0)
    period, phase = random.uniform([[12], [0]], [[20], [20]], (2, config.rows))[..., None, None]
    waves = np.sin(2 * np.pi * (np.arange(TIME)[:, None] - [0, 4] + phase) / period) * [1.0, 0.5]
    series = (waves + NOISE * random.normal(size=waves.shape)).astype("float32")
    return vr.Data.from_arrays(series, rescale="none", kind="series")


@keras.saving.register_keras_serializable(package="sequence_vae")
class Autoregressive(keras.layers.Layer):
    """The mean of the values at each time, from z and the values before."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.cell, self.head = keras.layers.LSTMCell(units), keras.layers.Dense(2)
        self.recurrent = keras.layers.RNN(self.cell, return_sequences=True)

    def build(self, z_shape, targets_shape):
        self.recurrent.build([None, TIME, z_shape[-1] + 2])
        self.head.build([None, self.cell.units])

    def call(self, z, targets):
        before, z = tf.pad(targets, [[0, 0], [1, 0], [0, 0]])[:, :-1], z[:, None]
        hidden = self.recurrent(tf.concat([before, tf.repeat(z, TIME, axis=1)], axis=-1))
        return {"x_mean": self.head(hidden)}

    def sample(self, z, seed):
        state, series = self.cell.get_initial_state(tf.shape(z)[0]), [tf.zeros_like(z[:, :2])]
        for noise in tf.unstack(vr.standard_normal([TIME, tf.shape(z)[0], 2], seed)):
            hidden, state = self.cell(tf.concat([series[-1], z], axis=-1), state)
            series.append(self.head(hidden) + NOISE * noise)
        return tf.stack(series[1:], axis=1)


def build(config, data):
    """Returns the model."""
    size, decoder = config.latent_dim, Autoregressive(UNITS)
    encoder = vr.recurrent_encoder(data.shape, size, units=[UNITS])
    terms = [vr.Gaussian(standard_deviation=NOISE), vr.KLDivergence()]
    return vr.VAE(encoder, vr.GaussianBottleneck(size), decoder, terms, seed=config.noise_seed)


def evaluate(run):
    """Returns, for each kind of anomaly, how often it is less probable than a normal series."""
    normal, times, scores = run.data.test.prepare(), np.arange(TIME)[:, None], {}
    stuck = np.where((times < 32) | [True, False], normal, normal[:, 32:33])
    drifting = normal + times * np.array([0.0125, 0.0], "float32")
    late = np.where([True, False], normal, np.roll(normal, 1, axis=1))
    for kind, series in zip(KINDS, (normal, stuck, drifting, late), strict=True):
        found = vr.estimate(run.model, series, num_samples=20, per_example=True)
        scores[kind] = found["negative_log_likelihood"].values
    return {f"auroc_{k}": (scores[k][:, None] > scores["normal"]).mean() for k in KINDS[1:]}


if __name__ == "__main__":
    runs.main(build, data=data, evaluate=evaluate)
