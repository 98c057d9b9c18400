"""A regularised autoencoder on MNIST, and a prior that is fitted to its codes after training.

Paper: Ghosh et al. 2020, From Variational to Deterministic Autoencoders (arXiv:1903.12436), with
the regulariser RAE-L2: the codes have no noise, their squared length is penalised, and so are the
weights of the decoder. Samples are decoded from a mixture of normal distributions of the codes, or
from the second-stage VAE of Dai and Wipf 2019 (arXiv:1903.05789), a flow, or one normal
distribution. The network is that of vae_mnist.py.

Command: scripts/run experiments/rae_mnist.py
Time: 8 minutes on 2 busy cores
Expect: test reconstruction 62.6 nats, log-density of the codes under the mixture -45.0 (seed 0);
samples are digits, of which a part is broken
"""

import keras

import vae_research as vr
from vae_research import runs

PRIORS = "normal", "mixture", "flow", "second_stage"

runs.define_choice("prior", "mixture", PRIORS, "what is fitted to the codes")
runs.define_integer("components", 10, "of the mixture", minimum=1)
runs.define_integer("prior_epochs", 30, "over the codes, to fit the prior", minimum=1)
runs.define_float("code_penalty", 1e-2, "weight of half the squared length of a code")
runs.define_float("decoder_penalty", 1e-4, "weight of the squared weights of the decoder")
runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")


def build(config, data):
    """Returns the model."""
    return vr.VAE(
        vr.dense_encoder(
            data.shape, config.latent_dim, hidden_units=config.hidden_units, outputs=["z_mean"]
        ),
        vr.DeterministicBottleneck(config.latent_dim),
        vr.dense_decoder(
            data.shape,
            config.latent_dim,
            hidden_units=config.hidden_units[::-1],
            kernel_regularizer=keras.regularizers.L2(config.decoder_penalty),
        ),
        [vr.Bernoulli(), vr.SquaredNorm(weight=config.code_penalty)],
        seed=config.noise_seed,
    )


def fit_prior(run):
    """Returns the prior that the flags name, fitted to the codes of the training data."""
    config = run.config
    prior = {
        "normal": vr.StandardNormalPrior,  # of whitened codes: any mean, any covariance
        "mixture": lambda: vr.MixturePrior(config.components),
        "flow": vr.RealNVPPrior,
        "second_stage": vr.SecondStagePrior,
    }[config.prior]()
    images = run.data.train.prepare()
    return vr.fit_prior(run.model, images, prior, epochs=config.prior_epochs, seed=config.seed)


if __name__ == "__main__":
    runs.main(build, fit_prior=fit_prior)
