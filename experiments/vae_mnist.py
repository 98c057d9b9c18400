"""A variational autoencoder on MNIST.

Paper: Kingma and Welling 2014, Auto-Encoding Variational Bayes (arXiv:1312.6114), with the network
of the Flax example: 784-500-z20-500-784, ReLU, Adam 1e-3, batch 128.
"""

import vae_research as vr
from vae_research import runs

runs.define_choice("network", "dense", ("dense", "convolutional"), "encoder and decoder")
runs.define_integers("hidden_units", (500,), "sizes of the dense layers, from the image to z")
runs.define_choice(
    "likelihood",
    "bernoulli",
    ("bernoulli", "continuous_bernoulli", "gaussian", "gaussian_with_variance", "laplace"),
    "what the decoder's output means",
)
runs.define_float("kl_weight", 1.0, "weight of the KL divergence; 1 is the ELBO")
runs.define_integer("kl_warmup_steps", 0, "steps in which that weight rises from 0; 0: none")


def build(config, data):
    """Returns the model."""
    likelihood = {
        "bernoulli": vr.Bernoulli,
        "continuous_bernoulli": vr.ContinuousBernoulli,
        "gaussian": vr.Gaussian,
        "gaussian_with_variance": vr.GaussianWithVariance,
        "laplace": vr.Laplace,
    }[config.likelihood]()
    outputs = ["logits"] if "bernoulli" in config.likelihood else ["x_mean"]
    if config.likelihood == "gaussian_with_variance":
        outputs.append("x_log_var")
    convolutional = config.network == "convolutional"
    encoder = vr.convolutional_encoder if convolutional else vr.dense_encoder
    decoder = vr.convolutional_decoder if convolutional else vr.dense_decoder
    weight = config.kl_weight
    if config.kl_warmup_steps:
        weight = vr.LinearWarmup(peak=config.kl_weight, steps=config.kl_warmup_steps)
    return vr.VAE(
        encoder(data.shape, config.latent_dim, hidden_units=config.hidden_units),
        vr.GaussianBottleneck(config.latent_dim),
        decoder(
            data.shape,
            config.latent_dim,
            hidden_units=config.hidden_units[::-1],
            outputs=outputs,
        ),
        [likelihood, vr.KLDivergence(weight=weight)],
        seed=config.seed,
    )


if __name__ == "__main__":
    runs.main(build)
