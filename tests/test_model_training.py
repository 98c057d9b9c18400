"""VAE under Keras' `compile` and `fit`: data, noise, weights, figures.

Everything is tiny (4 x 4 pixels, at most 32 examples). `ENOUGH` is the tolerance of sums in float32
that were added in another order; where two roads must agree exactly, they are compared by `==`.
Models run eagerly where it makes no difference whether a step is traced, because that is faster.
"""

import csv
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.proofs import SOAK
from tests.traced import as_new
from vae_research import (
    VAE,
    Bernoulli,
    CapacityKL,
    DeterministicBottleneck,
    FreeBits,
    GaussianBottleneck,
    GaussianWithVariance,
    KLDivergence,
    LinearWarmup,
    LossTerm,
    MonteCarloKL,
    dense_decoder,
    dense_encoder,
    keras_inputs,
    named,
)

SHAPE = (4, 4, 1)
LATENT = 2
BATCH = 8
IMAGES = (np.random.default_rng(0).random((32, *SHAPE)) < 0.3).astype("float32")
STEPS = len(IMAGES) // BATCH
FEW = IMAGES[: 2 * BATCH]  # two steps, where no more are needed
ENOUGH = {"rtol": 1e-5, "atol": 1e-5}


def usual_encoder(**options):
    return dense_encoder(SHAPE, LATENT, hidden_units=(8,), **options)


def usual_decoder():
    return dense_decoder(SHAPE, LATENT, hidden_units=(8,))


def build(terms=None, *, encoder=usual_encoder, decoder=usual_decoder, bottleneck=None, **options):
    """A small VAE; the initial weights are the same at every call.

    Networks are given as functions, which are called once the random seed is set.
    """
    keras.utils.set_random_seed(7)
    return VAE(
        encoder(),
        bottleneck or GaussianBottleneck(LATENT),
        decoder(),
        [Bernoulli(), KLDivergence()] if terms is None else terms,
        **options,
    )


def compiled(*args, optimizer=None, run_eagerly=True, jit_compile=False, **options):
    """`build`, compiled with gradient descent: a step is the learning rate times the gradient."""
    vae = build(*args, **options)
    optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
    vae.compile(optimizer, run_eagerly=run_eagerly, jit_compile=jit_compile)
    return vae


def standing(*args, **options):
    """A compiled model whose weights never move, so that figures can be compared over steps."""
    return compiled(*args, optimizer=keras.optimizers.SGD(0.0), **options)


def make_traced():
    return compiled(run_eagerly=False)


def traced(learning_rate=0.1):
    """The model of `compiled()`, with steps that are traced once for all tests."""
    vae = as_new(make_traced)
    vae.optimizer.learning_rate = learning_rate
    return vae


def train(vae, data=IMAGES, **options):
    """The history of `fit` in the order of the data."""
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    return vae.fit(data, **options).history


def again(data, times):
    """The data over and over: many steps in one epoch, because an epoch costs more than a step."""
    return np.concatenate([data] * times)


def copies(model):
    return [weight.copy() for weight in model.get_weights()]


def assert_same_weights(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def moved(before, after):
    return any(np.any(one != other) for one, other in zip(before, after, strict=True))


def negative_log_likelihood(targets, logits):
    """Bernoulli with logits l: log(1 + exp(l)) - x * l, summed over the event, [rows]."""
    targets, logits = np.asarray(targets, "float64"), np.asarray(logits, "float64")
    values = np.logaddexp(0.0, logits) - targets * logits
    return values.reshape(len(values), -1).sum(axis=1)


def divergence(encoded):
    """Kingma and Welling 2014, appendix B, in float64, [rows, latent]."""
    mean, log_var = (np.asarray(encoded[name], "float64") for name in ("z_mean", "z_log_var"))
    return 0.5 * (mean**2 + np.exp(log_var) - 1.0 - log_var)


def only_means():
    return usual_encoder(outputs=("z_mean",))


def strong_encoder():
    """An encoder whose examples differ much in their KL divergence."""
    encoder = usual_encoder()
    for layer in encoder.layers:
        layer.set_weights([4.0 * weight for weight in layer.get_weights()])
    return encoder


# Terms of a user's own, in a few lines.


class MeanSquare(LossTerm):
    """Squared length of the posterior mean."""

    scale: float = 1.0

    def per_example(self, z_mean):
        return self.scale * tf.reduce_sum(tf.square(z_mean), axis=-1)


class Watched(LossTerm):
    weight = None

    def per_example(self, z):
        return tf.reduce_sum(tf.square(z), axis=-1)


class NotANumber(LossTerm):
    """A monitor that would spoil everything if it were differentiated, or added with weight 0."""

    weight = None

    def per_example(self, z_mean):
        return tf.math.log(-tf.abs(z_mean[:, 0]) - 1.0)


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


def half(step):
    return 0.5


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


def anonymous_encoder():
    """A network whose layers get Keras' automatic names, which count up within a process."""
    layers = [keras.layers.Flatten(), keras.layers.Dropout(0.2), keras.layers.Dense(2 * LATENT)]
    return named(keras.Sequential(layers), "z_mean", "z_log_var")


def anonymous_decoder():
    layers = [keras.layers.Dense(16), keras.layers.Reshape(SHAPE)]
    return named(keras.Sequential(layers), "logits")


ANONYMOUS = {"encoder": anonymous_encoder, "decoder": anonymous_decoder}


@pytest.mark.slow
def test_two_models_built_one_after_another_train_identically():
    first, second = compiled(**ANONYMOUS), compiled(**ANONYMOUS)
    names = [model.encoder.network.name for model in (first, second)]
    assert names[0] != names[1]  # otherwise this test shows nothing
    assert train(first, FEW, validation_data=FEW) == train(second, FEW, validation_data=FEW)
    assert_same_weights(copies(first), copies(second))


# Schedules.


def contributions(vae, count):
    """Weight of the KL term at each step, out of the logs."""
    steps = [vae.train_on_batch(IMAGES, return_dict=True) for _ in range(count)]
    for step in steps:
        total = step["reconstruction"] + step["contribution/kl"]
        assert step["loss"] == pytest.approx(total, rel=1e-5)
    return [step["contribution/kl"] / step["kl"] for step in steps]


@pytest.mark.slow
def test_a_warm_up_changes_the_weight_in_a_traced_step():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(peak=2.0, steps=4))])
    vae.run_eagerly = False
    assert contributions(vae, 6) == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0], abs=1e-5)


class FromAttribute(KLDivergence):
    """The mutant: a KL divergence times a Python number that somebody changes between steps."""

    default_name = "kl"
    factor = {"now": 0.0}  # noqa: RUF012

    def per_example(self, kl):
        return self.factor["now"] * super().per_example(kl)


@pytest.mark.slow
def test_a_python_number_that_a_callback_changes_does_not_reach_a_traced_step():
    class Counting(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            FromAttribute.factor["now"] = float(epoch)

    def values(run_eagerly):
        vae = standing([Bernoulli(), FromAttribute()], run_eagerly=run_eagerly)
        return train(vae, IMAGES[:BATCH], epochs=3, callbacks=[Counting()])["kl"]

    assert values(run_eagerly=False) == [0.0, 0.0, 0.0]
    eagerly = values(run_eagerly=True)
    assert eagerly[0] == 0.0 < eagerly[1] < eagerly[2]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 9])
def test_a_step_under_a_schedule_is_one_with_the_weight_of_that_step(step):
    weight = min(step / 4, 1.0)
    after = []
    for value in (LinearWarmup(steps=4), weight, 0.9 * weight):
        vae = compiled([Bernoulli(), KLDivergence(weight=value)])
        vae.step_counter.assign(step)
        vae.train_on_batch(IMAGES)
        after.append(copies(vae))
    assert_same_weights(after[0], after[1])
    assert moved(after[0], after[2])


@pytest.mark.slow
def test_lengths_in_epochs_are_resolved_by_fit():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=2))], run_eagerly=False)
    same = np.concatenate([IMAGES[:BATCH]] * STEPS)  # every batch has the same kl
    history = train(vae, same, epochs=3, validation_data=same)
    weights = np.divide(history["contribution/kl"], history["kl"])
    # Steps 0..3, 4..7 and 8..11 of min(step / 8, 1); validation is made after 4, 8 and 12 steps.
    assert weights == pytest.approx([1.5 / 8, 5.5 / 8, 1.0], abs=1e-5)
    validation = np.divide(history["val_contribution/kl"], history["val_kl"])
    assert validation == pytest.approx([0.5, 1.0, 1.0], abs=1e-5)


@pytest.mark.slow
def test_lengths_in_epochs_follow_the_data_of_the_next_fit():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=4))], run_eagerly=False)
    train(vae)  # one epoch of four, in 4 steps
    for epoch in (1, 2, 3, 4, 5):  # and now an epoch is one step
        history = train(vae, IMAGES[:BATCH])
        weight = np.divide(history["contribution/kl"], history["kl"])
        assert weight == pytest.approx([min(epoch / 4, 1.0)], rel=1e-5)
    train(vae, np.concatenate([IMAGES] * 5))  # a longer one moves a finished warm-up nowhere
    assert float(vae.objective.weights(vae.step)["kl"]) == 1.0


@pytest.mark.slow
def test_lengths_in_epochs_inside_a_term_are_resolved_too():
    term = CapacityKL(capacity=LinearWarmup(peak=6.0, epochs=2))
    vae = standing([Bernoulli(), term])
    kl = divergence(vae.posterior(IMAGES)).sum(axis=1).mean()
    history = train(vae, batch_size=len(IMAGES), epochs=3)
    wanted = [abs(kl - capacity) for capacity in (0.0, 3.0, 6.0)]
    assert history["capacity_kl"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_lengths_in_epochs_and_data_without_a_length_are_refused():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=2))])
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(BATCH).filter(lambda batch: True)
    with pytest.raises(ValueError, match=r"counts in epochs.*otherwise give steps="):
        vae.fit(data, verbose=0)


@pytest.mark.slow
def test_a_warm_up_longer_than_training_is_said_with_its_numbers():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(steps=5))])
    wanted = r"'kl'.*settles at step 5,.*ends at step 4 \(2 epochs of 2 steps\)"
    with pytest.warns(UserWarning, match=wanted):
        train(vae, FEW, epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("length", [{"steps": 4}, {"epochs": 2}])
def test_a_warm_up_that_fits_is_silent(length):
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(**length))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(vae, FEW, epochs=2)


@pytest.mark.slow
def test_a_continued_run_is_the_unbroken_run():
    terms = [Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=2))]
    unbroken, continued = compiled(terms, optimizer="adam"), compiled(terms, optimizer="adam")
    whole = train(unbroken, FEW, epochs=2)
    with pytest.warns(UserWarning, match="ends at step 2"):
        first = train(continued, FEW, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = train(continued, FEW, epochs=2, initial_epoch=1)
    assert [*first["loss"], *second["loss"]] == whole["loss"]
    assert_same_weights(copies(unbroken), copies(continued))
    # 9 steps are over, and initial_epoch says that of 3 epochs only one is left.
    longer = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(steps=14))])
    longer.step_counter.assign(9)
    with pytest.warns(UserWarning, match="ends at step 11"):
        train(longer, FEW, epochs=3, initial_epoch=2)


# Callbacks of Keras.


@pytest.mark.slow
@pytest.mark.parametrize(("learning_rate", "epochs"), [(0.0, 2), (0.05, 4)])
def test_early_stopping_on_the_validation_loss(learning_rate, epochs):
    # Without learning, val_loss repeats exactly, since every evaluation has the same noise.
    vae = traced(learning_rate)
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=1)
    history = train(vae, epochs=4, validation_data=IMAGES, callbacks=stop)
    assert len(history["val_loss"]) == epochs


@pytest.mark.slow
def test_model_checkpoint_keeps_the_best_model(tmp_path):
    path = str(tmp_path / "best.keras")
    keep = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    vae = compiled(optimizer=keras.optimizers.SGD(0.05))
    history = train(vae, FEW, epochs=2, validation_data=FEW, callbacks=[keep])
    best = keras.models.load_model(path)
    figures = best.evaluate(FEW, batch_size=BATCH, verbose=0, return_dict=True)
    assert figures["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-5)


@pytest.mark.slow
def test_csv_logger_writes_the_history(tmp_path):
    path = tmp_path / "log.csv"
    vae = compiled([Bernoulli(), KLDivergence(weight=LinearWarmup(steps=2))])
    history = train(
        vae,
        FEW,
        epochs=2,
        validation_data=FEW,
        callbacks=[keras.callbacks.CSVLogger(str(path))],
    )
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {"epoch", *history}
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values, rel=1e-6)


@pytest.mark.slow
def test_learning_rate_scheduler_reaches_the_traced_step():
    weights = []
    vae = traced()
    train(
        vae,
        epochs=2,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * (epoch == 0)),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: weights.append(copies(vae))),
        ],
    )
    assert moved(copies(build()), weights[0])
    assert_same_weights(*weights)


@pytest.mark.slow
def test_a_ready_callback_list_is_taken_as_it_is():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=1))])
    seen = []
    ready = keras.callbacks.CallbackList(
        [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append("epoch"))],
        add_history=True,
        model=vae,
        verbose=0,
        epochs=1,
        steps=STEPS,
    )
    train(vae, callbacks=ready)
    assert seen == ["epoch"]
    assert vae.steps_per_epoch == STEPS


# Weights of examples.

WEIGHTS = np.concatenate([np.ones(5), np.zeros(3)]).astype("float32")


def weighted_step(vae, images, how):
    """One step on a batch of 8 whose last three examples have weight 0."""
    if how == "train_on_batch":
        vae.train_on_batch(images, sample_weight=WEIGHTS)
    elif how == "fit with y":
        train(vae, images, y=images, sample_weight=WEIGHTS)
    elif how == "fit without y":
        train(vae, images, sample_weight=WEIGHTS)
    elif how == "fit with a dictionary":
        train(vae, {"inputs": images}, sample_weight=WEIGHTS)
    else:
        vae.fit(tf.data.Dataset.from_tensors((images, images, WEIGHTS)), verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    ["train_on_batch", "fit without y", "fit with a dictionary"]
    + (["fit with y", "tf.data"] if SOAK else []),
)
@pytest.mark.filterwarnings("ignore:.*shuffle")
def test_an_example_of_weight_zero_has_no_gradient(how):
    other = IMAGES[:BATCH].copy()
    other[5:] = 1.0 - other[5:]
    assert WEIGHTS[5:].sum() == 0.0
    first, second, unweighted = compiled(), compiled(), compiled()
    weighted_step(first, IMAGES[:BATCH], how)
    weighted_step(second, other, how)
    unweighted.train_on_batch(IMAGES[:BATCH])
    assert_same_weights(copies(first), copies(second))
    assert moved(copies(first), copies(unweighted))


@pytest.mark.slow
def test_weight_two_is_the_example_twice():
    def step(images, sample_weight=None):
        vae = compiled(
            [Bernoulli()],
            encoder=only_means,
            bottleneck=DeterministicBottleneck(LATENT),  # noise would differ between the batches
        )
        before = copies(vae)
        loss = vae.train_on_batch(images, sample_weight=sample_weight, return_dict=True)["loss"]
        return loss, [new - old for old, new in zip(before, copies(vae), strict=True)]

    twice_loss, twice = step(IMAGES[[0, 0, 1]])
    weighted_loss, weighted = step(IMAGES[[0, 1]], np.array([2.0, 1.0], "float32"))
    assert weighted_loss == pytest.approx(twice_loss, rel=1e-5)
    for one, other in zip(weighted, twice, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_equal_weights_of_examples_change_no_figure():
    vae = standing()
    plain = vae.evaluate(IMAGES, IMAGES, verbose=0, return_dict=True)
    half = np.full(len(IMAGES), 0.5, "float32")
    figures = vae.evaluate(IMAGES, IMAGES, sample_weight=half, verbose=0, return_dict=True)
    assert figures == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_the_loss_of_an_evaluation_is_the_weighted_mean_over_all_batches():
    vae, weights = standing(), np.arange(len(IMAGES), dtype="float32")
    of_batches = []
    for start in range(0, len(IMAGES), 8):
        _, report = vae.report(IMAGES[start : start + 8], seed=vae.evaluation_key(start))
        of_batches.append(report.loss.numpy())
    losses = np.concatenate(of_batches)
    found = vae.evaluate(IMAGES, sample_weight=weights, batch_size=8, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    assert found["loss"] != pytest.approx(losses.mean(), rel=1e-4)
    # The others are unweighted, and the noise of a batch does not depend on the weights.
    plain = vae.evaluate(IMAGES, batch_size=8, verbose=0, return_dict=True)
    assert found["elbo"] == plain["elbo"] == pytest.approx(-losses.mean(), rel=1e-5)


def test_weights_of_examples_do_not_scale_the_regularization():
    # As in Keras: a regulariser belongs to the weights of the network and not to an example.
    vae = standing(encoder=regularised_encoder)
    plain = vae.test_on_batch(IMAGES, return_dict=True)
    some = np.zeros(len(IMAGES), "float32")
    some[:2] = 5.0
    assert plain["regularization"] > 0.1
    _, report = vae.report(IMAGES)
    found = keras_inputs.weighted_mean(report.loss, report, some)
    wanted = report.loss[:2].numpy().mean()  # which has the regularization once
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    found = keras_inputs.weighted_mean(report.loss, report, 0.0 * some)
    assert float(found) == pytest.approx(plain["regularization"], rel=1e-5)


@pytest.mark.parametrize("shape", [(BATCH, 1), (BATCH, 16)])
def test_weights_of_another_rank_are_refused(shape):
    with pytest.raises(ValueError, match=r"sample_weight has shape.*one weight per example"):
        standing().train_on_batch(IMAGES[:BATCH], sample_weight=np.ones(shape, "float32"))


@pytest.mark.parametrize("targets", [None, IMAGES], ids=["without y", "with y"])
def test_class_weight_is_refused_by_its_name(targets):
    with pytest.raises((TypeError, ValueError), match="class_weight"):
        train(standing(), y=targets, class_weight={0: 1.0, 1: 2.0})


# Losses of layers.


def regularised_encoder():
    inputs = keras.Input(SHAPE)
    features = keras.layers.Flatten()(inputs)
    mean = keras.layers.Dense(
        LATENT, kernel_regularizer=keras.regularizers.L2(0.5), name="regularised"
    )(features)
    log_var = keras.layers.Dense(LATENT)(features)
    return keras.Model(inputs, {"z_mean": mean, "z_log_var": log_var})


class Penalty(keras.layers.Layer):
    """Adds three times its own weight to the loss, if it likes only in training."""

    def __init__(self, only_in_training=False, **kwargs):
        super().__init__(**kwargs)
        self.only_in_training = only_in_training

    def build(self, input_shape):
        self.value = self.add_weight(name="value", shape=(), initializer="ones")

    def call(self, inputs, training=False):
        if training or not self.only_in_training:
            self.add_loss(3.0 * self.value)
        return inputs


def penalised_decoder(**options):
    z = keras.Input((LATENT,), name="z")
    features = Penalty(**options, name="penalty")(z)
    logits = keras.layers.Reshape(SHAPE)(keras.layers.Dense(16)(features))
    return keras.Model(z, {"logits": logits})


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True] if SOAK else [False])
def test_a_regulariser_is_in_loss_gradient_logs_and_validation(run_eagerly):
    rate = 0.1
    vae = compiled(encoder=regularised_encoder, run_eagerly=run_eagerly)
    plain = compiled(encoder=regularised_encoder, run_eagerly=run_eagerly)
    plain.encoder.get_layer("regularised").kernel_regularizer = None
    kernel = vae.encoder.get_layer("regularised").kernel
    plain_kernel = plain.encoder.get_layer("regularised").kernel
    plain_kernel.regularizer = None
    before = kernel.numpy()
    np.testing.assert_array_equal(before, plain_kernel.numpy())

    first = vae.train_on_batch(IMAGES, return_dict=True)
    without = plain.train_on_batch(IMAGES, return_dict=True)
    penalty = 0.5 * np.sum(before.astype("float64") ** 2)
    assert first["regularization"] == pytest.approx(penalty, rel=1e-5)
    assert first["loss"] == pytest.approx(without["loss"] + penalty, rel=1e-5)
    # d(0.5 w^2)/dw = w.
    np.testing.assert_allclose(kernel.numpy(), plain_kernel.numpy() - rate * before, **ENOUGH)

    figures = vae.test_on_batch(IMAGES, return_dict=True)
    penalty = 0.5 * np.sum(kernel.numpy().astype("float64") ** 2)
    assert figures["regularization"] == pytest.approx(penalty, rel=1e-5)
    total = figures["reconstruction"] + figures["kl"] + figures["regularization"]
    assert figures["loss"] == pytest.approx(total, rel=1e-5)
    assert figures["elbo"] == pytest.approx(-figures["reconstruction"] - figures["kl"], rel=1e-5)
    assert "regularization" not in without


@pytest.mark.slow
def test_what_a_layer_adds_is_differentiated_once_in_every_step():
    vae = compiled(decoder=penalised_decoder, run_eagerly=False)
    value = vae.decoder.get_layer("penalty").value
    steps = [vae.train_on_batch(IMAGES, return_dict=True)["regularization"] for _ in range(3)]
    # 3 w, and gradient descent with rate 0.1 takes 0.3 off w at every step.
    assert steps == pytest.approx([3.0, 2.1, 1.2], rel=1e-5)
    assert float(value) == pytest.approx(0.1, rel=1e-4)
    figures = vae.test_on_batch(IMAGES, return_dict=True)
    assert figures["regularization"] == pytest.approx(0.3, rel=1e-4)


@pytest.mark.slow
def test_what_a_layer_adds_in_training_alone_starts_anew_at_every_epoch():
    vae = compiled(decoder=lambda: penalised_decoder(only_in_training=True), run_eagerly=False)
    one_step = {"batch_size": len(IMAGES), "epochs": 3}
    history = train(vae, **one_step, validation_data=IMAGES)
    assert history["regularization"] == pytest.approx([3.0, 2.1, 1.2], rel=1e-5)
    assert "val_regularization" not in history


# What is refused.


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "mse"},
        {"metrics": ["mae"]},
        {"loss_weights": [1.0]},
        {"weighted_metrics": ["mae"]},
    ],
    ids=lambda given: next(iter(given)),
)
def test_compile_refuses_what_the_terms_say(given):
    name = next(iter(given))
    with pytest.raises(ValueError, match=rf"compile\({name}=\.\.\.\).*Add a LossTerm.*weight=None"):
        build().compile("adam", **given)


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("form", ["arrays", "tf.data"])
def test_labels_as_y_are_refused(form, run_eagerly):
    labels = np.arange(len(IMAGES))
    vae = standing(run_eagerly=run_eagerly)
    with pytest.raises(ValueError, match="Labels go into a dictionary"):
        if form == "arrays":
            train(vae, y=labels)
        else:
            data = tf.data.Dataset.from_tensor_slices((IMAGES, labels)).batch(BATCH)
            vae.fit(data, verbose=0)


def test_one_hot_labels_as_targets_of_vectors_are_refused():
    vae = standing(
        encoder=lambda: dense_encoder([16], LATENT), decoder=lambda: dense_decoder([16], LATENT)
    )
    one_hot = np.eye(10, dtype="float32")[np.arange(len(IMAGES)) % 10]
    with pytest.raises(ValueError, match=r"targets of shape \(8, 10\) with 'logits'"):
        train(vae, IMAGES.reshape(-1, 16), y=one_hot)


def test_targets_given_twice_are_refused():
    with pytest.raises(ValueError, match="given twice"):
        train(standing(), {"inputs": IMAGES, "targets": IMAGES}, y=IMAGES)


def test_a_dictionary_without_inputs_is_refused():
    with pytest.raises(ValueError, match="no 'inputs'; got images"):
        train(standing(), {"images": IMAGES})


# Terms.


@pytest.mark.slow
def test_monitors_leave_gradients_untouched():
    watched = compiled([Bernoulli(), KLDivergence(), Watched(), NotANumber()])
    plain = compiled()
    history, wanted = train(watched, FEW), train(plain, FEW)
    assert history["loss"] == wanted["loss"]
    assert_same_weights(copies(watched), copies(plain))
    assert np.isnan(history["not_a_number"][0])
    # The mutant: the same monitor, trained.
    spoilt = compiled([Bernoulli(), KLDivergence(), NotANumber(weight=0.0)])
    assert np.isnan(train(spoilt, FEW)["loss"][0])


@pytest.mark.slow
def test_a_term_of_ones_own_is_in_the_history_by_its_name_and_is_trained():
    def final(weight):
        terms = [Bernoulli(), KLDivergence(), MeanSquare(scale=2.0, weight=weight)]
        vae = compiled(terms, optimizer=keras.optimizers.Adam(0.05))
        start = 2.0 * np.square(vae.posterior(IMAGES)["z_mean"]).sum(axis=1).mean()
        assert start == pytest.approx(vae.train_on_batch(IMAGES, return_dict=True)["mean_square"])
        for _ in range(5):
            figures = vae.train_on_batch(IMAGES, return_dict=True)
        return figures["mean_square"]

    assert final(5.0) < 0.5 * final(None)


@pytest.mark.slow
def test_free_bits_train_and_stop_pushing():
    # Below 5 nats in both dimensions: the term is the constant 10 and has no gradient, so that the
    # training is that of the likelihood alone.
    bounded = compiled([Bernoulli(), FreeBits(nats_per_dimension=5.0)])
    free = compiled([Bernoulli()])
    assert divergence(bounded.posterior(IMAGES)).max() < 5.0
    history = train(bounded, FEW, epochs=2)
    train(free, FEW, epochs=2)
    assert history["free_bits"] == pytest.approx([10.0] * 2)
    assert history["loss"][-1] < history["loss"][0]
    assert_same_weights(copies(bounded), copies(free))


@pytest.mark.slow
def test_a_capacity_pulls_the_divergence_to_itself():
    vae = compiled(
        [Bernoulli(), CapacityKL(capacity=3.0, weight=100.0)],
        optimizer=keras.optimizers.Adam(0.03),
        run_eagerly=False,
    )
    first = vae.test_on_batch(IMAGES, return_dict=True)
    history = train(vae, again(IMAGES, 20), validation_data=IMAGES)
    assert first["kl"] < 1.0
    assert history["val_kl"][0] == pytest.approx(3.0, abs=0.3)
    assert history["val_loss"][0] < 0.2 * first["loss"]


@pytest.mark.slow
def test_outputs_that_nobody_reads_have_no_gradient_and_do_no_harm():
    vae = compiled([Bernoulli()], bottleneck=DeterministicBottleneck(LATENT))  # reads no z_log_var
    unread = vae.encoder.get_layer("z_log_var").kernel
    before, everything = unread.numpy(), copies(vae)
    history = train(vae, epochs=2)
    assert history["loss"][1] < history["loss"][0]
    np.testing.assert_array_equal(unread.numpy(), before)
    assert moved(everything, copies(vae))


# Several samples.


@pytest.mark.slow
def test_samples_are_joined_by_the_mean_or_by_importance():
    terms = [Bernoulli(), MonteCarloKL()]
    vae = standing(terms, num_samples=4)
    parts = (vae.encoder, vae.bottleneck, vae.decoder, terms)
    weighted = VAE(*parts, num_samples=4, importance_weighted=True)
    single = VAE(*parts)
    weighted.compile(run_eagerly=True)
    single.compile(run_eagerly=True)

    tensors = vae.forward(IMAGES)
    targets = np.repeat(IMAGES, 4, axis=0)  # the rows of an example are next to each other
    negative_log_weight = (
        negative_log_likelihood(targets, tensors["logits"])
        + np.asarray(tensors["log_posterior"], "float64")
        - np.asarray(tensors["log_prior"], "float64")
    ).reshape(-1, 4)
    mean = negative_log_weight.mean()
    bound = -np.log(np.exp(-negative_log_weight).mean(axis=1)).mean()

    def loss(model):
        return model.evaluate(IMAGES, batch_size=32, verbose=0, return_dict=True)["loss"]

    assert loss(vae) == pytest.approx(mean, rel=1e-5)
    assert loss(weighted) == pytest.approx(bound, rel=1e-5)
    assert loss(weighted) < loss(vae)  # Jensen, on the same samples
    assert loss(weighted) < loss(single)  # and against one sample, Burda et al. 2016, theorem 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terms", "importance_weighted"),
    [([Bernoulli(), KLDivergence()], False), ([Bernoulli(), MonteCarloKL()], True)],
    ids=["mean", "importance weighted"],
)
def test_several_samples_train(terms, importance_weighted):
    vae = compiled(
        terms,
        optimizer=keras.optimizers.Adam(0.1),
        num_samples=3,
        importance_weighted=importance_weighted,
    )
    first = vae.test_on_batch(IMAGES, return_dict=True)
    for _ in range(6):
        vae.train_on_batch(IMAGES)
    assert vae.test_on_batch(IMAGES, return_dict=True)["loss"] < 0.95 * first["loss"]
    assert vae.predict(IMAGES[:5], verbose=0).shape == (5, *SHAPE)
    assert vae.sample(2).shape == (2, *SHAPE)


# Models of another kind.


@pytest.mark.slow
def test_a_plain_autoencoder_has_neither_elbo_nor_kl_nor_samples():
    vae = compiled(
        [Bernoulli()],
        encoder=only_means,
        bottleneck=DeterministicBottleneck(LATENT),
    )
    history = train(vae, FEW, epochs=2, validation_data=FEW)
    assert history.keys() == {"loss", "reconstruction", "val_loss", "val_reconstruction"}
    assert history["loss"] == history["reconstruction"]
    assert history["loss"][1] < history["loss"][0]
    with pytest.raises(ValueError, match="no prior to sample from"):
        vae.sample(3)
    codes = vae.posterior(IMAGES)["z_mean"]
    np.testing.assert_array_equal(vae.decode(codes), vae.reconstruct(IMAGES))


@pytest.mark.slow
def test_targets_given_as_y_are_what_is_reconstructed():
    noisy, clean = IMAGES, 1.0 - IMAGES
    vae = compiled(optimizer=keras.optimizers.Adam(0.05), run_eagerly=False)
    figures = vae.test_on_batch(noisy, clean, return_dict=True)
    logits = vae.forward(noisy)["logits"]
    wanted = negative_log_likelihood(clean, logits).mean()
    assert figures["reconstruction"] == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(negative_log_likelihood(noisy, logits).mean(), rel=1e-2)

    history = train(vae, again(noisy, 20), y=again(clean, 20), validation_data=(noisy, clean))
    assert history["val_loss"][0] < figures["loss"]
    # 7 of 10 pixels are on in the targets and 3 of 10 in the inputs.
    assert vae.predict(noisy, verbose=0).mean() == pytest.approx(clean.mean(), abs=0.05)


def conditional_encoder():
    """A network of two inputs; the names decide, and their order is another than the data's."""
    labels, images = keras.Input((2,), name="labels"), keras.Input(SHAPE, name="inputs")
    features = keras.layers.Concatenate()([labels, keras.layers.Flatten()(images)])
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    return keras.Model([labels, images], heads)


def conditional_decoder():
    labels, z = keras.Input((2,), name="labels"), keras.Input((LATENT,), name="z")
    features = keras.layers.Concatenate()([labels, z])
    logits = keras.layers.Reshape(SHAPE)(keras.layers.Dense(16)(features))
    return keras.Model({"z": z, "labels": labels}, {"logits": logits})


@pytest.mark.slow
def test_a_conditional_model_learns_what_its_labels_say():
    patterns = np.stack([IMAGES[0], 1.0 - IMAGES[0]])
    classes = np.arange(32) % 2
    one_hot = np.eye(2, dtype="float32")
    data = {"inputs": patterns[classes], "labels": one_hot[classes]}
    # The weight closes the latent code: what is reconstructed came through the labels. With two
    # samples, labels that were repeated in another order than z would be those of other examples.
    vae = compiled(
        [Bernoulli(), KLDivergence(weight=30.0)],
        optimizer=keras.optimizers.Adam(0.1),
        run_eagerly=False,
        num_samples=2,
        encoder=conditional_encoder,
        decoder=conditional_decoder,
    )
    longer = {name: again(values, 40) for name, values in data.items()}
    history = train(vae, longer, validation_data=data)
    assert history["val_kl"][0] < 0.1
    code = tf.zeros([2, LATENT])
    np.testing.assert_allclose(vae.decode(code, labels=one_hot), patterns, atol=0.1)
    np.testing.assert_allclose(vae.sample(2, labels=one_hot), patterns, atol=0.1)
    np.testing.assert_allclose(vae.predict(data, verbose=0), patterns[classes], atol=0.1)
    with pytest.raises(ValueError, match="The decoder reads 'labels'"):
        vae.decode(code)


class Scaled(keras.layers.Layer):
    """Writes `scaled`: the logits times a weight of its own."""

    def build(self, input_shape):
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones")

    def call(self, logits):
        return {"scaled": logits * self.factor}


class Spread(keras.layers.Layer):
    """Writes `spread` from what the module before it wrote, and from the data."""

    def call(self, scaled, inputs):
        return {"spread": tf.reduce_mean(tf.square(scaled - inputs), axis=[1, 2, 3])}


class SpreadPenalty(LossTerm):
    def per_example(self, spread):
        return spread


@pytest.mark.slow
def test_modules_after_the_decoder_run_in_order_and_are_trained():
    terms = [Bernoulli(), KLDivergence(), SpreadPenalty()]
    vae = compiled(terms, modules=[Scaled(), Spread()], run_eagerly=False)
    scaled = vae.forward(IMAGES)["scaled"]
    wanted = np.square(scaled.numpy() - IMAGES).mean()
    assert vae.test_on_batch(IMAGES, return_dict=True)["spread_penalty"] == pytest.approx(
        wanted, rel=1e-5
    )
    train(vae)
    assert float(vae.further_modules[0].factor) != 1.0
    assert any(vae.further_modules[0].factor is weight for weight in vae.trainable_variables)
    wrong_order = compiled(terms, modules=[Spread(), Scaled()])
    with pytest.raises(ValueError, match="module 0 reads 'scaled'"):
        train(wrong_order)


class TargetVariance(keras.layers.Layer):
    """Writes the variance of the likelihood from the data, which a code alone does not have."""

    def call(self, targets):
        return {"x_log_var": tf.math.log1p(targets)}


class NeverRun(keras.layers.Layer):
    def call(self, z):
        raise AssertionError("not needed")


def test_a_likelihood_has_the_parameters_of_modules_and_a_mean_without_them():
    terms = [GaussianWithVariance(), KLDivergence()]
    vae = build(
        terms,
        decoder=lambda: dense_decoder(SHAPE, LATENT, hidden_units=(8,), outputs=["x_mean"]),
        modules=[TargetVariance(), NeverRun()],
    )
    tensors = vae.infer(IMAGES)
    code = tf.ones([len(IMAGES), LATENT])
    means = vae.decode(code).numpy()
    variances = 1.0 + IMAGES.astype("float64")
    density = np.square(IMAGES - means) / variances + np.log(2.0 * np.pi * variances)
    wanted = -0.5 * density.reshape(len(IMAGES), -1).sum(axis=1)
    np.testing.assert_allclose(vae.log_likelihood(tensors, code), wanted, **ENOUGH)
    assert vae.sample(3).shape == (3, *SHAPE)
    assert vae(IMAGES).shape == IMAGES.shape
    with pytest.raises(AssertionError, match="not needed"):
        vae.forward(IMAGES)


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
