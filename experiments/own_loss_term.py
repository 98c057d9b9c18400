"""A loss term and a schedule of your own, in the experiment's file.

Idea: a sparse code. A penalty on the absolute values of z, which are -log p(z) under a Laplace
prior up to a constant, shrinks latent dimensions that an image does not use. Its weight rises along
a hyperbola, so that the code forms before it becomes sparse. Nothing is registered: the term
appears in the logs and in TensorBoard as `sparse_code`.

Command: scripts/run experiments/own_loss_term.py
Time: 1 minute on 2 cores
Expect: test ELBO -104.4 nats (seed 0; -102.8 without the term); after 10 epochs the weight is 0.89
and the sum of the absolute values of a validation image's code is 12.1.
"""

import vae_research as vr
from vae_research import runs

runs.define_float("sparsity", 1.0, "weight that the sparse code term rises to; 0 turns it off")


class Saturating(vr.Schedule):
    """Rises towards `peak`; half of it is reached after `half_steps` optimizer steps."""

    peak: float
    half_steps: int = 500

    def __call__(self, step):
        return self.peak * step / (step + self.half_steps)


class SparseCode(vr.LossTerm):
    """Sum of the absolute values of the code, nats up to a constant. Reads z [rows, latent]."""

    def per_example(self, z):
        return vr.sum_over_event(abs(z))


def build(config, data):
    """Returns the model."""
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim),
        [
            vr.Bernoulli(),
            vr.KLDivergence(),
            SparseCode(weight=Saturating(peak=config.sparsity)),
        ],
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
