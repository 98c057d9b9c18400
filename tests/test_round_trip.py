"""Saving is loading: what a file gives back, what is refused, what stays shared, what is exported.

Layers are written as users write them: made in `__init__`, without a `build`. Everything is
compared by `==`, since nothing is computed in another order.
"""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_research import (
    VAE,
    Bernoulli,
    Critic,
    Data,
    GaussianBottleneck,
    KLDivergence,
    LossTerm,
    MonteCarloKL,
    convolutional_decoder,
    dense_decoder,
    dense_encoder,
    named,
    probability,
    serialization,
)
from vae_research.runs.report import outputs
from vae_research.state import saved_variables

SHAPE = (4, 4, 1)
LATENT = 2
IMAGES = (np.random.default_rng(0).random((16, *SHAPE)) < 0.3).astype("float32")
LABELS = np.eye(3, dtype="float32")[np.arange(len(IMAGES)) % 3]
CONDITIONAL = {"inputs": IMAGES, "labels": LABELS}

registered = keras.saving.register_keras_serializable(package="test_round_trip")


# Layers with layers of their own.


@registered
class Corrected(GaussianBottleneck):
    """Corrects the parameters by networks of its own."""

    def __init__(self, latent_dim, **kwargs):
        super().__init__(latent_dim, **kwargs)
        self.scale = keras.layers.Dense(latent_dim)
        self.shift = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(latent_dim)])

    def call(self, z_mean, z_log_var, seed):
        return super().call(z_mean + self.shift(z_mean), self.scale(z_log_var), seed)


@registered
class Residual(keras.layers.Layer):
    """A module after the decoder, with a layer of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(1)

    def call(self, raw):
        return {"logits": raw + self.dense(raw)}


@registered
class VampPrior(GaussianBottleneck):
    """A mixture of posteriors of learned inputs as prior (Tomczak and Welling 2018)."""

    def __init__(self, latent_dim, encoder, **kwargs):
        super().__init__(latent_dim, **kwargs)
        self.encoder = encoder
        self.learned_inputs = self.add_weight(shape=(3, *SHAPE), initializer="random_uniform")

    def call(self, z_mean, z_log_var, seed):
        written = super().call(z_mean, z_log_var, seed)
        prior = self.encoder(self.learned_inputs)
        deviation = (written["z"][:, None] - prior["z_mean"]) * tf.exp(-0.5 * prior["z_log_var"])
        log_density = probability.standard_normal_log_density(deviation) - 0.5 * prior["z_log_var"]
        mixture = tf.reduce_logsumexp(tf.reduce_sum(log_density, axis=-1), axis=-1)
        written["log_prior"] = mixture - tf.math.log(3.0)
        del written["kl"]
        return written

    def get_config(self):
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {**super().get_config(), "encoder": encoder}

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})


@registered
class Transposed(keras.layers.Layer):
    """Multiplies by the transposed weights of another layer, which it does not call."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, features):
        return features @ tf.transpose(self.layer.kernel)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def heads(features):
    return {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}


def build(bottleneck=None, *, encoder=None, decoder=None, terms=None, **options):
    return VAE(
        encoder or dense_encoder(SHAPE, LATENT, hidden_units=(5,)),
        bottleneck or GaussianBottleneck(LATENT),
        decoder or dense_decoder(SHAPE, LATENT, hidden_units=(5,)),
        terms or [Bernoulli(), KLDivergence()],
        **options,
    )


class Realness(LossTerm):
    """How real a critic finds the codes."""

    def per_example(self, realness):
        return tf.nn.softplus(realness[:, 0])


def own_layers():
    """Every part has layers of its own, random ones among them, and a head that is a product."""
    image = keras.Input(SHAPE)
    features = keras.layers.Dropout(0.5)(keras.layers.Flatten()(image))
    network = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])
    judge = Critic(named(network, "realness", reads=["z"]), [Realness()], "rmsprop", name="judge")
    return build(
        Corrected(LATENT),
        encoder=keras.Model(image, heads(keras.layers.BatchNormalization()(features))),
        decoder=convolutional_decoder(SHAPE, LATENT, filters=(3,), outputs=("raw",)),
        modules=[Residual()],
        critics=[judge],
    )


def shared_layers():
    """The prior has the encoder, and the decoder has weights of it."""
    shared = keras.layers.Dense(5, name="shared")
    image, z = keras.Input(SHAPE), keras.Input((LATENT,))
    encoder = keras.Model(image, heads(shared(keras.layers.Flatten()(image))))
    pixels = Transposed(shared)(keras.layers.Dense(5, name="other")(z))
    decoder = keras.Model(z, keras.layers.Reshape(SHAPE)(pixels))
    return build(
        VampPrior(LATENT, encoder),
        encoder=encoder,
        decoder=named(decoder, "logits"),
        terms=[Bernoulli(), MonteCarloKL()],
    )


def shared_in_two_graphs():
    """One layer is called in two functional networks, and twice in the second."""
    shared = keras.layers.Dense(2, name="shared")
    image, labels = keras.Input(SHAPE, name="inputs"), keras.Input((3,), name="labels")
    features = keras.layers.Concatenate()([keras.layers.Flatten()(image), shared(labels)])
    encoder = keras.Model([image, labels], heads(features))
    z, labels = keras.Input((LATENT,), name="z"), keras.Input((3,), name="labels")
    doubled = shared(keras.layers.Rescaling(2.0)(labels))
    features = keras.layers.Concatenate()([z, shared(labels), doubled])
    logits = keras.layers.Reshape(SHAPE)(keras.layers.Dense(16)(features))
    return build(encoder=encoder, decoder=keras.Model([z, labels], {"logits": logits}))


MODELS = {
    "own layers": (own_layers, IMAGES),
    "shared layers": (shared_layers, IMAGES),
    "shared in two graphs": (shared_in_two_graphs, CONDITIONAL),
}


def pairs_of_one(vae):
    """Returns the places at which a model has one and the same layer."""
    if isinstance(vae.bottleneck, VampPrior):
        transposed = vae.decoder.network.layers[-2]
        yield vae.encoder, vae.bottleneck.encoder
        yield vae.encoder.get_layer("shared"), transposed.layer
    elif isinstance(vae.decoder.inputs, list) and len(vae.decoder.inputs) == 2:
        yield vae.encoder.get_layer("shared"), vae.decoder.get_layer("shared")


def trained(make, data=IMAGES):
    """A model after a step, so that optimizers and random layers have a state."""
    vae = make()
    vae.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    vae.train_on_batch(data)
    return vae


def elbo(vae, data=IMAGES):
    return vae.report(data)[1].elbo


def values(vae):
    return [variable.numpy() for variable in saved_variables(vae)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def through_a_file(vae, folder):
    vae.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


# What comes back.


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("error:[\\s\\S]*unbuilt state", "error:Skipping variable loading")
def test_a_loaded_model_is_the_saved_one_and_goes_on_as_it_would(kind, tmp_path):
    make, data = MODELS[kind]
    vae = trained(make, data)
    loaded = through_a_file(vae, tmp_path)
    assert all(one is other for one, other in pairs_of_one(loaded))
    assert len(list(pairs_of_one(loaded))) == len(list(pairs_of_one(vae)))
    assert_same(values(loaded), values(vae))
    assert_same(elbo(loaded, data), elbo(vae, data))
    assert loaded.train_on_batch(data) == vae.train_on_batch(data)
    assert_same(values(loaded), values(vae))


def test_layers_that_are_equal_are_not_made_one(tmp_path):
    """A layer with the settings of another, and its name, stays another layer."""
    vae = shared_layers()
    vae.decoder.network.get_layer("other").name = "shared"
    loaded = through_a_file(vae, tmp_path)
    assert len(loaded.weights) == len(vae.weights)
    assert loaded.decoder.network.get_layer("shared") is not loaded.encoder.get_layer("shared")


@pytest.mark.slow
def test_a_loaded_model_is_saved_and_loaded_again(tmp_path):
    vae = shared_in_two_graphs()
    vae.forward(CONDITIONAL)
    again = through_a_file(through_a_file(vae, tmp_path), tmp_path)
    assert_same(elbo(again, CONDITIONAL), elbo(vae, CONDITIONAL))


# A model that was never called.


@pytest.mark.slow
@pytest.mark.parametrize("first", ["predict", "sample"])
def test_fit_makes_every_layer_whatever_was_called_before(first):
    vae = own_layers()
    vae.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    if first == "predict":
        vae.predict_on_batch(IMAGES)
    else:
        vae.sample(2)
    assert not vae.built
    vae.fit(IMAGES, batch_size=16, verbose=0)
    assert vae.built
    assert len(vae.optimizer.variables) == 2 + 2 * len(vae.trainable_variables)
    (judge,) = vae.critics
    assert len(judge.optimizer.variables) == 2 + len(judge.trainable_variables) == 6


def test_layers_are_asked_and_not_their_owner():
    bottleneck = Corrected(LATENT)
    assert not serialization.has_all_variables(bottleneck)
    with pytest.warns(UserWarning, match="unbuilt state"):
        bottleneck.build(None)  # marks it as built, and makes nothing
    assert bottleneck.built and not serialization.has_all_variables(bottleneck)
    bottleneck(tf.zeros([1, LATENT]), tf.zeros([1, LATENT]), seed=tf.constant([0, 0]))
    assert serialization.has_all_variables(bottleneck)
    assert serialization.has_all_variables(GaussianBottleneck(LATENT))


# What is refused.


class Unknown(GaussianBottleneck):
    """Not registered."""


@registered
class Forgetful(GaussianBottleneck):
    """Has a setting that it does not save."""

    def __init__(self, latent_dim, factor=1.0, **kwargs):
        super().__init__(latent_dim, **kwargs)
        self.factor = factor

    def call(self, z_mean, z_log_var, seed):
        return super().call(self.factor * z_mean, z_log_var, seed)


@registered
class Demanding(Forgetful):
    """Has a setting that it does not save, and no default for it."""

    def __init__(self, latent_dim, factor, **kwargs):
        super().__init__(latent_dim, factor, **kwargs)


@registered
class Untold(GaussianBottleneck):
    """Has no settings to be saved: an argument is no plain data."""

    def __init__(self, function):
        super().__init__(LATENT)

    def get_config(self):
        raise NotImplementedError("write get_config")


@registered
class Borrowing(GaussianBottleneck):
    """Uses the encoder's layer and does not save that."""

    def __init__(self, latent_dim, layer=None, **kwargs):
        super().__init__(latent_dim, **kwargs)
        self.layer = layer or keras.layers.Dense(LATENT)

    def call(self, z_mean, z_log_var, seed):
        return super().call(self.layer(z_mean), z_log_var, seed)


@registered
class LateLayer(GaussianBottleneck):
    """Has a layer that a forward pass does not need."""

    def __init__(self, latent_dim, **kwargs):
        super().__init__(latent_dim, **kwargs)
        self.dense = keras.layers.Dense(latent_dim)

    def sample_prior(self, count, seed):
        return self.dense(super().sample_prior(count, seed))


def borrowing():
    image, layer = keras.Input(SHAPE), keras.layers.Dense(LATENT)
    features = layer(keras.layers.Dense(LATENT)(keras.layers.Flatten()(image)))
    return build(Borrowing(LATENT, layer), encoder=keras.Model(image, heads(features)))


def with_lambda():
    image = keras.Input(SHAPE)
    doubled = keras.layers.Lambda(lambda x: 2.0 * x)(keras.layers.Flatten()(image))
    return build(encoder=keras.Model(image, heads(doubled)))


def with_a_late_layer():
    vae = build(LateLayer(LATENT))
    vae.sample(1)
    return vae


REFUSED = {
    "class unknown": (
        lambda: build(Unknown(LATENT)),
        r"could not be loaded\. Keras does not know Unknown: write @keras\.saving\.register",
    ),
    "setting forgotten": (
        lambda: build(Forgetful(LATENT, 3.0)),
        r"would load as another model\. Its ELBO of two rows would be .* get_config",
    ),
    "setting missing": (
        lambda: build(Demanding(LATENT, 3.0)),
        r"could not be loaded\. .*missing 1 required .* 'factor' The get_config",
    ),
    "no settings": (lambda: build(Untold(abs)), r"write get_config$"),
    "function as schedule": (
        lambda: build(terms=[Bernoulli(), KLDivergence(weight=lambda step: 0.1)]),
        r"could not be loaded\. KLDivergence\.weight was the function .* subclass of Schedule",
    ),
    "lambda": (with_lambda, r"could not be loaded\. A lambda is code"),
    "shared layer not saved": (borrowing, r"could not be loaded\. .* get_config .* layer"),
    "layer outside of the forward pass": (
        with_a_late_layer,
        r"Of 13 variables and 11 loaded ones .* is .*kernel .*__init__ or build",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:[\\s\\S]*(lambda|unbuilt state)")
def test_what_would_not_come_back_is_not_written(kind, tmp_path):
    make, message = REFUSED[kind]
    vae = make()
    vae.forward(IMAGES[:2])
    path = tmp_path / "model.keras"
    path.write_text("as it was")
    with pytest.raises(ValueError, match=f"^model.keras was not written: .*{message}"):
        vae.save(path)
    assert [found.name for found in tmp_path.iterdir()] == ["model.keras"]
    assert path.read_text() == "as it was"


@pytest.mark.slow
def test_the_mutant_that_asks_the_bottleneck_alone_is_caught(monkeypatch, tmp_path):
    """It finds a layer built that has no variables yet, and fresh weights come back."""
    vae = build(Corrected(LATENT))
    vae.forward(IMAGES)
    monkeypatch.setattr(serialization, "has_all_variables", lambda networks: True)
    with pytest.raises(ValueError, match="would load as another model"):
        vae.save(tmp_path / "model.keras")


@pytest.mark.slow
def test_a_run_names_the_networks_that_it_did_not_write(tmp_path, capsys):
    class Decoder(keras.layers.Layer):
        """A layer and no model, which Keras saves within a model only."""

        def call(self, z):
            return {"logits": tf.reshape(tf.repeat(z, 8, axis=-1), [-1, *SHAPE])}

    vae = build(Unknown(LATENT))
    vae.forward(IMAGES[:2])
    assert outputs.save_networks(tmp_path, vae) == ["decoder.keras"]
    assert capsys.readouterr().err.startswith("warning: model.keras was not written: it could not")
    assert [found.name for found in tmp_path.iterdir()] == ["decoder.keras"]
    vae = build(decoder=Decoder(name="decoder"))
    vae.forward(IMAGES[:2])
    assert outputs.save_networks(tmp_path, vae) == []
    assert "warning: decoder.keras was not written: 'decoder' is a layer" in capsys.readouterr().err


# How it is saved.


def test_a_save_changes_no_number_that_comes_after(tmp_path):
    """Keras takes the seeds of layers from Python's random numbers, also those that it loads."""
    vae = build()
    vae.forward(IMAGES)
    state = random.getstate()
    vae.save(tmp_path / "model.keras")
    assert random.getstate() == state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_a_file_is_replaced_only_if_it_may_be(tmp_path):
    build().save(tmp_path / "model.keras")
    written = (tmp_path / "model.keras").read_bytes()
    with pytest.raises(FileExistsError, match=r"overwrite=True\) replaces it"):
        build(seed=1).save(tmp_path / "model.keras", overwrite=False)
    assert (tmp_path / "model.keras").read_bytes() == written
    build(seed=1).save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").seed == 1


@pytest.mark.parametrize("where", ["folder", "ram://test_round_trip.keras"])
def test_other_places_of_keras(where, tmp_path):
    vae = build()
    path = tmp_path / where if where == "folder" else where
    vae.save(path, zipped=where != "folder")
    assert_same(keras.models.load_model(path).get_weights(), vae.get_weights())
    with pytest.raises(ValueError, match=r"was not written: .*Keras does not know Unknown"):
        build(Unknown(LATENT)).save(path, zipped=where != "folder")
    assert_same(keras.models.load_model(path).get_weights(), vae.get_weights())


def test_a_term_that_refuses_made_up_data_hinders_no_save(tmp_path):
    class Whole(LossTerm):
        """Refuses images without a white pixel."""

        def per_example(self, inputs):
            tf.debugging.assert_equal(tf.reduce_max(inputs), 1.0)
            return tf.zeros(tf.shape(inputs)[:1])

    vae = build(terms=[Bernoulli(), KLDivergence(), Whole()])
    vae.forward(IMAGES)
    assert_same(through_a_file(vae, tmp_path).get_weights(), vae.get_weights())


# What is exported.


def exported(vae, folder):
    vae.export(folder / "exported", verbose=False)
    return tf.saved_model.load(folder / "exported")


@pytest.mark.slow
def test_a_model_is_exported_after_fit_and_after_it_was_loaded(tmp_path):
    vae = build(Corrected(LATENT))  # never called
    vae.compile("adam", run_eagerly=True)
    vae.fit(Data.from_arrays(IMAGES).train.on_device(7, seed=0), verbose=0)
    assert len(vae.optimizer.variables) == 2 + 2 * len(vae.trainable_variables)
    wanted = vae.reconstruct(IMAGES)
    for model in (vae, through_a_file(vae, tmp_path)):
        program = exported(model, tmp_path)
        for count in (1, 3):
            found = program.serve(tf.constant(IMAGES[:count]))
            np.testing.assert_allclose(found, wanted[:count], rtol=1e-5)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:[\\s\\S]*tf.lite.Interpreter is deprecated")
def test_a_model_is_exported_for_phones(tmp_path):
    """By the command of `docs/runs.md`."""
    vae = build(Corrected(LATENT))
    wanted = vae.reconstruct(IMAGES)
    vae.export(tmp_path / "model.tflite", format="litert", verbose=False)
    runner = tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    (found,) = runner(inputs=IMAGES[:5]).values()
    np.testing.assert_allclose(found, wanted[:5], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_the_reconstruction_reads_is_what_the_program_asks_for(tmp_path):
    vae = shared_in_two_graphs()
    vae.forward({**CONDITIONAL, "targets": 1.0 - IMAGES})
    program = exported(vae, tmp_path)
    arguments = program.signatures["serving_default"].structured_input_signature[1]
    assert {name: spec.shape.as_list() for name, spec in arguments.items()} == {
        "inputs": [None, *SHAPE],
        "labels": [None, 3],
    }
    found = program.serve({name: tf.constant(value) for name, value in CONDITIONAL.items()})
    np.testing.assert_allclose(found, vae.reconstruct(CONDITIONAL), rtol=1e-5)


def test_targets_are_no_argument_of_a_program():
    vae = build()
    vae.forward({"inputs": IMAGES, "targets": IMAGES})
    (argument,) = serialization.input_signature(vae.call, vae._input_specs)
    assert argument == tf.TensorSpec([None, *SHAPE], tf.float32, "inputs")


def test_a_model_that_saw_no_data_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match=r"Call the model on a batch before.*input_signature=\["):
        build().export(tmp_path / "exported")
