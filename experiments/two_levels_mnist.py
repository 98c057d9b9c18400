"""Two levels of latents by a ladder, against one level with the same number of weights.

Paper: Sonderby et al. 2016, Ladder Variational Autoencoders (arXiv:1602.02282), with warm-up. One
level is the VAE of Kingma and Welling, with hidden layers as wide as makes it equal.

Command: scripts/run experiments/two_levels_mnist.py --epochs=20
Time: 9 minutes on 2 busy cores
Expect: test NLL 93.0 nats, 95.6 with --levels=one (seed 0; paired difference 2.59, standard error
0.04); ELBO -97.4 and -100.4; KL 15.6 and 9.4 of the two levels; 930 284 and 929 924 weights
"""

import math

import keras

import vae_research as vr
from vae_research import runs

runs.define_choice("levels", "two", ("two", "one"), "levels of latents")
runs.define_integer("upper_dim", 10, "latent dimensions of the upper level", minimum=1)
runs.define_integers("hidden_units", (500, 200), "units of the dense layers of each level")
runs.define_integer("warmup_epochs", 5, "epochs until the divergences have their weight", minimum=0)


def two_levels(config, shape):
    """Returns encoder, bottleneck and decoder of z_1 and z_2."""
    lower_units, upper_units = config.hidden_units[0], config.hidden_units[-1]
    lower, upper = config.latent_dim, config.upper_dim
    inputs = keras.Input(shape, name="inputs")
    features = keras.layers.Dense(lower_units, "relu")(keras.layers.Flatten()(inputs))
    heads = {
        "z_1": vr.dense_encoder((lower_units,), lower, hidden_units=(), name="z_1"),
        "z_2": vr.dense_encoder((lower_units,), upper, hidden_units=(upper_units,), name="z_2"),
    }
    made = {latent: head(features) for latent, head in heads.items()}
    outputs = {
        f"{latent}_{name.removeprefix('z_')}": value
        for latent, written in made.items()
        for name, value in written.items()
    }
    top_down = vr.dense_encoder((upper,), lower, hidden_units=(upper_units,), name="top_down")
    z_1 = keras.Input((lower,), name="z_1")
    decoder = vr.dense_decoder(shape, lower, hidden_units=(lower_units,), name="from_z_1")
    return (
        keras.Model(inputs, outputs, name="encoder"),
        vr.LadderBottleneck([top_down]),
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
    if len(config.hidden_units) > 2:
        raise ValueError(f"--hidden_units takes two numbers, got {len(config.hidden_units)}.")
    parts = two_levels(config, data.shape)
    if config.levels == "one":
        first, second = (weights_of(one_level(config, data.shape, units)) for units in (1, 2))
        # The number of weights is linear in that of units.
        units = 1 + round((weights_of(parts) - first) / (second - first))
        parts = one_level(config, data.shape, units)
    weight = vr.LinearWarmup(epochs=config.warmup_epochs) if config.warmup_epochs else 1.0
    return vr.VAE(*parts, [vr.Bernoulli(), vr.KLDivergence(weight=weight)], seed=config.noise_seed)


if __name__ == "__main__":
    runs.main(build)
