"""A linear VAE on data of a linear model, whose log p(x) is known: an estimate with its answer.

Paper: Tipping and Bishop 1999, Probabilistic principal component analysis: p(z) = N(0, I) and
p(x|z) = N(W z + b, s^2 I) have p(x) = N(b, W W^T + s^2 I). The exact posterior has a full
covariance, so that the ELBO is exact only if training turns the columns of W until it is diagonal,
and the importance-weighted estimate has something to correct. Lucas et al. 2019 (arXiv:1911.02469).

Command: scripts/run experiments/linear_gaussian.py --epochs=30
Time: 15 seconds on 2 cores
Expect: test NLL 9.565 nats, the exact one 9.564, that of the true density 9.554 (seed 0)
"""

import numpy as np

import vae_research as vr
from vae_research import runs

STANDARD_DEVIATION = 0.5

runs.set_defaults(latent_dim=3, batch_size=100, learning_rate=0.01)
runs.define_integer("rows", 20_000, "rows of the data", minimum=30)
runs.define_integer("values", 8, "values of a row", minimum=1)


def true_kernel(config):
    """Returns W of the data, `[latent_dim, values]`."""
    return np.random.default_rng(1).normal(size=(config.latent_dim, config.values))


def data(config):
    """Returns rows of the model, a tenth of them for validation and a tenth for testing."""
    random = np.random.default_rng(0)
    z = random.normal(size=(config.rows, config.latent_dim))
    noise = STANDARD_DEVIATION * random.normal(size=(config.rows, config.values))
    x = (z @ true_kernel(config) + 1.0 + noise).astype(np.float32)
    tenth = config.rows // 10
    splits = np.split(x, [config.rows - 2 * tenth, config.rows - tenth])
    return vr.Data.from_arrays(*splits, rescale="none", name="linear_gaussian")


def build(config, data):
    """Returns the model: networks without hidden layers."""
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=()),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=(), outputs=["x_mean"]),
        [vr.Gaussian(standard_deviation=STANDARD_DEVIATION), vr.KLDivergence()],
        seed=config.noise_seed,
    )


def minus_log_density(x, kernel, bias):
    """Returns -log p(x), `[rows]`, nats."""
    covariance = kernel.T @ kernel + STANDARD_DEVIATION**2 * np.eye(x.shape[1])
    apart = x - bias
    squares = np.einsum("ri,ij,rj->r", apart, np.linalg.inv(covariance), apart)
    return 0.5 * (squares + np.linalg.slogdet(2.0 * np.pi * covariance)[1])


def evaluate(run):
    """Returns -log p(x) of test rows: what negative_log_likelihood estimates, and of the data."""
    weights = run.model.decoder.get_layer("x_mean").get_weights()
    x = run.data.test.prepare().astype(np.float64)
    return {
        "exact_negative_log_likelihood": minus_log_density(x, *weights),
        "negative_log_density_of_data": minus_log_density(x, true_kernel(run.config), 1.0),
    }


if __name__ == "__main__":
    runs.main(build, data=data, evaluate=evaluate)
