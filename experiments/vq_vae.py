"""VQ-VAE: a map of codes from a codebook, and a prior of maps that is fitted after training.

Paper: van den Oord et al. 2017, Neural Discrete Representation Learning (arXiv:1711.00937), with
the codebook by moving averages of its appendix; with --quantizer=fsq Mentzer et al. 2024, Finite
Scalar Quantization (arXiv:2309.15505). The prior is autoregressive, by causal convolutions. Under
the uniform prior, the divergence is the number of positions times log(codes), whatever is learned.

Command: scripts/run experiments/vq_vae.py --epochs=4 --prior_epochs=2
Time: 17 minutes on 2 busy cores
Expect: 191.6 bits per test image, 130.9 of them for its codes (seed 0); 354.7 under the uniform
prior of codes
"""

import math

import keras

import vae_research as vr
from vae_research import runs

runs.set_defaults(latent_dim=16, importance_samples=1)  # nothing is drawn: one is all
runs.define_choice("quantizer", "vq", ("vq", "fsq"), "a codebook, or levels of each value")
runs.define_integer("num_codes", 64, "vectors of the codebook, of latent_dim values", minimum=2)
runs.define_integers("levels", (8, 8), "of each value, with fsq", minimum=2)
runs.define_integers("filters", (16, 32), "channels; each layer halves height and width")
runs.define_integer("prior_units", 32, "channels of the prior", minimum=1, may_change=True)
runs.define_integer("prior_epochs", 20, "of the prior", minimum=1, may_change=True)


def build(config, data):
    """Returns the model."""
    scale = 2 ** len(config.filters)
    height, width, channels = data.shape
    if height % scale or width % scale:
        raise ValueError(f"{height}x{width} pixels do not divide by {scale}: use fewer --filters.")
    terms = [vr.Bernoulli(), vr.KLDivergence(), vr.Perplexity()]
    if config.quantizer == "vq":
        shape = (height // scale, width // scale, config.latent_dim)
        bottleneck = vr.VectorQuantizedBottleneck(shape, config.num_codes)
        terms.append(vr.Commitment(weight=0.25))
    else:
        shape = (height // scale, width // scale, len(config.levels))
        bottleneck = vr.FiniteScalarQuantizedBottleneck(shape, config.levels)
    layers = keras.layers
    inputs, z = keras.Input(data.shape, name="inputs"), keras.Input(shape, name="z")
    features = inputs
    for filters in config.filters:
        features = layers.Conv2D(filters, 4, 2, "same", activation="relu")(features)
    z_mean = layers.Conv2D(shape[-1], 1, dtype="float32")(features)
    encoder = keras.Model(inputs, {"z_mean": z_mean})
    features = layers.Conv2D(config.filters[-1], 3, padding="same", activation="relu")(z)
    for filters in config.filters[::-1]:
        features = layers.Conv2DTranspose(filters, 4, 2, "same", activation="relu")(features)
    logits = layers.Conv2D(channels, 3, padding="same", dtype="float32")(features)
    decoder = keras.Model(z, {"logits": logits})
    return vr.VAE(encoder, bottleneck, decoder, terms, seed=config.noise_seed)


def fit_prior(run):
    """Returns an autoregressive prior of the indices of the codes of the training data."""
    prior = vr.AutoregressivePrior(run.model.bottleneck.num_codes, units=run.config.prior_units)
    epochs = run.config.prior_epochs
    return vr.fit_prior(
        run.model, run.data.train.prepare(), prior, epochs=epochs, seed=run.config.seed
    )


def evaluate(run):
    """Returns the bits of each test image: the map of codes, and the image given the map."""
    found = vr.estimate(
        run.model, run.data.test.prepare(), num_samples=1, prior=run.prior, per_example=True
    )
    nats = {"bits_of_codes": "kl_fitted_prior", "bits_per_image": "elbo_fitted_prior"}
    return {name: abs(found[of].values) / math.log(2.0) for name, of in nats.items()}


if __name__ == "__main__":
    runs.main(build, fit_prior=fit_prior, evaluate=evaluate)
