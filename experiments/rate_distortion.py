"""Rate and distortion of VAEs: how much of an image a code holds, and how well it is drawn again.

Idea: the ELBO is -(D + R), of the distortion D = -log p(x|z) and the rate R, the KL divergence from
the prior. Models of one ELBO can have any rate from 0 to the entropy of the data; the frontier of
all of them says what an architecture can do. A point of it is trained by a weight of the KL
divergence, or by a target for the rate.

Paper: Alemi et al. 2018, Fixing a Broken ELBO (arXiv:1711.00464).

The frontier: scripts/sweep experiments/rate_distortion.py --over kl_weight=0.1,0.3,1,3,10 \\
              --seeds 3 --into runs/sweeps/rate_distortion
              scripts/compare runs/sweeps/rate_distortion --plot=rate_distortion --to=frontier.png

Command: scripts/run experiments/rate_distortion.py
Time: TODO
Expect: TODO
"""

import vae_research as vr
from vae_research import runs

runs.define_float("kl_weight", 1.0, "weight of the rate, no unit; 1 is the ELBO")
runs.define_float("rate", None, "target of the rate in nats, in place of the weight", minimum=0.0)
runs.define_float("rate_weight", 10.0, "weight of the distance from this target, nats per nat")
runs.define_integers("hidden_units", (500,), "units of the dense layers, from the image to z")


def build(config, data):
    """Returns the model."""
    units = config.hidden_units
    if config.rate is None:
        rate = vr.KLDivergence(weight=config.kl_weight)
    elif config.kl_weight != 1.0:
        raise ValueError("--rate is a target in place of --kl_weight: give one of them.")
    else:
        rate = vr.CapacityKL(weight=config.rate_weight, capacity=config.rate)
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim, hidden_units=units),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim, hidden_units=units[::-1]),
        [vr.Bernoulli(), rate],
        seed=config.noise_seed,
    )


if __name__ == "__main__":
    runs.main(build)
