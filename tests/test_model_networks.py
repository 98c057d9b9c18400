"""Any Keras model as encoder or decoder: functional, sequential, subclassed, trained elsewhere.

Nothing here is written for this package. The networks of the Keras example are those of
https://keras.io/examples/generative/vae/, 28 x 28 pixels; all others see 4 x 4.
"""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.proofs import SOAK
from vae_research import (
    VAE,
    Bernoulli,
    GaussianBottleneck,
    KLDivergence,
    ProbabilitiesToLogits,
    dense_decoder,
    dense_encoder,
    named,
)

SHAPE = (4, 4, 1)
LATENT = 2
IMAGES = (np.random.default_rng(0).random((16, *SHAPE)) < 0.3).astype("float32")
ENOUGH = {"rtol": 1e-5, "atol": 1e-5}


def build(encoder=None, decoder=None, *, learning_rate=0.1, run_eagerly=True, **options):
    vae = VAE(
        encoder or dense_encoder(SHAPE, LATENT, hidden_units=(8,)),
        GaussianBottleneck(LATENT),
        decoder or dense_decoder(SHAPE, LATENT, hidden_units=(8,)),
        [Bernoulli(), KLDivergence()],
        **options,
    )
    optimizer = keras.optimizers.SGD(learning_rate)
    vae.compile(optimizer, run_eagerly=run_eagerly, jit_compile=False)
    return vae


def train(vae, data=IMAGES, **options):
    return vae.fit(data, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options}).history


def evaluate(vae, data=IMAGES):
    return vae.evaluate(data, batch_size=8, verbose=0, return_dict=True)


def copies(layer):
    return [weight.copy() for weight in layer.get_weights()]


def moved(before, after):
    return [bool(np.any(one != other)) for one, other in zip(before, after, strict=True)]


# The networks of the Keras example, as they stand.


class Sampling(keras.layers.Layer):
    """Draws z with a generator of its own; our bottleneck draws another."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        z_mean, z_log_var = inputs
        batch = keras.ops.shape(z_mean)[0]
        dim = keras.ops.shape(z_mean)[1]
        epsilon = keras.random.normal(shape=(batch, dim), seed=self.seed_generator)
        return z_mean + keras.ops.exp(0.5 * z_log_var) * epsilon


def example_encoder():
    layers = keras.layers
    encoder_inputs = keras.Input(shape=(28, 28, 1))
    x = layers.Conv2D(32, 3, activation="relu", strides=2, padding="same")(encoder_inputs)
    x = layers.Conv2D(64, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(16, activation="relu")(x)
    z_mean = layers.Dense(2, name="z_mean")(x)
    z_log_var = layers.Dense(2, name="z_log_var")(x)
    z = Sampling()([z_mean, z_log_var])
    return keras.Model(encoder_inputs, [z_mean, z_log_var, z], name="encoder")


def example_decoder():
    layers = keras.layers
    latent_inputs = keras.Input(shape=(2,))
    x = layers.Dense(7 * 7 * 64, activation="relu")(latent_inputs)
    x = layers.Reshape((7, 7, 64))(x)
    x = layers.Conv2DTranspose(64, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(32, 3, activation="relu", strides=2, padding="same")(x)
    decoder_outputs = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x)
    return keras.Model(latent_inputs, decoder_outputs, name="decoder")


def example_loss(data, z_mean, z_log_var, reconstruction):
    """The loss in the example's `train_step`."""
    ops = keras.ops
    cross_entropy = keras.losses.binary_crossentropy(data, reconstruction)
    reconstruction_loss = ops.mean(ops.sum(cross_entropy, axis=(1, 2)))
    kl_loss = -0.5 * (1 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var))
    kl_loss = ops.mean(ops.sum(kl_loss, axis=1))
    return float(reconstruction_loss + kl_loss)


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True] if SOAK else [False])
def test_the_networks_of_the_keras_example_as_they_stand(run_eagerly):
    keras.utils.set_random_seed(0)
    digits = (np.random.default_rng(0).random((8, 28, 28, 1)) < 0.2).astype("float32")
    encoder, decoder = example_encoder(), example_decoder()
    vae = build(
        named(encoder, "z_mean", "z_log_var", None),
        named(decoder, "probabilities"),
        modules=[ProbabilitiesToLogits()],
        run_eagerly=run_eagerly,
        learning_rate=1e-3,
    )
    tensors = vae.forward(digits)
    z_mean, z_log_var, _ = encoder(digits)
    wanted = example_loss(digits, z_mean, z_log_var, decoder(tensors["z"]))
    assert evaluate(vae, digits)["loss"] == pytest.approx(wanted, rel=1e-5)
    assert evaluate(vae, digits) == evaluate(vae, digits)  # untouched by the example's generator

    before = copies(encoder) + copies(decoder)
    history = train(vae, digits, epochs=2, validation_data=digits)
    assert history["val_loss"][-1] < wanted
    assert len(before) == len(vae.trainable_variables)
    assert all(moved(before, copies(encoder) + copies(decoder)))
    # What people ask of the model afterwards is what the networks themselves say.
    codes = encoder(digits)[0]
    np.testing.assert_array_equal(vae.posterior(digits)["z_mean"], codes)
    np.testing.assert_allclose(vae.decode(codes), decoder(codes), **ENOUGH)
    np.testing.assert_allclose(vae.predict(digits, verbose=0), decoder(codes), **ENOUGH)
    assert vae.sample(3).shape == (3, 28, 28, 1)


def test_probabilities_become_logits_with_finite_values_and_gradients_at_both_ends():
    probabilities = tf.constant([[0.0, 1e-9, 0.25, 0.5, 1.0 - 6e-8, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(probabilities)
        logits = ProbabilitiesToLogits()(probabilities)["logits"]
    gradient = tape.gradient(logits, probabilities)
    # log(p / (1 - p)) at 1/4 and 1/2; d/dp = 1 / (p (1 - p)).
    np.testing.assert_allclose(logits[0, 2:4], [-np.log(3.0), 0.0], **ENOUGH)
    np.testing.assert_allclose(gradient[0, 2:4], [16.0 / 3.0, 4.0], **ENOUGH)
    assert np.isfinite(logits).all()
    assert np.isfinite(gradient).all()
    assert (np.diff(logits[0]) >= 0.0).all()
    assert logits[0, 0] < -15.0 and logits[0, -1] > 15.0


# Each way to write a network.


def functional_encoder():
    image = keras.Input(SHAPE, name="picture")  # a name of its own, which nothing else writes
    features = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(image))
    heads = [keras.layers.Dense(LATENT)(features) for _ in range(2)]
    return keras.Model(image, dict(zip(("z_mean", "z_log_var"), heads, strict=True)))


def functional_decoder():
    code = keras.Input((LATENT,))
    return keras.Model(code, {"logits": keras.layers.Reshape(SHAPE)(keras.layers.Dense(16)(code))})


def sequential_encoder():
    layers = [keras.layers.Flatten(), keras.layers.Dense(8), keras.layers.Dense(2 * LATENT)]
    return named(keras.Sequential(layers), "z_mean", "z_log_var")


def sequential_decoder():
    layers = [keras.layers.Dense(16), keras.layers.Reshape(SHAPE)]
    return named(keras.Sequential(layers), "logits")


def built_sequential_encoder():
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2 * LATENT)]
    return named(keras.Sequential(layers), "z_mean", "z_log_var")


def built_sequential_decoder():
    layers = [keras.Input((LATENT,)), keras.layers.Dense(16), keras.layers.Reshape(SHAPE)]
    return named(keras.Sequential(layers), "logits")


class SubclassedEncoder(keras.Model):
    """Returns a tuple and has no weights before its first call."""

    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.mean = keras.layers.Dense(LATENT)
        self.log_var = keras.layers.Dense(
            LATENT, bias_initializer=keras.initializers.Constant(-1.0)
        )

    def call(self, x, training=False):
        features = self.flatten(x)
        return self.mean(features), self.log_var(features)


class SubclassedDecoder(keras.Model):
    """Returns a dictionary; `scale` has a default and is a setting, no tensor."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(16)

    def call(self, code, scale=1.0):
        return {"logits": scale * keras.ops.reshape(self.dense(code), (-1, *SHAPE))}


def nested_encoder():
    """A sequential model around a functional one."""
    image = keras.Input(SHAPE)
    body = keras.Model(image, keras.layers.Dense(8)(keras.layers.Flatten()(image)))
    return named(keras.Sequential([body, keras.layers.Dense(2 * LATENT)]), "z_mean", "z_log_var")


KINDS = {
    "functional": (functional_encoder, functional_decoder),
    "sequential": (sequential_encoder, sequential_decoder),
    "sequential with inputs": (built_sequential_encoder, built_sequential_decoder),
    "subclassed": (lambda: named(SubclassedEncoder(), "z_mean", "z_log_var"), SubclassedDecoder),
    "nested": (nested_encoder, functional_decoder),
}


def raw(network, inputs):
    """What a network returns when nobody names anything, in the order of its outputs."""
    outputs = getattr(network, "network", network)(inputs)
    return list(outputs.values()) if isinstance(outputs, dict) else outputs


@pytest.mark.slow
# Those that `fit` has to build as a graph, one of them eagerly, too, and the others eagerly.
@pytest.mark.parametrize(
    ("kind", "run_eagerly"),
    [
        ("functional", True),
        ("sequential", False),
        ("subclassed", False),
        ("nested", False),
        *([("sequential with inputs", True), ("subclassed", True)] if SOAK else []),
    ],
)
def test_every_kind_of_network_is_an_encoder_and_a_decoder(kind, run_eagerly):
    encoder, decoder = (make() for make in KINDS[kind])
    vae = build(encoder, decoder, run_eagerly=run_eagerly)
    if kind in ("sequential", "subclassed"):
        assert not vae.weights  # nothing is built yet, and `fit` builds it
    train(vae)
    before = copies(vae)
    assert len(vae.trainable_variables) == len(before) >= 4
    train(vae, validation_data=IMAGES)
    assert all(moved(before, copies(vae)))

    outputs = raw(encoder, IMAGES)
    if not isinstance(outputs, (list, tuple)):  # one tensor: the mean has its first half
        outputs = outputs[:, :LATENT], outputs[:, LATENT:]
    encoded = vae.posterior(IMAGES)
    np.testing.assert_allclose(encoded["z_mean"], outputs[0], **ENOUGH)
    np.testing.assert_allclose(encoded["z_log_var"], outputs[1], **ENOUGH)
    decoded = raw(decoder, encoded["z_mean"])
    logits = decoded[0] if isinstance(decoded, list) else decoded
    np.testing.assert_allclose(vae.decode(encoded["z_mean"]), tf.sigmoid(logits), **ENOUGH)
    np.testing.assert_allclose(vae.predict(IMAGES, verbose=0), tf.sigmoid(logits), **ENOUGH)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS if SOAK else ["sequential", "subclassed"])
def test_ordinary_use_gives_no_warning_about_unbuilt_state(kind):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="[\\s\\S]*unbuilt state")
        vae = build(*(make() for make in KINDS[kind]))
        train(vae)
        vae.predict(IMAGES, verbose=0)
        build(*(make() for make in KINDS[kind])).predict(IMAGES, verbose=0)


class Conditional(keras.layers.Layer):
    """A decoder of two inputs, bound by the names of its parameters."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(16)

    def logits(self, z, labels):
        return {"logits": tf.reshape(self.dense(tf.concat([z, labels], axis=-1)), [-1, *SHAPE])}


class LabelsFirst(Conditional):
    def call(self, labels, z, training=False):
        return self.logits(z, labels)


class KeywordOnly(Conditional):
    def call(self, z, *, labels):
        return self.logits(z, labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LabelsFirst, KeywordOnly])
def test_the_parameters_of_call_name_what_is_read(kind):
    decoder = kind()
    vae = build(decoder=decoder)
    labels = np.eye(3, dtype="float32")[np.arange(len(IMAGES)) % 3]
    train(vae, {"inputs": IMAGES, "labels": labels})
    z = tf.constant([[1.0, -2.0]])
    wanted = decoder.logits(z, labels[:1])["logits"]
    np.testing.assert_allclose(vae.decode(z, labels=labels[:1]), tf.sigmoid(wanted), **ENOUGH)


def test_reads_names_the_inputs_of_a_network_that_does_not():
    labels, code = keras.Input((3,)), keras.Input((LATENT,))
    features = keras.layers.Concatenate()([labels, code])
    network = keras.Model(
        [labels, code], keras.layers.Reshape(SHAPE)(keras.layers.Dense(16)(features))
    )
    vae = build(decoder=named(network, "logits", reads=["labels", "z"]))
    one_hot = tf.eye(3)
    z = tf.ones([3, LATENT])
    np.testing.assert_allclose(
        vae.decode(z, labels=one_hot), tf.sigmoid(network([one_hot, z])), **ENOUGH
    )


# Mistakes.


def test_a_misspelt_name_in_reads_is_refused():
    network = keras.Sequential([keras.layers.Dense(16), keras.layers.Reshape(SHAPE)])
    vae = build(decoder=named(network, "logits", reads=["z_maen"]))
    with pytest.raises(ValueError, match=r"reads 'z_maen'.*Did you mean 'z_mean'"):
        train(vae)


def test_outputs_without_names_are_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"encoder.*returned 2 tensors without.*named\(network"):
        build(encoder=SubclassedEncoder()).forward(IMAGES)
    decoder = keras.Sequential([keras.layers.Dense(16), keras.layers.Reshape(SHAPE)])
    with pytest.raises(TypeError, match=r"decoder.*returned 1 tensor without.*'logits'"):
        build(decoder=decoder).forward(IMAGES)


def test_a_wrong_number_of_names_is_refused():
    encoder = named(SubclassedEncoder(), "z_mean", "z_log_var", "z")
    with pytest.raises(ValueError, match=r"returns 2 tensors, and named\(\) was given 3 names"):
        build(encoder=encoder).forward(IMAGES)


def test_a_name_that_the_bottleneck_needs_and_nobody_writes_is_named():
    encoder = named(SubclassedEncoder(), "z_mean", "z_logvar")
    with pytest.raises(ValueError, match=r"bottleneck reads 'z_log_var'.*Did you mean 'z_logvar'"):
        build(encoder=encoder).forward(IMAGES)


@pytest.mark.parametrize("name", ["inputs", "targets", "step", "seed"])
def test_nothing_is_overwritten(name):
    decoder = named(keras.Sequential([keras.layers.Dense(16), keras.layers.Reshape(SHAPE)]), name)
    with pytest.raises(ValueError, match=f"decoder writes '{name}', which the forward pass has"):
        build(decoder=decoder).forward(IMAGES)


def test_an_encoder_of_another_latent_size_is_refused():
    encoder = dense_encoder(SHAPE, LATENT + 1)
    with pytest.raises(ValueError, match=r"latent_dim=2\) needs 2 in the last axis"):
        build(encoder=encoder).forward(IMAGES)


def test_a_decoder_of_another_shape_is_refused():
    decoder = dense_decoder((4, 1, 4), LATENT)  # would broadcast to [8, 4, 4, 4]
    with pytest.raises(ValueError, match=r"compares targets of shape \(8, 4, 4, 1\) with 'logits'"):
        train(build(decoder=decoder))


# Layers that behave differently in training.


def pretrained():
    """A network with batch normalisation whose statistics come from other data."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    features = keras.layers.Dense(8)(keras.layers.Flatten()(image))
    network = keras.Model(image, keras.layers.BatchNormalization()(features))
    random = np.random.default_rng(1)
    network.set_weights([random.random(weight.shape) + 0.5 for weight in network.get_weights()])
    return network


def on_top_of(network):
    image = keras.Input(SHAPE)
    features = network(image)
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    return keras.Model(image, heads)


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True] if SOAK else [True])
def test_a_frozen_network_keeps_weights_and_statistics(run_eagerly):
    network = pretrained()
    network.trainable = False
    encoder = on_top_of(network)
    vae = build(encoder, run_eagerly=run_eagerly)
    before, answers = copies(network), network(IMAGES).numpy()
    heads = [weight.numpy() for weight in encoder.trainable_variables]
    train(vae, epochs=2, validation_data=IMAGES)
    assert not any(moved(before, copies(network)))
    np.testing.assert_array_equal(network(IMAGES), answers)
    assert len(heads) == 4
    assert all(moved(heads, [weight.numpy() for weight in encoder.trainable_variables]))
    # In a training pass, too, it normalises by its own statistics and not by those of the batch.
    alone = vae.forward(IMAGES[:1], training=True)["z_mean"]
    together = vae.forward(IMAGES, training=True)["z_mean"]
    np.testing.assert_allclose(alone[0], together[0], **ENOUGH)


@pytest.mark.slow
def test_a_frozen_encoder_leaves_the_decoder_to_be_trained():
    encoder = on_top_of(pretrained())
    encoder.trainable = False
    vae = build(encoder)
    before, decoder = copies(encoder), copies(vae.decoder)
    history = train(vae, epochs=2)
    assert not any(moved(before, copies(encoder)))
    assert all(moved(decoder, copies(vae.decoder)))
    assert history["kl"][0] == pytest.approx(history["kl"][1], rel=1e-6)
    assert len(vae.trainable_variables) == len(decoder)


def statistics(network):
    layer = next(x for x in network.layers if isinstance(x, keras.layers.BatchNormalization))
    return [layer.moving_mean.numpy(), layer.moving_variance.numpy()]


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_batch_normalisation_moves_in_training_and_only_there(run_eagerly):
    network = pretrained()
    vae = build(on_top_of(network), run_eagerly=run_eagerly, learning_rate=0.0)
    before = statistics(network)
    evaluate(vae)
    vae.predict(IMAGES, verbose=0)
    vae.posterior(IMAGES)
    vae.reconstruct(IMAGES)
    vae.sample(2)
    vae.forward(IMAGES)
    assert not any(moved(before, statistics(network)))
    vae.train_on_batch(IMAGES)
    assert all(moved(before, statistics(network)))
    # m <- 0.99 m + 0.01 mean of the batch, Keras' default momentum.
    dense = network.layers[-2]
    batch_mean = dense(IMAGES.reshape(len(IMAGES), -1)).numpy().mean(axis=0)
    wanted = 0.99 * before[0] + 0.01 * batch_mean
    np.testing.assert_allclose(statistics(network)[0], wanted, **ENOUGH)


@pytest.mark.slow
def test_evaluation_normalises_by_the_statistics_of_training():
    vae = build(on_top_of(pretrained()))
    train(vae)
    together = vae.posterior(IMAGES)["z_mean"]
    alone = vae.posterior(IMAGES[:1])["z_mean"]
    np.testing.assert_allclose(together[:1], alone, **ENOUGH)
    # In training one example alone is its own mean: every example gives the same.
    vae.forward(IMAGES[:1], training=True)
    first = vae.forward(IMAGES[:1], training=True)["z_mean"]
    second = vae.forward(IMAGES[1:2], training=True)["z_mean"]
    np.testing.assert_allclose(first, second, **ENOUGH)
    assert not np.allclose(together[0], together[1], atol=1e-3)


def dropping_functional():
    image = keras.Input(SHAPE)
    features = keras.layers.Dropout(0.5)(keras.layers.Flatten()(image))
    heads = [keras.layers.Dense(LATENT)(features) for _ in range(2)]
    return named(keras.Model(image, heads), "z_mean", "z_log_var")


def dropping_sequential():
    layers = [keras.layers.Flatten(), keras.layers.Dropout(0.5), keras.layers.Dense(2 * LATENT)]
    return named(keras.Sequential(layers), "z_mean", "z_log_var")


class DroppingSubclass(SubclassedEncoder):
    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x, training=False):
        return super().call(self.dropout(x, training=training))


class DroppingInside(SubclassedEncoder):
    """Its `call` has no parameter `training`; Keras hands it on to the dropout."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x):
        return super().call(self.dropout(x))


DROPPING = {
    "functional": dropping_functional,
    "sequential": dropping_sequential,
    "subclassed": lambda: named(DroppingSubclass(), "z_mean", "z_log_var"),
    "without a parameter for it": lambda: named(DroppingInside(), "z_mean", "z_log_var"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DROPPING if SOAK else ["functional", "without a parameter for it"])
def test_dropout_is_active_in_training_alone(kind):
    keras.utils.set_random_seed(0)
    vae = build(DROPPING[kind](), learning_rate=0.0)
    evaluations = {evaluate(vae)["kl"] for _ in range(3)}
    assert len(evaluations) == 1
    np.testing.assert_array_equal(vae.posterior(IMAGES)["z_mean"], vae.posterior(IMAGES)["z_mean"])
    np.testing.assert_array_equal(vae.reconstruct(IMAGES), vae.reconstruct(IMAGES))
    # The KL divergence is in closed form and the weights stand still: only dropout can move it.
    steps = {vae.train_on_batch(IMAGES, return_dict=True)["kl"] for _ in range(3)}
    assert len(steps) == 3
    assert not steps & evaluations
    assert evaluate(vae)["kl"] in evaluations
