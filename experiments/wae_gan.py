"""Wasserstein autoencoder whose codes are matched with the prior by an adversary, WAE-GAN.

Paper: Tolstikhin et al. 2018, Wasserstein Auto-Encoders (arXiv:1711.01558), algorithm 1, with the
settings of its MNIST experiment for codes and adversary: 8 dimensions, lambda 10, four layers of
512 units, Adam 5e-4 with beta_1 0.5. Encoder and decoder are those of vae_mnist.py. The cost is the
squared error: a normal likelihood of variance 1/2, whose constant is 448.7 nats for 784 pixels. The
codes have no noise, so that there is no ELBO.

Command: scripts/run experiments/wae_gan.py
Time: 20 minutes on 2 cores that other programs kept busy
Expect: squared error of 20.4 on a test image (reconstruction 469.1 nats); the adversary's
cross-entropy is 0.596 on validation data (log 2 = 0.693 if it could not tell the two); seed 0.
"""

import keras
import tensorflow as tf

import vae_research as vr
from vae_research import runs

runs.set_defaults(latent_dim=8, binarize="none")
runs.define_float("penalty", 10.0, "weight of the distance of codes and prior, the paper's lambda")
runs.define_integers("critic_units", (512, 512, 512, 512), "units of the adversary's layers")


@keras.saving.register_keras_serializable(package="wae_gan")
class CodesWithPrior(vr.DeterministicBottleneck):
    """Codes without noise, which are to be distributed as a standard normal prior."""

    has_prior = True

    def sample_prior(self, count, seed):
        return vr.GaussianBottleneck(self.latent_dim).sample_prior(count, seed)


@keras.saving.register_keras_serializable(package="wae_gan")
class Adversary(keras.layers.Layer):
    """Writes its logit of "a sample of the prior" and not "a code", `[rows]`, for one of each."""

    def __init__(self, units, **settings):
        super().__init__(**settings)
        layers = [keras.layers.Dense(size, "relu") for size in units]
        self.network = keras.Sequential([*layers, keras.layers.Dense(1)])

    def call(self, z, z_prior):
        both = {"code_logit": z, "prior_logit": z_prior}
        return {name: self.network(codes)[:, 0] for name, codes in both.items()}


class CrossEntropy(vr.LossTerm):
    """What the adversary minimises, nats; log 2 if codes cannot be told from the prior."""

    def per_example(self, code_logit, prior_logit):
        return 0.5 * (tf.nn.softplus(code_logit) + tf.nn.softplus(-prior_logit))


class Penalty(vr.LossTerm):
    """What the encoder minimises, nats: -log of the probability that a code is from the prior."""

    def per_example(self, code_logit):
        return tf.nn.softplus(-code_logit)


def build(config, data):
    """Returns the model."""
    adam = keras.optimizers.Adam(5e-4, beta_1=0.5)
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, outputs=["z_mean"]),
        CodesWithPrior(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, outputs=["x_mean"]),
        [vr.Gaussian(standard_deviation=0.5**0.5), Penalty(weight=config.penalty)],
        critics=[vr.Critic(Adversary(list(config.critic_units)), [CrossEntropy()], adam)],
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
