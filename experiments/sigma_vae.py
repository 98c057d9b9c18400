"""A Gaussian likelihood whose variance, one number for all pixels, is learned or optimal.

Paper: Rybkin, Daniilidis and Levine 2021, Simple and Effective VAE Training with Calibrated
Decoders (arXiv:2006.13202). Learned: a weight. Optimal: the mean squared error of the batch, in
training; an evaluation holds the moving average over training batches, since a variance that is
fitted to the targets gives no ELBO. The network is that of vae_mnist.py, the images are grey.

Command: scripts/run experiments/sigma_vae.py
Time: 145 s of processor time, 1.2 minutes on 2 cores
Expect: test ELBO 572.8 nats, variance held at 0.0118 (seed 0; standard error 1.9). Learned: 462.5,
variance 0.027, still falling: Adam moves its logarithm by 0.001 in a step, from 0.
"""

import keras
from keras import ops

import vae_research as vr
from vae_research import runs

runs.set_defaults(binarize="none")
runs.define_choice("variance", "optimal", ("learned", "optimal"), "how the variance is fitted")


@keras.saving.register_keras_serializable(package="experiments")
class LearnedVariance(keras.layers.Layer):
    """A variance that is trained with the other weights."""

    def build(self, *shapes):
        self.log_var = self.add_weight(name="log_var", initializer="zeros")

    def call(self, x_mean):
        """Returns the logarithm of the variance, which all values of `x_mean` share."""
        return {"x_log_var": ops.broadcast_to(self.log_var, [1] * len(x_mean.shape))}


@keras.saving.register_keras_serializable(package="experiments")
class OptimalVariance(keras.layers.Layer):
    """The mean squared error: of the batch in training, otherwise the average that it kept.

    Args:
        momentum: of the moving average, which is over about 1 / (1 - momentum) training batches.
    """

    def __init__(self, momentum=0.95, **kwargs):
        super().__init__(**kwargs)
        self.momentum = momentum

    def build(self, *shapes):
        options = {"initializer": "ones", "trainable": False, "aggregation": "mean"}
        self.variance = self.add_weight(name="variance", **options)

    def call(self, targets, x_mean, training=False):
        """Returns the logarithm of the variance, which all values of `x_mean` share."""
        variance = self.variance
        if training:
            # The derivative of the likelihood by its optimal variance is zero.
            variance = ops.stop_gradient(ops.mean(ops.square(targets - x_mean)))
            self.variance.assign(self.momentum * self.variance + (1 - self.momentum) * variance)
        return {"x_log_var": ops.log(variance)}

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


def build(config, data):
    """Returns the model."""
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, outputs=["x_mean"]),
        [vr.GaussianWithVariance(), vr.KLDivergence()],
        modules=[LearnedVariance() if config.variance == "learned" else OptimalVariance()],
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
