"""Every posterior with every prior: divergences, densities and samplers against each other.

A code has two values, so that an integral is a sum over a grid. It is the reference of the closed
forms, and of what is drawn, in value and in gradient.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests.test_distributions import Triangular
from tests.test_priors import PRIORS
from vae_research.selfcheck.divergences import (
    closed_form,
    densities_again,
    drawn,
    errors_of,
    named_codes,
    of_rows,
)

DRAWS = 100_000
SEED = tf.constant([3, 1 << 57], tf.int64)


def two_levels(latent_dim, prior):
    """A ladder of one value each."""
    down = vr.dense_encoder((latent_dim - 1,), 1, hidden_units=(3,))
    return vr.LadderBottleneck(down, prior=prior)


# What an encoder may write: of one example.
POSTERIORS = {
    "diagonal": (vr.GaussianBottleneck, {"z_mean": [0.4, -0.7], "z_log_var": [-1.0, -0.3]}),
    "full": (
        vr.FullCovarianceGaussianBottleneck,
        {"z_mean": [0.4, -0.7], "z_log_var": [-1.0, -1.5], "z_scale_lower": [-0.8]},
    ),
    "library": (
        Triangular,
        {"z_mean": [0.4, -0.7], "z_log_var": [-1.0, -1.5], "z_scale_lower": [-0.8]},
    ),
    "ladder": (
        two_levels,
        {"z_1_mean": [0.4], "z_1_log_var": [-1.0], "z_2_mean": [-0.7], "z_2_log_var": [-0.3]},
    ),
    "flow": (
        lambda size, prior: vr.FlowBottleneck(
            size, [vr.InverseAutoregressiveFlow((4,)) for _ in range(2)], context_dim=1, prior=prior
        ),
        {"z_mean": [0.4, -0.7], "z_log_var": [-1.0, -0.3], "z_context": [0.6]},
    ),
}
REFUSED = {(name, "vamp") for name in ("full", "flow", "ladder", "library")}
# Of some posteriors: the upper level of the ladder has a single value.
SOME = {
    "flow": {"mixture"},
    "ladder": {"standard", "mixture"},
    "library": {"standard", "library"},
}
PAIRS = [
    (q, p) for q in POSTERIORS for p in PRIORS if (q, p) not in REFUSED and p in SOME.get(q, PRIORS)
]


def make(posterior, prior):
    keras.utils.set_random_seed(0)
    bottleneck = POSTERIORS[posterior][0](2, prior=PRIORS[prior]())
    random = np.random.default_rng(3)
    for variable in bottleneck.trainable_variables:
        variable.assign(variable + 0.4 * random.standard_normal(variable.shape))
    return bottleneck, {name: tf.constant([v]) for name, v in POSTERIORS[posterior][1].items()}


def products(z):
    """The values of codes, and what their variances and covariance are made of."""
    return tf.concat([z, z**2, z[:, :1] * z[:, 1:]], axis=1)


STEP = 0.1
AXIS = np.arange(-6, 6, STEP) + STEP / 2
GRID = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)


@functools.cache
def integrals(posterior, prior):
    """The integral of q(z|x), the divergence, its gradient, and the mean and moments of z."""
    bottleneck, written = make(posterior, prior)

    with tf.GradientTape() as tape:
        tape.watch(written)
        codes = named_codes(bottleneck, GRID)
        log_q = bottleneck.log_prob(**codes, **of_rows(written, len(GRID)))
        mass = tf.exp(log_q) * STEP**2
        kl = tf.reduce_sum(mass * (log_q - bottleneck.prior_log_prob(**codes)))
    found = tf.reduce_sum(mass), kl, tf.linalg.matvec(products(GRID), mass, transpose_a=True)
    return found, tape.gradient(kl, written)


def draw(bottleneck, written):
    return drawn(bottleneck, written, DRAWS, SEED)


@pytest.mark.slow
@pytest.mark.parametrize(("posterior", "prior"), PAIRS)
def test_what_is_drawn_has_the_divergence_of_the_densities_and_its_gradient(posterior, prior):
    bottleneck, written = make(posterior, prior)
    (mass, kl, moments), gradient = integrals(posterior, prior)
    assert float(mass) == pytest.approx(1.0, abs=1e-4)
    found = draw(bottleneck, written)
    assert errors_of(found.ratio, kl) < 3.0
    for name, value in gradient.items():
        assert np.all(errors_of(found.gradients[name], value) < 3.0), name
    assert np.all(errors_of(products(found.codes), moments) < 3.0)
    assert max(densities_again(bottleneck, written, found)) < 2e-4
    of_last = "kl_z_2" if posterior == "ladder" else "kl"
    assert (of_last in found.tensors) == (prior == "standard" and posterior != "flow")


# That of a ladder depends on what is drawn above; test_ladder.py looks at it. A flow has none.
@pytest.mark.parametrize("posterior", sorted(POSTERIORS.keys() - {"flow", "ladder"}))
def test_a_closed_form_is_the_integral_in_value_and_in_gradient(posterior):
    bottleneck, written = make(posterior, "standard")
    (_, kl, _), gradient = integrals(posterior, "standard")
    closed, by_head = closed_form(bottleneck, written, SEED)
    assert closed == pytest.approx(float(kl), abs=2e-4)
    for name, value in by_head.items():
        np.testing.assert_allclose(value, gradient[name], atol=2e-4, err_msg=name)


class Transposed(vr.FullCovarianceGaussianBottleneck):
    """A mutant: z from the transposed factor, whose covariance is another one."""

    def call(self, z_mean, z_log_var, z_scale_lower, seed):
        found = super().call(z_mean, z_log_var, z_scale_lower, seed)
        noise = vr.standard_normal(tf.shape(z_mean), seed)
        upper = tf.stack([z_scale_lower[:, 0] * noise[:, 1], tf.zeros_like(noise[:, 0])], axis=1)
        return found | {"z": z_mean + tf.exp(0.5 * z_log_var) * noise + upper}


def test_mutants_are_noticed():
    _, written = make("full", "standard")
    (_, kl, moments), _ = integrals("full", "standard")
    z = draw(Transposed(2), written).codes
    assert errors_of(products(z), moments).max() > 20.0
    # A closed form that has forgotten what is below the diagonal.
    without = vr.normal_kl_divergence(written["z_mean"], written["z_log_var"])
    assert abs(float(tf.reduce_sum(without)) - float(kl)) > 0.3


@pytest.mark.parametrize(("posterior", "prior"), sorted(REFUSED))
def test_a_pair_that_does_not_go_together_is_refused_by_name(posterior, prior):
    named = type(PRIORS[prior]()).__name__
    with pytest.raises(ValueError, match=rf"\w+ takes a prior of .*; {named} is a prior of"):
        make(posterior, prior)
