"""One objective at four places: the same step in training, and the one that calculus predicts.

Every step is made by the formulation's own `fit`. With plain SGD and a learning rate of one, what a
weight moves by is minus its gradient.
"""

import functools

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tests.proofs import SOAK
from vae_research import convolutional_decoder, convolutional_encoder, dense_decoder, dense_encoder
from vae_research.keras_losses import layers
from vae_research.probability import normal_kl_divergence
from vae_research.randomness import fold_in, standard_normal, training_key

PLACES = ("top", "encoder", "model", "step")
MODES = {
    "eager": {"run_eagerly": True, "jit_compile": False},
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
}
SHAPE, LATENT, FACTOR, SEED, STEP = (8, 8, 1), 2, 0.3, 5, 7
IMAGES = np.random.default_rng(0).random((6, *SHAPE)).astype("float32")


def dense_networks(shape=SHAPE, activation="tanh"):
    sizes = {"hidden_units": (4,), "activation": activation}
    return dense_encoder(shape, LATENT, **sizes), dense_decoder(shape, LATENT, **sizes)


def convolutional_networks():
    return (
        convolutional_encoder(SHAPE, LATENT, filters=(2, 3)),
        convolutional_decoder(SHAPE, LATENT, filters=(3, 2)),
    )


def with_weights(networks, size=0.5, last_kernel=1.0):
    """Gives networks the same weights every time, biases too; `last_kernel` scales the logits."""
    rng = np.random.default_rng(1)
    for network in networks:
        network.set_weights([size * rng.standard_normal(w.shape) for w in network.get_weights()])
    kernel = networks[1].get_layer("logits").kernel
    kernel.assign(last_kernel * kernel)
    return networks


NETWORKS = {
    "dense": lambda: with_weights(dense_networks()),
    "convolutional": lambda: with_weights(convolutional_networks()),
    "large dense": lambda: with_weights(dense_networks(), last_kernel=60.0),
    "large convolutional": lambda: with_weights(convolutional_networks(), last_kernel=60.0),
}

# Each place with each mode and with each pair of networks, which have one mode each: what they are
# compared with is compiled once.
MODE_OF = {
    "dense": "xla",
    "convolutional": "graph",
    "large dense": "eager",
    "large convolutional": "graph",
}
FIRST = ("large dense", "eager", "top")
CASES = [(networks, mode, place) for networks, mode in MODE_OF.items() for place in PLACES[:3]]
# Every day each place with two pairs of networks, and each pair with a place at least.
if not SOAK:
    DAILY = {"dense": ["top"], "convolutional": ["encoder"], "large convolutional": ["model"]}
    CASES = [case for case in CASES if case[2] in DAILY.get(case[0], PLACES)]


def one_step(formulation, x=IMAGES, step=STEP, mode="graph"):
    """Returns what one SGD step moves each weight by, and the figures that `fit` reports."""
    formulation.compile(keras.optimizers.SGD(1.0), **MODES[mode]).start(step)
    before = formulation.weights()
    figures = {name: values[0] for name, values in formulation.fit(x).items()}
    return [a - b for a, b in zip(formulation.weights(), before, strict=True)], figures


@functools.cache
def reference(formulate, networks, mode):
    """Strategy 3, to which the other three are compared."""
    return one_step(formulate("step", *NETWORKS[networks](), FACTOR, SEED), mode=mode)


def assert_same_step(found, expected, rtol=1e-4):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        size = np.linalg.norm(b)
        assert size > 0.0, "a weight that does not move shows nothing"
        assert np.linalg.norm(a - b) <= rtol * size


def assert_other_step(found, expected):
    """Other by ten times the tolerance at least, in some weight."""
    with pytest.raises(AssertionError):
        assert_same_step(found, expected, rtol=1e-3)


# Parity.


@pytest.mark.slow
@pytest.mark.parametrize("networks", ["dense", "large dense"] if SOAK else ["large dense"])
def test_the_loss_by_its_name_for_a_model_that_ends_in_a_sigmoid(formulate, networks):
    """Keras goes back from the sigmoid to its logits, as long as nothing stands behind it."""
    expected, _ = reference(formulate, networks, "graph")
    formulation = formulate("encoder", *NETWORKS[networks](), FACTOR, SEED)
    model = formulation.model
    probabilities = keras.layers.Activation("sigmoid")(model.output)
    formulation.model = keras.Model(model.input, probabilities)
    formulation.loss = "binary_crossentropy"
    assert_same_step(one_step(formulation)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("networks", "mode", "place"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case != FIRST)) for case in CASES],
)
def test_all_four_places_train_the_same_step(formulate, networks, mode, place):
    expected, figures_of_step = reference(formulate, networks, mode)
    formulation = formulate(place, *NETWORKS[networks](), FACTOR, SEED)
    found, figures = one_step(formulation, mode=mode)
    assert_same_step(found, expected)
    assert figures["loss"] == pytest.approx(figures_of_step["loss"], rel=1e-5)


@pytest.mark.parametrize("networks", NETWORKS)
def test_large_logits_are_large_and_wrong_as_those_of_the_others_are_not(formulate, networks):
    encoder, decoder = NETWORKS[networks]()
    z = layers.SamplingLayer(SEED)(*(encoder(IMAGES)[name] for name in ("z_mean", "z_log_var")))
    logits = decoder(z)["logits"].numpy()
    wrong = np.where(logits > 0, 1 - IMAGES, IMAGES) > 0.5
    assert (np.abs(logits[wrong]).max() > 20.0) == networks.startswith("large")


# Each mutant with each pair of networks, at one of two places in turn.
MUTANTS = ["half", "sum", "constant mean", "noise", "probabilities"]
WRONG = [
    (mutant, networks, ("top", "model")[(number + at) % 2])
    for number, mutant in enumerate(MUTANTS)
    for at, networks in enumerate(["dense", "large dense"])
]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_parity_needs_the_same_noise(formulate, place):
    expected, _ = reference(formulate, "dense", "eager")
    formulation = formulate(place, *NETWORKS["dense"](), FACTOR, SEED)
    assert_other_step(one_step(formulation, step=STEP + 1, mode="eager")[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "networks", "place"), WRONG)
def test_parity_notices_a_wrong_loss(formulate, monkeypatch, place, networks, mutant):
    def cross_entropy_of_probabilities(targets, logits):
        probabilities = tf.reshape(tf.sigmoid(logits), tf.shape(logits))
        return tf.reduce_mean(keras.ops.binary_crossentropy(targets, probabilities), [1, 2, 3])

    right = layers.latent_mean_kl
    name, wrong = {
        "half": ("latent_mean_kl", lambda m, v: 0.5 * right(m, v)),
        "sum": ("latent_mean_kl", lambda m, v: tf.reduce_sum(normal_kl_divergence(m, v), 1)),
        "constant mean": ("latent_mean_kl", lambda m, v: right(tf.stop_gradient(m), v)),
        "noise": ("fold_in", lambda key, purpose: key),
        "probabilities": ("pixel_mean_cross_entropy", cross_entropy_of_probabilities),
    }[mutant]
    expected, _ = reference(formulate, networks, "eager")
    monkeypatch.setattr(layers, name, wrong)
    formulation = formulate(place, *NETWORKS[networks](), FACTOR, SEED)
    found, _ = one_step(formulation, mode="eager")
    if mutant == "probabilities" and networks == "dense":
        assert_same_step(found, expected)  # which is why there are large logits
    else:
        assert_other_step(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_regularisers_of_the_networks_are_added_everywhere(formulate, place):
    strength = 0.1

    def networks(regularizer):
        inputs = keras.Input(SHAPE)
        features = keras.layers.Flatten()(inputs)
        features = keras.layers.Dense(3, "tanh", kernel_regularizer=regularizer)(features)
        codes = {n: keras.layers.Dense(LATENT, name=n)(features) for n in ("z_mean", "z_log_var")}
        return with_weights((keras.Model(inputs, codes), dense_networks()[1]))

    plain = formulate(place, *networks(None), FACTOR, SEED)
    regularised = formulate(place, *networks(keras.regularizers.L2(strength)), FACTOR, SEED)
    kernel = plain.weights()[0].astype(np.float64)
    steps, figures = one_step(plain, mode="eager")
    found, more = one_step(regularised, mode="eager")
    # The gradient of s |w|^2 is 2 s w; it concerns one kernel alone.
    assert_same_step(found, [steps[0] - 2 * strength * kernel, *steps[1:]])
    penalty = strength * np.sum(kernel**2)
    assert more["loss"] == pytest.approx(figures["loss"] + penalty, rel=1e-5)


# Finite differences: the same step without TensorFlow, in float64. Of a layer of the networks it
# has only the definition; tanh has no kinks that a difference could straddle.

TINY = (3, 2, 1)
FEW = IMAGES[:4, :3, :2]


def loss_by_hand(weights, x, noise, bound=20.0):
    # Keras orders layers by depth, and z_log_var has its bound behind it.
    w, b, w_log_var, b_log_var, w_mean, b_mean, v, c, w_logits, b_logits = weights
    x = x.reshape([len(x), -1])
    hidden = np.tanh(x @ w + b)
    mean = hidden @ w_mean + b_mean
    log_var = bound * np.tanh((hidden @ w_log_var + b_log_var) / bound)
    z = mean + np.exp(log_var / 2) * noise
    logits = np.tanh(z @ v + c) @ w_logits + b_logits
    entropy = -(
        x * scipy.special.log_expit(logits) + (1 - x) * scipy.special.log_expit(-logits)
    ).mean(axis=1)
    kl = -(1 + log_var - mean**2 - np.exp(log_var)).mean(axis=1)
    return np.mean(entropy + FACTOR * kl)


def step_by_differences(weights, *others, width=1e-5):
    """Returns minus the gradient by each weight: central differences."""
    gradients = []
    for weight in weights:
        gradient = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            value = weight[index]
            weight[index] = value + width
            above = loss_by_hand(weights, *others)
            weight[index] = value - width
            gradient[index] = (above - loss_by_hand(weights, *others)) / (2 * width)
            weight[index] = value
        gradients.append(-gradient)
    return gradients


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_step_is_the_one_of_finite_differences(formulate, place):
    encoder, decoder = with_weights(dense_networks(TINY))
    encoder.get_layer("z_log_var").bias.assign([-4.0, 0.5])  # where the soft bound can be seen
    formulation = formulate(place, encoder, decoder, FACTOR, SEED)
    weights = [weight.astype(np.float64) for weight in formulation.weights()]
    key = fold_in(training_key(SEED, STEP), "bottleneck")
    noise = standard_normal([len(FEW), LATENT], key).numpy().astype(np.float64)
    x = FEW.astype(np.float64)
    found, figures = one_step(formulation, FEW, mode="eager")
    assert figures["loss"] == pytest.approx(loss_by_hand(weights, x, noise), rel=1e-5)
    assert_same_step(found, step_by_differences(weights, x, noise))
    # Without noise, without the bound, or with other data it is another step.
    assert_other_step(found, step_by_differences(weights, x, 0 * noise))
    assert_other_step(found, step_by_differences(weights, x, noise, 1e6))
    assert_other_step(found, step_by_differences(weights, x[::-1], noise))


# A saturated wrong prediction still learns.


def constant_decoder(logit, activation=None):
    z = keras.Input((LATENT,), name="z")
    dense = keras.layers.Dense(64, activation, kernel_initializer="zeros", name="flat")
    dense.build([None, LATENT])
    dense.bias.assign(tf.fill([64], logit))
    return keras.Model(z, {"logits": keras.layers.Reshape(SHAPE)(dense(z))})


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_logit_of_40_on_a_target_of_0_has_a_gradient(formulate, place):
    formulation = formulate(place, dense_networks()[0], constant_decoder(40.0), FACTOR)
    formulation.compile(keras.optimizers.SGD(1.0), run_eagerly=True, jit_compile=False)
    # log(1 + e^40) is 40; the codes of black images are N(0, 1).
    assert formulation.fit(np.zeros_like(IMAGES))["loss"] == [40.0]
    change = formulation.decoder.get_layer("flat").bias.numpy() - 40.0
    # (sigmoid(40) - 0) / 64 pixels; 40 in float32 has steps of 4e-6
    np.testing.assert_allclose(change, -1 / 64, atol=4e-6)


@pytest.mark.slow
def test_probability_from_a_logit_of_40_on_a_target_of_0_has_no_gradient(formulate):
    # Why the layers want logits. Behind the Reshape Keras cannot look up what the sigmoid read.
    decoder = constant_decoder(40.0, "sigmoid")
    formulation = formulate("encoder", dense_networks()[0], decoder, FACTOR)
    formulation.loss = keras.losses.BinaryCrossentropy()
    formulation.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    loss = formulation.fit(np.zeros_like(IMAGES))["loss"][0]
    assert loss > 10.0
    np.testing.assert_array_equal(decoder.get_layer("flat").bias, 40.0)
