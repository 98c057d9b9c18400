"""Terms over the aggregate posterior: NumPy, SciPy, hand-worked values, and known mistakes."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

import vae_research as vr

ROWS, LATENT = 40, 3
RANDOM = np.random.default_rng(0)
MEANS = RANDOM.normal(size=(ROWS, LATENT)) @ RANDOM.normal(size=(LATENT, LATENT))
LOG_VARIANCES = RANDOM.normal(-1.0, 0.5, (ROWS, LATENT))
CODES = MEANS + np.exp(LOG_VARIANCES / 2) * RANDOM.normal(size=MEANS.shape)


def value(term, **tensors):
    return float(term({name: tf.constant(each, tf.float32) for name, each in tensors.items()}))


# Covariances: DIP-VAE.


@pytest.mark.parametrize("of_samples", [False, True])
@pytest.mark.parametrize("diagonal", [0.0, 1.0, 10.0])
def test_the_penalty_is_that_of_the_paper(of_samples, diagonal):
    """Equations 6 and 7 with the covariance of NumPy."""
    covariance = np.cov(MEANS, rowvar=False, bias=True)
    if of_samples:  # Cov[z] = Cov[E[z|x]] + E[Cov[z|x]]
        covariance += np.diag(np.exp(LOG_VARIANCES).mean(axis=0))
    squares = np.square(covariance - np.eye(LATENT))
    off = squares.sum() - np.trace(squares)
    term = vr.CovariancePenalty(of_samples=of_samples, diagonal=diagonal)
    found = value(term, z_mean=MEANS, z_log_var=LOG_VARIANCES)
    assert found == pytest.approx(off + diagonal * np.trace(squares), rel=1e-5)


def test_the_second_kind_is_the_covariance_of_the_samples():
    """Of a million samples of z: their errors are below 0.01."""
    means, log_variances = np.repeat(MEANS, 25_000, 0), np.repeat(LOG_VARIANCES, 25_000, 0)
    samples = means + np.exp(log_variances / 2) * RANDOM.normal(size=means.shape)
    term = vr.CovariancePenalty(of_samples=True, diagonal=1.0)
    expected = np.square(np.cov(samples, rowvar=False) - np.eye(LATENT)).sum()
    found = value(term, z_mean=MEANS, z_log_var=LOG_VARIANCES)
    assert found == pytest.approx(expected, rel=0.01)
    # The mistake of exp(log variance) squared, taken for the variance.
    mutant = np.cov(MEANS, rowvar=False, bias=True) + np.diag(np.exp(2 * LOG_VARIANCES).mean(0))
    assert np.square(mutant - np.eye(LATENT)).sum() != pytest.approx(found, rel=0.05)


def test_white_codes_have_no_penalty_and_are_a_minimum():
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])  # covariance of the identity
    small = np.full(corners.shape, -60.0)
    assert value(vr.CovariancePenalty(), z_mean=corners + 7, z_log_var=small) == 0.0
    narrow = value(vr.CovariancePenalty(diagonal=1.0), z_mean=0.5 * corners, z_log_var=small)
    assert narrow == pytest.approx(2 * 0.75**2)  # the variances are 1/4
    # The mean over the latent axis, in place of the rows, does not notice that codes are copies.
    copies = np.repeat(corners[:, :1], 2, axis=1)
    assert value(vr.CovariancePenalty(), z_mean=copies, z_log_var=small) == pytest.approx(2.0)


def test_a_negative_diagonal_is_refused():
    with pytest.raises(ValueError, match=r"diagonal must not be negative, got -1"):
        vr.CovariancePenalty(diagonal=-1.0)


# Total correlation.


def test_total_correlation_is_that_of_the_mixture_of_the_batch():
    """Densities of SciPy, row by row."""
    deviations = np.exp(LOG_VARIANCES / 2)
    total = 0.0
    for code in CODES:
        logs = scipy.stats.norm.logpdf(code, MEANS, deviations)  # [rows, latent]
        joint = scipy.special.logsumexp(logs.sum(axis=1)) - np.log(ROWS)
        total += joint - (scipy.special.logsumexp(logs, axis=0) - np.log(ROWS)).sum()
    tensors = {"z": CODES, "z_mean": MEANS, "z_log_var": LOG_VARIANCES}
    assert value(vr.TotalCorrelation(), **tensors) == pytest.approx(total / ROWS, rel=1e-5)


def test_total_correlation_of_gaussians_is_known():
    """-log(1 - r^2) / 2 of two codes of correlation r, from 3000 rows; 0 without correlation."""
    rows, noise = 3000, 0.3
    for correlation in (0.0, 0.6):  # of z, whose variances are 1
        covariance = [[1 - noise, correlation], [correlation, 1 - noise]]
        means = RANDOM.multivariate_normal([0, 0], covariance, rows)
        codes = means + np.sqrt(noise) * RANDOM.normal(size=means.shape)
        tensors = {"z": codes, "z_mean": means, "z_log_var": np.full(means.shape, np.log(noise))}
        expected = -0.5 * np.log(1 - correlation**2)
        assert value(vr.TotalCorrelation(), **tensors) == pytest.approx(expected, abs=0.03)


def test_a_single_code_has_no_total_correlation():
    tensors = {"z": CODES[:, :1], "z_mean": MEANS[:, :1], "z_log_var": LOG_VARIANCES[:, :1]}
    assert value(vr.TotalCorrelation(), **tensors) == pytest.approx(0.0, abs=1e-6)
