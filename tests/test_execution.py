"""Many steps in one call are the same steps: values, order, figures; and little happens between."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from tests.proofs import SOAK
from tests.traced import as_new
from vae_research.data import Data
from vae_research.execution import TracedStep, choose_jit, steps_per_call

ROWS, BATCH, SEED = 83, 8, 3  # 11 steps; the last batch has 3 rows
STEPS = 11


def grey_images(**keywords) -> Data:
    images = np.random.default_rng(0).integers(0, 256, [ROWS, 6, 6], np.uint8)
    labels = np.arange(ROWS) % 10
    return Data.from_arrays(images, images[:50], images[:50], train_labels=labels, **keywords)


class LossTrace(keras.callbacks.Callback):
    """The running mean of the loss after every call, and the index of the call's last step."""

    def on_train_begin(self, logs=None):
        self.losses, self.batches = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        self.batches.append(batch)


def compiled(
    terms=None, *, convolutional=False, shape=(6, 6, 1), optimizer=None, **settings
) -> vr.VAE:
    keras.utils.set_random_seed(1)
    encoder = vr.convolutional_encoder if convolutional else vr.dense_encoder
    decoder = vr.convolutional_decoder if convolutional else vr.dense_decoder
    sizes = {"filters": (4,)} if convolutional else {"hidden_units": (16,)}
    vae = vr.VAE(
        encoder(shape, 3, **sizes),
        vr.GaussianBottleneck(3),
        decoder(shape, 3, **sizes),
        terms or [vr.Bernoulli(), vr.KLDivergence(weight=vr.LinearWarmup(steps=15))],
        seed=SEED,
    )
    # It has slots as Adam has, and far fewer operations to trace and compile.
    optimizer = optimizer or keras.optimizers.SGD(1e-4, momentum=0.9)
    # Keras' own choice would be XLA.
    vae.compile(optimizer, **{"jit_compile": False} | settings)
    return vae


def trained(vae: vr.VAE, x, **settings) -> tuple[vr.VAE, LossTrace]:
    trace = LossTrace()
    vae.fit(x, verbose=0, callbacks=[trace], **settings)
    return vae, trace


PLAIN = {"steps_per_execution": 1}


@pytest.fixture(scope="module")
def streamed():
    """What a model and its losses are after two epochs of the stream, by how it is binarised."""

    @functools.cache
    def train(binarize):
        stream = grey_images(binarize=binarize).train.batches(BATCH, SEED)
        return trained(compiled(), stream, epochs=2, steps_per_epoch=STEPS)

    return train


# How steps are grouped has nothing to do with how a batch is made: not all with all.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "binarize"),
    [
        ({"run_eagerly": True}, "dynamic"),
        ({"steps_per_execution": 100}, "dynamic"),
        ({"steps_per_execution": 7, "jit_compile": True}, "dynamic"),
        *(
            [
                ({"steps_per_execution": 1}, "dynamic"),
                ({"steps_per_execution": 7}, "none"),
                ({"steps_per_execution": STEPS}, "dynamic"),
                ({"steps_per_execution": 10, "jit_compile": True}, "none"),
            ]
            if SOAK
            else []
        ),
    ],
    ids=str,
)
def test_resident_steps_are_those_of_the_stream(settings, binarize, streamed):
    data = grey_images(binarize=binarize)
    plain, slow = streamed(binarize)
    fast, quick = trained(compiled(**settings), data.train.on_device(BATCH, SEED), epochs=2)
    assert fast.step == plain.step == 2 * STEPS
    assert fast.examples_seen == ROWS  # every image once, those of the short batch too
    # The running mean at the end of each call is the plain one after the same step.
    per_call = settings.get("steps_per_execution", 1)
    ends = [min(end, STEPS) - 1 for end in range(per_call, STEPS + per_call, per_call)]
    wanted = [slow.losses[epoch * STEPS + end] for epoch in range(2) for end in ends]
    np.testing.assert_allclose(quick.losses, wanted, rtol=1e-5)
    for ours, theirs in zip(fast.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("convolutional", [False, True])
def test_fast_and_plain_losses_agree_over_many_steps_of_mnist(convolutional):
    data = vr.load_data("mnist", binarize="dynamic")
    shape = data.shape
    steps = 200 if SOAK else 20
    rows = 32 * steps - 10  # the last batch has 22
    data = Data.from_arrays(data.train.raw[:rows], data.test.raw[:9], data.test.raw[:9])
    plain = compiled(shape=shape, convolutional=convolutional)
    fast = compiled(shape=shape, convolutional=convolutional, jit_compile=not convolutional)
    stream = data.train.batches(32, SEED)
    _, slow = trained(plain, stream, epochs=1, steps_per_epoch=steps)
    _, quick = trained(fast, data.train.on_device(32, SEED), epochs=1)
    np.testing.assert_allclose(quick.losses, slow.losses, rtol=1e-5)
    assert fast.examples_seen == plain.examples_seen == rows


@pytest.mark.slow
def test_another_order_or_noise_would_be_noticed():
    data = grey_images(binarize="dynamic")
    _, ours = trained(as_new(compiled), data.train.on_device(BATCH, SEED), epochs=1)
    _, other = trained(as_new(compiled), data.train.on_device(BATCH, SEED + 1), epochs=1)
    assert not np.allclose(ours.losses, other.losses, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True] if SOAK else [False])
def test_evaluation_of_resident_data_is_that_of_arrays(jit_compile):
    data = grey_images(binarize="dynamic")
    vae = compiled(jit_compile=jit_compile, steps_per_execution=5)
    history = vae.fit(
        data.train.on_device(BATCH, SEED),
        epochs=1,
        verbose=0,
        validation_data=data.validation.on_device(BATCH),
    ).history
    arrays = vae.evaluate(data.validation.prepare(), batch_size=BATCH, verbose=0, return_dict=True)
    on_device = vae.evaluate(data.validation.on_device(BATCH), verbose=0, return_dict=True)
    for name, value in arrays.items():
        np.testing.assert_allclose(on_device[name], value, rtol=1e-5)
        np.testing.assert_allclose(history[f"val_{name}"][0], value, rtol=1e-5)


def test_labels_and_a_later_first_epoch():
    data = grey_images()
    batches = data.train.on_device(BATCH, SEED, first_epoch=1, names=["labels"])
    stream = iter(data.train.batches(BATCH, SEED, first_epoch=1, names=["labels"]))
    for call in batches.calls(4, 1).take(3):  # one epoch
        for index in range(int(call["count"])):
            position = call["first"] + index
            read = batches.reader(
                batches.reader.tensors, call["epoch"], position, call["rows"][index]
            )
            wanted = next(stream)
            assert read.keys() == wanted.keys() == {"inputs", "labels"}
            for name, value in wanted.items():
                np.testing.assert_array_equal(read[name], value)
    assert bool(call["is_last"])
    np.testing.assert_array_equal(
        tf.gather(data.train.labels, call["rest"]), next(stream)["labels"]
    )


@pytest.mark.slow
def test_the_model_takes_other_data_before_and_after():
    data = grey_images()
    vae = compiled(steps_per_execution=5)
    arrays = data.train.prepare()
    vae.fit(arrays, batch_size=BATCH, epochs=1, verbose=0)
    vae.fit(data.train.on_device(BATCH, SEED), epochs=1, verbose=0)
    vae.fit(arrays, batch_size=BATCH, epochs=1, verbose=0)
    vae.train_on_batch(arrays[:BATCH])
    assert vae.step == 3 * STEPS + 1
    vae.evaluate(data.train.on_device(BATCH), verbose=0)
    assert np.isfinite(vae.test_on_batch(arrays[:BATCH])).all()


class Counted(vr.VAE):
    """Counts what happens in Python: traces of a step, and reads of a value by the host."""

    def train_step(self, data):
        counts["traces"] += 1
        return super().train_step(data)


counts = {"traces": 0, "calls": 0, "reads": 0}


@pytest.mark.slow
def test_between_two_calls_python_does_next_to_nothing(monkeypatch):
    """The guard of the speed: counters, which unlike a clock do not depend on the machine."""
    data = grey_images()
    networks = vr.dense_encoder((6, 6, 1), 3), vr.GaussianBottleneck(3)
    vae = Counted(*networks, vr.dense_decoder((6, 6, 1), 3), [vr.Bernoulli(), vr.KLDivergence()])
    vae.compile("sgd", jit_compile=True, steps_per_execution=6)
    batches = data.train.on_device(BATCH, SEED)
    vae.fit(batches, epochs=1, verbose=0)
    assert counts["traces"] == 2  # the loop's body and the short batch
    numpy = type(tf.constant(0)).numpy
    reads = []
    monkeypatch.setattr(
        type(tf.constant(0)), "numpy", lambda tensor: reads.append(tensor.shape) or numpy(tensor)
    )
    make = vae.make_train_function

    def counting(force=False):
        make(force)
        inner = vae.train_function

        def function(iterator):
            counts["calls"] += 1
            before = len(reads)
            answer = inner(iterator)
            counts["reads"] += len(reads) - before
            return answer

        vae.train_function = function

    monkeypatch.setattr(vae, "make_train_function", counting)
    vae.fit(data.train.on_device(BATCH, SEED), epochs=3, verbose=0)
    assert counts["traces"] == 2, "another fit on such data must find the compiled steps"
    assert counts["calls"] == 3 * 2, "11 steps are two calls, of 6 and 5"
    assert counts["reads"] == 0, "no call waits for a value of the device"
    assert len(reads) <= 3 * 10, "an epoch reads its figures once"


class Unknown(vr.LossTerm):
    """A term that XLA cannot compile."""

    weight = None

    def per_example(self, z):
        return tf.ensure_shape(tf.numpy_function(lambda z: z.sum(axis=1), [z], tf.float32), [None])


MODELS = {
    "dense": {},
    "convolutional": {"convolutional": True},
    "unknown": {"terms": [vr.Bernoulli(), vr.KLDivergence(), Unknown()]},
}


@functools.cache
def step_of(model):
    """The training step of one of `MODELS`, traced once."""
    images = tf.constant(grey_images().test.prepare())
    return TracedStep(compiled(**MODELS[model]).training_step, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "jit", "wanted"),
    [
        ("dense", "auto", (True, "it can compile the model")),
        ("dense", "on", (True, "asked for")),
        ("dense", "off", (False, "asked for")),
        ("convolutional", "auto", (False, "it makes Conv2D slower on a CPU")),
        ("convolutional", "on", (True, "asked for")),
        ("unknown", "auto", (False, "it cannot compile PyFunc")),
    ],
)
def test_xla_is_chosen_by_what_the_model_consists_of(model, jit, wanted):
    assert choose_jit(step_of(model), jit) == wanted


@pytest.mark.slow
def test_xla_asked_for_and_impossible_names_the_operation():
    with pytest.raises(ValueError, match="XLA cannot compile PyFunc"):
        choose_jit(step_of("unknown"), "on")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((0, True, 391, 0), 98),  # four calls, of 98, 98, 98 and 97 steps
        ((0, False, 391, 0), 10),
        ((0, True, 5, 0), 5),
        ((0, True, 391, 70), 70),
        ((0, True, 391, 101), 1),  # a prime
        ((10**9, True, 391, 0), 8),  # 6e9 operations a step
        ((10**12, True, 391, 0), 1),
    ],
)
def test_steps_per_call(arguments, wanted):
    assert steps_per_call(*arguments) == wanted


@pytest.mark.soak
def test_sixteen_bits_give_the_same_elbo_within_its_standard_error():
    mnist = vr.load_data("mnist")
    data = Data.from_arrays(
        mnist.train.raw[:4000], mnist.validation.raw[:500], mnist.test.raw[:500], binarize="dynamic"
    )
    figures, weights = {}, {}
    before = keras.config.dtype_policy()
    for precision in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(precision)
        try:
            adam = keras.optimizers.Adam(1e-3)
            settings = {"steps_per_execution": 32, "jit_compile": True}
            vae = compiled(shape=data.shape, optimizer=adam, **settings)
        finally:
            keras.config.set_dtype_policy(before)
        vae.fit(data.train.on_device(32, SEED), epochs=4, verbose=0)
        figures[precision] = vr.estimate(vae, data.test.prepare(), num_samples=20)
        weights[precision] = vae.get_weights()
    exact, short = figures["float32"]["elbo"], figures["mixed_bfloat16"]["elbo"]
    assert exact.value > -200  # it has learned: an untrained model has about -545
    assert abs(short.value - exact.value) < exact.standard_error
    pairs = zip(*weights.values(), strict=True)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in pairs)  # the arithmetic was another
