"""Importance-weighted autoencoder on MNIST.

Paper: Burda, Grosse and Salakhutdinov 2016, Importance Weighted Autoencoders (arXiv:1509.00519),
the model with one stochastic layer: 784-200-200-z50 and its mirror, tanh, K samples, batch 20, Adam
with epsilon 1e-4, images binarised again in every epoch. The paper trains for 3280 epochs with a
falling learning rate and reports an NLL of 85.54 for K=5 and 86.76 for K=1 (5000 importance
samples, table 1).

Command: scripts/run experiments/iwae_mnist.py --latent_dim=50 --batch_size=20
Time: 1.5 minutes on 2 cores
Expect: test NLL 98.5 nats for K=5 and 101.1 with --num_samples=1, after 10 epochs (seed 0, standard
error 0.3).
"""

import keras

import vae_research as vr
from vae_research import runs

runs.define_integer("num_samples", 5, "samples of z for each training image, K", minimum=1)
runs.define_boolean(
    "importance_weighted", True, "train the importance-weighted bound; off: the mean over samples"
)
runs.define_integers("hidden_units", (200, 200), "sizes of the dense layers")


def build(config, data):
    """Returns the model, compiled with the paper's Adam."""
    model = vr.VAE(
        vr.dense_encoder(
            data.shape, config.latent_dim, hidden_units=config.hidden_units, activation="tanh"
        ),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(
            data.shape, config.latent_dim, hidden_units=config.hidden_units[::-1], activation="tanh"
        ),
        [vr.Bernoulli(), vr.MonteCarloKL()],
        num_samples=config.num_samples,
        importance_weighted=config.importance_weighted,
        seed=config.noise_seed,
    )
    optimizer = keras.optimizers.Adam(config.learning_rate, epsilon=1e-4)
    model.compile(optimizer, jit_compile=config.jit == "on", run_eagerly=config.run_eagerly)
    return model


if __name__ == "__main__":
    runs.main(build)
