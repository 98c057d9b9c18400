"""A weight that is controlled: GECO, ControlVAE's PI controller, or a Lagrange multiplier.

Paper: Rezende and Viola 2018, Taming VAEs (arXiv:1810.00597), minimise the KL divergence subject to
a bound on the reconstruction: the weight of the likelihood is a multiplier. Shao et al. 2020,
ControlVAE (arXiv:2004.05988), keep the KL divergence at a set point by a PI controller of its
weight; --controller=kl_target does so by a multiplier. The network is that of vae_mnist.py.

Command: scripts/run experiments/geco.py
Time: 10 minutes on 2 cores that other programs kept busy
Expect: test ELBO -118.3 nats, with a reconstruction of 74.9 nats in training for the target 75, and
the weight at 2.60; for pid -103.6, with a KL divergence of 30.2 for 30, and the weight at 0.80.
"""

import vae_research as vr
from vae_research import runs

# Nats per example: of the negative log-likelihood for geco, of the KL divergence for the others.
TARGETS = {"geco": 75.0, "pid": 30.0, "kl_target": 30.0}

runs.define_choice("controller", "geco", tuple(TARGETS), "what moves the weight")
runs.define_float(
    "target",
    None,
    "nats per example: the negative log-likelihood for geco (default 75), the KL divergence for "
    "pid and kl_target (default 30)",
    above=0.0,
)


def build(config, data):
    """Returns the model."""
    return vr.VAE(
        vr.dense_encoder(data.shape, config.latent_dim),
        vr.GaussianBottleneck(config.latent_dim),
        vr.dense_decoder(data.shape, config.latent_dim),
        terms(config),
        seed=config.noise_seed,
    )


def terms(config):
    """Returns the loss terms; one of the two weights is controlled, the other is 1."""
    target = TARGETS[config.controller] if config.target is None else config.target
    if config.controller == "geco":
        return [vr.Bernoulli(weight=vr.GECO(target=target)), vr.KLDivergence()]
    controller = vr.PIDControl if config.controller == "pid" else vr.KLTarget
    return [vr.Bernoulli(), vr.KLDivergence(weight=controller(target=target))]


if __name__ == "__main__":
    runs.main(build)
