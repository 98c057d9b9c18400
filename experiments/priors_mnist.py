"""Priors of one VAE on MNIST: standard normal, a mixture, the VampPrior, a normalising flow.

Paper: Tomczak and Welling 2018, VAE with a VampPrior (arXiv:1705.07120); Dinh et al. 2017, Density
estimation using Real NVP (arXiv:1605.08803). The network is that of vae_mnist.py and the same for
all; the divergence of the posterior from the prior is estimated from the sampled z for all.

Command: scripts/run experiments/priors_mnist.py --epochs=20
Time: 7 to 13 minutes on 2 busy cores
Expect: test NLL 91.5 nats with the VampPrior, 90.3 with --prior=flow, 95.4 with --prior=standard
(seed 0, the same test noise; paired differences from the standard normal 3.91 and 5.07, standard
error 0.04); ELBO -95.8, -94.2, -100.1
"""

import numpy as np

import vae_research as vr
from vae_research import runs

runs.define_choice("prior", "vamp", ("standard", "mixture", "vamp", "flow"), "p(z)")
runs.define_integer("components", 100, "of the mixture, and pseudo-inputs of the VampPrior")
runs.define_integer("couplings", 6, "of the flow")
runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")


def make_prior(config, data):
    """Returns the prior that the flags name."""
    if config.prior == "mixture":
        return vr.MixturePrior(config.components)
    if config.prior == "vamp":
        # Begins with training images: random ones are no images, and few of them are ever used.
        rows = np.linspace(0, len(data.train) - 1, config.components).astype(int)
        low, high = data.value_range()
        examples = data.train.prepare(rows)
        return vr.VampPrior(data.shape, config.components, low=low, high=high, examples=examples)
    if config.prior == "flow":
        return vr.RealNVPPrior(config.couplings)
    return vr.StandardNormalPrior()


def build(config, data):
    """Returns the model."""
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=config.hidden_units),
        vr.GaussianBottleneck(config.latent_dim, prior=make_prior(config, data)),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=config.hidden_units[::-1]),
        [vr.Bernoulli(), vr.MonteCarloKL()],
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
