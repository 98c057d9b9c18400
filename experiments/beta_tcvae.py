"""The beta-TCVAE: mutual information, total correlation and dimension-wise KL as three terms.

Paper: Chen et al. 2018 (arXiv:1802.04942), equation 2 with weights 1, beta and 1, by stratified
sampling (appendix C). The log q(z) of a batch is too low: mutual information is too high, at most
log N = 10.8, and dimension-wise KL too low. Test figures have q(z) of all test images.

Command: scripts/run experiments/beta_tcvae.py
Time: 160 s of processor time, 1.5 minutes on 2 cores
Expect: test ELBO -122.5 nats, NLL 110.9, 11 active units (seed 0; standard error 0.35).
"""

import keras
from keras import ops

import vae_research as vr
from vae_research import runs

runs.define_float("beta", 6.0, "weight of the total correlation, no unit; 1 is the ELBO")


@keras.saving.register_keras_serializable(package="experiments")
class AggregatePosterior(keras.layers.Layer):
    """Densities of z under q(z), the mean of q(z|x) over the data set, from a batch of it."""

    whole_batch = True  # each row is compared with all others

    def __init__(self, data_size, **kwargs):
        super().__init__(**kwargs)
        self.data_size = data_size

    def call(self, z, z_mean, z_log_var):
        """Returns log q(z), and the sum of log q(z_d) over dimensions d; `[rows]`, nats."""
        pairs = vr.normal_log_density(z[:, None], z_mean[None], z_log_var[None])  # [i, j, latent]
        weights = self.log_weights(ops.shape(z)[0])
        marginals = ops.logsumexp(weights[:, :, None] + pairs, axis=1)
        # A weight belongs to an example: the joint density has it once, not in every dimension.
        joint = ops.logsumexp(weights + ops.sum(pairs, axis=2), axis=1)
        return {"log_q_z": joint, "log_q_z_product": ops.sum(marginals, axis=1)}

    def log_weights(self, rows):
        """Returns log w, `[rows, rows]`: q(z_i) is the sum of w_ij q(z_i|x_j) over the batch."""
        own = 1.0 / self.data_size  # an example is one of N; the others stand for the other N - 1
        other = (1.0 - own) / ops.cast(ops.maximum(rows - 1, 1), "float32")
        return ops.log(ops.where(ops.eye(rows, dtype="bool"), own, other))

    def get_config(self):
        return {**super().get_config(), "data_size": self.data_size}


class MeanLogRatio(vr.LossTerm):
    """The mean over the batch of the difference of two log-densities, a scalar, nats."""

    batch_statistic = True

    def per_example(self, log_p, log_q):
        return ops.mean(log_p - log_q)


def build(config, data):
    """Returns the model; its three ratios add up to the KL divergence, which is only logged."""

    def ratio(name, weight, log_p, log_q):
        return MeanLogRatio(name=name, weight=weight, rename={"log_p": log_p, "log_q": log_q})

    terms = [
        vr.Bernoulli(),
        vr.KLDivergence(weight=None),
        ratio("mutual_information", 1.0, "log_posterior", "log_q_z"),
        ratio("total_correlation", config.beta, "log_q_z", "log_q_z_product"),
        ratio("dimension_wise_kl", 1.0, "log_q_z_product", "log_prior"),
    ]
    sizes = data.shape, config.latent_dim
    parts = vr.dense_encoder(*sizes), vr.GaussianBottleneck(sizes[1]), vr.dense_decoder(*sizes)
    q_z = AggregatePosterior(len(data.train))
    return vr.VAE(*parts, terms, modules=[q_z], seed=config.noise_seed)


def evaluate(run):
    """Returns the three parts of the KL divergence of all test images."""
    return vr.kl_decomposition(run.model, run.data.test.tensors())


if __name__ == "__main__":
    runs.main(build, evaluate=evaluate)
