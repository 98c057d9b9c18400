"""Codes and factors whose scores are known, for the tests of `vae_research.disentanglement`."""

import functools
import itertools

import numpy as np

from vae_research import disentanglement

SIZES = (3, 4, 5)
# The scores of factors of these sizes as codes, and tolerances. One class against the rest tells
# three values apart, of four or five the two outermost; the second best code predicts one value:
# SAP is the mean of 1 - 1 / 3, 2 / 4 - 1 / 4 and 2 / 5 - 1 / 5. The weights of the Lasso are
# smaller by its penalty.
LARGEST = {
    "mig": (1.0, 1e-9),
    "sap": (0.372, 0.03),
    "dci_disentanglement": (1.0, 1e-3),
    "dci_completeness": (1.0, 1e-3),
    "dci_informativeness": (1.0, 0.0),
    "modularity": (1.0, 1e-9),
    "explicitness": (1.0, 1e-3),
    "infom": (1.0, 0.02),
    "infoe": (1.0, 1e-3),
    "infoc": (1.0, 0.02),
    "factor_vae": (1.0, 0.0),
    "beta_vae": (1.0, 0.0),
    "udr_lasso": (0.9, 1e-3),
    "udr_spearman": (1.0, 1e-9),
}
# Numbers of votes and points that a test can afford.
VOTES = {"train_votes": 600, "test_votes": 300, "images": 32, "variance_images": 1000}
POINTS = {"train_points": 600, "test_points": 300, "pairs": 32, "variance_images": 1000}


def grid(copies=20, sizes=SIZES):
    """Every combination of values, equally often: factors that are exactly independent."""
    rows = list(itertools.product(*(range(size) for size in sizes)))
    return np.tile(np.array(rows), (copies, 1))


def standardised(factors):
    """The factors as codes with a mean of 0 and a standard deviation of 1."""
    return (factors - factors.mean(axis=0)) / factors.std(axis=0)


def noise(rows, codes, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, codes))


def rotation(size, seed=0):
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def mixing():
    """An orthogonal matrix with large entries only: no axis is nearly kept."""
    return np.eye(3) - 2.0 / 3.0


def votes(codes, factors, **options):
    sampler = disentanglement.RowSampler(codes, factors)
    return disentanglement.factor_vae_score(sampler, **VOTES, **options)


def pairs(codes, factors, **options):
    sampler = disentanglement.RowSampler(codes, factors)
    return disentanglement.beta_vae_score(sampler, **POINTS, **options)


def ranking(similarity, codes, factors, **options):
    """How a model with these codes agrees with one that has the factors as its codes."""
    models = [codes, standardised(factors)]
    return disentanglement.udr(models, None, similarity=similarity, **options)[0]


# From codes, factors and options to a score, or scores by name.
METRICS = {
    "mig": disentanglement.mig,
    "sap": disentanglement.sap,
    "dci": functools.partial(disentanglement.dci, rounds=3),
    "modularity_explicitness": disentanglement.modularity_explicitness,
    "infomec": disentanglement.infomec,
    "factor_vae": votes,
    "beta_vae": pairs,
    "udr_lasso": functools.partial(ranking, "lasso"),
    "udr_spearman": functools.partial(ranking, "spearman"),
}


def scores(name, codes, factors, **options):
    """The values of one of METRICS by name."""
    found = METRICS[name](codes, factors, **{"repeats": 1} | options)
    found = found if isinstance(found, dict) else {name: found}
    prefix = "dci_" if name == "dci" else ""
    return {prefix + part: score.value for part, score in found.items()}
