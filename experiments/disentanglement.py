"""Disentanglement: six objectives over strengths and seeds, judged by the known causes of images.

Paper: Locatello et al. 2019 (arXiv:1811.12359) for the study, whose protocol, 300 000 steps and
larger strengths, is for a GPU:
  --dataset=sprites --train_images=0 --network=convolutional --hidden_units=256 --epochs=27 \\
  --learning_rate=1e-4 --capacity_steps=100000 --critic_units=1000,1000,1000,1000,1000,1000
The objectives: beta_vae, Higgins et al. 2017, with strength 1 the VAE; annealed_vae, Burgess et al.
2018 (arXiv:1804.03599), strength: the last capacity in nats; beta_tcvae, Chen et al. 2018
(arXiv:1802.04942), its beta; factor_vae, Kim and Mnih 2018 (arXiv:1802.05983), its gamma; dip_vae_i
and dip_vae_ii, Kumar et al. 2018 (arXiv:1711.00848), lambda_od.
docs/disentanglement.md has the study and what was found.

Command: scripts/run experiments/disentanglement.py --method=beta_tcvae --strength=6
Time: 2.5 minutes on 2 very busy cores
Expect: test ELBO -60.2 nats, NLL 56.6 with 2 samples, 4 active units; with --disentanglement and
5000 examples MIG 0.21, SAP 0.04, score of FactorVAE 0.77 (seed 0; MIG of seeds 1 and 2 0.14, 0.07)
"""

import keras
import tensorflow as tf

import vae_research as vr
from vae_research import runs

METHODS = ("beta_vae", "annealed_vae", "beta_tcvae", "factor_vae", "dip_vae_i", "dip_vae_ii")
runs.set_defaults(
    dataset="sprites_32", latent_dim=10, batch_size=64, epochs=1, importance_samples=2
)
runs.define_choice("method", "beta_vae", METHODS, "what is minimised")
runs.define_float("strength", 1.0, "beta, nats of capacity, gamma or lambda_od of the method")
runs.define_integer("train_images", 192_000, "training images that are used, 0: all")
runs.define_integer("capacity_steps", 1000, "steps in which the capacity grows", minimum=1)
runs.define_choice("network", "dense", ("dense", "convolutional"), "kind of both networks")
runs.define_integers("hidden_units", (64, 64), "units of the dense layers, from the image to z")
runs.define_integers("critic_units", (64, 64), "units of the critic of factor_vae")


@keras.saving.register_keras_serializable(package="disentanglement")
class Discriminator(keras.layers.Layer):
    """Writes the logit of "a code" and not "a permuted code", `[rows]`, for one of each."""

    def __init__(self, units, **settings):
        super().__init__(**settings)
        layers = [keras.layers.Dense(size, "leaky_relu") for size in units]
        self.network = keras.Sequential([*layers, keras.layers.Dense(1)])

    def call(self, z, seed):
        columns = tf.transpose(z)
        order = tf.argsort(tf.random.stateless_uniform(tf.shape(columns), seed, alg="philox"))
        permuted = tf.transpose(tf.gather(columns, order, batch_dims=1))
        return {"code_logit": self.network(z)[:, 0], "permuted_logit": self.network(permuted)[:, 0]}


class CrossEntropy(vr.LossTerm):
    """What the critic minimises, nats; log 2 if it cannot tell the two."""

    def per_example(self, code_logit, permuted_logit):
        return 0.5 * (tf.nn.softplus(-code_logit) + tf.nn.softplus(permuted_logit))


class DensityRatio(vr.LossTerm):
    """The critic's estimate of the total correlation, nats."""

    def per_example(self, code_logit):
        return tf.identity(code_logit)


def data(config):
    """Returns the data set that the flags name, or a part of it."""
    found = runs.load_data(config)
    return found.with_train_rows(config.train_images) if config.train_images else found


def build(config, data):
    """Returns the model."""
    size, units, strength = config.latent_dim, config.hidden_units, config.strength
    capacity = vr.LinearWarmup(steps=config.capacity_steps, peak=strength)
    terms = {
        "beta_vae": [vr.KLDivergence(weight=strength)],
        "annealed_vae": [vr.CapacityKL(weight=1000.0, capacity=capacity)],
        "beta_tcvae": [vr.KLDivergence(), vr.TotalCorrelation(weight=strength - 1.0)],
        "factor_vae": [vr.KLDivergence(), DensityRatio(weight=strength)],
        "dip_vae_i": [vr.KLDivergence(), vr.CovariancePenalty(weight=strength)],
        "dip_vae_ii": [
            vr.KLDivergence(),
            vr.CovariancePenalty(weight=strength, of_samples=True, diagonal=1.0),
        ],
    }[config.method]
    critics = []
    if config.method == "factor_vae":
        adam = keras.optimizers.Adam(1e-4, beta_1=0.5, beta_2=0.9)
        critics = [vr.Critic(Discriminator(list(config.critic_units)), [CrossEntropy()], adam)]
    encoder, decoder, more = vr.dense_encoder, vr.dense_decoder, {}
    if config.network == "convolutional":
        encoder, decoder = vr.convolutional_encoder, vr.convolutional_decoder
        more = {"kernel_size": 4, "filters": (32, 32, 64, 64)}
    back = {name: made[::-1] if name == "filters" else made for name, made in more.items()}
    return vr.VAE(
        encoder(data.shape, size, hidden_units=units, **more),
        vr.GaussianBottleneck(size),
        decoder(data.shape, size, hidden_units=units[::-1], **back),
        [vr.Bernoulli(), *terms],
        critics=critics,
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build, data=data)
