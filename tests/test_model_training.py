"""VAE under Keras' `compile` and `fit`: data, figures, noise, number formats.

The models and their data are in `tests.small_models`.
"""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.proofs import SOAK
from tests.small_models import (
    ANONYMOUS,
    BATCH,
    ENOUGH,
    FEW,
    IMAGES,
    LATENT,
    SHAPE,
    STEPS,
    MeanSquare,
    Watched,
    again,
    assert_same_weights,
    build,
    compiled,
    copies,
    divergence,
    half,
    moved,
    negative_log_likelihood,
    only_means,
    standing,
    strong_encoder,
    traced,
    train,
)
from vae_research import (
    Bernoulli,
    CapacityKL,
    DeterministicBottleneck,
    FreeBits,
    KLDivergence,
    LinearWarmup,
    MonteCarloKL,
)

# Forms of data.


class Batches(keras.utils.PyDataset):
    """The batches of `IMAGES` in their order."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        return IMAGES[index * BATCH : (index + 1) * BATCH]


def batches_for_ever():
    while True:
        yield from ((IMAGES[start : start + BATCH],) for start in range(0, len(IMAGES), BATCH))


FORMS = {
    "array": lambda: IMAGES,
    "tensor": lambda: tf.constant(IMAGES),
    "dictionary": lambda: {"inputs": IMAGES},
    "dictionary with a name that nobody reads": lambda: {
        "inputs": IMAGES,
        "labels": np.arange(len(IMAGES)),
    },
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(IMAGES).batch(BATCH),
    "tf.data of (x, y)": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, IMAGES)).batch(BATCH),
    "tf.data of dictionaries": lambda: tf.data.Dataset.from_tensor_slices({"inputs": IMAGES}).batch(
        BATCH
    ),
    "PyDataset": Batches,
    "generator": batches_for_ever,
}
# The first is what others are compared with. Keras reads the others as it reads one that stays.
SIMILAR = ["array", "tensor", "dictionary", "tf.data"]


@pytest.fixture(scope="module")
def array_run():
    """History, evaluation and final weights of a model trained on the plain array."""
    vae = traced()
    history = train(vae, epochs=2, validation_data=IMAGES, validation_batch_size=BATCH)
    return history, vae.evaluate(IMAGES, batch_size=BATCH, verbose=0, return_dict=True), copies(vae)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if SOAK or form not in SIMILAR])
def test_every_form_of_data_trains_and_evaluates_alike(array_run, form):
    vae = traced()
    own_batches = form.startswith("tf.data") or form in ("PyDataset", "generator")
    size = {} if own_batches else {"batch_size": BATCH}
    steps, validation, evaluation_steps = {}, FORMS[form], {}
    if form == "generator":
        # Keras looks at the first batches of a generator to build a model, and to fill a queue
        # that it throws away after a validation: others come in the next epoch.
        vae(IMAGES[:1])
        steps, evaluation_steps = {"steps_per_epoch": STEPS}, {"steps": STEPS}
        validation = FORMS["tf.data"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*shuffle.*")
        history = vae.fit(
            FORMS[form](),
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=validation(),
            **size,
            **steps,
        ).history
    figures = vae.evaluate(FORMS[form](), verbose=0, return_dict=True, **size, **evaluation_steps)

    wanted_history, wanted_figures, wanted_weights = array_run
    assert history.keys() == wanted_history.keys()
    for name, values in wanted_history.items():
        np.testing.assert_allclose(history[name], values, **ENOUGH, err_msg=name)
    assert figures == pytest.approx(wanted_figures, rel=1e-5)
    for one, other in zip(copies(vae), wanted_weights, strict=True):
        np.testing.assert_allclose(one, other, **ENOUGH)


@pytest.mark.slow
def test_validation_split_validates_on_the_last_part():
    history = train(standing(), validation_split=0.25)
    vae = standing()
    last = vae.evaluate(IMAGES[24:], batch_size=BATCH, verbose=0, return_dict=True)
    assert history["val_loss"][0] == pytest.approx(last["loss"], rel=1e-6)


@pytest.mark.slow
def test_training_lowers_the_loss_of_held_out_data():
    # Two patterns that a decoder of one hidden layer learns by heart: 16 log 2 = 11 nats at first.
    patterns = np.stack([IMAGES[0], 1.0 - IMAGES[0]] * 16)
    vae = compiled(optimizer=keras.optimizers.Adam(0.05), run_eagerly=False)
    first = vae.test_on_batch(patterns[:2], return_dict=True)
    history = train(vae, again(patterns, 20), validation_data=patterns[:2])
    assert first["loss"] > 10.0
    assert history["val_loss"][0] < 4.0
    assert history["val_elbo"][0] == pytest.approx(-history["val_loss"][0], rel=1e-5)


def test_predict_is_the_mean_of_the_decoder_at_the_posterior_mean():
    vae = build()
    code = vae.encoder(IMAGES)["z_mean"]
    wanted = 1.0 / (1.0 + np.exp(-vae.decoder(code)["logits"].numpy()))
    vae.compile()
    predicted = vae.predict(IMAGES, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(predicted, wanted, **ENOUGH)
    np.testing.assert_allclose(vae.reconstruct(IMAGES), wanted, **ENOUGH)
    np.testing.assert_array_equal(
        vae.predict({"inputs": IMAGES}, batch_size=BATCH, verbose=0), predicted
    )


@pytest.mark.slow
def test_predict_needs_no_compile():
    assert build().predict(IMAGES[:3], verbose=0).shape == (3, *SHAPE)


@pytest.mark.slow
def test_steps_by_hand_are_those_of_fit():
    by_fit = traced()
    history, weights = train(by_fit), copies(by_fit)
    by_hand = traced()
    losses = [
        by_hand.train_on_batch(IMAGES[start : start + BATCH], return_dict=True)["loss"]
        for start in range(0, len(IMAGES), BATCH)
    ]
    assert_same_weights(weights, copies(by_hand))
    assert history["loss"][0] == pytest.approx(np.mean(losses), rel=1e-6)


@pytest.mark.slow
def test_a_test_batch_is_an_evaluation_and_moves_nothing():
    vae = compiled()
    before = copies(vae)
    batch = vae.test_on_batch(IMAGES, return_dict=True)
    whole = vae.evaluate(IMAGES, batch_size=len(IMAGES), verbose=0, return_dict=True)
    assert batch == pytest.approx(whole, rel=1e-6)
    assert not moved(before, copies(vae))
    assert int(vae.optimizer.iterations) == 0
    vae.train_on_batch(IMAGES)
    assert moved(before, copies(vae))


# Figures.


def test_evaluation_gives_the_textbook_numbers():
    vae = standing()
    tensors = vae.forward(IMAGES)  # without a key: that of the first evaluated batch
    nats = negative_log_likelihood(IMAGES, tensors["logits"])
    kl = divergence(vae.posterior(IMAGES)).sum(axis=1)
    figures = vae.evaluate(IMAGES, batch_size=len(IMAGES), verbose=0, return_dict=True)
    assert figures == pytest.approx(
        {
            "loss": np.mean(nats + kl),
            "elbo": -np.mean(nats + kl),
            "reconstruction": np.mean(nats),
            "kl": np.mean(kl),
        },
        rel=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True] if SOAK else [False])
def test_epoch_figures_are_means_over_examples_also_with_a_short_last_batch(run_eagerly):
    data = IMAGES[:10]  # batches of 4, 4 and 2
    vae = standing([Bernoulli(), KLDivergence()], encoder=strong_encoder, run_eagerly=run_eagerly)
    kl = divergence(vae.posterior(data)).sum(axis=1)  # in closed form: free of noise
    history = train(vae, data, batch_size=4, validation_data=data)
    of_batches = np.mean([kl[:4].mean(), kl[4:8].mean(), kl[8:].mean()])
    assert abs(of_batches - kl.mean()) > 0.01  # the mutant that averages batches would be seen
    assert history["kl"][0] == pytest.approx(kl.mean(), rel=1e-5)
    assert history["val_kl"][0] == pytest.approx(kl.mean(), rel=1e-5)
    assert history["loss"][0] == pytest.approx(
        history["reconstruction"][0] + history["kl"][0], rel=1e-5
    )
    assert history["loss"][0] > 1.0  # Keras owns a tracker called loss, which would say 0.0


@pytest.mark.slow
def test_a_reconstruction_without_noise_is_averaged_over_examples():
    data = IMAGES[:10].copy()
    data[8:] = 1.0  # the short batch is the one that is hard to reconstruct
    vae = standing(
        [Bernoulli()],
        encoder=only_means,
        bottleneck=DeterministicBottleneck(LATENT),
    )
    nats = negative_log_likelihood(data, vae.forward(data)["logits"])
    assert abs(nats[8:].mean() - nats.mean()) > 0.1
    history = train(vae, data, batch_size=4)
    assert history["loss"][0] == pytest.approx(nats.mean(), rel=1e-5)


@pytest.mark.slow
def test_a_batch_statistic_counts_for_all_examples_of_its_batch():
    data = IMAGES[:10]
    vae = standing([Bernoulli(), FreeBits(nats_per_dimension=0.2)], encoder=strong_encoder)
    kl = divergence(vae.posterior(data))
    bounded = [np.maximum(part.mean(axis=0), 0.2).sum() for part in (kl[:4], kl[4:8], kl[8:])]
    wanted = np.average(bounded, weights=[4, 4, 2])
    assert abs(wanted - np.mean(bounded)) > 0.01
    assert train(vae, data, batch_size=4)["free_bits"][0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_training_and_validation_use_the_same_weights_and_the_elbo_none():
    vae = standing([Bernoulli(weight=0.5), KLDivergence(weight=3.0)])
    history = {name: values[0] for name, values in train(vae, FEW, validation_data=FEW).items()}
    for prefix in ("", "val_"):
        nats, kl = history[f"{prefix}reconstruction"], history[f"{prefix}kl"]
        assert history[f"{prefix}loss"] == pytest.approx(0.5 * nats + 3.0 * kl, rel=1e-5)
        assert history[f"{prefix}elbo"] == pytest.approx(-nats - kl, rel=1e-5)
    assert history["val_kl"] == pytest.approx(history["kl"], rel=1e-5)


PLAIN = {"loss", "elbo", "reconstruction", "kl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terms", "names"),
    [
        ([Bernoulli(), KLDivergence()], PLAIN),
        (
            [Bernoulli(name="nll"), MonteCarloKL()],
            {"loss", "elbo", "nll", "kl", "contribution/kl"},  # what is trained, from samples
        ),
        (
            [Bernoulli(), KLDivergence(weight=LinearWarmup(steps=2))],
            PLAIN | {"contribution/kl"},
        ),
        ([Bernoulli(), FreeBits()], PLAIN | {"free_bits"}),
        (
            [Bernoulli(), CapacityKL(capacity=LinearWarmup(peak=2.0, steps=2))],
            PLAIN | {"capacity_kl"},  # its weight is a number
        ),
        ([Bernoulli(), KLDivergence(weight=half)], PLAIN | {"contribution/kl"}),
        ([Bernoulli(), KLDivergence(), Watched()], PLAIN | {"watched"}),
        ([Bernoulli(), KLDivergence(name="rate", weight=None)], PLAIN | {"rate"}),
        ([Bernoulli()], PLAIN),
    ],
    ids=lambda value: ",".join(term.label for term in value) if isinstance(value, list) else "",
)
def test_the_history_has_these_names(terms, names):
    history = train(standing(terms), FEW, batch_size=len(FEW), validation_data=FEW)
    assert set(history) == names | {f"val_{name}" for name in names}


@pytest.mark.slow
def test_evaluate_without_names_gives_its_numbers_in_the_order_of_metrics_names():
    vae = standing()
    values = vae.evaluate(IMAGES, verbose=0)
    figures = vae.evaluate(IMAGES, verbose=0, return_dict=True)
    assert vae.metrics_names[0] == "loss"
    assert values == [figures[name] for name in vae.metrics_names]


# Eagerly, traced, and compiled by XLA.


def losses_step_by_step(mode, **options):
    vae = compiled(**{"run_eagerly": False, **mode}, **options)
    steps = [vae.train_on_batch(IMAGES[:BATCH]) for _ in range(4)]
    return [*steps, vae.test_on_batch(IMAGES[:BATCH])]


TRACED, XLA = {"run_eagerly": False}, {"jit_compile": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("elbo", TRACED),
        ("elbo", XLA),
        *([("importance weighted", TRACED), ("without noise", XLA)] if SOAK else []),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_the_mode_of_execution_changes_no_loss(kind, mode):
    warm_up = LinearWarmup(steps=3)
    options = {"terms": [Bernoulli(), KLDivergence(weight=warm_up)]}
    if kind == "without noise":
        options = {"terms": [Bernoulli(), MeanSquare(weight=warm_up)], "encoder": only_means}
        options["bottleneck"] = DeterministicBottleneck(LATENT)
    elif kind == "importance weighted":
        options = {"terms": [Bernoulli(), MonteCarloKL()], "num_samples": 3}
        options["importance_weighted"] = True
    eagerly = losses_step_by_step({"run_eagerly": True}, **options)
    assert len({step[0] for step in eagerly}) == 5  # it does not stand still
    np.testing.assert_allclose(losses_step_by_step(mode, **options), eagerly, **ENOUGH)


# Noise.


@pytest.mark.slow
def test_two_evaluations_see_the_same_noise():
    vae = traced(learning_rate=0.0)
    first = vae.evaluate(IMAGES, batch_size=BATCH, verbose=0)
    train(vae)  # moves the step, not the weights
    assert vae.evaluate(IMAGES, batch_size=BATCH, verbose=0) == first


@pytest.mark.slow
def test_batches_of_one_evaluation_see_different_noise():
    vae = standing()
    same = IMAGES[:BATCH]
    once = vae.evaluate(same, batch_size=BATCH, verbose=0, return_dict=True)
    twice = vae.evaluate(
        np.concatenate([same, same]), batch_size=BATCH, verbose=0, return_dict=True
    )
    assert twice["kl"] == pytest.approx(once["kl"], rel=1e-6)
    assert abs(twice["reconstruction"] - once["reconstruction"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True] if SOAK else [True])
def test_every_training_step_has_noise_of_its_own(run_eagerly):
    vae = standing(run_eagerly=run_eagerly)
    batch = IMAGES[:BATCH]
    steps = [vae.train_on_batch(batch, return_dict=True) for _ in range(3)]
    steps.append(vae.test_on_batch(batch, return_dict=True))  # not that of step 0 either
    seen = sorted(step["reconstruction"] for step in steps)
    assert min(np.diff(seen)) > 1e-4
    assert len({round(step["kl"], 5) for step in steps}) == 1


@pytest.mark.slow
def test_noise_is_a_function_of_seed_and_step():
    def reconstructions(seed):
        vae = standing(seed=seed)
        return [vae.train_on_batch(IMAGES, return_dict=True)["reconstruction"] for _ in range(2)]

    found = reconstructions(3)
    assert reconstructions(3) == found
    assert not set(found) & set(reconstructions(4))


@pytest.mark.slow
def test_the_noise_of_a_step_does_not_depend_on_the_steps_before():
    running, jumping = standing(), standing()
    for _ in range(3):
        running.train_on_batch(IMAGES)
    jumping.step_counter.assign(3)
    assert running.train_on_batch(IMAGES) == jumping.train_on_batch(IMAGES)


@pytest.mark.slow
def test_two_models_built_one_after_another_train_identically():
    first, second = compiled(**ANONYMOUS), compiled(**ANONYMOUS)
    names = [model.encoder.network.name for model in (first, second)]
    assert names[0] != names[1]  # otherwise this test shows nothing
    assert train(first, FEW, validation_data=FEW) == train(second, FEW, validation_data=FEW)
    assert_same_weights(copies(first), copies(second))


@pytest.fixture
def bfloat16_policy():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True] if SOAK else [False])
def test_sixteen_bits_in_the_networks_and_none_in_the_loss(bfloat16_policy, run_eagerly):
    options = {"optimizer": keras.optimizers.Adam(0.02), "run_eagerly": run_eagerly}
    vae = compiled(**options)
    outer = compiled(**ANONYMOUS, **options)  # its heads are left in 16 bits
    for model in (vae, outer):
        tensors = model.forward(IMAGES)
        report = model.objective(tensors)
        for value in (report.loss, report.elbo, *report.values.values(), tensors["z"]):
            assert value.dtype == tf.float32
    assert vae.encoder.layers[-1].compute_dtype == "float32"
    assert any(layer.compute_dtype == "bfloat16" for layer in vae.encoder.layers)
    assert outer.forward(IMAGES)["logits"].dtype == tf.bfloat16

    history = train(vae, epochs=2, validation_data=IMAGES)
    assert np.isfinite([history[name] for name in history]).all()
    assert history["val_loss"][1] < history["val_loss"][0]
    assert all(weight.dtype == "float32" for weight in vae.trainable_variables)


def test_a_loss_in_sixteen_bits_is_near_that_in_thirty_two():
    wanted = standing().test_on_batch(IMAGES, return_dict=True)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        figures = standing().test_on_batch(IMAGES, return_dict=True)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert figures != wanted
    assert figures == pytest.approx(wanted, rel=0.02)  # bfloat16 has 8 bits: 0.4 percent a value
