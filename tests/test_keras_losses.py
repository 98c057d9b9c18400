"""The layers that bring the loss of a VAE into Keras' own models: figures, saving, refusals.

What they train is in test_keras_losses_parity.py, and noise in test_sampling_layer.py.
"""

import textwrap

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tests import forks
from tests.proofs import SOAK
from vae_research import (
    AddLossModel,
    KLLossLayer,
    ReportLosses,
    SamplingLayer,
    VAELossLayer,
    dense_decoder,
    dense_encoder,
    named,
)
from vae_research.randomness import evaluation_key, fold_in, standard_normal, training_key

PLACES = ("top", "encoder", "model", "step")
LAYERS = PLACES[:3]
SHAPE, LATENT, FACTOR, SEED = (3, 2, 1), 2, 0.3, 5
IMAGES = np.random.default_rng(0).random((5, *SHAPE)).astype("float32")
CODES = np.zeros([5, LATENT], "float32")
FIGURES = {"loss", "total_loss", "reco_loss", "kl_loss"}
KEY = training_key(SEED, 0)  # of the first training step
RTOL = 1e-5  # of float32 figures


def networks(scale=1.0):
    """Returns the same small encoder and decoder every time."""
    pair = (
        dense_encoder(SHAPE, LATENT, hidden_units=(4,), activation="tanh"),
        dense_decoder(SHAPE, LATENT, hidden_units=(4,), activation="tanh"),
    )
    rng = np.random.default_rng(1)
    for network in pair:
        network.set_weights([scale * rng.standard_normal(w.shape) for w in network.get_weights()])
    return pair


@pytest.fixture
def compiled(formulate):
    """A function that makes one of the formulations, compiled to stand still unless told to."""

    def compiled(place, optimizer=None, pair=None, **settings):
        settings = {"jit_compile": False} | settings
        if place == "encoder":
            entropy = keras.metrics.BinaryCrossentropy(from_logits=True, name="reco_loss")
            settings["metrics"] = [entropy]
        formulation = formulate(place, *(pair or networks()), FACTOR, SEED)
        return formulation.compile(optimizer or keras.optimizers.SGD(0.0), **settings)

    return compiled


def figures_by_hand(pair, x, key):
    """Returns cross-entropy and KL loss of each example, in float64, without the layers."""
    encoder, decoder = pair
    codes = {name: code.numpy().astype(np.float64) for name, code in encoder(x).items()}
    mean, log_var = codes["z_mean"], codes["z_log_var"]
    noise = standard_normal(mean.shape, fold_in(key, "bottleneck")).numpy()
    logits = decoder(mean + np.exp(log_var / 2) * noise)["logits"].numpy().astype(np.float64)
    log_p, log_not_p = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
    entropy = -(x * log_p + (1 - x) * log_not_p).mean(axis=(1, 2, 3))
    return entropy, FACTOR * -(1 + log_var - mean**2 - np.exp(log_var)).mean(axis=1)


# Figures.


@pytest.mark.slow
@pytest.mark.parametrize("place", LAYERS)
def test_fit_reports_means_over_examples_also_with_a_short_last_batch(compiled, place):
    formulation = compiled(place)
    found = {k: v[0] for k, v in formulation.fit(IMAGES, batch_size=2).items()}
    pair = formulation.encoder, formulation.decoder
    batches = [
        figures_by_hand(pair, IMAGES[2 * step : 2 * step + 2], training_key(SEED, step))
        for step in range(3)  # of two, two and one examples
    ]
    entropy, kl = (np.concatenate(values) for values in zip(*batches, strict=True))
    assert found.keys() == FIGURES - ({"total_loss"} if place == "encoder" else set())
    assert found["reco_loss"] == pytest.approx(entropy.mean(), rel=RTOL)
    assert found["kl_loss"] == pytest.approx(kl.mean(), rel=RTOL)
    assert found["loss"] == pytest.approx((entropy + kl).mean(), rel=RTOL)
    assert found.get("total_loss", found["loss"]) == pytest.approx(found["loss"], rel=RTOL)
    # The mutant, a mean over batches, is another number.
    assert np.mean([kl.mean() for _, kl in batches]) != pytest.approx(kl.mean(), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_each_reports_the_three_losses_by_one_name(compiled, place):
    formulation = compiled(place, run_eagerly=True)
    settings = {"callbacks": [ReportLosses()], "validation_data": (IMAGES, IMAGES)}
    found = {name: values[0] for name, values in formulation.fit(IMAGES, **settings).items()}
    pair = formulation.encoder, formulation.decoder
    keys = {"": training_key(SEED, 0), "val_": evaluation_key(SEED, 0)}
    for prefix, key in keys.items():
        entropy, kl = (values.mean() for values in figures_by_hand(pair, IMAGES, key))
        assert found[f"{prefix}reco_loss"] == pytest.approx(entropy, rel=RTOL)
        assert found[f"{prefix}kl_loss"] == pytest.approx(kl, rel=RTOL)
        assert found[f"{prefix}total_loss"] == pytest.approx(entropy + kl, rel=RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("place", LAYERS)
def test_evaluate_reports_the_same_figures_every_time(compiled, place):
    formulation = compiled(place)
    arrays = (IMAGES, IMAGES) if place == "encoder" else (IMAGES,)
    first, second = (
        formulation.model.evaluate(*arrays, batch_size=5, verbose=0, return_dict=True)
        for _ in range(2)
    )
    assert first == second
    pair = formulation.encoder, formulation.decoder
    entropy, kl = figures_by_hand(pair, IMAGES, evaluation_key(SEED, 0))
    assert first["reco_loss"] == pytest.approx(entropy.mean(), rel=RTOL)
    assert first["kl_loss"] == pytest.approx(kl.mean(), rel=RTOL)
    assert first["loss"] == pytest.approx((entropy + kl).mean(), rel=RTOL)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "eager"), [("top", True), ("encoder", False), ("model", True)])
def test_metrics_begin_anew_with_every_epoch_and_evaluation(compiled, place, eager):
    # The KL loss has no noise: standing still it is the same in every epoch, and another one for
    # other data, whatever was seen before.
    formulation = compiled(place, run_eagerly=eager)
    pair = formulation.encoder, formulation.decoder
    kl = figures_by_hand(pair, IMAGES, evaluation_key(SEED, 0))[1]
    validation = (IMAGES[:2], IMAGES[:2]) if place == "encoder" else IMAGES[:2]
    found = formulation.fit(IMAGES, epochs=3, validation_data=validation)
    np.testing.assert_allclose(found["kl_loss"], [kl.mean()] * 3, rtol=RTOL)
    np.testing.assert_allclose(found["val_kl_loss"], [kl[:2].mean()] * 3, rtol=RTOL)
    assert kl[:2].mean() != pytest.approx(kl.mean(), rel=0.01)
    # Losses of earlier steps are not added up either.
    np.testing.assert_allclose(found["loss"], np.add(found["reco_loss"], kl.mean()), rtol=RTOL)


# Targets.


@pytest.mark.slow
# That of the step is a `VAE`, whose tests are in test_model_training.py.
@pytest.mark.parametrize("place", ["top", "model", "step"] if SOAK else ["top", "model"])
def test_fit_needs_no_y(compiled, place):
    formulation = compiled(place)
    for data in (IMAGES, tf.data.Dataset.from_tensor_slices(IMAGES).batch(5)):
        formulation.start(0)
        figures = formulation.model.fit(data, shuffle=False, verbose=0).history
        expected = figures_by_hand((formulation.encoder, formulation.decoder), IMAGES, KEY)
        assert figures["loss"][0] == pytest.approx(np.sum(expected) / 5, rel=RTOL)
        if place != "step":
            assert figures["loss"] == figures["total_loss"]


@pytest.mark.slow
def test_loss_left_to_keras_needs_a_y(compiled):
    with pytest.raises(ValueError, match=r"^None values not supported\.$"):
        compiled("encoder").model.fit(IMAGES, verbose=0)


# Saving and loading.


@pytest.mark.slow
@pytest.mark.parametrize("place", LAYERS)
def test_loaded_model_trains_on_as_the_saved_one(compiled, place, tmp_path):
    formulation = compiled(place, keras.optimizers.SGD(0.5, momentum=0.9), run_eagerly=True)
    formulation.fit(IMAGES, epochs=3)
    formulation.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(formulation.model)
    (counter,) = (v for v in loaded.non_trainable_variables if v.path.endswith("counter"))
    assert int(counter) == int(loaded.optimizer.iterations) == 3
    arrays = (IMAGES, IMAGES) if place == "encoder" else (IMAGES,)
    expected = formulation.fit(IMAGES)
    found = loaded.fit(*arrays, batch_size=5, shuffle=False, verbose=0).history
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=RTOL)
    before = keras.models.load_model(tmp_path / "model.keras").get_weights()
    pairs = zip(loaded.get_weights(), formulation.model.get_weights(), before, strict=True)
    for a, b, old in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.max(np.abs(b - old)) > 1e-4, "all weights moved, and the counter"


@pytest.mark.slow
def test_models_are_loaded_by_a_process_that_only_imports_the_package(compiled, tmp_path):
    for place in LAYERS:
        formulation = compiled(place, keras.optimizers.SGD(0.5), run_eagerly=True)
        formulation.fit(IMAGES)
        formulation.model.save(tmp_path / f"{place}.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    program = f"""
        import keras, vae_research
        import numpy, pathlib
        folder = pathlib.Path({str(tmp_path)!r})
        x = numpy.load(folder / "images.npy")
        for place in {LAYERS!r}:
            model = keras.models.load_model(folder / f"{{place}}.keras")
            losses = model.fit(x, x, epochs=2, verbose=0).history["loss"]
            assert numpy.isfinite(losses).all()
            print(place, int(model.optimizer.iterations))
    """
    done = forks.run("-c", textwrap.dedent(program), cwd=tmp_path, package=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["top 3", "encoder 3", "model 3"]


# Bad arguments.


@pytest.mark.parametrize("make", [VAELossLayer, KLLossLayer, lambda f: AddLossModel(None, None, f)])
@pytest.mark.parametrize(
    "factor", [-0.1, float("nan"), float("inf"), True, "1", None, keras.Input((1,))], ids=str
)
def test_bad_factor_is_refused(make, factor):
    with pytest.raises(ValueError, match=r"factor must be a finite number >= 0, got .+\."):
        make(factor)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 2), (6,), (3, 2, 3), (2, 3, 1)])
def test_targets_and_logits_of_different_shapes_are_refused(shape):
    message = r"targets of shape \(.*3, 2, 1\) and logits of shape .* must have the same shape"
    with pytest.raises(ValueError, match=message):
        VAELossLayer(1.0)(CODES, CODES, IMAGES, tf.zeros([5, *shape]))
    model = AddLossModel(networks()[0], dense_decoder(shape, LATENT), 1.0)
    model.compile("sgd", loss=None)
    with pytest.raises(ValueError, match=message):
        model.fit(IMAGES, verbose=0)


@pytest.mark.parametrize("layer", [KLLossLayer(1.0), VAELossLayer(1.0)], ids=["kl", "whole"])
def test_mean_and_log_variance_are_not_broadcast(layer):
    others = () if isinstance(layer, KLLossLayer) else (IMAGES, IMAGES)
    with pytest.raises(ValueError, match=r"z_mean of shape .* and z_log_var of shape \(5, 1\)"):
        layer(CODES, CODES[:, :1], *others)


def test_numbers_of_numpy_are_numbers():
    assert KLLossLayer(np.float32(0.5)).factor == 0.5
    assert SamplingLayer(np.int64(3)).get_config()["seed"] == 3


@pytest.mark.slow
def test_a_config_makes_any_number_of_models():
    config = AddLossModel(*networks(), 0.5, seed=3).get_config()
    first, second = (AddLossModel.from_config(config) for _ in range(2))
    assert first.get_config().keys() == second.get_config().keys() == config.keys()
    assert (second.factor, second.sampling.seed) == (0.5, 3)
    second.factor = 0.25
    assert AddLossModel.from_config(second.get_config()).factor == 0.25


def sequential(units, *more):
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(units), *more])


@pytest.mark.slow
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("which", ["encoder", "decoder"])
def test_networks_without_names_are_refused_with_the_cure(which, eager):
    encoder, decoder = networks()
    if which == "encoder":
        encoder, wanted = sequential(2 * LATENT), "z_mean and z_log_var"
    else:
        decoder, wanted = sequential(6, keras.layers.Reshape(SHAPE)), "logits"
    model = AddLossModel(encoder, decoder, 1.0)
    model.compile("sgd", loss=None, run_eagerly=eager)
    message = rf"must write {wanted}; got outputs without names\. vae_research\.named gives"
    with pytest.raises(ValueError, match=message):
        model.fit(IMAGES, verbose=0)


def test_networks_with_other_names_are_refused_with_those():
    other = dense_encoder(SHAPE, LATENT, outputs=("z_mean", "z_scale"))
    with pytest.raises(ValueError, match="must write z_mean and z_log_var; got z_mean, z_scale"):
        AddLossModel(other, networks()[1], 1.0)(IMAGES)


@pytest.mark.slow
def test_named_sequential_networks_are_trained_saved_and_loaded(tmp_path):
    keras.utils.set_random_seed(0)
    model = AddLossModel(
        named(sequential(2 * LATENT), "z_mean", "z_log_var"),
        named(sequential(6, keras.layers.Reshape(SHAPE)), "logits"),
        FACTOR,
    )
    model.compile(keras.optimizers.SGD(0.5), loss=None, jit_compile=False)
    losses = model.fit(IMAGES, batch_size=5, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), model(IMAGES), rtol=1e-5)


# Sixteen bits.


@pytest.mark.slow
@pytest.mark.parametrize("place", LAYERS)
def test_layers_compute_in_float32_whatever_the_networks_compute_in(compiled, place):
    # Heads of one's own are in sixteen bits too; those of this package are not.
    def pair():
        x, z = keras.Input(SHAPE), keras.Input((LATENT,))
        flat = keras.layers.Flatten()(x)
        codes = {n: keras.layers.Dense(LATENT, name=n)(flat) for n in ("z_mean", "z_log_var")}
        logits = keras.layers.Reshape(SHAPE)(keras.layers.Dense(6)(z))
        found = keras.Model(x, codes), keras.Model(z, {"logits": logits})
        rng = np.random.default_rng(1)
        for network in found:
            network.set_weights([rng.standard_normal(w.shape) for w in network.get_weights()])
        return found

    expected = compiled(place, pair=pair(), run_eagerly=True).fit(IMAGES)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        formulation = compiled(place, pair=pair(), run_eagerly=True)
        assert formulation.encoder(IMAGES)["z_mean"].dtype == "bfloat16"
        assert formulation.sampling(CODES, CODES).dtype == "float32"
        for layer in (VAELossLayer(1.0), KLLossLayer(1.0), SamplingLayer()):
            assert layer.compute_dtype == layer.variable_dtype == "float32"
        found = formulation.fit(IMAGES)
        layer = KLLossLayer(1.0)
        layer(tf.cast(CODES, "bfloat16"), tf.cast(CODES + 0.0625, "bfloat16"))
    finally:
        keras.config.set_dtype_policy("float32")
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=0.02), name  # bfloat16 has eight bits
    # exp(1/16) - 1 - 1/16 is 0.0019944589; bfloat16 steps by 0.008 near one.
    assert float(layer.losses[0]) == pytest.approx(np.expm1(0.0625) - 0.0625, rel=1e-5)
