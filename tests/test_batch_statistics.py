"""Statistics of a whole batch: how many examples they are of, and their values of a data set."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

import vae_research as vr
from vae_research.evaluation import batch_statistics
from vae_research.runs.report.description import notes_on_batches

RANDOM = np.random.default_rng(0)
IMAGES = (RANDOM.random((30, 4, 4, 1)) < 0.4).astype(np.float32)
LATENT, BOUND = 3, 0.65
HEADS = {"z_mean": 2, "z_log_var": 2, "z_scale_lower": 1}


class OwnStatistic(vr.LossTerm):
    """Of a batch, with memory that nobody has declared to be in proportion to its rows."""

    batch_statistic = True

    def per_example(self, z):
        return keras.ops.max(z)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    terms = [vr.Bernoulli(), vr.FreeBits(nats_per_dimension=BOUND), vr.CapacityKL(capacity=1.0)]
    vae = vr.VAE(
        vr.dense_encoder(IMAGES.shape[1:], LATENT, hidden_units=(6,)),
        vr.GaussianBottleneck(LATENT),
        vr.dense_decoder(IMAGES.shape[1:], LATENT, hidden_units=(6,)),
        [*terms, OwnStatistic(weight=None)],
        seed=5,
    )
    vae(IMAGES)
    kernel = vae.encoder.get_layer("z_mean").kernel
    kernel.assign(3.0 * kernel)  # codes that differ from image to image
    return vae


@pytest.mark.slow
def test_free_bits_and_capacity_have_a_figure_of_all_examples(model, monkeypatch):
    monkeypatch.setattr(batch_statistics, "_ROWS_PER_CALL", 8)  # the last call is smaller
    found = batch_statistics.statistics_over(model, IMAGES)
    of_dimensions = model.forward(IMAGES)["kl"].numpy().mean(axis=0)
    assert of_dimensions.min() < BOUND < of_dimensions.max()  # both sides of the bound
    bounded = np.maximum(of_dimensions, BOUND).sum()
    assert found["free_bits"].value == pytest.approx(bounded, rel=1e-5)
    assert found["free_bits"].standard_error is None
    assert found["free_bits"].count == len(IMAGES)
    distance = abs(of_dimensions.sum() - 1.0)
    assert found["capacity_kl"].value == pytest.approx(distance, rel=1e-4)
    assert found.keys() == {"free_bits", "capacity_kl"}
    # The mean over calls of their own values, the mutant, is another number.
    calls = [model.forward(IMAGES[start : start + 8]) for start in range(0, 30, 8)]
    of_calls = [np.maximum(each["kl"].numpy().mean(axis=0), BOUND).sum() for each in calls]
    assert np.average(of_calls, weights=[8, 8, 8, 6]) != pytest.approx(bounded, rel=1e-4)


def test_notes_say_how_many_examples_a_batch_has(model):
    figure = vr.Estimate(1.0, None, 7)
    notes = notes_on_batches(model, {"free_bits": figure, "capacity_kl": figure}, 6, 5)
    assert [note.partition(" ")[0] for note in notes] == [
        *("free_bits", "capacity_kl", "own_statistic")
    ]
    assert "of 6 examples in training, of 5 in validation, and of all 7 in the test" in notes[0]
    assert notes[2].endswith("of 5 in validation, and without a test figure.")


@pytest.mark.slow
def test_the_parts_of_the_divergence_are_those_of_the_mixture_of_all_examples(model, monkeypatch):
    monkeypatch.setattr(batch_statistics, "_ROWS_PER_CALL", 8)
    monkeypatch.setattr(batch_statistics, "_PAIRS", 30 * LATENT * 7)  # seven examples at a time
    found = vr.kl_decomposition(model, IMAGES, seed=1)
    names = "z", "z_mean", "z_log_var"
    z, mean, log_var = (
        batch_statistics._gathered(model, {"inputs": IMAGES}, lambda _, name=name: [name], 1)[name]
        for name in names
    )
    pairs = scipy.stats.norm.logpdf(z[:, None], mean[None], np.exp(0.5 * log_var)[None])
    joint = scipy.special.logsumexp(pairs.sum(axis=2), axis=1) - np.log(30)
    product = (scipy.special.logsumexp(pairs, axis=1) - np.log(30)).sum(axis=1)
    own = scipy.stats.norm.logpdf(z, mean, np.exp(0.5 * log_var)).sum(axis=1)
    wanted = {
        "mutual_information": own - joint,
        "total_correlation": joint - product,
        "dimension_wise_kl": product - scipy.stats.norm.logpdf(z).sum(axis=1),
    }
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name].values, values, atol=1e-4)
        assert abs(values.mean()) > 1e-3, name
    assert wanted["mutual_information"].mean() < np.log(30)


@pytest.mark.slow
def test_a_posterior_with_dependent_dimensions_has_no_such_parts():
    vae = vr.VAE(
        vr.dense_encoder(IMAGES.shape[1:], 2, hidden_units=(4,), outputs=HEADS),
        vr.FullCovarianceGaussianBottleneck(2),
        vr.dense_decoder(IMAGES.shape[1:], 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    with pytest.raises(ValueError, match="with independent dimensions"):
        vr.kl_decomposition(vae, IMAGES)
