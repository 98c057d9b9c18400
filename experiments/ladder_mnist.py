"""A ladder of three levels of latents, against one level with as many weights.

Paper: Sonderby et al. 2016, Ladder Variational Autoencoders (arXiv:1602.02282), with warm-up. The
encoder is one chain of features, from which each level has its estimate; a level has half of the
latents of the one below it. One level is the VAE of Kingma and Welling, with hidden layers as wide
as makes it equal.

Command: scripts/run experiments/ladder_mnist.py --epochs=20
Time: 11 minutes on 2 busy cores, 7 with --levels=1
Expect: test NLL 93.7 nats, 95.7 with --levels=1 (seed 0; paired difference 1.97, standard error
0.05); ELBO -98.0 and -100.6; KL 18.3, 3.7 and 1.9 of the levels; 994 789 and 995 124 weights. Two
levels, --levels=2, have 92.7; three reach 92.8 with free bits, --free_nats=0.25
"""

import math

import keras
from keras import layers

import vae_research as vr
from vae_research import runs

runs.define_integer("levels", 3, "levels of latents", minimum=1)
runs.define_integers("hidden_units", (500, 250, 125), "units of the dense layers of each level")
runs.define_float("free_nats", 0.0, "of each value above z_1: divergence that costs nothing")
runs.define_integer("warmup_epochs", 5, "epochs until the divergences have their weight", minimum=0)


def ladder(config, shape, levels):
    """Returns encoder, bottleneck and decoder of z_1, z_2 and so on."""
    units = [*config.hidden_units, *config.hidden_units[-1:] * levels][:levels]
    latents = [(max(config.latent_dim >> level, 1),) for level in range(levels)]
    up = [keras.Sequential([layers.Flatten(), layers.Dense(units[0], "relu")])]
    up += [layers.Dense(size, "relu") for size in units[1:]]
    down = [layers.Dense(size, "relu") for size in units[1:]]
    z_1 = keras.Input(latents[0], name="z_1")
    decoder = vr.dense_decoder(shape, *latents[0], hidden_units=units[:1], name="from_z_1")
    return (
        vr.ladder_encoder(shape, latents, up),
        vr.LadderBottleneck(vr.ladder_top_down(latents, down)),
        keras.Model(z_1, decoder(z_1), name="decoder"),
    )


def one_level(config, shape, units):
    """Returns encoder, bottleneck and decoder of z, with hidden layers of so many units."""
    return (
        vr.dense_encoder(shape, config.latent_dim, hidden_units=(units,)),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(shape, config.latent_dim, hidden_units=(units,)),
    )


def weights_of(parts):
    """Returns how many weights encoder, bottleneck and decoder have."""
    return sum(math.prod(weight.shape) for part in parts for weight in part.weights)


def build(config, data):
    """Returns the model."""
    parts = ladder(config, data.shape, 3 if config.levels == 1 else config.levels)
    if config.levels == 1:
        first, second = (weights_of(one_level(config, data.shape, units)) for units in (1, 2))
        # The number of weights is linear in that of units.
        units = 1 + round((weights_of(parts) - first) / (second - first))
        parts = one_level(config, data.shape, units)
    weight = vr.LinearWarmup(epochs=config.warmup_epochs) if config.warmup_epochs else 1.0
    terms = [vr.KLDivergence(weight=weight)]
    if config.free_nats and config.levels > 1:
        terms = [vr.KLDivergence(latent="z_1", weight=weight)]
        upper = [f"z_{level}" for level in range(2, config.levels + 1)]
        free = config.free_nats
        terms += [vr.FreeBits(latent=z, nats_per_dimension=free, weight=weight) for z in upper]
    return vr.VAE(*parts, [vr.Bernoulli(), *terms], seed=config.noise_seed)


if __name__ == "__main__":
    runs.main(build)
