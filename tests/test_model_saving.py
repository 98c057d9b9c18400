"""Saving and loading: `model.save`, `keras.models.load_model`, weights alone, networks alone.

"The same model" means: the same figures in an evaluation, the same next step in training (weights
and the optimizer's slots), the same schedules. Compared by `==`, since nothing is computed in
another order. The processes that the tests start have none of this module's classes.
"""

import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import forks
from vae_research import (
    VAE,
    Bernoulli,
    CapacityKL,
    Constant,
    Cosine,
    Cyclical,
    DeterministicBottleneck,
    FreeBits,
    Gaussian,
    GaussianBottleneck,
    KLDivergence,
    LinearWarmup,
    LossTerm,
    MonteCarloKL,
    ProbabilitiesToLogits,
    Schedule,
    convolutional_decoder,
    convolutional_encoder,
    dense_decoder,
    dense_encoder,
    named,
    value_at,
)

SHAPE = (4, 4, 1)
LATENT = 2
IMAGES = (np.random.default_rng(0).random((16, *SHAPE)) < 0.3).astype("float32")
LABELS = np.eye(3, dtype="float32")[np.arange(len(IMAGES)) % 3]


# Networks, each kind as a user would write it.


@keras.saving.register_keras_serializable(package="test_model_saving")
class SubclassedEncoder(keras.Model):
    """Returns a tuple and builds its weights at the first call."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(units)
        self.heads = [keras.layers.Dense(LATENT) for _ in range(2)]

    def call(self, x):
        features = self.hidden(self.flatten(x))
        return tuple(head(features) for head in self.heads)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="test_model_saving")
class SubclassedDecoder(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(16)

    def call(self, z):
        return {"logits": keras.ops.reshape(self.dense(z), (-1, *SHAPE))}


def functional():
    return dense_encoder(SHAPE, LATENT, hidden_units=(5,)), dense_decoder(
        SHAPE, LATENT, hidden_units=(5,)
    )


def convolutional():
    return convolutional_encoder(SHAPE, LATENT, filters=(3,)), convolutional_decoder(
        SHAPE, LATENT, filters=(3,)
    )


def sequential():
    encoder = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2 * LATENT)])
    decoder = keras.Sequential([keras.layers.Dense(16), keras.layers.Reshape(SHAPE)])
    return named(encoder, "z_mean", "z_log_var"), named(decoder, "logits")


def subclassed():
    return named(SubclassedEncoder(4), "z_mean", "z_log_var"), SubclassedDecoder()


def normalising():
    image = keras.Input(SHAPE)
    features = keras.layers.BatchNormalization()(keras.layers.Flatten()(image))
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    return keras.Model(image, heads), functional()[1]


def of_one_name():
    layers = [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2 * LATENT)]
    encoder = keras.Sequential(layers, name="network")
    layers = [keras.Input((LATENT,)), keras.layers.Dense(16), keras.layers.Reshape(SHAPE)]
    decoder = keras.Sequential(layers, name="network")
    return named(encoder, "z_mean", "z_log_var"), named(decoder, "logits")


NETWORKS = [functional, convolutional, sequential, subclassed, normalising, of_one_name]


def conditional_decoder():
    z, labels = keras.Input((LATENT,), name="z"), keras.Input((3,), name="labels")
    features = keras.layers.Dense(16)(keras.layers.Concatenate()([z, labels]))
    return keras.Model([z, labels], {"logits": keras.layers.Reshape(SHAPE)(features)})


def build(terms=None, networks=functional, *, bottleneck=None, **options):
    encoder, decoder = networks()
    return VAE(
        encoder,
        bottleneck or GaussianBottleneck(LATENT),
        decoder,
        [Bernoulli(), KLDivergence()] if terms is None else terms,
        **options,
    )


def trained(*args, data=IMAGES, **options):
    """A model after two steps; Adam has slots of its own for each variable."""
    vae = build(*args, **options)
    vae.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    vae.fit(data, batch_size=8, verbose=0)
    return vae


def through_a_file(vae, folder):
    vae.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def figures(vae, data=IMAGES):
    return vae.evaluate(data, batch_size=len(IMAGES), verbose=0, return_dict=True)


def assert_goes_on_alike(vae, loaded, data=IMAGES):
    """Same weights, slots and step now, and the same after one more step."""
    assert loaded.step == vae.step == 2
    assert_same(loaded.get_weights(), vae.get_weights())
    slots = [[x.numpy() for x in model.optimizer.variables] for model in (vae, loaded)]
    assert len(slots[0]) > 2 * len(vae.trainable_variables)
    assert_same(*slots)
    assert figures(loaded, data) == figures(vae, data)
    assert loaded.train_on_batch(data) == vae.train_on_batch(data)
    assert_same(loaded.get_weights(), vae.get_weights())
    assert loaded.step == 3


# A whole model.


@pytest.mark.slow
@pytest.mark.parametrize(
    "networks", [functional, *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS[1:])]
)
@pytest.mark.filterwarnings("error:Skipping variable loading")
def test_a_loaded_model_goes_on_as_the_saved_one_would(networks, tmp_path):
    vae = trained(networks=networks)
    loaded = through_a_file(vae, tmp_path)
    assert isinstance(loaded, VAE)
    assert_goes_on_alike(vae, loaded)
    assert_same(loaded.sample(3), vae.sample(3))
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), vae.predict(IMAGES, verbose=0))


@pytest.mark.slow
def test_slots_and_step_matter_for_the_next_step(tmp_path):
    """The mutant: a model that gets the weights and a fresh optimizer takes another step."""
    vae = trained()
    fresh = through_a_file(vae, tmp_path)
    fresh.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    vae.train_on_batch(IMAGES)
    fresh.train_on_batch(IMAGES)
    pairs = zip(vae.get_weights(), fresh.get_weights(), strict=True)
    assert any(np.any(one != other) for one, other in pairs)


@pytest.mark.slow
def test_what_compile_was_given_comes_back(tmp_path):
    vae = build()
    vae.compile(keras.optimizers.SGD(0.25, momentum=0.5), jit_compile=True)
    vae.predict(IMAGES[:1], verbose=0)
    loaded = through_a_file(vae, tmp_path)
    assert isinstance(loaded.optimizer, keras.optimizers.SGD)
    assert float(loaded.optimizer.learning_rate) == 0.25
    assert loaded.optimizer.momentum == 0.5
    assert loaded.jit_compile is True


@pytest.mark.slow
def test_a_model_that_was_never_compiled_is_saved_too(tmp_path):
    vae = build()
    wanted = vae.predict(IMAGES, verbose=0)
    loaded = through_a_file(vae, tmp_path)
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), wanted)
    assert loaded.step == 0


@pytest.mark.slow
def test_a_model_of_functional_networks_is_saved_before_it_saw_data(tmp_path):
    vae = build()
    loaded = through_a_file(vae, tmp_path)
    assert_same(loaded.get_weights(), vae.get_weights())


@keras.saving.register_keras_serializable(package="test_model_saving")
class LearnedScale(GaussianBottleneck):
    """A bottleneck with a weight of its own, made when it is first called."""

    def build(self, *shapes):
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, z_mean, z_log_var, seed):
        return super().call(self.scale * z_mean, z_log_var, seed)


@keras.saving.register_keras_serializable(package="test_model_saving")
class Sharper(keras.layers.Layer):
    """A module after the decoder, with a weight."""

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones")

    def call(self, raw):
        return {"logits": self.factor * raw}


def decoder_of_raw():
    encoder, _ = functional()
    return encoder, dense_decoder(SHAPE, LATENT, hidden_units=(5,), outputs=("raw",))


def decoder_of_probabilities():
    z = keras.Input((LATENT,))
    outputs = keras.layers.Reshape(SHAPE)(keras.layers.Dense(16, activation="sigmoid")(z))
    return functional()[0], named(keras.Model(z, outputs), "probabilities")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 3, "terms": [Bernoulli(), MonteCarloKL()], "importance_weighted": True},
        {"bottleneck": DeterministicBottleneck(LATENT), "terms": [Gaussian()], "seed": 2**32 - 1},
        {"bottleneck": LearnedScale(LATENT)},
        {"networks": decoder_of_raw, "modules": [Sharper()]},
        {"networks": decoder_of_probabilities, "modules": [ProbabilitiesToLogits()]},
    ],
    ids=["importance weighted", "autoencoder", "own bottleneck", "own module", "adapter"],
)
def test_every_part_of_a_model_is_saved(options, tmp_path):
    if options.get("terms") == [Gaussian()]:
        networks = (
            dense_encoder(SHAPE, LATENT, outputs=("z_mean",)),
            dense_decoder(SHAPE, LATENT, outputs=("x_mean",)),
        )
        options = {**options, "networks": lambda: networks}
    vae = trained(name="mine", **options)
    loaded = through_a_file(vae, tmp_path)
    assert loaded.name == "mine"
    assert loaded.seed == vae.seed
    assert loaded.objective.num_samples == vae.objective.num_samples
    assert loaded.objective.importance_weighted == vae.objective.importance_weighted
    assert type(loaded.bottleneck) is type(vae.bottleneck)
    assert_goes_on_alike(vae, loaded)


@pytest.mark.slow
def test_a_conditional_model_is_saved_with_its_inputs(tmp_path):
    data = {"inputs": IMAGES, "labels": LABELS}
    vae = trained(networks=lambda: (functional()[0], conditional_decoder()), data=data)
    assert_goes_on_alike(vae, through_a_file(vae, tmp_path), data)


@pytest.mark.slow
def test_what_was_asked_of_a_model_does_not_spoil_its_file(tmp_path):
    """The encoder needs no labels; that it was asked without them is no property of the model."""
    data = {"inputs": IMAGES, "labels": LABELS}
    vae = trained(networks=lambda: (functional()[0], conditional_decoder()), data=data)
    vae.posterior(IMAGES)
    assert figures(through_a_file(vae, tmp_path), data) == figures(vae, data)


@pytest.mark.slow
def test_images_of_any_size_are_saved(tmp_path):
    image, z = keras.Input((None, None, 1)), keras.Input((LATENT,), name="z")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(image))
    heads = {name: keras.layers.Dense(LATENT)(pooled) for name in ("z_mean", "z_log_var")}
    networks = keras.Model(image, heads), functional()[1]
    vae = build(networks=lambda: networks)
    vae.compile("adam", jit_compile=False)
    data = tf.data.Dataset.from_generator(
        lambda: iter([IMAGES[:8], IMAGES[8:]]),
        output_signature=tf.TensorSpec((None, None, None, 1), tf.float32),
    )
    vae.fit(data.repeat(), steps_per_epoch=2, verbose=0)
    loaded = through_a_file(vae, tmp_path)
    assert figures(loaded) == figures(vae)
    assert z.shape == (None, LATENT)


@pytest.mark.slow
def test_names_come_back(tmp_path):
    keras.backend.clear_session()
    vae = trained(networks=sequential)
    others = [sequential() for _ in range(2)]  # Keras counts names up in a process
    loaded = through_a_file(vae, tmp_path)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in vae.layers]
    assert [x.name for x in loaded.weights] == [x.name for x in vae.weights]
    inner = [[layer.name for layer in x.encoder.network.layers] for x in (vae, loaded)]
    assert inner[0] == inner[1]
    assert loaded.encoder.network.name == vae.encoder.network.name
    assert loaded.encoder.outputs_in_order == ["z_mean", "z_log_var"]
    assert others[0][0].network.name != vae.encoder.network.name


@pytest.mark.slow
def test_a_clone_has_the_same_parts_and_weights_of_its_own():
    vae = trained([Bernoulli(), KLDivergence(weight=LinearWarmup(steps=3))], num_samples=2)
    clone = keras.models.clone_model(vae)
    assert (clone.name, clone.encoder.name, clone.decoder.name) == ("vae", "encoder", "decoder")
    assert clone.objective.terms == vae.objective.terms
    assert clone.objective.num_samples == 2
    before = vae.encoder.get_weights()
    clone.encoder.set_weights([weight + 1.0 for weight in before])
    assert_same(vae.encoder.get_weights(), before)


def test_the_configuration_makes_an_equal_model():
    vae = build(
        [Bernoulli(weight=0.5), KLDivergence(weight=Cosine(epochs=1.5), name="rate")],
        networks=sequential,
        seed=11,
        num_samples=2,
        name="study",
    )
    config = vae.get_config()
    again = VAE.from_config(config)
    assert again.get_config() == vae.get_config()
    assert again.objective.terms == vae.objective.terms
    assert (again.seed, again.name, again.objective.num_samples) == (11, "study", 2)


@pytest.mark.parametrize("networks", [functional, sequential])
def test_a_configuration_can_be_used_twice(networks):
    vae = build(networks=networks)
    config = vae.get_config()
    VAE.from_config(config)
    assert config == vae.get_config()
    VAE.from_config(config)


# Terms and schedules.


class Halving(Schedule):
    """A schedule of this test."""

    steps: int = 2

    def __call__(self, step):
        return 0.5 ** (step / self.steps)


class Shrinkage(LossTerm):
    """A term of this test, whose setting is a schedule and whose name is not its class's."""

    strength: float | Schedule = 1.0
    powers: tuple[int, ...] = (2,)
    default_name = "shrink"

    def per_example(self, z_mean, step):
        values = sum(tf.abs(z_mean) ** power for power in self.powers)
        return value_at(self.strength, step) * tf.reduce_sum(values, axis=-1)


SCHEDULES = {
    "warm_up_in_steps": LinearWarmup(peak=2.0, steps=7),
    "warm_up_in_epochs": LinearWarmup(epochs=4.5),
    "cosine": Cosine(epochs=4, start=0.1),
    "cyclical": Cyclical(steps=6, rising=0.3, cycles=None),
    "constant": Constant(value=0.3),
    "own_schedule": Halving(steps=3),
}
# All of a kind in one model; each of them is compared.
TERMS = {
    "schedules": [KLDivergence(weight=weight, name=name) for name, weight in SCHEDULES.items()],
    "terms": [
        CapacityKL(weight=2.0, capacity=LinearWarmup(peak=3.0, epochs=5)),
        FreeBits(nats_per_dimension=0.3),
        FreeBits(rename={"kl": "kl"}, weight=None, name="renamed"),
        KLDivergence(weight=None),
        KLDivergence(name="rate"),
        Shrinkage(strength=LinearWarmup(steps=9), powers=(2, 4)),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_terms_and_schedules_are_saved(kind, tmp_path):
    vae = build([Bernoulli(), *TERMS[kind]])
    vae.set_steps_per_epoch(2)
    loaded = through_a_file(vae, tmp_path)
    assert loaded.objective.terms == vae.objective.terms  # in steps, as training left them
    assert loaded.steps_per_epoch == vae.steps_per_epoch == 2
    assert loaded.get_config()["terms"] == vae.get_config()["terms"]  # as they were declared


@pytest.mark.slow
def test_a_schedule_goes_on_after_loading(tmp_path):
    terms = [
        Bernoulli(),
        KLDivergence(weight=LinearWarmup(steps=5)),
        Shrinkage(strength=LinearWarmup(steps=9), powers=(2, 4)),
    ]
    vae = trained(terms)
    assert_goes_on_alike(vae, through_a_file(vae, tmp_path))


@pytest.mark.slow
def test_a_length_in_epochs_continues_after_loading(tmp_path):
    """The first epoch had 2 steps, and the nine that are left have 4."""
    terms = [Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=10))]
    vae = build(terms)
    vae.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    with pytest.warns(UserWarning, match="settles at step 20"):
        vae.fit(IMAGES, batch_size=8, verbose=0)
    loaded = through_a_file(vae, tmp_path)
    with pytest.warns(UserWarning, match="settles at step 38"):
        loaded.fit(IMAGES, batch_size=4, verbose=0)


@pytest.mark.slow
def test_a_function_as_schedule_is_refused_with_the_way_out(tmp_path):
    vae = trained([Bernoulli(), KLDivergence(weight=lambda step: 0.1 * step)])
    with pytest.raises(
        ValueError, match=r"KLDivergence\.weight was the function .*subclass of Sch"
    ):
        vae.save(tmp_path / "model.keras")
    # The way out that the message gives.
    vae.save_weights(tmp_path / "model.weights.h5")
    again = trained([Bernoulli(), KLDivergence(weight=lambda step: 0.1 * step)])
    again.load_weights(tmp_path / "model.weights.h5")
    assert figures(again) == figures(vae)


# Weights alone.


@pytest.mark.slow
def test_weights_step_and_slots_go_through_a_weights_file(tmp_path):
    vae = trained()
    vae.save_weights(tmp_path / "w.weights.h5")
    other = build()
    other.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    other.train_on_batch(IMAGES)
    other.load_weights(tmp_path / "w.weights.h5")
    assert_goes_on_alike(vae, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Skipping variable loading")
@pytest.mark.parametrize("called", [False, True], ids=["never called", "called once"])
def test_weights_load_into_a_compiled_model_that_was_not_trained(called, tmp_path):
    """Keras would skip step and slots with a warning, and a warm-up would run twice."""
    vae = trained()
    vae.save_weights(tmp_path / "w.weights.h5")
    fresh = build()
    fresh.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    if called:
        fresh(IMAGES)
    fresh.load_weights(tmp_path / "w.weights.h5")
    assert_goes_on_alike(vae, fresh)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping variable loading")
def test_weights_of_functional_networks_load_into_a_model_that_saw_no_data(tmp_path):
    vae = trained()
    vae.save_weights(tmp_path / "w.weights.h5")
    fresh = build()
    fresh.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(fresh.predict(IMAGES, verbose=0), vae.predict(IMAGES, verbose=0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "terms",
    [
        [Bernoulli(), KLDivergence(weight=LinearWarmup(steps=2))],
        [Bernoulli(), KLDivergence(), Shrinkage(weight=None)],
        [Bernoulli(name="nll"), FreeBits()],
    ],
    ids=["scheduled", "with a monitor", "other terms"],
)
def test_weights_load_into_a_model_of_other_terms(terms, tmp_path):
    """Terms have no variables: what is trained next is a choice, and no part of the weights."""
    vae = trained()
    vae.save_weights(tmp_path / "w.weights.h5")
    other = build(terms)
    other.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    other.train_on_batch(IMAGES)
    other.load_weights(tmp_path / "w.weights.h5")
    assert_same(other.get_weights(), vae.get_weights())
    assert other.step == vae.step


@pytest.mark.slow
def test_weights_of_another_network_are_refused(tmp_path):
    vae = trained()
    vae.save_weights(tmp_path / "w.weights.h5")
    other = build(networks=convolutional)
    other.compile(keras.optimizers.Adam(0.01))
    other(IMAGES)
    with pytest.raises(ValueError, match=r"[Ll]ayer"):
        other.load_weights(tmp_path / "w.weights.h5")


# In other processes.

IN_ANOTHER_PROCESS = """
import sys
import keras
import numpy as np
"""


def in_another_process(program, folder, *arguments, package=True):
    """Runs a program in an empty folder, in a process that has imported no more than Keras."""
    # An import of it fails then.
    hidden = "" if package else 'import sys; sys.modules["vae_research"] = None'
    code = f"{hidden}\n{IN_ANOTHER_PROCESS}\n{textwrap.dedent(program)}"
    folder.mkdir()
    return forks.run("-c", code, *arguments, cwd=folder, package=False)


@pytest.mark.slow
def test_a_term_whose_module_is_not_imported_is_named_with_the_module(tmp_path):
    path = tmp_path / "model.keras"
    trained([Bernoulli(), KLDivergence(), Shrinkage()]).save(path)
    program = """
    import vae_research.model  # registers VAE with Keras; the term's module it does not know
    try:
        keras.models.load_model(sys.argv[1])
    except ValueError as error:
        print("ValueError:", error)
    """
    done = in_another_process(program, tmp_path / "elsewhere", path)
    assert done.returncode == 0, done.stderr
    wanted = "uses Shrinkage, which is not defined here. Import the module that defines it (it "
    assert done.stdout.startswith("ValueError: The saved model " + wanted)
    assert f"was {Shrinkage.__module__!r} when the model was saved" in done.stdout


@pytest.mark.slow
def test_a_model_loads_in_a_process_that_used_none_of_its_parts(tmp_path):
    """Public names are loaded on first use; loading must find parts that nobody has used yet."""
    path = tmp_path / "model.keras"
    vae = trained(
        [Bernoulli(), CapacityKL(capacity=Cosine(steps=5)), KLDivergence(weight=None)],
        networks=decoder_of_probabilities,
        modules=[ProbabilitiesToLogits()],
    )
    vae.save(path)
    np.save(tmp_path / "images.npy", IMAGES)
    program = """
    import vae_research
    vae_research.VAE
    vae = keras.models.load_model(sys.argv[1])
    images = np.load(sys.argv[2])
    vae.run_eagerly = True
    print(vae.evaluate(images, batch_size=16, verbose=0, return_dict=True)["loss"], vae.step)
    """
    done = in_another_process(program, tmp_path / "elsewhere", path, tmp_path / "images.npy")
    assert done.returncode == 0, done.stderr
    loss, step = done.stdout.split()
    assert float(loss) == figures(vae)["loss"]
    assert int(step) == vae.step


@pytest.mark.slow
def test_networks_saved_alone_load_without_this_package(tmp_path):
    wanted = {}
    for kind in (functional, convolutional):
        vae = trained(networks=kind)
        codes = vae.posterior(IMAGES)
        wanted[f"{kind.__name__}_encoder"] = codes["z_log_var"].numpy()
        wanted[f"{kind.__name__}_decoder"] = vae.decoder(codes["z_mean"])["logits"].numpy()
        np.save(tmp_path / f"{kind.__name__}_codes.npy", codes["z_mean"])
        vae.encoder.save(tmp_path / f"{kind.__name__}_encoder.keras")
        vae.decoder.save(tmp_path / f"{kind.__name__}_decoder.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    program = """
    from pathlib import Path
    folder = Path(sys.argv[1])
    images = np.load(folder / "images.npy")
    for kind in ("functional", "convolutional"):
        codes = np.load(folder / f"{kind}_codes.npy")
        encoder = keras.models.load_model(folder / f"{kind}_encoder.keras")
        decoder = keras.models.load_model(folder / f"{kind}_decoder.keras")
        np.save(f"{kind}_encoder.npy", encoder(images)["z_log_var"])
        np.save(f"{kind}_decoder.npy", decoder(codes)["logits"])
    try:
        import vae_research
    except ImportError:
        print("without the package")
    """
    done = in_another_process(program, tmp_path / "elsewhere", tmp_path, package=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "without the package\n"
    for name, values in wanted.items():
        np.testing.assert_allclose(
            np.load(tmp_path / "elsewhere" / f"{name}.npy"), values, rtol=1e-5, atol=1e-6
        )
