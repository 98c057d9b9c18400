"""Encoders and decoders: every image size, bounded heads, float32 ends, files without a package."""

import json
import math
import textwrap

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tests import forks
from vae_research import (
    VAE,
    Bernoulli,
    Data,
    DataError,
    DeterministicBottleneck,
    ProbabilitiesToLogits,
    SquaredNorm,
    convolutional_decoder,
    convolutional_encoder,
    dense_decoder,
    dense_encoder,
    logits_of_mean,
    recurrent_decoder,
    recurrent_encoder,
    residual_decoder,
    residual_encoder,
)
from vae_research.data.sources import rows_of_array, rows_of_pipeline

# Even, odd, tall, thin, smaller than a stride, and sizes that no doubling reaches.
IMAGES = [(28, 28, 1), (32, 32, 3), (7, 5, 2), (1, 1, 1), (33, 17, 1)]
SMALL = {
    dense_encoder: {"hidden_units": (6,)},
    dense_decoder: {"hidden_units": (6,)},
    convolutional_encoder: {"filters": (3, 4)},
    convolutional_decoder: {"filters": (4, 3)},
    residual_encoder: {"filters": (3, 4)},
    residual_decoder: {"filters": (4, 3)},
    recurrent_encoder: {"units": (6, 5)},
    recurrent_decoder: {"units": (6, 5)},
}
OF_IMAGES = [network for network in SMALL if "recurrent" not in network.__name__]
ENCODERS = [network for network in OF_IMAGES if "encoder" in network.__name__]
DECODERS = [network for network in OF_IMAGES if "decoder" in network.__name__]
CONVOLUTIONAL = [network for network in OF_IMAGES if "dense" not in network.__name__]
RECURRENT = [recurrent_encoder, recurrent_decoder]


def make(network, shape=None, latent_dim=2, **settings):
    if shape is None:
        shape = (7, 5) if network in RECURRENT else (7, 5, 2)
    return network(shape, latent_dim, **SMALL[network] | settings)


def of_every_size(networks):
    """Networks and sizes; what a residual network does with them is what a convolutional does."""
    return [
        pytest.param(network, shape, id=f"{network.__name__}-{shape}")
        for network in networks
        for shape in (IMAGES[-1:] if "residual" in network.__name__ else IMAGES)
    ]


@pytest.fixture(autouse=True)
def same_initial_weights():
    keras.utils.set_random_seed(0)


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


# Shapes and names.


@pytest.mark.parametrize(("network", "shape"), of_every_size(ENCODERS))
def test_encoder_writes_mean_and_log_variance_of_every_image_size(network, shape):
    encoder = make(network, shape, 3)
    outputs = encoder(tf.random.stateless_uniform([2, *shape], [1, 2]))
    assert [tensor.name for tensor in encoder.inputs] == ["inputs"]
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "z_mean": (2, 3),
        "z_log_var": (2, 3),
    }


@pytest.mark.parametrize(("network", "shape"), of_every_size(DECODERS))
def test_decoder_writes_logits_of_every_image_size(network, shape):
    decoder = make(network, shape, 3)
    outputs = decoder(tf.random.stateless_normal([2, 3], [1, 2]))
    assert [tensor.name for tensor in decoder.inputs] == ["z"]
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "logits": (2, *shape)
    }
    # Every pixel comes from z, none from padding: another code changes each of them.
    weights = [tf.random.stateless_normal(w.shape, [3, 4]).numpy() for w in decoder.weights]
    decoder.set_weights(weights)
    images = decoder(tf.random.stateless_normal([40, 3], [1, 2]))["logits"].numpy()
    assert np.all(images.std(axis=0) > 0.0)


@pytest.mark.parametrize("shape", [(5,), (1,), (3, 4)])
def test_dense_networks_take_data_of_any_rank(shape):
    encoder, decoder = make(dense_encoder, shape), make(dense_decoder, shape)
    codes = encoder(tf.zeros([2, *shape]))["z_mean"]
    assert decoder(codes)["logits"].shape == [2, *shape]


@pytest.mark.slow
@pytest.mark.parametrize("network", DECODERS)
def test_decoder_writes_the_parameters_of_another_likelihood(network):
    outputs = make(network, outputs=("x_mean", "x_log_var"))(tf.zeros([2, 2]))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "x_mean": (2, 7, 5, 2),
        "x_log_var": (2, 7, 5, 2),
    }


@pytest.mark.parametrize("network", ENCODERS)
def test_encoder_of_a_plain_autoencoder_has_one_head(network):
    assert make(network, outputs=("z_mean",))(tf.zeros([2, 7, 5, 2])).keys() == {"z_mean"}


def test_heads_of_a_dense_encoder_may_differ_in_size():
    encoder = make(dense_encoder, outputs={"z_mean": 3, "z_log_var": 3, "z_scale_lower": 1})
    written = encoder(tf.zeros([2, 7, 5, 2]))
    assert {name: tuple(value.shape) for name, value in written.items()} == {
        "z_mean": (2, 3),
        "z_log_var": (2, 3),
        "z_scale_lower": (2, 1),
    }
    with pytest.raises(ValueError, match=r"outputs\['z_mean'\] must be an integer >= 1, got 0"):
        make(dense_encoder, outputs={"z_mean": 0})


@pytest.mark.parametrize("network", SMALL)
def test_all_layers_are_initialised_and_regularised_as_it_is_said(network):
    # Without a seed each layer draws its own values, equal heads as well.
    initializer = keras.initializers.RandomUniform(2.0, 3.0)
    model = make(
        network,
        kernel_initializer=initializer,
        kernel_regularizer=keras.regularizers.L2(0.1),
        outputs=("a_mean", "b_mean"),
    )
    kernels = [w.numpy() for w in model.weights if w.path.endswith("/kernel")]
    normalised = [x for x in model.layers if isinstance(x, keras.layers.GroupNormalization)]
    layers = [x for x in model.layers if x.weights and x not in normalised]
    assert len(kernels) == len(model.losses) == len(layers) >= 3
    assert all(2.0 <= kernel.min() < kernel.max() <= 3.0 for kernel in kernels)
    assert np.any(kernels[-1] != kernels[-2])
    wanted = sum(0.1 * np.square(kernel).sum() for kernel in kernels)
    np.testing.assert_allclose(sum(model.losses), wanted, rtol=1e-5)


def test_losses_of_regularisers_are_a_term_of_a_model():
    regularizer = keras.regularizers.L2(0.1)
    sizes = {"hidden_units": (5,), "kernel_regularizer": regularizer}
    vae = VAE(
        dense_encoder((8, 8, 1), 2, outputs=["z_mean"], **sizes),
        DeterministicBottleneck(2),
        dense_decoder((8, 8, 1), 2, **sizes),
        [Bernoulli(), SquaredNorm(weight=0.5)],
    )
    _, report = vae.report(np.ones((3, 8, 8, 1), np.float32))
    kernels = [weight for weight in vae.weights if weight.path.endswith("kernel")]
    wanted = sum(0.1 * np.square(kernel.numpy()).sum() for kernel in kernels)
    assert len(kernels) == 4
    np.testing.assert_allclose(report.values["regularization"], wanted, rtol=1e-5)
    values = report.values
    loss = values["reconstruction"] + 0.5 * values["squared_norm"] + wanted
    np.testing.assert_allclose(report.loss, loss, rtol=1e-5)


# Where the outputs begin.


@pytest.mark.parametrize("network", SMALL)
def test_biases_of_the_heads_begin_where_it_is_said(network):
    names = ("x_mean", "x_log_var") if "decoder" in network.__name__ else ("z_mean", "z_log_var")
    model = make(network, outputs=names, output_bias={names[1]: -2.0})
    biases = [model.get_layer(name).bias.numpy() for name in names]
    np.testing.assert_array_equal(biases[0], 0.0)
    np.testing.assert_array_equal(biases[1], -2.0)


def test_biases_that_suit_no_head_are_refused():
    names = ("x_mean", "x_log_var")
    for given, words in (
        (1.0, "for which of the heads x_mean, x_log_var"),
        ({"x_maen": 1.0}, "names a head 'x_maen'; there are x_mean, x_log_var.* 'x_mean'"),
        ({"x_mean": np.zeros(9)}, r"has shape \(9,\); it needs a number or an array"),
        ({"x_mean": np.nan}, "values that are not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            make(dense_decoder, outputs=names, output_bias=given)


def image_data(count=40):
    """Pixels that are on with a probability of 0.1 times their row number, up to 0.9."""
    random = np.random.default_rng(0)
    images = random.random((count, 10, 2, 3)) < 0.1 * np.arange(10)[:, None, None]
    return (255 * images).astype(np.uint8)


@pytest.mark.parametrize("binarize", ["none", "dynamic", "threshold"])
def test_a_decoder_that_begins_at_the_mean_of_the_data_makes_it_of_a_zero_code(binarize):
    data = Data.from_arrays(image_data(), binarize=binarize)
    mean = (data.train.raw / 255.0).mean(axis=0)
    pixels = dense_decoder(data.shape, 2, output_bias=logits_of_mean(data.train))
    found = tf.sigmoid(pixels(tf.zeros([1, 2]))["logits"])[0]
    np.testing.assert_allclose(found, np.clip(mean, 0.001, 0.999), rtol=1e-4)
    assert np.any(mean == 0.0)  # where the logit would be minus infinity
    of_channels = logits_of_mean(data.train, axis=(0, 1, 2))
    decoder = convolutional_decoder(data.shape, 2, filters=(2,), output_bias=of_channels)
    found = tf.sigmoid(decoder(tf.zeros([1, 2]))["logits"])[0]
    np.testing.assert_allclose(found, np.broadcast_to(mean.mean((0, 1)), data.shape), rtol=1e-4)


def test_the_mean_of_streamed_data_is_that_of_1000_rows():
    images = image_data(1500)
    data = Data.from_arrays(rows_of_array(images), images[:8], images[:8])
    whole, some = logits_of_mean(data.test), logits_of_mean(data.train)
    wanted = images[np.linspace(0, 1499, 1000).astype(int)].mean(axis=0) / 255.0
    np.testing.assert_allclose(scipy.special.expit(some), np.clip(wanted, 0.001, 0.999), rtol=1e-4)
    assert np.any(whole != some)


def test_what_has_no_logits_of_its_mean_says_so():
    images = image_data()
    pipeline = rows_of_pipeline(tf.data.Dataset.from_tensor_slices(images).batch(8), count=40)
    with pytest.raises(DataError, match="'train' is a pipeline, whose rows cannot be read"):
        logits_of_mean(Data.from_arrays(pipeline, images[:8], images[:8]).train)
    with pytest.raises(DataError, match=r"mean of split 'train' is from 0 to .*rescale='unit'"):
        logits_of_mean(Data.from_arrays(images, rescale="none").train)
    with pytest.raises(ValueError, match=r"must be within \(0, 1\), got 0.0 and 0.999"):
        logits_of_mean(Data.from_arrays(images).train, lowest=0.0)


# Architecture: numbers of weights worked out by hand.


def test_dense_networks_have_the_weights_of_their_layer_sizes():
    # 784-500-20: 784 * 500 + 500 weights, and two heads of 500 * 20 + 20; the mirror has one head
    # of 500 * 784 + 784.
    assert dense_encoder((28, 28, 1), 20).count_params() == 784 * 500 + 500 + 2 * (500 * 20 + 20)
    assert dense_decoder((28, 28, 1), 20).count_params() == 20 * 500 + 500 + 500 * 784 + 784
    two = dense_encoder((9,), 2, hidden_units=(5, 4), activation="tanh")
    assert two.count_params() == (9 * 5 + 5) + (5 * 4 + 4) + 2 * (4 * 2 + 2)
    none = dense_encoder((9,), 2, hidden_units=())
    assert none.count_params() == 2 * (9 * 2 + 2)


def test_convolutional_encoder_halves_the_image_once_for_each_number_of_filters():
    # 33x17 -> 17x9 -> 9x5, rounded up each time; kernels of 3x3.
    encoder = convolutional_encoder((33, 17, 1), 2, filters=(3, 4), hidden_units=(6,))
    convolutions = (9 * 1 * 3 + 3) + (9 * 3 * 4 + 4)
    dense = 9 * 5 * 4 * 6 + 6
    assert encoder.count_params() == convolutions + dense + 2 * (6 * 2 + 2)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(33, 17, 9 * 5), (28, 28, 7 * 7), (1, 1, 1)],  # 8x4, doubled twice, would reach 32x16
)
def test_convolutional_decoder_starts_from_the_smallest_grid_that_reaches_the_image(
    height, width, grid
):
    # Two doublings with kernels of 3x3, and one head.
    decoder = convolutional_decoder((height, width, 1), 2, filters=(4, 3), hidden_units=(6,))
    dense = (2 * 6 + 6) + (6 * grid * 4 + grid * 4)
    convolutions = (9 * 4 * 4 + 4) + (9 * 4 * 3 + 3)
    assert decoder.count_params() == dense + convolutions + (9 * 3 * 1 + 1)


@pytest.mark.parametrize("network", [*SMALL][:4])
def test_activation_of_hidden_layers_is_the_one_that_is_named_and_heads_have_none(network):
    model = make(network, activation="tanh")
    hidden = [
        layer
        for layer in model.layers
        if layer.weights and not layer.name.startswith(("z_", "logits"))
    ]
    heads = [layer for layer in model.layers if layer.name in ("z_mean", "z_log_var", "logits")]
    assert {layer.activation.__name__ for layer in hidden} == {"tanh"}
    assert {layer.activation.__name__ for layer in heads} == {"linear"}


def test_residual_networks_have_the_weights_of_their_levels():
    # 33x17 -> 17x9 -> 9x5; kernels of 3x3, two normalisations in a block and one at the end.
    def level(before, channels, blocks):
        return 9 * before * channels + channels + blocks * 2 * (9 * channels + 3) * channels

    encoder = residual_encoder((33, 17, 1), 2, filters=(3, 4), blocks=2, hidden_units=(6,))
    levels = level(1, 3, 2) + level(3, 4, 2)
    dense = 9 * 5 * 4 * 6 + 6
    assert encoder.count_params() == levels + 2 * 4 + dense + 2 * (6 * 2 + 2)
    decoder = residual_decoder((33, 17, 1), 2, filters=(4, 3), outputs={"x_mixture": 20})
    dense = 2 * 9 * 5 * 4 + 9 * 5 * 4
    levels = level(4, 4, 1) + level(4, 3, 1)
    assert decoder.count_params() == dense + levels + 2 * 3 + 3 * 20 + 20


@pytest.mark.slow
def test_a_residual_block_adds_to_what_it_reads():
    # With zeros in its second convolution, a block changes nothing.
    encoders = [residual_encoder((8, 8, 1), 2, filters=(4,), blocks=n) for n in (1, 3)]
    short, long = ({w.path: w for w in each.weights} for each in encoders)
    kernels = [w for w in encoders[1].weights if w.path.endswith("kernel")]
    assert len(short) < len(long)
    for kernel in kernels[2:7:2]:
        kernel.assign(tf.zeros_like(kernel))
    images = tf.random.stateless_uniform([3, 8, 8, 1], [1, 2])
    before = encoders[1](images)["z_mean"]
    for kernel in kernels[1:7:2]:
        kernel.assign(2.0 * kernel)
    np.testing.assert_array_equal(encoders[1](images)["z_mean"], before)
    kernels[2].assign(kernels[2] + 1.0)
    assert np.any(encoders[1](images)["z_mean"] != before)


def test_images_of_a_batch_are_normalised_by_themselves():
    encoder = make(residual_encoder)
    images = tf.random.stateless_uniform([4, 7, 5, 2], [1, 2])
    alone = tf.concat([encoder(images[n : n + 1])["z_mean"] for n in range(4)], axis=0)
    np.testing.assert_allclose(encoder(images, training=True)["z_mean"], alone, atol=1e-5)


def test_recurrent_networks_have_the_weights_of_their_layers():
    def lstm(before, units):
        return 4 * (before + units + 1) * units

    encoder = recurrent_encoder((9, 3), 2, units=(5, 4))
    assert encoder.count_params() == lstm(3, 5) + lstm(5, 4) + 2 * (4 * 2 + 2)
    decoder = recurrent_decoder((9, 3), 2, units=(5, 4), outputs={"x_mean": 3, "logits": 7})
    assert decoder.count_params() == lstm(2, 5) + lstm(5, 4) + 4 * (3 + 7) + 3 + 7
    written = decoder(tf.zeros([6, 2]))
    assert {name: tuple(value.shape) for name, value in written.items()} == {
        "x_mean": (6, 9, 3),
        "logits": (6, 9, 7),
    }


def test_a_recurrent_encoder_reads_every_time_and_a_decoder_writes_every_time():
    encoder, decoder = make(recurrent_encoder), make(recurrent_decoder)
    sequences = tf.random.stateless_normal([1, 7, 5], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(sequences)
        code = encoder(sequences)["z_mean"]
    assert np.all(np.abs(tape.gradient(code, sequences)).sum(axis=(0, 2)) > 0.0)
    values = decoder(tf.random.stateless_normal([40, 2], [1, 2]))["x_mean"].numpy()
    assert np.all(values.std(axis=0) > 0.0)


@pytest.mark.parametrize("network", RECURRENT)
def test_recurrent_network_of_no_sequence_is_refused(network):
    with pytest.raises(ValueError, match=r"\(time, features\); got \(7, 5, 2\)"):
        make(network, (7, 5, 2))
    with pytest.raises(ValueError, match="needs units"):
        make(network, units=())


@pytest.mark.parametrize("network", SMALL)
def test_network_has_the_name_that_it_is_given(network):
    assert make(network, name="mine").name == "mine"


# Heads that are called log_var are bounded, softly; the others are linear.


def linear_head(names=("z_mean", "z_log_var")):
    """Returns a network whose heads pass their only input on: kernel 1, bias 0."""
    network = dense_encoder((1,), 1, hidden_units=(), outputs=names)
    for name in names:
        network.get_layer(name).set_weights([np.ones([1, 1]), np.zeros(1)])
    return network


def value_and_slope(network, name, values):
    values = tf.constant(values, tf.float32)[:, None]
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = network(values)[name]
    return outputs.numpy()[:, 0], tape.gradient(outputs, values).numpy()[:, 0]


@pytest.mark.parametrize("name", ["z_log_var", "x_log_var", "z_top_log_var"])
def test_log_variance_follows_its_value_where_it_is_of_use_and_stays_within_20(name):
    raw = np.array([-1e6, -60.0, -20.0, -1.0, 0.0, 1.0, 20.0, 60.0, 1e6])
    values, slopes = value_and_slope(linear_head((name,)), name, raw)
    np.testing.assert_allclose(values, 20 * np.tanh(raw / 20), rtol=1e-5)
    np.testing.assert_allclose(slopes, 1 - np.tanh(raw / 20) ** 2, rtol=1e-3, atol=1e-6)
    assert np.all(np.abs(values) <= 20.0)
    assert np.all(np.isfinite(np.exp(values)))
    # The mutants: exp overflows without a bound, and a hard clip has no way back from outside.
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(raw[-1])))
    tensor = tf.constant(25.0)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        clipped = tf.clip_by_value(tensor, -20.0, 20.0)
    assert float(tape.gradient(clipped, tensor)) == 0.0
    _, (outside,) = value_and_slope(linear_head((name,)), name, [25.0])
    assert outside == pytest.approx(1 - math.tanh(1.25) ** 2, rel=1e-3) != 0.0


def test_head_of_another_name_is_linear():
    values, slopes = value_and_slope(linear_head(), "z_mean", [-1e6, 0.5, 1e6])
    np.testing.assert_allclose(values, [-1e6, 0.5, 1e6])
    np.testing.assert_array_equal(slopes, 1.0)


@pytest.mark.parametrize("network", ENCODERS)
def test_values_and_gradients_are_finite_at_huge_features(network):
    encoder = make(network)
    images = 1e6 * tf.random.stateless_normal([4, 7, 5, 2], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = encoder(images)
        total = tf.reduce_sum(tf.exp(outputs["z_log_var"])) + tf.reduce_sum(outputs["z_mean"])
    assert np.abs(outputs["z_log_var"]).max() <= 20.0
    for gradient in tape.gradient(total, [images, *encoder.trainable_variables]):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("network", DECODERS)
def test_every_weight_of_a_decoder_has_a_gradient(network):
    decoder = make(network, activation="tanh", outputs=("x_mean", "x_log_var"))
    with tf.GradientTape() as tape:
        outputs = decoder(tf.random.stateless_normal([8, 2], [1, 2]))
        total = tf.add_n([tf.reduce_sum((output - 1.0) ** 2) for output in outputs.values()])
    for gradient in tape.gradient(total, decoder.trainable_variables):
        assert np.abs(gradient).max() > 0.0


# 16-bit policies.


@pytest.mark.usefixtures("mixed_bfloat16")
@pytest.mark.parametrize("network", SMALL)
def test_heads_are_float32_under_a_16_bit_policy_and_hidden_layers_are_not(network):
    names = ("x_mean", "x_log_var") if "decoder" in network.__name__ else ("z_mean", "z_log_var")
    model = make(network, outputs=names)
    outputs = model(tf.ones([2, *model.inputs[0].shape[1:]]))
    assert {output.dtype for output in outputs.values()} == {tf.float32}
    compute = {layer.name: layer.compute_dtype for layer in model.layers if layer.weights}
    assert {compute.pop(name) for name in names} == {"float32"}
    assert set(compute.values()) == {"bfloat16"}
    # More digits than bfloat16 holds: the head's own sum was not rounded to 16 bits.
    values = outputs[names[1]]
    assert np.abs(values - tf.cast(tf.cast(values, tf.bfloat16), tf.float32)).max() > 0.0


# Sizes that are none.


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, "2"])
@pytest.mark.parametrize("network", SMALL)
def test_latent_dim_that_is_no_positive_integer_is_refused(network, bad):
    with pytest.raises(ValueError, match=f"latent_dim must be an integer >= 1, got {bad!r}"):
        make(network, latent_dim=bad)


@pytest.mark.parametrize(
    ("network", "setting"),
    [
        (dense_encoder, "hidden_units"),
        (dense_decoder, "hidden_units"),
        (convolutional_encoder, "filters"),
        (convolutional_encoder, "hidden_units"),
        (convolutional_decoder, "filters"),
        (convolutional_decoder, "hidden_units"),
        (residual_encoder, "filters"),
        (residual_decoder, "hidden_units"),
        (recurrent_encoder, "units"),
        (recurrent_decoder, "units"),
    ],
)
@pytest.mark.parametrize("bad", [(0,), (8, -1), (8.0,), [True], 8, "8"])
def test_layer_size_that_is_no_positive_integer_is_refused_by_name(network, setting, bad):
    with pytest.raises(ValueError, match=rf"{setting}\S* must be an? .*>= 1, got"):
        make(network, **{setting: bad})


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("shape", [(0, 5, 2), (7, 5, -1), (7, 5.0, 2)])
def test_shape_with_a_size_that_is_no_positive_integer_is_refused(network, shape):
    shape = (shape[1:] if -1 in shape else shape[:2]) if network in RECURRENT else shape
    with pytest.raises(ValueError, match=r"_shape\[\d\] must be an integer >= 1, got"):
        make(network, shape)


@pytest.mark.parametrize("shape", [(784,), (28, 28), (2, 28, 28, 1), ()])
@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_convolutional_network_of_no_image_points_to_a_dense_one(network, shape):
    with pytest.raises(ValueError, match=r"\(height, width, channels\).*Use a dense network"):
        make(network, shape)


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_convolutional_network_without_a_convolution_is_refused(network):
    with pytest.raises(ValueError, match="needs filters"):
        make(network, filters=())


@pytest.mark.parametrize("network", CONVOLUTIONAL)
@pytest.mark.parametrize("bad", [0, 2.5])
def test_kernel_size_that_is_no_positive_integer_is_refused(network, bad):
    with pytest.raises(ValueError, match="kernel_size"):
        make(network, kernel_size=bad)


# Files.


@pytest.mark.slow
def test_saved_networks_load_and_predict_in_a_process_that_has_no_vae_research(tmp_path):
    expected = {}
    for index, network in enumerate(SMALL):
        names = (
            ("x_mean", "x_log_var") if "decoder" in network.__name__ else ("z_mean", "z_log_var")
        )
        model = make(network, outputs=names)
        inputs = tf.random.stateless_normal([3, *model.inputs[0].shape[1:]], [index, 1])
        model.save(tmp_path / f"{network.__name__}.keras")
        expected[f"{network.__name__}/inputs"] = inputs
        expected |= {f"{network.__name__}/{name}": v for name, v in model(inputs).items()}
    np.savez(tmp_path / "expected.npz", **expected)
    program = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "vae_research":
                    raise ModuleNotFoundError(f"no module named {name}")

        sys.meta_path.insert(0, Refuse())
        import json
        import keras
        import numpy as np

        expected = np.load("expected.npz")
        errors = {}
        for key in expected:
            network, _, name = key.partition("/")
            if name != "inputs":
                model = keras.models.load_model(f"{network}.keras")
                found = model(expected[f"{network}/inputs"])[name]
                errors[key] = float(np.abs(found - expected[key]).max())
        assert "vae_research" not in sys.modules
        print(json.dumps(errors))
    """
    done = forks.run("-c", textwrap.dedent(program), cwd=tmp_path, package=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 2 * len(SMALL)  # of two heads each
    assert max(errors.values()) < 1e-6, errors


# Adapters.


def test_probabilities_to_logits_undoes_the_sigmoid():
    logits = np.linspace(-10.0, 10.0, 41).astype(np.float32)
    found = ProbabilitiesToLogits()(tf.sigmoid(logits))["logits"]
    # The sigmoid of 10 is 1 - 4.5e-5, known to 6e-8: 6e-8 / 4.5e-5 = 1.3e-3 of the logit.
    np.testing.assert_allclose(found, logits, atol=2e-3)


def test_probabilities_to_logits_is_finite_at_0_and_1_with_its_gradient():
    probabilities = tf.constant([0.0, 1e-12, 0.5, 1.0 - 1e-7, 1.0])
    with tf.GradientTape() as tape:
        tape.watch(probabilities)
        logits = ProbabilitiesToLogits()(probabilities)["logits"]
    # log(1e-7) = -16.1 at the cut, and -log(1.19e-7) = 15.9 at the last float32 below 1.
    np.testing.assert_allclose(logits, [-16.118, -16.118, 0.0, 15.942, 15.942], atol=1e-3)
    gradient = tape.gradient(logits, probabilities)
    assert np.all(np.isfinite(gradient))
    assert gradient[2] == 4.0  # 1 / (p * (1 - p))


def test_probabilities_to_logits_gives_the_cross_entropy_of_keras_summed_over_pixels():
    rng = np.random.default_rng(0)
    targets = rng.uniform(size=(3, 20)).astype(np.float32)
    probabilities = scipy.special.expit(rng.normal(scale=6.0, size=(3, 20))).astype(np.float32)
    logits = ProbabilitiesToLogits()(probabilities)
    ours = Bernoulli()({"targets": tf.constant(targets), **logits})
    theirs = 20 * keras.losses.binary_crossentropy(targets, probabilities)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.usefixtures("mixed_bfloat16")
def test_probabilities_to_logits_is_float32_under_a_16_bit_policy():
    probabilities = tf.constant([0.25], tf.bfloat16)  # exact in 16 bits
    logits = ProbabilitiesToLogits()(probabilities)["logits"]
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, [-np.log(3.0)], rtol=1e-6)
