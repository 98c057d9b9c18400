"""Levels by a ladder: precisions that add up, densities, divergences, and what is drawn."""

import itertools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import vae_research as vr
from vae_research.tensors import Tensors, sum_in_order

SEED = tf.constant([3, 1 << 57], tf.int64)
DRAWS = 20_000
# What an encoder may write: mean and log-variance of each level, from z_1 up.
ESTIMATES = [(1.5, -0.6), (0.4, -1.0), (-0.7, -0.2)]
# Shapes of the latents, from z_1 up. A larger map below is the smaller one with repeated pixels.
LADDERS = {
    "two": [(1,), (1,)],
    "three": [(1,), (1,), (1,)],
    "two maps": [(4, 2, 1), (2, 1, 1)],
    "three maps": [(2, 2, 1), (2, 2, 1), (1, 1, 1)],
}


def ladder(shapes=LADDERS["two"], **settings):
    """p(z_l|z_{l+1}) = N(0.8 z - 0.3, exp(-0.5 + 0.4 z)), value by value."""
    networks = []
    for below, above in itertools.pairwise(shapes):
        z = keras.Input(above)
        grown = z if below == above else keras.layers.UpSampling2D(2)(z)
        made = {"z_mean": keras.layers.Dense(1), "z_log_var": keras.layers.Dense(1)}
        networks.append(keras.Model(z, {name: layer(grown) for name, layer in made.items()}))
        made["z_mean"].set_weights([np.array([[0.8]]), np.array([-0.3])])
        made["z_log_var"].set_weights([np.array([[0.4]]), np.array([-0.5])])
    return vr.LadderBottleneck(networks, **settings)


def estimates(shapes=LADDERS["two"], rows=1):
    """What an encoder writes of equal examples."""
    return {
        f"z_{number}_{part}": tf.fill([rows, *shape], value)
        for number, (shape, values) in enumerate(zip(shapes, ESTIMATES, strict=False), 1)
        for part, value in zip(("mean", "log_var"), values, strict=True)
    }


@pytest.fixture(scope="module", params=LADDERS)
def drawn(request):
    """What is written of many equal examples, and gradients of log q - log p and of kl by row."""
    shapes = LADDERS[request.param]
    rows = estimates(shapes, DRAWS)
    names = [f"z_{number}" for number, _ in enumerate(shapes, 1)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(rows)
        found = ladder(shapes)(**rows, seed=SEED)
        ratio = sum(found[f"log_posterior_{z}"] - found[f"log_prior_{z}"] for z in names)
        kl = sum(vr.sum_over_event(found[f"kl_{z}"]) for z in names)
    gradients = [tape.gradient(value, rows) for value in (ratio, kl)]
    arrays = {name: value.numpy().astype(np.float64) for name, value in found.items()}
    return shapes, arrays, ratio.numpy(), kl.numpy(), gradients


def level(shapes, index, codes):
    """Means and variances of p(z_l|z_{l+1}) and q(z_l|x, z_{l+1}), as the paper has them."""
    mean_of_x, variance_of_x = ESTIMATES[index][0], np.exp(ESTIMATES[index][1])
    if index == len(shapes) - 1:
        return 0.0, 1.0, mean_of_x, variance_of_x
    above = codes[index + 1]
    if above.shape[1:] != shapes[index]:
        above = above.repeat(2, axis=1).repeat(2, axis=2)
    mean, variance = 0.8 * above - 0.3, np.exp(-0.5 + 0.4 * above)
    joined = 1.0 / (1.0 / variance + 1.0 / variance_of_x)
    weighted = (mean / variance + mean_of_x / variance_of_x) * joined
    return mean, variance, weighted, joined


def total(values):
    return values.reshape(len(values), -1).sum(axis=1)


def test_densities_and_divergence_are_those_of_precisions_that_add_up(drawn):
    shapes, found, *_ = drawn
    codes = [found[f"z_{number}"] for number, _ in enumerate(shapes, 1)]
    log_q = log_p = 0.0
    for index, z in enumerate(codes):
        mean, variance, weighted, joined = level(shapes, index, codes)
        of_q = total(scipy.stats.norm.logpdf(z, weighted, joined**0.5))
        of_p = total(scipy.stats.norm.logpdf(z, mean, variance**0.5))
        kl = 0.5 * ((joined + (weighted - mean) ** 2) / variance - 1.0 - np.log(joined / variance))
        name = f"z_{index + 1}"
        np.testing.assert_allclose(found[f"log_posterior_{name}"], of_q, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(found[f"log_prior_{name}"], of_p, atol=2e-4, err_msg=name)
        assert found[f"kl_{name}"].shape == z.shape
        np.testing.assert_allclose(found[f"kl_{name}"], kl + 0.0 * z, atol=1e-4, err_msg=name)
        log_q, log_p = log_q + of_q, log_p + of_p
        # Kolmogorov and Smirnov, with a seed that does not change.
        noise = (z - weighted) / joined**0.5
        assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
        # The noise of a level has nothing to do with the codes above it.
        for above in codes[index + 1 :]:
            assert abs(np.corrcoef(noise.flat[:DRAWS], above.flat[:DRAWS])[0, 1]) < 4 / DRAWS**0.5
        # The mutant: the estimate of the encoder alone, as if there were no ladder.
        alone = total(
            scipy.stats.norm.logpdf(z, ESTIMATES[index][0], np.exp(ESTIMATES[index][1] / 2))
        )
        assert (np.abs(alone - of_q).mean() > 0.1) == (index < len(shapes) - 1)
    bottleneck = ladder(shapes)
    few = {f"z_{number}": tf.constant(z[:9], tf.float32) for number, z in enumerate(codes, 1)}
    density = bottleneck.log_prob(**few, **estimates(shapes, 9))
    np.testing.assert_allclose(density, log_q[:9], atol=5e-4)
    np.testing.assert_allclose(bottleneck.prior_log_prob(**few), log_p[:9], atol=5e-4)


def test_closed_forms_and_samples_have_one_mean_and_one_gradient(drawn):
    _, _, ratio, kl, (of_ratio, of_kl) = drawn
    pairs = {"value": (ratio, kl)} | {name: (of_ratio[name], of_kl[name]) for name in of_kl}
    for name, (sampled, closed) in pairs.items():
        difference = total(np.asarray(sampled, np.float64) - np.asarray(closed, np.float64))
        error = difference.std() / DRAWS**0.5
        assert abs(difference.mean()) < 3.0 * error, name


@pytest.mark.parametrize("name", LADDERS)
def test_samples_of_the_prior_are_those_of_all_levels(name):
    shapes = LADDERS[name]
    found = ladder(shapes).sample_prior(DRAWS, SEED)
    codes = [value.numpy() for value in found.values()]
    assert list(found) == [f"z_{number}" for number, _ in enumerate(shapes, 1)]
    for index, z in enumerate(codes):
        mean, variance, *_ = level(shapes, index, codes)
        noise = (z - mean) / variance**0.5
        assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
        for above in codes[index + 1 :]:
            assert abs(np.corrcoef(noise.flat[:DRAWS], above.flat[:DRAWS])[0, 1]) < 4 / DRAWS**0.5


@pytest.mark.parametrize("name", LADDERS)
def test_codes_without_noise_are_means(name):
    shapes = LADDERS[name]
    center = ladder(shapes).center(**estimates(shapes))
    codes = [value.numpy() for value in center.values()]
    for index, z in enumerate(codes):
        np.testing.assert_allclose(z, level(shapes, index, codes)[2] + 0.0 * z, rtol=1e-5)


def test_a_prior_of_the_top_level_is_a_part():
    shapes = LADDERS["three"]
    bottleneck = ladder(shapes, prior=vr.MixturePrior(3))
    found = bottleneck(**estimates(shapes), seed=SEED)
    np.testing.assert_allclose(found["log_prior_z_3"], bottleneck.prior.log_prob(found["z_3"]))
    assert {"kl_z_1", "kl_z_2"} == {name for name in found if name.startswith("kl")}
    again = vr.LadderBottleneck.from_config(bottleneck.get_config())
    assert type(again.prior) is vr.MixturePrior
    assert len(again.trainable_variables) == len(bottleneck.trainable_variables) == 2 * 4 + 3
    with pytest.raises(ValueError, match=r"LadderBottleneck takes .*; VampPrior is a prior of"):
        ladder(prior=vr.VampPrior((2,), 3))


def test_free_bits_are_of_one_level():
    shapes = LADDERS["two maps"]
    found = ladder(shapes)(**estimates(shapes, 3), seed=SEED) | {"step": tf.constant(5.0)}
    kept = np.maximum(found["kl_z_2"].numpy().mean(axis=0), 0.7).sum()
    assert kept > found["kl_z_2"].numpy().mean(axis=0).sum()
    term = vr.FreeBits(latent="z_2", nats_per_dimension=0.7, weight=vr.LinearWarmup(steps=10))
    assert float(term(found)) == pytest.approx(kept)
    objective = vr.Objective([vr.Gaussian(), vr.KLDivergence(latent="z_1"), term])
    report = objective(Tensors(found | {"targets": found["z_1"], "x_mean": found["z_1"]}))
    assert float(report.weights["free_bits_z_2"]) == pytest.approx(0.5)
    levels = [found[f"kl_z_{number}"].numpy().sum(axis=(1, 2, 3)) for number in (1, 2)]
    np.testing.assert_allclose(report.values["kl"], sum(levels), rtol=1e-6)


def test_a_gradient_is_the_sum_of_two_at_most():
    # That of three has no fixed order, and training would not repeat to the last bit.
    shapes = LADDERS["three maps"]
    bottleneck = ladder(shapes)

    def gradients(rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            found = Tensors(bottleneck(**rows, seed=SEED))
            taken = [tf.reduce_sum(found.tap("test", name)) for name in list(found)]
            total = sum_in_order(taken)
        return tape.gradient(total, [*rows.values(), *bottleneck.trainable_variables])

    graph = tf.function(gradients, autograph=False).get_concrete_function(estimates(shapes)).graph
    sums = [len(op.inputs) for op in graph.get_operations() if op.type == "AddN"]
    assert max(sums) == 2


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"write z_mean and z_log_var in .*dense_encoder"):
        vr.LadderBottleneck(vr.dense_encoder((2,), 3, outputs=["z_mean"]))
    for name in ("z_1_mean", "z_2_mean"):
        with pytest.raises(ValueError, match=rf"'{name}' with shape \(1, 2\); .* needs 1 in the"):
            ladder()(**estimates() | {name: tf.zeros([1, 2])}, seed=SEED)
    shared = vr.dense_encoder((2,), 3, outputs={"z_mean": 3, "z_log_var": 1})
    with pytest.raises(ValueError, match=r"in one shape, .* with \(3,\) and \(1,\)"):
        vr.LadderBottleneck(shared)
    with pytest.raises(ValueError, match=r"got None"):
        vr.LadderBottleneck([])
    two = [keras.Input((1,)), keras.Input((1,))]
    with pytest.raises(ValueError, match=r"models of one input"):
        vr.LadderBottleneck(keras.Model(two, {"z_mean": two[0], "z_log_var": two[1]}))
    with pytest.raises(
        ValueError, match=r"of z_2 makes .* \(2,\), and that of z_1 reads .* \(3,\)"
    ):
        vr.LadderBottleneck([vr.dense_encoder((3,), 4), vr.dense_encoder((1,), 2)])
    with pytest.raises(ValueError, match=r"path of one latent, z; LadderBottleneck has z_1, z_2"):
        vr.VAE(
            vr.dense_encoder((4,), 1),
            ladder(),
            vr.dense_decoder((4,), 1),
            [vr.Bernoulli(), vr.MonteCarloKL()],
            gradient_estimator=vr.StickingTheLanding(),
        )


# Networks.


def test_estimates_come_from_one_chain_of_features():
    latents = [(4, 4, 2), (2, 2, 3), (5,)]
    blocks = [keras.layers.Conv2D(6, 3, 2, "same"), keras.layers.Conv2D(7, 3, 2, "same")]
    blocks.append(keras.layers.Dense(8))
    encoder = vr.ladder_encoder((8, 8, 1), latents, blocks)
    written = encoder(tf.ones([2, 8, 8, 1]))
    bottleneck = vr.LadderBottleneck(
        vr.ladder_top_down(
            latents,
            [
                keras.layers.Conv2DTranspose(6, 3, 2, "same"),
                keras.Sequential([keras.layers.Dense(12), keras.layers.Reshape([2, 2, 3])]),
            ],
        )
    )
    assert bottleneck.latents == dict(zip(("z_1", "z_2", "z_3"), latents, strict=True))
    assert list(written) == bottleneck.estimates
    # One pixel of z_2 is a function of the features at its place alone.
    assert encoder.get_layer("z_2_mean").kernel.shape == (1, 1, 7, 3)
    with tf.GradientTape() as tape:
        top = encoder(tf.ones([1, 8, 8, 1]))["z_3_mean"]
    assert tape.gradient(top, blocks[0].kernel) is not None  # not a network of its own


def test_networks_that_do_not_fit_are_refused():
    dense = keras.layers.Dense(3)
    with pytest.raises(ValueError, match=r"two latents or more, got 1"):
        vr.ladder_encoder((4,), [(2,)], [dense])
    with pytest.raises(ValueError, match=r"these 1 blocks, got 2"):
        vr.ladder_top_down([(2,), (2,)], [dense, dense])
    with pytest.raises(ValueError, match=r"z_2_shape\[0\] must be an integer >= 1, got 0"):
        vr.ladder_encoder((4,), [(2,), (0,)], [dense, dense])
