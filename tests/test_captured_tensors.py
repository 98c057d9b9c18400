"""A term or a module that uses a symbolic tensor from outside of its method is told the cure.

Such a tensor, a `keras.Input` for example, has no value in a forward pass. Keras' own messages
speak of functional models, and `keras.ops` have none: they return another symbolic tensor.
"""

import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_research import (
    VAE,
    AddLossModel,
    Bernoulli,
    GaussianBottleneck,
    KLDivergence,
    LossTerm,
    dense_decoder,
    dense_encoder,
)
from vae_research.captured_tensors import without_captured_tensors
from vae_research.tensors import Tensors, call_module

OUTSIDE = keras.Input((2,), name="outside")
IMAGES = np.zeros([4, 3], "float32")
CODES = tf.ones([4, 2])

# By name: what a method does with its own `z` and the tensor from outside; does Keras complain?
USES = {
    "a function of TensorFlow": (lambda z: tf.reduce_sum(tf.square(OUTSIDE), -1), True),
    "an operator": (lambda z: tf.reduce_sum(z * OUTSIDE, -1), True),
    "keras.ops": (lambda z: keras.ops.sum(OUTSIDE, axis=-1), False),
    "a layer": (lambda z: keras.layers.Flatten()(OUTSIDE)[:, 0], False),
    "a loss of Keras": (lambda z: keras.losses.mean_squared_error(z, OUTSIDE), False),
    "NumPy": (lambda z: np.asarray(OUTSIDE).sum(axis=-1), True),
    "float": (lambda z: float(OUTSIDE[0, 0]) * z[:, 0], True),
    "if": (lambda z: z[:, 0] if OUTSIDE[0, 0] > 0 else z[:, 1], True),
    "a list": (lambda z: tf.concat([z, OUTSIDE], axis=0)[:, 0], True),
    "a loop": (lambda z: next(iter(OUTSIDE)), True),
    "its value": (lambda z: OUTSIDE.numpy(), True),
    "returned as it is": (lambda z: OUTSIDE, False),
}


def message(reader):
    return rf"The {reader} uses a symbolic tensor that it was not given: .*First: .*Second: "


def term(use):
    class Mine(LossTerm):
        def per_example(self, z_mean):
            return use(z_mean)

    return Mine()


def vae(*terms, decoder=None):
    return VAE(
        dense_encoder([3], 2, hidden_units=(3,)),
        GaussianBottleneck(2),
        decoder or dense_decoder([3], 2, hidden_units=(3,)),
        [Bernoulli(), KLDivergence(), *terms],
    )


class Decoder(keras.layers.Layer):
    """A decoder as a user writes it, with something from outside in it."""

    def __init__(self, use):
        super().__init__(name="mine")
        self.use = use
        self.dense = keras.layers.Dense(3)

    def call(self, z):
        return {"logits": self.dense(z), "further": self.use(z)}


@pytest.mark.parametrize("use", USES)
def test_loss_term_that_uses_a_tensor_from_outside(use):
    function, keras_complains = USES[use]
    with pytest.raises(ValueError, match=message("loss term 'mine'")) as caught:
        term(function)({"z_mean": CODES})
    cause = caught.value.__cause__
    assert (cause is not None) == keras_complains
    assert cause is None or "KerasTensor" in str(cause)


@pytest.mark.parametrize("use", USES)
def test_module_that_uses_a_tensor_from_outside(use):
    function, keras_complains = USES[use]
    with pytest.raises(ValueError, match=message("decoder 'mine'")) as caught:
        call_module("decoder", Decoder(function), Tensors(z=CODES), training=False)
    cause = caught.value.__cause__
    assert (cause is not None) == keras_complains
    assert cause is None or "KerasTensor" in str(cause)


# Each use once; with and without a graph in turn, which the two tests above do not depend on.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "eager"), [(use, bool(index % 2)) for index, use in enumerate(USES)]
)
def test_fit_says_the_same(use, eager):
    function, _ = USES[use]
    for reader, model in (
        ("loss term 'mine'", vae(term(function))),
        ("decoder 'mine'", vae(decoder=Decoder(function))),
    ):
        model.compile("sgd", run_eagerly=eager)
        with pytest.raises(ValueError, match=message(reader)):
            model.fit(IMAGES, verbose=0)


@pytest.mark.parametrize("place", ["encoder", "decoder"])
def test_networks_of_a_model_that_adds_its_loss_itself(place):
    class Captures(keras.layers.Layer):
        def call(self, inputs):
            return {"z_mean": inputs, "z_log_var": inputs, "logits": inputs + OUTSIDE}

    class Plain(keras.layers.Layer):
        def call(self, inputs):
            return {"z_mean": inputs, "z_log_var": inputs, "logits": inputs}

    networks = {"encoder": Plain(), "decoder": Plain()} | {place: Captures()}
    model = AddLossModel(**networks, factor=1.0)
    with pytest.raises(ValueError, match=message(place)):
        model(IMAGES[:, :2])


def test_module_behind_the_decoder_says_which_it_is():
    with pytest.raises(ValueError, match=message("module 0 'mine'")):
        decoder = Decoder(USES["keras.ops"][0])
        call_module("module 0", decoder, Tensors(z=CODES), training=False)


# A tensor of another graph.


def traced_codes():
    """Returns z_mean as it was while `fit` traced its step."""
    kept = []

    def keep(z):
        kept.append(z)
        return z[:, 0]

    model = vae(term(keep))
    model.compile("sgd", jit_compile=False)
    model.fit(IMAGES, verbose=0)
    assert not isinstance(kept[0], tf.__internal__.EagerTensor)
    return kept[0]


@pytest.mark.slow
def test_tensor_that_was_kept_while_a_step_was_traced():
    kept = traced_codes()
    for use in (lambda z: kept[:, 0], lambda z: tf.reduce_sum(kept * z, axis=-1)):
        with pytest.raises(ValueError, match=message("loss term 'mine'")) as caught:
            term(use)({"z_mean": CODES})
        assert "out of scope" in str(caught.value.__cause__)
        with pytest.raises(ValueError, match=message("decoder 'mine'")):
            call_module("decoder", Decoder(use), Tensors(z=CODES), training=False)
        with pytest.raises(ValueError, match=message("decoder 'mine'")):
            vae(decoder=Decoder(use)).forward(IMAGES)
        model = vae(term(use))
        model.compile("sgd", run_eagerly=True)
        with pytest.raises(ValueError, match=message("loss term 'mine'")):
            model.fit(IMAGES, verbose=0)


# What is none of this passes through.


@pytest.mark.slow
@pytest.mark.parametrize("again", ["fit", "evaluate"])
def test_tensor_of_an_earlier_trace_in_a_compiled_step(again):
    kept = []

    class Keeps(LossTerm):
        def per_example(self, z):
            kept.append(z)
            return tf.reduce_sum(kept[0], axis=-1)

    models = [vae(Keeps()), vae(Keeps())]
    for model in models:
        model.compile("sgd", jit_compile=False)
    models[0].fit(IMAGES, verbose=0)  # within one trace it is a tensor like others
    with pytest.raises(ValueError, match=message("step, or a term or module in it,")):
        getattr(models[1], again)(IMAGES, verbose=0)


def test_tensor_of_an_earlier_trace_that_is_only_handed_on():
    kept = []
    tf.function(kept.append)(CODES)
    with pytest.raises(ValueError, match=message("loss term 'mine'")):
        term(lambda z: kept[0])({"z_mean": CODES})


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError])
def test_other_errors_pass_unchanged(error):
    raised = error("Something else is wrong with a keras.Input.")

    def use(z):
        raise raised

    for call in (
        lambda: term(use)({"z_mean": CODES}),
        lambda: without_captured_tensors("r", use, CODES),
    ):
        with pytest.raises(error) as caught:
            call()
        assert caught.value is raised
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_other_errors_of_a_module_keep_their_type_and_text(error):
    def use(z):
        raise error("Something else is wrong.")

    with pytest.raises(error, match=r"Something else is wrong\.") as caught:
        call_module("decoder", Decoder(use), Tensors(z=CODES), training=False)
    assert "symbolic tensor" not in "".join(traceback.format_exception(caught.value))


def test_what_needs_no_value_of_a_tensor_from_outside_is_allowed():
    values = term(lambda z: z[:, 0] * OUTSIDE.shape[1])({"z_mean": CODES})
    np.testing.assert_array_equal(values, [2.0] * 4)


def test_results_and_arguments_pass_unchanged():
    def function(a, *, b):
        return {"a": [a], "b": (b, None, 3)}

    assert without_captured_tensors("r", function, CODES, b=1) == function(CODES, b=1)


def test_numpy_on_a_tensor_that_was_given_is_told_what_to_use():
    model = vae(term(lambda z: np.asarray(z).sum(axis=-1)))
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"calls NumPy .* Use tf or keras.ops"):
        model.fit(IMAGES, verbose=0)
