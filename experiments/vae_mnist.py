"""A variational autoencoder on MNIST.

Paper: Kingma and Welling 2014, Auto-Encoding Variational Bayes (arXiv:1312.6114), with the network
of the Flax example: 784-500-z20-500-784, ReLU, Adam 1e-3, batch 128, images binarised again in
every epoch.

Command: scripts/run experiments/vae_mnist.py
Time: 1 minute on 2 cores
Expect: test ELBO -102.8, -102.6, -102.9 nats (seeds 0, 1, 2; standard error 0.26), NLL 98.0 (seed
0); ELBO -100.4 with --epochs=20. On grey values, --binarize=none: -105.9, -105.9 (seeds 0, 1); this
is not a likelihood and cannot be compared with the others.
"""

import math

import vae_research as vr
from vae_research import runs

LIKELIHOODS = {
    "bernoulli": ("Bernoulli", ["logits"]),
    "continuous_bernoulli": ("ContinuousBernoulli", ["logits"]),
    "gaussian": ("Gaussian", ["x_mean"]),
    "gaussian_with_variance": ("GaussianWithVariance", ["x_mean", "x_log_var"]),
    "laplace": ("Laplace", ["x_mean"]),
    "discretized_logistic": ("DiscretizedLogistic", ["x_mean", "x_log_var"]),
}

runs.define_choice("network", "dense", ("dense", "convolutional"), "encoder and decoder")
runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")
runs.define_choice("likelihood", "bernoulli", tuple(LIKELIHOODS), "what the decoder's output means")
runs.define_float("standard_deviation", 1.0, "of a gaussian, in rescaled units", above=0.0)
runs.define_float("kl_weight", 1.0, "weight of the KL divergence, no unit; 1 is the ELBO")
runs.define_integer("kl_warmup_steps", 0, "steps in which that weight rises from 0; 0: none")
runs.define_choice(
    "loss_scale",
    "nats",
    ("nats", "pixel_mean"),
    "pixel_mean trains as many Keras recipes do: cross-entropy averaged over pixels plus kl_weight "
    "times the latent mean of -(1 + log_var - mean^2 - var)",
)


def build(config, data):
    """Returns the model."""
    convolutional = config.network == "convolutional"
    encoder = vr.convolutional_encoder if convolutional else vr.dense_encoder
    decoder = vr.convolutional_decoder if convolutional else vr.dense_decoder
    units = config.hidden_units
    outputs = LIKELIHOODS[config.likelihood][1]
    return vr.VAE(
        encoder(data.shape, config.latent_dim, hidden_units=units),
        vr.GaussianBottleneck(config.latent_dim),
        decoder(data.shape, config.latent_dim, hidden_units=units[::-1], outputs=outputs),
        terms(config, data),
        seed=config.noise_seed,
    )


def terms(config, data):
    """Returns the loss terms."""
    if config.loss_scale == "pixel_mean":
        if config.likelihood != "bernoulli" or config.kl_warmup_steps:
            raise ValueError("--loss_scale=pixel_mean is for Bernoulli pixels without a warm-up.")
        pixels = math.prod(data.shape)
        return vr.pixel_mean_terms(
            factor=config.kl_weight, pixels=pixels, latent_dim=config.latent_dim
        )
    weight = config.kl_weight
    if config.kl_warmup_steps:
        weight = vr.LinearWarmup(peak=weight, steps=config.kl_warmup_steps)
    is_gaussian = config.likelihood == "gaussian"
    if config.standard_deviation != 1.0 and not is_gaussian:
        raise ValueError("--standard_deviation is a setting of --likelihood=gaussian alone.")
    settings = {"standard_deviation": config.standard_deviation} if is_gaussian else {}
    likelihood = getattr(vr, LIKELIHOODS[config.likelihood][0])
    return [likelihood(**settings), vr.KLDivergence(weight=weight)]


if __name__ == "__main__":
    runs.main(build)
