"""Latents of any shape and number: their levels in every figure, and what looks at their codes."""

import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research.levels import level_of, levels
from vae_research.tensors import Tensors, of_all_levels


def drawn(*names, rows=6, seed=0):
    """Tensors of a forward pass, with densities and divergences of the given names."""
    rng = np.random.default_rng(seed)
    shapes = {name: [rows, 3] if name.startswith("kl") else [rows] for name in names}
    found = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return Tensors(
        {name: tf.constant(value, tf.float32) for name, value in found.items()}
        | {"value": tf.constant(rng.normal(size=rows), tf.float32), "step": tf.constant(0.0)}
    )


class Given(vr.Likelihood):
    """A likelihood that is read and not computed."""

    def log_likelihood(self, value):
        return value

    def mean(self, value):
        return value


# The rule of names.


def test_a_name_belongs_to_a_level_or_to_none():
    names = ["kl", "kl_z", "log_prior_z_2", "log_posterior_", "klx", "my_kl", "logits", "log_q_z"]
    assert [level_of(name) for name in names] == [
        *(("kl", "z"), ("kl", "z"), ("log_prior", "z_2")),
        *(None, None, None, None, None),
    ]


def test_levels_are_found_in_the_order_in_which_they_were_written():
    found = levels(drawn("log_prior", "kl_top", "log_posterior", "log_prior_top"))
    assert found == {
        "z": {"log_prior": "log_prior", "log_posterior": "log_posterior"},
        "top": {"kl": "kl_top", "log_prior": "log_prior_top"},
    }
    assert levels(drawn("log_posterior")) == {}  # of a model without a prior


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["kl", "kl_z"], "'kl' and 'kl_z', both of the latent 'z'"),
        (
            ["kl", "log_prior_top"],
            "'log_prior_top', which makes 'top' a level.*'log_posterior_top'",
        ),
        (["log_posterior_top"], "needs 'kl_top', or both"),
    ],
)
def test_a_level_is_written_once_and_whole(names, message):
    with pytest.raises(ValueError, match=message):
        vr.Objective([Given()])(drawn(*names))


TWO = ["kl_a", "log_posterior_a", "log_prior_a", "log_posterior_b", "log_prior_b"]


def test_the_elbo_has_all_levels_in_closed_form_where_there_is_one():
    tensors = drawn(*TWO)
    a = tf.reduce_sum(tensors["kl_a"], axis=1)
    b = tensors["log_posterior_b"] - tensors["log_prior_b"]
    elbo = tensors["value"] - a - b
    report = vr.Objective([Given()])(tensors)
    np.testing.assert_allclose(report.elbo, elbo, rtol=1e-6)
    for name, value in {"kl": a + b, "kl_a": a, "kl_b": b}.items():
        np.testing.assert_allclose(report.values[name], value, rtol=1e-6)


def test_one_level_has_no_figure_of_its_own():
    assert vr.Objective([Given()])(drawn("kl")).values.keys() == {"reconstruction", "kl"}


def test_a_term_is_about_all_latents_or_about_one():
    tensors = drawn("kl", "kl_top", "log_posterior", "log_prior", *TWO[1:3])
    del tensors["log_posterior_a"], tensors["log_prior_a"]
    total = {name: tf.reduce_sum(tensors[name], axis=1) for name in ("kl", "kl_top")}
    both = total["kl"] + total["kl_top"]
    np.testing.assert_allclose(vr.KLDivergence()(tensors), both, rtol=1e-5)
    np.testing.assert_array_equal(vr.KLDivergence(latent="top")(tensors), total["kl_top"])
    np.testing.assert_array_equal(vr.KLDivergence(latent="z")(tensors), total["kl"])
    joined = tf.concat([tensors["kl"], tensors["kl_top"]], axis=1)
    kept = tf.maximum(tf.reduce_mean(joined, axis=0), 0.1)
    np.testing.assert_allclose(vr.FreeBits()(tensors), tf.reduce_sum(kept), rtol=1e-5)
    away = tf.abs(tf.reduce_mean(both) - 2.0)
    np.testing.assert_allclose(vr.CapacityKL(capacity=2.0)(tensors), away, rtol=1e-5)


def test_sampled_divergence_is_the_sum_over_all_latents_or_that_of_one():
    tensors = drawn(*TWO)
    parts = {x: tensors[f"log_posterior_{x}"] - tensors[f"log_prior_{x}"] for x in "ab"}
    np.testing.assert_allclose(vr.MonteCarloKL()(tensors), parts["a"] + parts["b"], atol=1e-6)
    np.testing.assert_array_equal(vr.MonteCarloKL(latent="b")(tensors), parts["b"])
    assert vr.MonteCarloKL(latent="b").label == "kl_b"
    assert vr.KLDivergence(latent="b", name="second").label == "second"


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (vr.KLDivergence(), "'kl' reads 'kl_b', .*no divergence in closed form: use MonteCarloKL"),
        (vr.KLDivergence(latent="b"), "'kl_b' reads 'kl_b', .*use MonteCarloKL"),
        (vr.KLDivergence(latent="bb"), "about the latent 'bb'; .* a, b. Did you mean 'b'"),
    ],
)
def test_a_level_without_what_a_term_reads_is_named(term, message):
    with pytest.raises(ValueError, match=message):
        term(drawn(*TWO))


@pytest.mark.parametrize(
    "term",
    [
        vr.KLDivergence(rename={"kl": "divergence_top"}),
        vr.MonteCarloKL(rename={"log_prior": "log_q_z"}),
        vr.MonteCarloKL(rename={"log_posterior": "log_posterior_a", "log_prior": "log_prior_b"}),
        vr.MonteCarloKL(rename={"log_posterior": "log_posterior_a"}),
    ],
    ids=repr,
)
def test_a_trained_divergence_is_part_of_the_elbo(term):
    with pytest.raises(ValueError, match=r"would not be part of the ELBO.*kl_NAME"):
        vr.Objective([Given(), term])
    vr.Objective([Given(), term.__class__(rename=term.rename, weight=None)])


@pytest.mark.parametrize(
    "term", [vr.KLDivergence(rename={"kl": "kl_a"}), vr.KLDivergence(latent="a", name="kl")]
)
def test_the_figure_kl_is_of_all_latents(term):
    with pytest.raises(ValueError, match=r"one latent of a, b, and 'kl' in the logs"):
        vr.Objective([Given(), term])(drawn(*TWO))


def test_latent_and_rename_contradict_each_other():
    with pytest.raises(ValueError, match="latent='b' and rename="):
        vr.KLDivergence(latent="b", rename={"kl": "kl_a"})


def test_a_density_of_another_shape_does_not_broadcast():
    tensors = drawn("log_posterior", "log_prior")
    tensors["log_prior"] = tensors["log_prior"][:, tf.newaxis]
    with pytest.raises(ValueError, match=r"'log_prior' has the shape \(6, 1\).*\[rows\]"):
        vr.Objective([Given()])(tensors)


def test_the_importance_weighted_bound_has_all_levels():
    tensors = drawn(*TWO)
    log_weight = tensors["value"] + sum(
        tensors[f"log_prior_{x}"] - tensors[f"log_posterior_{x}"] for x in "ab"
    )
    by_example = tf.reshape(log_weight, [2, 3])
    wanted = tf.reduce_logsumexp(by_example, axis=1) - np.log(3)
    terms = [Given(), vr.MonteCarloKL()]
    report = vr.Objective(terms, num_samples=3, importance_weighted=True)(tensors)
    np.testing.assert_allclose(report.importance_weighted_bound, wanted, rtol=1e-5)
    np.testing.assert_allclose(report.loss, -wanted, rtol=1e-5)


def test_a_sum_of_levels_that_no_gradient_could_reorder():
    values = [tf.constant(x) for x in (1e8, 1.0, -1e8)]
    tensors = Tensors({f"log_prior_{i}": x[tf.newaxis] for i, x in enumerate(values)})
    tensors.update({f"log_posterior_{i}": x[tf.newaxis] for i, x in enumerate(values)})
    # From the first to the last: 1e8 + 1 is 1e8 in float32.
    assert float(of_all_levels("test", "log_prior", tensors)[0]) == 0.0
