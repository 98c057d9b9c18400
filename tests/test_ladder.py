"""Two levels by a ladder: precisions that add up, densities, divergences, and what is drawn."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import vae_research as vr

SEED = tf.constant([3, 1 << 57], tf.int64)
DRAWS = 100_000
ESTIMATES = {
    "z_1_mean": [1.5],
    "z_1_log_var": [-0.6],
    "z_2_mean": [0.4],
    "z_2_log_var": [-1.0],
}


def ladder(**settings):
    """p(z_1|z_2) = N(0.8 z_2 - 0.3, exp(-0.5 + 0.4 z_2))."""
    z_2 = keras.Input((1,), name="z_2")
    made = {"z_mean": keras.layers.Dense(1), "z_log_var": keras.layers.Dense(1)}
    network = keras.Model(z_2, {name: layer(z_2) for name, layer in made.items()})
    made["z_mean"].set_weights([np.array([[0.8]]), np.array([-0.3])])
    made["z_log_var"].set_weights([np.array([[0.4]]), np.array([-0.5])])
    return vr.LadderBottleneck(network, **settings)


@pytest.fixture(scope="module")
def drawn():
    """What is written of many equal examples, and gradients of log q - log p and of kl by row."""
    rows = {name: tf.fill([DRAWS, 1], value[0]) for name, value in ESTIMATES.items()}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(rows)
        found = ladder()(**rows, seed=SEED)
        ratio = sum(found[f"log_posterior_{z}"] - found[f"log_prior_{z}"] for z in ("z_1", "z_2"))
        kl = found["kl_z_1"][:, 0] + found["kl_z_2"][:, 0]
    gradients = [tape.gradient(value, rows) for value in (ratio, kl)]
    arrays = {name: value.numpy().astype(np.float64) for name, value in found.items()}
    return arrays, ratio.numpy(), kl.numpy(), gradients


def first_level(z_2):
    """Means and variances of p(z_1|z_2) and q(z_1|x, z_2), as the paper has them."""
    mean, variance = 0.8 * z_2 - 0.3, np.exp(-0.5 + 0.4 * z_2)
    mean_of_x, variance_of_x = ESTIMATES["z_1_mean"][0], np.exp(ESTIMATES["z_1_log_var"][0])
    joined = 1.0 / (1.0 / variance + 1.0 / variance_of_x)
    weighted = (mean / variance + mean_of_x / variance_of_x) * joined
    return mean, variance, weighted, joined


def test_densities_and_divergence_are_those_of_precisions_that_add_up(drawn):
    found = drawn[0]
    z_1, z_2 = found["z_1"][:, 0], found["z_2"][:, 0]
    mean, variance, weighted, joined = first_level(z_2)
    wanted = {
        "log_posterior_z_1": scipy.stats.norm.logpdf(z_1, weighted, joined**0.5),
        "log_prior_z_1": scipy.stats.norm.logpdf(z_1, mean, variance**0.5),
        "log_posterior_z_2": scipy.stats.norm.logpdf(z_2, 0.4, np.exp(-0.5)),
        "log_prior_z_2": scipy.stats.norm.logpdf(z_2),
        "kl_z_1": 0.5
        * ((joined + (weighted - mean) ** 2) / variance - 1.0 - np.log(joined / variance)),
        "kl_z_2": np.full(DRAWS, 0.5 * (0.4**2 + np.exp(-1.0) - 1.0 + 1.0)),
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name].reshape(-1), values, atol=1e-4, err_msg=name)
    codes = {name: tf.constant(found[name][:9], tf.float32) for name in ("z_1", "z_2")}
    rows = {name: tf.fill([9, 1], value[0]) for name, value in ESTIMATES.items()}
    both = wanted["log_posterior_z_1"] + wanted["log_posterior_z_2"]
    np.testing.assert_allclose(ladder().log_prob(**codes, **rows), both[:9], atol=1e-4)
    # Kolmogorov and Smirnov, with a seed that does not change.
    assert scipy.stats.kstest((z_1 - weighted) / joined**0.5, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z_1 - weighted, z_2)[0, 1]) < 4.0 / DRAWS**0.5
    # The mutant: the estimate of the encoder alone, as if there were no ladder.
    alone = scipy.stats.norm.logpdf(z_1, 1.5, np.exp(-0.3))
    assert np.abs(alone - wanted["log_posterior_z_1"]).mean() > 0.1


def test_closed_forms_and_samples_have_one_mean_and_one_gradient(drawn):
    _, ratio, kl, (of_ratio, of_kl) = drawn
    pairs = {"value": (ratio, kl)} | {name: (of_ratio[name], of_kl[name]) for name in ESTIMATES}
    for name, (sampled, closed) in pairs.items():
        difference = np.asarray(sampled, np.float64) - np.asarray(closed, np.float64)
        error = difference.std() / DRAWS**0.5
        assert abs(difference.mean()) < 3.0 * error, name


def test_samples_of_the_prior_are_those_of_both_levels():
    found = ladder().sample_prior(DRAWS, SEED)
    z_2 = found["z_2"].numpy()[:, 0]
    mean, variance, *_ = first_level(z_2)
    unit = (found["z_1"].numpy()[:, 0] - mean) / variance**0.5
    for values in (z_2, unit):
        assert scipy.stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z_2, unit)[0, 1]) < 4.0 / DRAWS**0.5


def test_codes_without_noise_are_means():
    given = {name: tf.constant([value]) for name, value in ESTIMATES.items()}
    center = ladder().center(given["z_1_mean"], given["z_1_log_var"], given["z_2_mean"])
    assert float(center["z_2"][0, 0]) == pytest.approx(0.4)
    assert float(center["z_1"][0, 0]) == pytest.approx(first_level(0.4)[2], rel=1e-5)


def test_a_prior_of_the_upper_level_is_a_part():
    bottleneck = ladder(prior=vr.MixturePrior(3))
    found = bottleneck(**{n: tf.constant([v]) for n, v in ESTIMATES.items()}, seed=SEED)
    np.testing.assert_allclose(
        found["log_prior_z_2"], bottleneck.second.prior.log_prob(found["z_2"])
    )
    assert "kl_z_2" not in found
    with pytest.raises(ValueError, match=r"LadderBottleneck takes .*; VampPrior is a prior of"):
        ladder(prior=vr.VampPrior((2,), 3))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"writes z_mean and z_log_var, .*dense_encoder"):
        vr.LadderBottleneck(vr.dense_encoder((2,), 3, outputs=["z_mean"]))
    wide = {n: tf.constant([v]) for n, v in ESTIMATES.items()} | {"z_1_mean": tf.zeros([1, 2])}
    with pytest.raises(
        ValueError, match=r"'z_1_mean' with shape \(1, 2\); by top_down z_1 .*\(1,\)"
    ):
        ladder()(**wide, seed=SEED)
    wide = {n: tf.constant([v]) for n, v in ESTIMATES.items()} | {"z_2_mean": tf.zeros([1, 2])}
    with pytest.raises(ValueError, match=r"'z_2_mean' with shape \(1, 2\); by top_down z_2"):
        ladder()(**wide, seed=SEED)
    shared = vr.dense_encoder((2,), 3, outputs={"z_mean": 3, "z_log_var": 1})
    with pytest.raises(ValueError, match=r"z_mean with the shape \(3,\) .* with \(1,\)"):
        vr.LadderBottleneck(shared)
    with pytest.raises(ValueError, match=r"path of one latent, z; LadderBottleneck has z_1, z_2"):
        vr.VAE(
            vr.dense_encoder((4,), 1),
            ladder(),
            vr.dense_decoder((4,), 1),
            [vr.Bernoulli(), vr.MonteCarloKL()],
            gradient_estimator=vr.StickingTheLanding(),
        )
