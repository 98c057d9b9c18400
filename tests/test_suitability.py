"""Data and decoders that do not suit a likelihood are refused before anything is trained."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research.suitability import refuse_undeclared_shape, refuse_unsuitable_data

VALUES = np.linspace(0.0, 1.0, 32 * 4, dtype=np.float32).reshape(32, 4)
BAD = np.where(VALUES < 0.99, VALUES, np.nan)
BYTES = np.arange(128, dtype=np.uint8).reshape(32, 4)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return 3 * VALUES, VALUES


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (BYTES, None, "inputs have values from 0 to 127, and Bernoulli .* 0 to 1: divide grey"),
        (2 * VALUES - 1, None, r"from -1 to 1, and .*: map them to \[0, 1\] by \(values \+ 1\)"),
        (tf.constant(3 * VALUES), None, "from 0 to 3, and .* 0 to 1: choose another likelihood"),
        (BAD, None, r"inputs have 2 values that are not finite, the first at \[31, 2\]"),
        (np.array(["a"] * 4), None, "inputs are an array of <U1, and a model reads numbers"),
        (VALUES, BAD, "targets have 2 values that are not finite"),
        ({"inputs": 3 * VALUES, "targets": VALUES - 1}, None, "targets have values from -1 to 0"),
        (Batches(), None, None),
        (tf.data.Dataset.from_tensors((BAD, VALUES)), None, "inputs have 2 values"),
        (vr.Data.from_arrays(3 * VALUES).train.on_device(4, seed=0), None, "and Bernoulli needs"),
        (vr.Data.from_arrays(3 * VALUES).train.batches(4, seed=0), None, "and Bernoulli needs"),
        ((row for row in BAD), None, None),
        ({"inputs": VALUES, "labels": [1, 2]}, None, None),
    ],
)
def test_values_are_those_of_the_likelihood(x, y, words):
    if words is None:
        refuse_unsuitable_data(vr.Bernoulli(), x, y)
        return
    with pytest.raises(ValueError, match=words):
        refuse_unsuitable_data(vr.Bernoulli(), x, y)


def test_a_likelihood_is_asked_for_what_it_reads():
    refuse_unsuitable_data(vr.Bernoulli(rename={"targets": "clean"}), {"inputs": 3 * VALUES})
    refuse_unsuitable_data(vr.Gaussian(), 3 * VALUES)
    with pytest.raises(ValueError, match="clean have values"):
        data = {"inputs": VALUES, "clean": 3 * VALUES}
        refuse_unsuitable_data(vr.Bernoulli(rename={"targets": "clean"}), data)


@pytest.mark.parametrize(
    ("likelihood", "good", "bad"),
    [
        (vr.Categorical(classes=300), BYTES, VALUES),
        (vr.Poisson(), BYTES.astype(np.float32), BYTES + np.float32(0.5)),
        (vr.DiscretizedLogistic(), BYTES / np.float32(255), VALUES),
        (vr.DiscretizedLogistic(levels=65536), BYTES * np.float32(500) / 65535, VALUES * 0.9),
        (vr.DiscretizedLogisticMixture(levels=2), BYTES % 2, BYTES / np.float32(255)),
    ],
    ids=repr,
)
def test_integers_and_levels_have_nothing_between_them(likelihood, good, bad):
    refuse_unsuitable_data(likelihood, good)
    with pytest.raises(ValueError, match=r"have values such as 0\.\d+, and .* needs (whole|multi)"):
        refuse_unsuitable_data(likelihood, bad)
    masked = dataclasses.replace(likelihood, observed="known")
    refuse_unsuitable_data(masked, {"inputs": bad, "known": np.zeros_like(bad)})


def model_with(activation):
    codes = keras.Input([2])
    values = keras.layers.Dense(4, activation=activation)(codes)
    logits = keras.layers.Reshape([4])(keras.layers.Reshape([2, 2])(values))
    return vr.VAE(
        vr.dense_encoder([4], 2, hidden_units=()),
        vr.GaussianBottleneck(2),
        keras.Model(codes, {"logits": logits}),
        [vr.Bernoulli(), vr.KLDivergence()],
    )


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_logits_are_no_probabilities(activation):
    model = model_with(activation)
    with pytest.raises(ValueError, match=rf"reads 'logits', which end in a {activation}: these"):
        tf.function(model.report, autograph=False).get_concrete_function(VALUES)


@pytest.mark.slow
def test_whoever_meets_data_looks_at_them():
    model = model_with("tanh")
    model.compile()
    by_rows = tf.data.Dataset.from_tensor_slices(VALUES).batch(8)
    for given in (BYTES, by_rows, BYTES):
        if given is by_rows:
            model.fit(given, verbose=0)
            model.evaluate(given, verbose=0)
            continue
        for method in (
            *(lambda x: model.fit(x, verbose=0), lambda x: model.evaluate(x, verbose=0)),
            *(lambda x: vr.estimate(model, x, num_samples=1), model.forward, model.report),
            *(model.posterior, model.encode, model.reconstruct),
            lambda x: model.predict(x, verbose=0),
        ):
            with pytest.raises(ValueError, match="divide grey values by 255"):
                method(given)
        assert model.step in (0, 4)


def test_inputs_of_a_model_that_compares_targets_are_not_those_of_the_likelihood():
    model = model_with("tanh")
    model.report({"inputs": 3 * VALUES, "targets": VALUES})
    for method in (model.reconstruct, model.predict):
        method(3 * VALUES)  # noisy ones, of a denoising model


def test_missing_values_may_have_no_density():
    model = vr.Bernoulli(observed="known")
    data = {"inputs": np.where(VALUES > 0.5, VALUES, -1), "known": VALUES > 0.5}
    refuse_unsuitable_data(model, data)
    with pytest.raises(ValueError, match="inputs have values from -1 to 1"):
        refuse_unsuitable_data(model, {**data, "known": VALUES >= 0.0})


def test_every_factor_of_a_product_is_asked():
    renamed = {"targets": "labels", "logits": "label_logits"}
    product = vr.ProductLikelihood(
        factors=[vr.Bernoulli(), vr.Categorical(classes=3, rename=renamed)]
    )
    labels = np.arange(32) % 3
    refuse_unsuitable_data(product, {"inputs": VALUES, "labels": labels})
    with pytest.raises(ValueError, match="labels have values from 1 to 3, and Categorical"):
        refuse_unsuitable_data(product, {"inputs": VALUES, "labels": labels + 1})
    with pytest.raises(ValueError, match="inputs have values from 0 to 2, and Bernoulli"):
        refuse_unsuitable_data(product, {"inputs": 2 * VALUES, "labels": labels})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (tf.data.Dataset.from_tensors(VALUES), r"inputs are a _TensorDataset. fit, evaluate and"),
        (vr.Data.from_arrays(VALUES).train.on_device(4), "inputs are a DeviceDataset. fit, eval"),
        ([VALUES, VALUES[:3]], "inputs are a list that forms no array"),
        (np.array(["a", None], object), "inputs are a ndarray that forms no array"),
        (
            np.arange(32),
            r"inputs have shape \(32,\), and this .* shape \(4,\): give it \[rows, 4\]",
        ),
        (VALUES[0], r"inputs have shape \(4,\), .* one example is values\[numpy.newaxis\]"),
        ([VALUES, VALUES], r"inputs have shape \(2, 32, 4\), and this model takes"),
        (BAD, r"inputs have 2 values that are not finite, the first at \[31, 2\]"),
    ],
)
@pytest.mark.parametrize("has_seen_data", [True, False])
def test_what_is_no_array_is_refused_with_the_cure(values, words, has_seen_data):
    model = model_with("tanh")
    if has_seen_data:
        model.encode(VALUES[:1])
    for method in (model.encode, model.posterior, model.reconstruct):
        with pytest.raises(ValueError, match=words):
            method(values)


def test_a_last_axis_of_one_may_be_missing_as_keras_allows():
    encoder = vr.dense_encoder([4, 1], 2, hidden_units=())
    for shape in ([3, 4], [3, 4, 1], [3, 4, 1, 1]):
        refuse_undeclared_shape(tf.TensorShape(shape), encoder, {"inputs"})
    with pytest.raises(ValueError, match=r"takes examples of shape \(4, 1\)"):
        refuse_undeclared_shape(tf.TensorShape([4, 1]), encoder, {"inputs"})
