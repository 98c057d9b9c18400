"""FactorVAE: the total correlation of the codes, estimated by a critic, is penalised.

Paper: Kim and Mnih 2018, Disentangling by Factorising (arXiv:1802.05983), equation 2 and algorithms
1 and 2. The critic tells codes from codes of which each dimension is permuted over the batch; its
logit estimates the log of the density ratio. Differences: the permuted codes are those of the same
batch (the paper takes another one), all weights move at once, the network is that of vae_mnist.py,
and the critic has three layers of 200 units (six of 1000 in the paper).

Command: scripts/run experiments/factor_vae.py
Time: 15 minutes on 2 cores that other programs kept busy
Expect: test ELBO -107.5 nats, NLL 101.0, total correlation 0.14 by the critic, whose cross-entropy
is 0.640 on validation data (log 2 = 0.693 if it could not tell the two); seed 0.
"""

import keras
import tensorflow as tf

import vae_research as vr
from vae_research import runs

runs.define_float("gamma", 10.0, "weight of the total correlation, no unit; 0 is the VAE")
runs.define_integers("critic_units", (200, 200, 200), "units of the critic's layers")


@keras.saving.register_keras_serializable(package="factor_vae")
class Discriminator(keras.layers.Layer):
    """Writes the logit of "a code" and not "a permuted code", `[rows]`, for one of each."""

    def __init__(self, units, **settings):
        super().__init__(**settings)
        layers = [keras.layers.Dense(size, "leaky_relu") for size in units]
        self.network = keras.Sequential([*layers, keras.layers.Dense(1)])

    def call(self, z, seed):
        both = {"code_logit": z, "permuted_logit": permute_dimensions(z, seed)}
        return {name: self.network(codes)[:, 0] for name, codes in both.items()}


def permute_dimensions(z, seed):
    """Returns codes of which each dimension is permuted over the batch, `[rows, latent]`."""
    columns = tf.transpose(z)
    numbers = tf.random.stateless_uniform(tf.shape(columns), seed, alg="philox")
    return tf.transpose(tf.gather(columns, tf.argsort(numbers), batch_dims=1))


class CrossEntropy(vr.LossTerm):
    """What the critic minimises, nats; log 2 if it cannot tell the two."""

    def per_example(self, code_logit, permuted_logit):
        return 0.5 * (tf.nn.softplus(-code_logit) + tf.nn.softplus(permuted_logit))


class TotalCorrelation(vr.LossTerm):
    """Estimate of KL(q(z) || prod_j q(z_j)), nats: log D(z) - log(1 - D(z)), the critic's logit."""

    def per_example(self, code_logit):
        return tf.identity(code_logit)


def build(config, data):
    """Returns the model."""
    adam = keras.optimizers.Adam(1e-4, beta_1=0.5, beta_2=0.9)
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim),
        [vr.Bernoulli(), vr.KLDivergence(), TotalCorrelation(weight=config.gamma)],
        critics=[vr.Critic(Discriminator(list(config.critic_units)), [CrossEntropy()], adam)],
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
