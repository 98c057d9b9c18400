"""Every public term, schedule, controller, bottleneck and network: the contract of its kind.

A new one is a new entry in `CASES`; `test_every_public_part_is_in_the_table` fails without it.
"""

import dataclasses
import functools
import json
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research
from tests.proofs import SOAK
from vae_research import (
    Bottleneck,
    Controller,
    Likelihood,
    LossTerm,
    Objective,
    Schedule,
    value_at,
)
from vae_research.codes import CodeLayout
from vae_research.controllers import first_state, next_state, weight_of
from vae_research.levels import levels
from vae_research.networks.kernels import is_narrow, narrow_convolution
from vae_research.settings import from_config
from vae_research.tensors import Tensors, bind, of_all_levels

# What others derive from: they are not used as they are, and have no entry.
BASES = {"LossTerm", "Likelihood", "Schedule", "Controller", "Bottleneck", "Prior", "Flow"} | {
    "PosteriorBottleneck",
    "QuantizedBottleneck",
    *("DistributionLikelihood", "DistributionBottleneck", "DistributionPrior"),
}

ROWS, LATENT, IMAGE = 4, 3, (5, 7, 2)


@dataclasses.dataclass(frozen=True, repr=False)
class Case:
    """One public part.

    Attributes:
        make: returns an instance with settings that are not its defaults.
        inputs: named tensors as they usually are.
        extremes: what to replace in `inputs`, one dictionary for each extreme.
        outputs: names and shapes of what it returns for `inputs`.
        in_training: names of inputs that are used in training only.
    """

    make: Callable[[], Any]
    inputs: dict[str, Any]
    outputs: dict[str, tuple[int, ...]]
    extremes: tuple[dict[str, Any], ...] = ()
    in_training: frozenset[str] = frozenset()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.05, 0.95, shape).astype(np.float32)


def full(value, *shape):
    return np.full(shape, value, np.float32)


def term(name, settings, extremes, shape=(ROWS,), **inputs):
    return Case(lambda: getattr(vae_research, name)(**settings), inputs, {"value": shape}, extremes)


# A prediction that is as wrong as can be, and one that is as right.
LOGITS = tuple(
    {"targets": full(target, ROWS, *IMAGE), "logits": full(logit, ROWS, *IMAGE)}
    for target in (0.0, 1.0)
    for logit in (-1e4, 1e4)
)
MEANS = ({"x_mean": full(1e6, ROWS, *IMAGE)}, {"x_mean": full(-1e6, ROWS, *IMAGE)})
# Heads of log-variances are bounded to +-20, so that a KL divergence can reach exp(20) / 2 = 2.4e8.
LOG_VARS = tuple(
    {"x_mean": full(1e3, ROWS, *IMAGE), "x_log_var": full(bound, ROWS, *IMAGE)}
    for bound in (-20.0, 20.0)
)
RGB, PARAMETERS = (5, 7, 3), (ROWS, 5, 7, 20)
DIVERGENCES = ({"kl": full(0.0, ROWS, LATENT)}, {"kl": full(2.4e8, ROWS, LATENT)})
DENSITIES = tuple(
    {"log_posterior": full(v, ROWS), "log_prior": full(-v, ROWS)} for v in (1e9, -1e9)
)
OF_CODES = tuple(
    {"z_mean": full(z_mean, ROWS, LATENT), "z_log_var": full(log_var, ROWS, LATENT)}
    for z_mean in (1e4, -1e4)
    for log_var in (-20.0, 20.0)
)
STEPS = tuple({"step": np.float32(step)} for step in (0.0, 1.0, 2.0**24, 1e9))


def schedule(name, **settings):
    return Case(
        lambda: getattr(vae_research, name)(**settings),
        {"step": np.float32(7.0)},
        {"value": ()},
        STEPS,
    )


def controller(name, settings, state):
    return Case(
        lambda: getattr(vae_research, name)(
            target=vae_research.LinearWarmup(steps=10, peak=30.0), **settings
        ),
        {name: np.float32(number) for name, number in state.items()}
        | {"value": np.float32(13.0), "step": np.float32(4.0)},
        {"weight": ()} | {f"next_{name}": () for name in state},
        (*STEPS, *({"value": np.float32(value)} for value in (-1e30, 0.0, 1e30))),
    )


def network(name, inputs, outputs, shape=IMAGE, **settings):
    latent = outputs.keys() >= {"z_mean"}
    return Case(
        lambda: getattr(vae_research, name)(shape, LATENT, outputs=tuple(outputs), **settings),
        {inputs: normal(ROWS, *shape) if latent else normal(ROWS, LATENT)},
        outputs,
        tuple(
            {inputs: full(value, ROWS, *(shape if latent else (LATENT,)))}
            for value in (-1e6, 0.0, 1e6)
        ),
    )


CODES = {"z_mean": (ROWS, LATENT), "z_log_var": (ROWS, LATENT)}
PIXELS = {"x_mean": (ROWS, *IMAGE), "x_log_var": (ROWS, *IMAGE)}
SEQUENCE = (6, 2)  # time, features
VALUES = {"x_mean": (ROWS, *SEQUENCE), "x_log_var": (ROWS, *SEQUENCE)}
POSTERIOR = {"z_mean": normal(ROWS, LATENT, seed=1), "z_log_var": normal(ROWS, LATENT, seed=2)}


def prior(make, **further):
    """Of a bottleneck that has the prior."""
    return Case(
        lambda: vae_research.GaussianBottleneck(LATENT, prior=make()),
        POSTERIOR | {"seed": np.array([3, 1], np.int64)},
        {"z": (ROWS, LATENT), "log_posterior": (ROWS,), "log_prior": (ROWS,), **further},
        tuple({"z_mean": full(value, ROWS, LATENT)} for value in (-1e4, 0.0, 1e4)),
    )


def flow(make, context_dim=0):
    """Of a bottleneck that has two such steps."""
    context = {"z_context": normal(ROWS, context_dim, seed=4)} if context_dim else {}
    return Case(
        lambda: vae_research.FlowBottleneck(LATENT, [make(), make()], context_dim=context_dim),
        POSTERIOR | context | {"seed": np.array([3, 1], np.int64)},
        {"z": (ROWS, LATENT), "log_posterior": (ROWS,), "log_prior": (ROWS,)},
        tuple(
            {name: full(value, *array.shape) for name, array in context.items()}
            | {"z_mean": full(value, ROWS, LATENT), "z_log_var": full(bound, ROWS, LATENT)}
            for value, bound in ((-1e4, -20.0), (0.0, 0.0), (1e4, 20.0))
        ),
    )


def on_sphere(**priors):
    return Case(
        lambda: vae_research.PowerSphericalBottleneck(
            (2, LATENT), **{name: make() for name, make in priors.items()}
        ),
        {"z_mean": normal(ROWS, 2, LATENT), "z_concentration": normal(ROWS, 2, 1, seed=1)}
        | {"seed": np.array([3, 1], np.int64)},
        {"z": (ROWS, 2, LATENT), "log_posterior": (ROWS,), "log_prior": (ROWS,), "kl": (ROWS, 2)},
        (
            {"z_mean": np.tile(np.eye(LATENT, dtype=np.float32)[0], (ROWS, 2, 1))},
            *(
                {"z_mean": full(value, ROWS, 2, LATENT), "z_concentration": full(k, ROWS, 2, 1)}
                for value, k in ((0.0, 0.0), (1e6, 1e5), (-1e-6, -1e5))
            ),
        ),
    )


def categorical(make, classes, **latents):
    """A relaxed categorical of two variables; `latents` are further ones, of Gaussians."""
    suffix = "_c" if latents else ""
    code = "c" if latents else "z"
    written = {f"kl{suffix}": (ROWS, 2), code: (ROWS, 2, classes)}
    inputs = {f"{code}_logits": normal(ROWS, 2, classes, seed=5)}
    for name, size in latents.items():
        inputs |= {f"{name}_mean": normal(ROWS, size), f"{name}_log_var": normal(ROWS, size)}
        written |= {name: (ROWS, size), f"kl_{name}": (ROWS, size)}
    densities = [f"log_{part}" for part in ("posterior", "prior")]
    ends = [suffix, *(f"_{name}" for name in latents)]
    written |= {f"{name}{end}": (ROWS,) for name in densities for end in ends}
    return Case(
        make,
        inputs | {"seed": np.array([3, 1], np.int64), "step": np.float32(7.0)},
        written,
        tuple({f"{code}_logits": full(value, ROWS, 2, classes)} for value in (-1e6, 0.0, 1e6)),
        frozenset({"step"}),
    )


def quantized(make, num_codes, **further):
    """A bottleneck with so many codes, at a single position."""
    written = dict.fromkeys(("log_posterior", "log_prior", "kl"), (ROWS,))
    return Case(
        make,
        {"z_mean": POSTERIOR["z_mean"], **further},
        {"z": (ROWS, LATENT), "code_usage": (ROWS, num_codes), **written},
        tuple({"z_mean": full(value, ROWS, LATENT)} for value in (-1e6, 0.0, 1e6)),
        frozenset(further),
    )


def index_prior(make):
    """Of a bottleneck that has the prior."""
    of = vae_research.FiniteScalarQuantizedBottleneck
    return quantized(lambda: of(LATENT, (5, 4, 3), prior=make(60)), 60)


def vamp_prior():
    made = vae_research.VampPrior(IMAGE, 3)
    made.use_encoder(first_pixels)
    return made


def first_pixels(inputs):
    """An encoder, which a model would hand over."""
    return {"z_mean": inputs[:, :LATENT, 0, 0], "z_log_var": inputs[:, :LATENT, 1, 0]}


def second_stage_prior():
    """It has no density, and no bottleneck has it: its contract is that of its loss."""
    made = vae_research.SecondStagePrior(2, hidden_units=(5,))
    made.build_for((LATENT,))
    return made


# Of a ladder: a map, and two vectors.
LEVELS = {"z_1": (3, 4, 1), "z_2": (3,), "z_3": (2,)}
HEADS = "mean", "log_var"


def dense_blocks():
    """A layer for each level but the first."""
    return [keras.layers.Flatten(), keras.layers.Dense(4)]


CASES = {
    "Bernoulli": term(
        "Bernoulli",
        {"weight": 0.5},
        LOGITS,
        targets=uniform(ROWS, *IMAGE),
        logits=normal(ROWS, *IMAGE),
    ),
    "ContinuousBernoulli": term(
        "ContinuousBernoulli",
        {"name": "density"},
        (*LOGITS, {"logits": full(0.0, ROWS, *IMAGE)}),
        targets=uniform(ROWS, *IMAGE),
        logits=normal(ROWS, *IMAGE),
    ),
    "Gaussian": term(
        "Gaussian",
        {"standard_deviation": 0.25},
        MEANS,
        targets=uniform(ROWS, *IMAGE),
        x_mean=normal(ROWS, *IMAGE),
    ),
    "GaussianWithVariance": term(
        "GaussianWithVariance",
        {"weight": None},
        LOG_VARS,
        targets=uniform(ROWS, *IMAGE),
        x_mean=normal(ROWS, *IMAGE, seed=1),
        x_log_var=normal(ROWS, *IMAGE, seed=2),
    ),
    "Laplace": term(
        "Laplace",
        {"scale": 0.25},
        (*MEANS, {"x_mean": uniform(ROWS, *IMAGE)}),  # the kink, where prediction and data agree
        targets=uniform(ROWS, *IMAGE),
        x_mean=normal(ROWS, *IMAGE),
    ),
    "Categorical": term(
        "Categorical",
        {"classes": 3},
        tuple({"logits": full(value, ROWS, *IMAGE, 3)} for value in (-1e6, 0.0, 1e6)),
        targets=np.random.default_rng(0).integers(0, 2, (ROWS, *IMAGE)),
        logits=normal(ROWS, *IMAGE, 3),
    ),
    "Poisson": term(
        "Poisson",
        {"weight": 0.5},
        # Heads of log-rates are bounded to +-20, and counts have no bound.
        tuple(
            {"targets": full(count, ROWS, *IMAGE), "x_log_rate": full(bound, ROWS, *IMAGE)}
            for count in (0.0, 1e6)
            for bound in (-20.0, 20.0)
        ),
        targets=np.random.default_rng(0).integers(0, 2, (ROWS, *IMAGE)),
        x_log_rate=normal(ROWS, *IMAGE),
    ),
    "DiscretizedLogistic": term(
        "DiscretizedLogistic",
        {"levels": 16},
        (*LOG_VARS, *({"targets": full(level, ROWS, *IMAGE)} | LOG_VARS[0] for level in (0, 1))),
        targets=np.round(15 * uniform(ROWS, *IMAGE)) / np.float32(15),
        x_mean=normal(ROWS, *IMAGE, seed=1),
        x_log_var=normal(ROWS, *IMAGE, seed=2),
    ),
    "DiscretizedLogisticMixture": term(
        "DiscretizedLogisticMixture",
        {"levels": 16, "components": 2},
        tuple(
            {"targets": full(level, ROWS, *RGB), "x_mixture": value * signs}
            for level in (0, 1)
            for value in (0.0, 1e4, -1e4)
            for signs in (full(1, *PARAMETERS), np.sign(normal(*PARAMETERS)))
        ),
        targets=np.round(15 * uniform(ROWS, *RGB)) / np.float32(15),
        x_mixture=normal(*PARAMETERS),
    ),
    "ProductLikelihood": term(
        "ProductLikelihood",
        {
            "factors": [
                vae_research.Bernoulli(),
                vae_research.Gaussian(rename={"targets": "heights"}, observed="known"),
            ]
        },
        (*LOGITS, {"x_mean": full(1e6, ROWS, *IMAGE)}),
        targets=uniform(ROWS, *IMAGE),
        logits=normal(ROWS, *IMAGE),
        heights=normal(ROWS, *IMAGE, seed=3),
        x_mean=normal(ROWS, *IMAGE, seed=4),
        known=np.random.default_rng(1).integers(0, 2, (ROWS, *IMAGE)),
    ),
    "KLDivergence": term(
        "KLDivergence",
        {"weight": vae_research.LinearWarmup(steps=10, peak=4.0)},
        DIVERGENCES,
        kl=uniform(ROWS, LATENT),
    ),
    "MonteCarloKL": term(
        "MonteCarloKL",
        {"name": "sampled"},
        DENSITIES,
        log_posterior=normal(ROWS, seed=1),
        log_prior=normal(ROWS, seed=2),
    ),
    "FreeBits": term(
        "FreeBits",
        {"nats_per_dimension": 0.5},
        (*DIVERGENCES, {"kl": full(0.5, ROWS, LATENT)}),  # exactly at the bound
        shape=(),
        kl=uniform(ROWS, LATENT),
    ),
    "CapacityKL": term(
        "CapacityKL",
        {"capacity": vae_research.Cosine(steps=10, peak=6.0), "weight": 30.0},
        (*DIVERGENCES, *STEPS, {"kl": full(2.0, ROWS, LATENT), "step": np.float32(99.0)}),
        shape=(),
        kl=uniform(ROWS, LATENT),
        step=np.float32(7.0),
    ),
    "TotalCorrelation": term(
        "TotalCorrelation",
        {"weight": 5.0},
        OF_CODES,
        shape=(),
        z=normal(ROWS, LATENT, seed=2),
        z_mean=normal(ROWS, LATENT, seed=1),
        z_log_var=normal(ROWS, LATENT, seed=3),
    ),
    "CovariancePenalty": term(
        "CovariancePenalty",
        {"of_samples": True, "diagonal": 2.0},
        OF_CODES,
        shape=(),
        z_mean=normal(ROWS, LATENT, seed=1),
        z_log_var=normal(ROWS, LATENT, seed=3),
    ),
    "Commitment": term(
        "Commitment",
        {"weight": 0.25},
        ({"z_mean": full(1e9, ROWS, LATENT)},),
        z_mean=normal(ROWS, LATENT, seed=1),
        z=normal(ROWS, LATENT, seed=2),
    ),
    "Perplexity": term(
        "Perplexity",
        {"name": "codes"},
        ({"code_usage": np.eye(5, dtype=np.float32)[np.zeros(ROWS, int)]},),
        shape=(),
        code_usage=uniform(ROWS, 5),
    ),
    "SquaredNorm": term(
        "SquaredNorm", {"weight": 0.1}, ({"z": full(1e9, ROWS, LATENT)},), z=normal(ROWS, LATENT)
    ),
    "Constant": schedule("Constant", value=0.25),
    "LinearWarmup": schedule("LinearWarmup", steps=30, start=0.5, peak=4.0),
    "Cosine": schedule("Cosine", steps=30, start=0.5, peak=4.0),
    "Cyclical": schedule("Cyclical", steps=30, rising=0.4, peak=4.0, cycles=3),
    "GECO": controller(
        "GECO", {"rate": 0.01, "decay": 0.9}, {"multiplier": 2.0, "average": 5.0, "updates": 1.0}
    ),
    "KLTarget": controller("KLTarget", {"rate": 0.01, "of": "kl"}, {"multiplier": 2.0}),
    "PIDControl": controller(
        "PIDControl",
        {"minimum": 0.25, "maximum": 4.0, "proportional_gain": 0.5},
        {"integral": 1.0, "unclipped": 5.0},
    ),
    "GaussianBottleneck": Case(
        lambda: vae_research.GaussianBottleneck(LATENT),
        POSTERIOR | {"seed": np.array([3, 1], np.int64)},
        {
            "z": (ROWS, LATENT),
            "log_posterior": (ROWS,),
            "log_prior": (ROWS,),
            "kl": (ROWS, LATENT),
        },
        tuple(
            {"z_mean": full(1e4, ROWS, LATENT), "z_log_var": full(bound, ROWS, LATENT)}
            for bound in (-20.0, 20.0)
        ),
    ),
    "FullCovarianceGaussianBottleneck": Case(
        lambda: vae_research.FullCovarianceGaussianBottleneck(LATENT),
        POSTERIOR | {"z_scale_lower": normal(ROWS, 3, seed=3), "seed": np.array([3, 1], np.int64)},
        {"z": (ROWS, LATENT), "log_posterior": (ROWS,), "log_prior": (ROWS,), "kl": (ROWS,)},
        tuple(
            {"z_mean": full(1e4, ROWS, LATENT), "z_log_var": full(bound, ROWS, LATENT)}
            | {"z_scale_lower": full(50.0 * bound, ROWS, 3)}
            for bound in (-20.0, 20.0)
        ),
    ),
    "FlowBottleneck": flow(lambda: vae_research.InverseAutoregressiveFlow((6, 5)), 2),
    "InverseAutoregressiveFlow": flow(lambda: vae_research.InverseAutoregressiveFlow((6,))),
    "PlanarFlow": flow(vae_research.PlanarFlow, 2),
    "RelaxedCategoricalBottleneck": categorical(
        lambda: vae_research.RelaxedCategoricalBottleneck(
            (2, 5), temperature=vae_research.LinearWarmup(start=2.0, peak=0.25, steps=10)
        ),
        5,
    ),
    "JointBottleneck": categorical(
        lambda: vae_research.JointBottleneck(
            {
                "a": vae_research.GaussianBottleneck(LATENT),
                "c": vae_research.RelaxedCategoricalBottleneck((2, 5), temperature=0.7),
            }
        ),
        5,
        a=LATENT,
    ),
    "LadderBottleneck": Case(
        lambda: vae_research.LadderBottleneck(
            vae_research.ladder_top_down(list(LEVELS.values()), dense_blocks())
        ),
        {f"{z}_{part}": normal(ROWS, *LEVELS[z], seed=3) for z in LEVELS for part in HEADS}
        | {"seed": np.array([3, 1], np.int64)},
        {z: (ROWS, *shape) for z, shape in LEVELS.items()}
        | {f"kl_{z}": (ROWS, *shape) for z, shape in LEVELS.items()}
        | {f"log_{part}_{z}": (ROWS,) for part in ("posterior", "prior") for z in LEVELS},
        tuple(
            {f"{z}_log_var": full(bound, ROWS, *shape) for z, shape in LEVELS.items()}
            | {"z_1_mean": full(1e4, ROWS, *LEVELS["z_1"])}
            for bound in (-20.0, 20.0)
        ),
    ),
    "PowerSphericalBottleneck": on_sphere(),
    "SphericalUniformPrior": on_sphere(prior=vae_research.SphericalUniformPrior),
    "StandardNormalPrior": prior(vae_research.StandardNormalPrior, kl=(ROWS, LATENT)),
    "MixturePrior": prior(lambda: vae_research.MixturePrior(3)),
    "RealNVPPrior": prior(lambda: vae_research.RealNVPPrior(2, hidden_units=(6,))),
    "VampPrior": prior(vamp_prior),
    "WhitenedPrior": prior(lambda: vae_research.WhitenedPrior(vae_research.MixturePrior(3))),
    "SecondStagePrior": Case(
        second_stage_prior,
        {"z": normal(ROWS, LATENT), "seed": np.array([3, 1], np.int64)},
        {"value": (ROWS,)},
        tuple({"z": full(value, ROWS, LATENT)} for value in (-1e4, 0.0, 1e4)),
    ),
    "VectorQuantizedBottleneck": quantized(
        lambda: vae_research.VectorQuantizedBottleneck(LATENT, 7, decay=0.9, restart_below=0.2),
        7,
        seed=np.array([3, 1], np.int64),
    ),
    "FiniteScalarQuantizedBottleneck": quantized(
        lambda: vae_research.FiniteScalarQuantizedBottleneck(LATENT, (5, 4, 3)), 60
    ),
    "UniformPrior": index_prior(vae_research.UniformPrior),
    "AutoregressivePrior": index_prior(
        lambda count: vae_research.AutoregressivePrior(count, units=4, dilations=(1, 2))
    ),
    "DeterministicBottleneck": Case(
        lambda: vae_research.DeterministicBottleneck(LATENT),
        {"z_mean": POSTERIOR["z_mean"]},
        {"z": (ROWS, LATENT)},
        ({"z_mean": full(1e30, ROWS, LATENT)},),
    ),
    "dense_encoder": network("dense_encoder", "inputs", CODES, hidden_units=(6, 5)),
    "dense_decoder": network("dense_decoder", "z", PIXELS, hidden_units=(6, 5)),
    "convolutional_encoder": network("convolutional_encoder", "inputs", CODES, filters=(4, 3)),
    "convolutional_decoder": network("convolutional_decoder", "z", PIXELS, filters=(4, 3)),
    "residual_encoder": network("residual_encoder", "inputs", CODES, filters=(4, 3)),
    "residual_decoder": network("residual_decoder", "z", PIXELS, filters=(4, 3)),
    "recurrent_encoder": network("recurrent_encoder", "inputs", CODES, SEQUENCE, units=(4, 3)),
    "recurrent_decoder": network("recurrent_decoder", "z", VALUES, SEQUENCE, units=(4, 3)),
    "ladder_encoder": Case(
        lambda: vae_research.ladder_encoder(
            IMAGE, list(LEVELS.values()), [keras.layers.Conv2D(4, 3, 2, "same"), *dense_blocks()]
        ),
        {"inputs": normal(ROWS, *IMAGE)},
        {f"{z}_{part}": (ROWS, *LEVELS[z]) for z in LEVELS for part in HEADS},
        tuple({"inputs": full(value, ROWS, *IMAGE)} for value in (-1e6, 0.0, 1e6)),
    ),
    "ladder_top_down": Case(
        lambda: vae_research.ladder_top_down(list(LEVELS.values()), dense_blocks()[::-1])[0],
        {"z_2": normal(ROWS, *LEVELS["z_2"])},
        {f"z_{part}": (ROWS, *LEVELS["z_1"]) for part in HEADS},
        tuple({"z_2": full(value, ROWS, *LEVELS["z_2"])} for value in (-1e6, 0.0, 1e6)),
    ),
    "ProbabilitiesToLogits": Case(
        vae_research.ProbabilitiesToLogits,
        {"probabilities": uniform(ROWS, *IMAGE)},
        {"logits": (ROWS, *IMAGE)},
        ({"probabilities": full(0.0, ROWS, *IMAGE)}, {"probabilities": full(1.0, ROWS, *IMAGE)}),
    ),
}


# The table is complete.


def belongs_to_the_table(thing):
    kinds = (LossTerm, Schedule, Controller, Bottleneck, vae_research.Prior, vae_research.Flow)
    if isinstance(thing, type) and issubclass(thing, kinds):
        return True
    return getattr(thing, "__module__", "").startswith("vae_research.networks.")


def unlisted(public):
    """Returns the public names that should have an entry in the table, and have none."""
    names = {name for name, thing in public.items() if belongs_to_the_table(thing)}
    return sorted(names - CASES.keys() - BASES)


def public_names():
    flat = {name: getattr(vae_research, name) for name in vae_research.__all__}
    namespaces = [thing for thing in flat.values() if isinstance(thing, types.ModuleType)]
    assert namespaces
    return flat | {name: getattr(part, name) for part in namespaces for name in part.__all__}


def test_every_public_part_is_in_the_table():
    assert not unlisted(public_names()), "public, and not in CASES"


def test_table_has_no_entry_that_is_not_public():
    belonging = {name for name, thing in public_names().items() if belongs_to_the_table(thing)}
    assert not CASES.keys() - belonging
    assert belonging >= BASES


def fake_network():
    """Stands for a network function that somebody added."""


def test_part_that_nobody_listed_is_found():
    fake_network.__module__ = "vae_research.networks.fake"
    fakes = {
        "Term": type("Term", (LossTerm,), {}),
        "Likely": type("Likely", (Likelihood,), {}),
        "Derived": type("Derived", (vae_research.KLDivergence,), {}),
        "Ramp": type("Ramp", (Schedule,), {}),
        "Control": type("Control", (Controller,), {}),
        "Neck": type("Neck", (Bottleneck,), {}),
        "fake_network": fake_network,
    }
    assert unlisted(public_names() | fakes) == sorted(fakes)


@pytest.mark.parametrize("base", [LossTerm, Likelihood, Schedule, Controller])
def test_base_cannot_be_used_as_it_is(base):
    with pytest.raises(TypeError, match=f"abstract class {base.__name__}"):
        base()


def test_bottleneck_base_has_no_call():
    # Keras' own answer for a layer that defines no call.
    with pytest.raises(NotImplementedError):
        Bottleneck(2).call(tf.zeros([2, 2]))


# The contract of all kinds.


def call(part, tensors):
    """Returns what a part makes of named tensors, by name."""
    if isinstance(part, LossTerm):
        return {"value": part(tensors)}
    if isinstance(part, Schedule):
        return {"value": value_at(part, tensors["step"])}
    if isinstance(part, Controller):
        state = {name: tensors[name] for name in first_state(part)}
        after = next_state(part, state, tensors["value"], tensors["step"])
        return {"weight": weight_of(part, after)} | {f"next_{n}": t for n, t in after.items()}
    if isinstance(part, keras.Model):
        return part(next(iter(tensors.values())))
    if isinstance(part, vae_research.Prior):
        return {"value": part.training_loss(**tensors)}
    return part(**tensors)


def outputs_and_gradients(part, tensors):
    """Returns the outputs, and the gradients of their sum by inputs and weights."""
    if isinstance(part, Controller):  # it runs after the gradients are taken
        return call(part, tensors), {}
    sources = {n: t for n, t in tensors.items() if t.dtype.is_floating and n != "step"}
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = call(part, tensors)
        total = tf.add_n([tf.reduce_sum(tensor) for tensor in outputs.values()])
    weights = {w.path: w.value for w in getattr(part, "trainable_variables", [])}
    gradients = tape.gradient(total, sources | weights, unconnected_gradients="zero")
    return outputs, gradients


def as_tensors(values):
    return {name: tf.constant(value) for name, value in values.items()}


@functools.cache
def part_of(name):
    """The part of a case, made once: no call changes it."""
    keras.utils.set_random_seed(0)
    return CASES[name].make()


@pytest.fixture
def named_case(request):
    return part_of(request.param), CASES[request.param]


each = pytest.mark.parametrize("named_case", CASES, indirect=True)


@each
def test_outputs_have_their_names_and_shapes_in_float32(named_case):
    part, case = named_case
    outputs = call(part, as_tensors(case.inputs))
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == case.outputs
    assert {tensor.dtype for tensor in outputs.values()} == {tf.float32}


@each
def test_values_and_gradients_are_finite_at_extremes(named_case):
    part, case = named_case
    assert case.extremes
    for extreme in ({}, *case.extremes):
        assert extreme.keys() <= case.inputs.keys()
        outputs, gradients = outputs_and_gradients(part, as_tensors(case.inputs | extreme))
        for name, tensor in (*outputs.items(), *gradients.items()):
            assert np.all(np.isfinite(tensor)), f"{name} at {extreme.keys()}"


@pytest.fixture(scope="module")
def compiled():
    """All parts, and a function of a mode that gives what one compiled function of them gives."""
    parts = {name: part_of(name) for name in CASES}
    tensors = {name: as_tensors(case.inputs) for name, case in CASES.items()}
    for name, part in parts.items():
        call(part, tensors[name])  # makes the variables

    def run(values):
        return {name: outputs_and_gradients(parts[name], each) for name, each in values.items()}

    @functools.cache
    def compile_all(mode):
        names = CASES if mode == "graph" or SOAK else BY_XLA
        given = {name: tensors[name] for name in names}
        return tf.function(run, autograph=False, jit_compile=mode == "XLA")(given)

    return parts, compile_all


# What XLA compiles every day: of each kind what has most operations, gradients of its own, or
# random numbers. `scripts/check --soak` has all, which takes a minute.
BY_XLA = [
    *("DiscretizedLogisticMixture", "ContinuousBernoulli", "CapacityKL", "Cyclical", "GECO"),
    *("FullCovarianceGaussianBottleneck", "RelaxedCategoricalBottleneck"),
    *("VectorQuantizedBottleneck", "MixturePrior", "PlanarFlow", "convolutional_decoder"),
]


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *(pytest.param("graph", name, marks=pytest.mark.slow) for name in CASES),
        *(
            pytest.param(
                "XLA", name, marks=pytest.mark.slow if name in BY_XLA else pytest.mark.soak
            )
            for name in CASES
        ),
    ],
)
def test_compiled_values_and_gradients_are_those_of_eager_execution(compiled, name, mode):
    parts, compile_all = compiled
    eager = outputs_and_gradients(parts[name], as_tensors(CASES[name].inputs))
    for ours, expected in zip(compile_all(mode)[name], eager, strict=True):
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@each
def test_part_depends_on_every_input(named_case):
    # A part that ignored what it reads would pass all other tests.
    part, case = named_case
    before = call(part, as_tensors(case.inputs))
    for name, value in case.inputs.items():
        half, some = np.float32(0.5), np.float32(0.1)  # a direction does not depend on lengths
        moved = value + 1 if value.dtype == np.int64 else value * half + some
        after = call(part, as_tensors(case.inputs | {name: moved}))
        constant = isinstance(part, vae_research.Constant) or name in case.in_training
        assert constant or any(np.any(after[n] != before[n]) for n in after), name


@each
def test_repr_tells_the_class_or_the_name(named_case):
    part, _ = named_case
    if isinstance(part, (LossTerm, Schedule, Controller)):
        public = {name: getattr(vae_research, name) for name in CASES}
        assert eval(repr(part), public) == part
        assert "object at 0x" not in repr(part)
    else:
        assert type(part).__name__ in repr(part)
        assert part.name in repr(part)


@each
def test_saved_configuration_makes_an_equal_part(named_case):
    part, case = named_case
    tensors = as_tensors(case.inputs)
    before = call(part, tensors)
    if isinstance(part, (LossTerm, Schedule, Controller)):
        again = from_config(json.loads(json.dumps(part.to_config())))
        assert again == part
        assert type(again) is type(part)
    else:
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(part)))
        again = keras.saving.deserialize_keras_object(config)
        assert again.name == part.name
        for layer in getattr(again, "layers", []):
            if is_narrow(part.get_layer(layer.name)):
                narrow_convolution(layer)  # how it is computed is no part of its configuration
        if isinstance(getattr(again, "prior", None), vae_research.VampPrior):
            again.prior.use_encoder(first_pixels)
        call(again, tensors)  # makes the variables
        again.set_weights(part.get_weights())
    assert type(again) is type(part)
    after = call(again, tensors)
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected)


# What only one kind promises.


def cases_of(kind):
    names = [
        name
        for name in CASES
        if isinstance(getattr(vae_research, name), type)
        and issubclass(getattr(vae_research, name), kind)
    ]
    return pytest.mark.parametrize("named_case", names, indirect=True)


@cases_of(LossTerm)
def test_term_reads_what_the_table_says_and_nothing_else(named_case):
    part, case = named_case
    assert part.reads() == case.inputs.keys()
    for name in case.inputs:
        rest = {n: t for n, t in as_tensors(case.inputs).items() if n != name}
        labels = [each.label for each in (part, *getattr(part, "factors", ()))]
        with pytest.raises(ValueError, match=f"'({'|'.join(labels)})' reads '{name}'"):
            part(rest)


@cases_of(LossTerm)
def test_term_returns_one_value_for_each_row_or_a_scalar_of_the_batch(named_case):
    part, case = named_case
    assert case.outputs["value"] == (() if part.batch_statistic else (ROWS,))
    if part.batch_statistic:
        return
    # Rows do not know of each other: half of the batch has half of the values.
    whole = part(as_tensors(case.inputs))
    half = part(
        as_tensors(
            {n: value[: ROWS // 2] if np.ndim(value) else value for n, value in case.inputs.items()}
        )
    )
    np.testing.assert_allclose(half, whole[: ROWS // 2], rtol=1e-6)


@cases_of(LossTerm)
def test_term_is_trained_with_weight_1_unless_it_is_said(named_case):
    part, _ = named_case
    # What has no gradient is not trained.
    wanted = None if isinstance(part, vae_research.Perplexity) else 1.0
    defaults = {field.name: field.default for field in dataclasses.fields(type(part))}
    assert defaults["weight"] == wanted


@cases_of(LossTerm)
def test_term_is_evaluated_without_its_weight(named_case):
    part, case = named_case
    other = dataclasses.replace(part, weight=1234.5)
    tensors = as_tensors(case.inputs)
    np.testing.assert_array_equal(part(tensors), other(tensors))


@cases_of(Likelihood)
def test_likelihood_reconstructs_in_data_space_from_the_decoder_alone(named_case):
    part, case = named_case
    data = {"targets", "heights", "known"}
    decoder = {name: value for name, value in as_tensors(case.inputs).items() if name not in data}
    mean = part.reconstruction(decoder)
    assert (mean.dtype, mean.shape) == (tf.float32, case.inputs["targets"].shape)
    low, high = part.support
    assert np.all((mean >= low) & (mean <= high))
    Objective([part])


@cases_of(Schedule)
def test_schedule_is_settled_where_it_says(named_case):
    part, _ = named_case
    settled = part.settled_at()
    assert settled is None or isinstance(settled, int)
    if settled is not None:
        values = [float(value_at(part, settled + later)) for later in (0, 1, 1000, 10**6)]
        assert len(set(values)) == 1


@cases_of(Schedule)
def test_schedule_with_all_lengths_in_steps_is_left_as_it_is(named_case):
    part, _ = named_case
    assert part.in_steps(7) == part


@cases_of(Bottleneck)
def test_bottleneck_samples_its_prior_or_says_that_there_is_none(named_case):
    part, case = named_case
    seed = tf.constant([3, 1], tf.int64)
    if part.has_prior:
        layout = CodeLayout.of(part)
        for name, codes in layout.checked("sample_prior", part.sample_prior(5, seed)).items():
            assert (codes.dtype, codes.shape) == (tf.float32, [5, *layout.shapes[name]])
        assert levels(case.outputs).keys() == layout.shapes.keys()
    else:
        with pytest.raises(ValueError, match="no prior"):
            part.sample_prior(5, seed)
        assert not levels(case.outputs, complete=False)


@cases_of(Bottleneck)
def test_bottleneck_with_a_path_has_its_densities_as_functions_of_z(named_case):
    part, case = named_case
    tensors = Tensors(as_tensors(case.inputs))
    written = part(**tensors)
    tensors.write("bottleneck", written)
    has_prior = any(name.startswith("log_prior") for name in written)
    assert hasattr(part, "prior_log_prob") == has_prior
    # A posterior on codes that are counted has no density that a path could follow.
    parts = getattr(part, "parts", {"z": part}).values()
    counted = any(isinstance(each, vae_research.QuantizedBottleneck) for each in parts)
    has_path = has_prior and not counted
    assert hasattr(part, "log_prob") == has_path
    for method, name in (("log_prob", "log_posterior"), ("prior_log_prob", "log_prior")):
        if (function := getattr(part, method, None)) is not None:
            values = function(**bind(method, function, tensors))
            expected = of_all_levels(method, name, tensors)
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@cases_of(Bottleneck)
def test_center_of_a_bottleneck_has_the_shape_of_its_codes(named_case):
    part, case = named_case
    layout = CodeLayout.of(part)
    center = part.center(**bind("center", part.center, Tensors(as_tensors(case.inputs))))
    for name, codes in layout.checked("center", center).items():
        assert (codes.dtype, codes.shape) == (tf.float32, case.outputs[name])
