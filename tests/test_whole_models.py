"""Every public part in a whole model: trained, watched, tested, sampled, saved and resumed.

The parts are those of the table in `tests.test_conformance`, and one of each kind of
`vae_research.distributions`. Every day they are trained together,
as many at a time as go together; `scripts/check --soak` has a model for each, also with XLA.
"""

import dataclasses

import keras
import numpy as np
import pytest

import vae_research as vr
from tests.test_conformance import CASES as PUBLIC
from tests.test_conformance import LATENT, ROWS
from tests.test_distributions import Diagonal, Mixture, OwnNormal
from vae_research import callbacks, checkpoints
from vae_research.callbacks.inference import Inference
from vae_research.levels import levels
from vae_research.networks.heads import copies
from vae_research.state import state_sha256

STEPS = 2
# What a likelihood compares, by name; all else it reads is written by the decoder.
OF_DATA = {"targets", "heights", "known"}


# Parts of distributions are classes of a user. A case is that of the public part with their place.
OWN = {
    OwnNormal: ("GaussianWithVariance", OwnNormal),
    Diagonal: ("GaussianBottleneck", lambda: Diagonal(LATENT)),
    Mixture: ("MixturePrior", lambda: vr.GaussianBottleneck(LATENT, prior=Mixture())),
}
CASES = PUBLIC | {
    part.__name__: dataclasses.replace(PUBLIC[name], make=make)
    for part, (name, make) in OWN.items()
}


def kind_of(name):
    """Returns which place of a model a part has."""
    part = {own.__name__: own for own in OWN}.get(name) or getattr(vr, name)
    if isinstance(part, type) and issubclass(part, vr.Likelihood):
        return "likelihood"
    for kind in (vr.LossTerm, vr.Schedule, vr.Controller, vr.Bottleneck, vr.Prior, vr.Flow):
        if isinstance(part, type) and issubclass(part, kind):
            return kind.__name__
    return "network"


KINDS = {kind: [n for n in CASES if kind_of(n) == kind] for kind in sorted({*map(kind_of, CASES)})}


def dense_outputs(features, shapes):
    """Linear heads of the given shapes for each row."""
    read = zip(shapes.items(), copies(features, len(shapes)), strict=True)
    flat = {n: keras.layers.Dense(int(np.prod(shape)))(copy) for (n, shape), copy in read}
    return {n: keras.layers.Reshape(shapes[n])(value) for n, value in flat.items()}


def of_rows(values):
    return {n: np.shape(v)[1:] for n, v in values.items()}


# Parts that are not of a forward pass by themselves, and the bottleneck of a model with them: a
# prior that is fitted to a trained model, and networks that a bottleneck has.
INSTEAD = {"SecondStagePrior": "GaussianBottleneck", "ladder_top_down": "LadderBottleneck"}


def bottleneck_of(name):
    """Returns a bottleneck with its case; a prior is that of the one in its case."""
    name = INSTEAD.get(name, name)
    return CASES[name].make(), CASES[name]


def shape_of(network):
    """Returns the shape of an example that a network reads or writes, if its case says so."""
    if network is None or network == "ProbabilitiesToLogits":
        return None
    case = CASES[network]
    values = case.inputs.get("inputs")
    return next(iter(case.outputs.values()))[1:] if values is None else values.shape[1:]


def model_of(
    likelihood="Bernoulli",
    bottleneck="GaussianBottleneck",
    term=None,
    weight=None,
    encoder=None,
    decoder=None,
):
    """Returns a model of the parts of these names, and data for it."""
    keras.utils.set_random_seed(0)
    compared = CASES[likelihood].make()
    middle, case = bottleneck_of(bottleneck)
    of_likelihood = np.shape(CASES[likelihood].inputs["targets"])[1:]
    shape = shape_of(encoder or decoder) or of_likelihood

    def fitted(values):
        return {
            n: np.resize(v, (ROWS, *shape)) if np.shape(v)[1:] == of_likelihood else v
            for n, v in values.items()
        }

    inputs = keras.Input(shape, name="inputs")
    features = keras.layers.Dense(3, "tanh")(keras.layers.Flatten()(inputs))
    heads = of_rows({n: v for n, v in case.inputs.items() if n not in ("seed", "step")})
    first = keras.Model(inputs, dense_outputs(features, heads))
    codes = {n: keras.Input(shape, name=n) for n, shape in middle.latents.items()}
    flat = [keras.layers.Flatten()(value) for value in codes.values()]
    joined = keras.layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    given = fitted(CASES[likelihood].inputs)
    written = {n: v for n, v in given.items() if n not in OF_DATA}
    last = keras.Model(
        codes if len(codes) > 1 else codes["z"], dense_outputs(joined, of_rows(written))
    )
    if encoder is not None:
        first = CASES[encoder].make()
    if decoder == "ProbabilitiesToLogits":
        last = keras.Model(
            last.input, CASES[decoder].make()(keras.ops.sigmoid(last.output["logits"]))
        )
    elif decoder is not None:
        last = CASES[decoder].make()
    found = levels(case.outputs)
    divergence = (
        vr.KLDivergence if all("kl" in level for level in found.values()) else vr.MonteCarloKL
    )
    terms = [compared]
    if found and term != "KLDivergence":
        terms.append(divergence(weight=1.0 if weight is None else CASES[weight].make()))
    if term is not None:
        terms.append(CASES[term].make())
    data = {n: v for n, v in given.items() if n in OF_DATA}
    data = {n: np.tile(v, (STEPS, *[1] * (np.ndim(v) - 1))) for n, v in data.items()}
    data["inputs"] = (
        np.random.default_rng(0).uniform(0.05, 0.95, (STEPS * ROWS, *shape)).astype(np.float32)
    )
    return vr.VAE(first, middle, last, terms), data


def watchers(folder, data):
    """Every callback that there is, at the shortest interval."""
    shared, count = Inference(data), len(data["inputs"])
    pictures = callbacks.Pictures(folder, shared) if data["inputs"].ndim == 4 else None
    factors = np.stack([np.arange(count) % 2, np.arange(count) % 3], axis=1)
    return [
        callbacks.Disentanglement(folder, data, factors, pictures=pictures),
        callbacks.Overview(folder, {"inputs": data["inputs"]}),
        callbacks.Latents(folder, shared),
        *([callbacks.Pictures(folder, shared, columns=2)] if data["inputs"].ndim == 4 else []),
        callbacks.Projector(folder, shared, every_epochs=1),
        callbacks.Scalars(folder, every_steps=1),
        callbacks.Gradients(folder, data, every_steps=1),
        callbacks.MetricsFile(folder / "metrics.jsonl"),
        callbacks.Console(),
    ]


def train(vae, data, epochs, watching=(), first_epoch=0):
    """Trains a model, and returns what the last epoch found."""
    figures = vae.fit(
        *(data, None, ROWS),
        epochs=epochs,
        initial_epoch=first_epoch,
        shuffle=False,
        validation_data=data,
        callbacks=watching,
        verbose=0,
    )
    found = {n: values[-1] for n, values in figures.history.items()}
    return {n: value for n, value in found.items() if "disentanglement" not in n}


def exercise(parts, jit, folder):
    """Trains, watches, tests, samples, saves, loads and resumes a model of parts."""
    vae, data = model_of(**parts)
    vae.compile(keras.optimizers.Adam(1e-3), jit_compile=jit)
    train(vae, data, 1)
    saved = checkpoints.save(folder / "checkpoints", vae, epoch=1)
    figures = train(vae, data, 2, watchers(folder, data), first_epoch=1)
    assert all(np.all(np.isfinite(value)) for value in figures.values())
    assert vae.evaluate(data, batch_size=ROWS, verbose=0, return_dict=True) == pytest.approx(
        {n.removeprefix("val_"): v for n, v in figures.items() if n.startswith("val_")}
    )
    if parts.get("bottleneck") == "SecondStagePrior":
        new = vr.SecondStagePrior(2, hidden_units=(5,))
        prior = vr.fit_prior(vae, data, new, epochs=1, batch_size=ROWS)
        assert np.all(np.isfinite(vae.sample(3, prior=prior)))
    path = folder / "model.keras"
    vae.save(path)  # which loads it, and compares variables and ELBO
    loaded = keras.models.load_model(path)
    if vae.bottleneck.has_prior:
        samples = vae.sample(3, seed=1)
        assert samples.shape == (3, *data["inputs"].shape[1:])
        np.testing.assert_array_equal(loaded.sample(3, seed=1), samples)
    np.testing.assert_array_equal(loaded.reconstruct(data), vae.reconstruct(data))
    resumed, _ = model_of(**parts)
    resumed.compile(keras.optimizers.Adam(1e-3), jit_compile=jit)
    resumed.report(data)  # which makes the variables
    resumed.build_optimizer()
    checkpoints.load(saved, resumed)
    assert train(resumed, data, 2, first_epoch=1) == figures
    assert state_sha256(resumed) == state_sha256(vae)


MIDDLES = [*KINDS["Bottleneck"], *KINDS["Prior"], *KINDS["Flow"], "ladder_top_down"]
# What a network needs of the bottleneck.
OF_LADDER = {"ladder_encoder": {"bottleneck": "LadderBottleneck"}}
NETWORKS = [
    {"encoder" if name.endswith("encoder") else "decoder": name}
    | ({"likelihood": "GaussianWithVariance"} if "x_mean" in CASES[name].outputs else {})
    | OF_LADDER.get(name, {})
    for name in KINDS["network"]
    if name not in MIDDLES
]
# What a term needs of the bottleneck.
NEEDS = {"Perplexity": {"bottleneck": "FiniteScalarQuantizedBottleneck"}}
ALONE = [
    *({"likelihood": name} for name in KINDS["likelihood"]),
    *({"bottleneck": name} for name in MIDDLES),
    *({"weight": name} for name in KINDS["Schedule"] + KINDS["Controller"]),
    *({"term": name} | NEEDS.get(name, {}) for name in KINDS["LossTerm"]),
    *NETWORKS,
]


TOGETHER = [
    {
        "bottleneck": "LadderBottleneck",
        "likelihood": "ProductLikelihood",
        "weight": "GECO",
        "term": "FreeBits",
    },
    {
        "bottleneck": "FullCovarianceGaussianBottleneck",
        "likelihood": "GaussianWithVariance",
        "weight": "Cosine",
        "term": "CapacityKL",
        "decoder": "convolutional_decoder",
    },
    {
        "bottleneck": "VectorQuantizedBottleneck",
        "likelihood": "ContinuousBernoulli",
        "weight": "Cyclical",
        "term": "Commitment",
    },
    {
        "bottleneck": "RealNVPPrior",
        "likelihood": "Laplace",
        "weight": "PIDControl",
        "encoder": "convolutional_encoder",
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("parts", TOGETHER, ids=lambda parts: parts["bottleneck"])
def test_parts_together_do_all_that_a_model_does(parts, tmp_path):
    exercise(parts, False, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("parts", ALONE, ids=lambda parts: next(iter(parts.values())))
def test_every_part_does_all_that_a_model_does(parts, jit, tmp_path):
    exercise(parts, jit, tmp_path)


def test_every_part_has_a_model():
    assert {name for parts in ALONE for name in parts.values()} == CASES.keys()
