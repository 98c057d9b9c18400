"""Another way to compute a layer: value and gradients of Keras' layer, and when it is used."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from vae_research import convolutional_decoder
from vae_research.networks.kernels import narrow_convolution

# Even, odd, tall, a single pixel, smaller than the kernel.
SIZES = [(28, 28), (7, 5), (33, 17), (1, 1), (2, 9)]
KERNELS = [1, 2, 3, 4, 5, (3, 5), (4, 1)]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def convolution(outputs=1, kernel_size=3, dtype="float64", **settings) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        outputs,
        kernel_size,
        dtype=dtype,
        kernel_initializer=keras.initializers.RandomNormal(seed=1),
        bias_initializer=keras.initializers.RandomNormal(seed=2),
        **{"padding": "same"} | settings,
    )


def images(height, width, channels=4, dtype="float64", batch=3) -> tf.Tensor:
    values = np.random.default_rng(0).normal(size=(batch, height, width, channels))
    return tf.constant(values, dtype)


def values_and_gradients(layer, x):
    """Returns the output and the gradients by inputs, kernel and bias of a weighted sum of it."""
    if not layer.built:
        layer.build(x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        weights = np.random.default_rng(3).normal(size=y.shape)
        loss = tf.reduce_sum(y * tf.cast(weights, y.dtype))
    return [y, *tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])]


def compiled_values_and_gradients(layer, x, **settings):
    """Returns what a compiled function gives, and the types of its operations."""
    layer.build(x.shape)
    function = tf.function(lambda x: values_and_gradients(layer, x), autograph=False, **settings)
    graph = function.get_concrete_function(x).graph
    return function(x), [operation.type for operation in graph.get_operations()]


def operations(layer, x) -> list[str]:
    graph = tf.function(layer, autograph=False).get_concrete_function(x).graph
    return [operation.type for operation in graph.get_operations()]


def assert_equal(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        scale = np.max(np.abs(other))  # sums of many numbers: an error is relative to the largest
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


# Each size with each kernel, and each of them with each number of outputs and each precision.
CASES = [
    (size, kernel, *[(1, "float64"), (3, "float64"), (1, "float32"), (3, "float32")][(i + j) % 4])
    for i, size in enumerate(SIZES)
    for j, kernel in enumerate(KERNELS)
]


@pytest.mark.parametrize(("size", "kernel_size", "outputs", "dtype"), CASES, ids=str)
def test_value_and_gradients_are_those_of_keras(size, kernel_size, outputs, dtype):
    x = images(*size, dtype=dtype)
    wanted = values_and_gradients(convolution(outputs, kernel_size, dtype), x)
    narrow = narrow_convolution(convolution(outputs, kernel_size, dtype))
    found, operations = compiled_values_and_gradients(narrow, x)
    assert_equal(found, wanted, TOLERANCE[dtype])
    assert "Conv2D" not in operations


@pytest.mark.slow
def test_xla_and_eager_execution_compute_the_same():
    x = images(7, 5)
    wanted = values_and_gradients(convolution(), x)
    layer = narrow_convolution(convolution())
    assert_equal(compiled_values_and_gradients(layer, x, jit_compile=True)[0], wanted, 1e-12)
    narrow = narrow_convolution(convolution())
    assert_equal([narrow(x)], wanted[:1], 1e-12)


def test_second_derivatives_are_those_of_keras():
    x = images(5, 6)

    def second(layer):
        layer.build(x.shape)
        kernel = layer.kernel.value
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(layer(x) ** 3)
            slope = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        return [outer.gradient(slope, x), outer.gradient(slope, kernel)]

    assert_equal(second(narrow_convolution(convolution())), second(convolution()), 1e-12)


@pytest.mark.slow
def test_gradients_are_the_same_bits_every_time():
    x = images(28, 28, 32, "float32", batch=64)
    layer = narrow_convolution(convolution(dtype="float32"))
    layer.build(x.shape)

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(layer(x)))
        return tape.gradient(loss, [x, layer.kernel.value])

    first = gradients()
    for _ in range(20):
        for one, other in zip(gradients(), first, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"outputs": 4},
        {"strides": 2},
        {"strides": (1, 2)},
        {"dilation_rate": 2},
        {"padding": "valid"},
        {"groups": 2, "outputs": 2},
        {"data_format": "channels_first"},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_keras_computes_the_rest(settings):
    dtype = settings.get("dtype", "float32")
    x = images(8, 8, 8, dtype)
    plain, narrow = (convolution(**{"dtype": dtype} | settings) for _ in range(2))
    x = tf.TensorSpec(x.shape, x.dtype)
    for layer in (plain, narrow):
        layer.build(x.shape)
    found, wanted = (set(operations(layer, x)) for layer in (narrow_convolution(narrow), plain))
    assert found == wanted and found & {"Conv2D", "StatefulPartitionedCall"}


def test_keras_computes_images_of_unknown_size_and_those_on_a_gpu(monkeypatch):
    narrow = narrow_convolution(convolution(dtype="float32"))
    assert "Conv2D" in operations(narrow, tf.TensorSpec([None, None, None, 4], tf.float32))
    x = images(8, 8, dtype="float32")
    assert "Conv2D" not in operations(narrow, x)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert "Conv2D" in operations(narrow, x)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_head_of_a_decoder_is_a_product_in_float32(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        decoder = convolutional_decoder((7, 5, 1), 2, filters=(4,))
    finally:
        keras.config.set_dtype_policy(before)
    z = tf.zeros([3, 2])
    graph = tf.function(decoder, autograph=False).get_concrete_function(z).graph
    found = {operation.type for operation in graph.get_operations()}
    assert "Conv2D" not in found and "Conv2DBackpropInput" in found  # the transposed one
    assert decoder(z)["logits"].dtype == tf.float32


def test_saved_and_copied_layers_are_those_of_keras(tmp_path):
    decoder = convolutional_decoder((7, 5, 1), 2, filters=(4,))
    head = decoder.get_layer("logits")
    assert type(head) is keras.layers.Conv2D
    assert head.get_config() == keras.layers.Conv2D.from_config(head.get_config()).get_config()
    decoder.save(tmp_path / "decoder.keras")
    z = tf.constant([[0.5, -1.0], [2.0, 0.1]])
    for other in (
        keras.models.load_model(tmp_path / "decoder.keras"),
        keras.models.clone_model(decoder),
        copy.deepcopy(decoder),
    ):
        other.set_weights(decoder.get_weights())
        assert "convolution_op" not in vars(other.get_layer("logits"))
        np.testing.assert_allclose(other(z)["logits"], decoder(z)["logits"], atol=1e-6)
