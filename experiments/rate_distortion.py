"""Rate and distortion of VAEs: how much of an image a code holds, and how well it is drawn again.

Idea: the ELBO is -(D + R), of the distortion D = -log p(x|z) and the rate R, the KL divergence from
the prior. Models of one ELBO can have any rate from 0 to the entropy of the data; the frontier of
all of them says what an architecture can do. A point of it is trained by a weight of the KL
divergence, or by a target for the rate.

Paper: Alemi et al. 2018, Fixing a Broken ELBO (arXiv:1711.00464).

The frontier: scripts/sweep experiments/rate_distortion.py --over kl_weight=0.25,1,4 --seeds 5 \\
                  --jobs 2 --into runs/sweeps/weights --epochs=5 --importance_samples=50
              scripts/compare runs/sweeps/weights --plot=rate_distortion --to=frontier.png

Command: scripts/run experiments/rate_distortion.py --epochs=5 --importance_samples=50
Time: 2 minutes on 2 very busy cores; the sweep 27 minutes
Expect: rate, distortion and ELBO in nats, means of 5 seeds: 45.1, 70.5, -115.6 with weight 0.25;
26.3, 80.5, -106.8 with 1; 8.9, 117.4, -126.3 with 4. The smallest NLL, with 50 samples, is 102.3,
so that the entropy of the data is at most that.
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
