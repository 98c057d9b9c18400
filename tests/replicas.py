"""Six models on 1, 2 and 4 devices of the processor, in a process of its own.

    python -m tests.replicas '{"cases": [["dense", 2, 21]], "mutant": null, "refused": true}'

A case is a model, the number of devices (0: no strategy), and rows in a batch. It prints, as JSON,
how far loss and weights are from those without a strategy, and whatever else is asked for. Devices
have to be made before TensorFlow computes anything.
"""

import functools
import json
import sys
from contextlib import nullcontext

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import SGD

import vae_research as vr
from experiments.beta_tcvae import AggregatePosterior, MeanLogRatio
from experiments.factor_vae import CrossEntropy, Discriminator, TotalCorrelation
from tests import mutants
from vae_research import distribution, randomness
from vae_research.data import pipeline
from vae_research.state import training_state

ROWS, SHAPE, LATENT, DEVICES = 66, (6, 6, 1), 2, 4


def data():
    rng = np.random.default_rng(0)
    images = (rng.random((ROWS, *SHAPE)) < np.linspace(0.1, 0.9, 6)[:, None, None]).astype("f4")
    return vr.Data.from_arrays(images, images[:30], images[:30], name="stripes")


def dense_encoder():
    image = keras.Input(SHAPE, name="inputs")
    hidden = keras.layers.Dense(8, "relu")(keras.layers.Flatten()(image))
    return heads(image, hidden)


def heads(image, hidden):
    names = "z_mean", "z_log_var"
    return keras.Model(image, {name: keras.layers.Dense(LATENT)(hidden) for name in names})


def decoder(size=(LATENT,)):
    z = keras.Input(size, name="z")
    logits = keras.layers.Dense(36)(keras.layers.Flatten()(z))
    return vr.named(keras.Model(z, keras.layers.Reshape(SHAPE)(logits)), "logits")


def gaussian(terms, encoder=None, **settings):
    encoder = dense_encoder() if encoder is None else encoder
    return vr.VAE(encoder, vr.GaussianBottleneck(LATENT), decoder(), terms, **settings)


def dense():
    controlled = vr.KLDivergence(weight=vr.KLTarget(target=1.0))
    return gaussian([vr.Bernoulli(), controlled, vr.FreeBits(name="bits", weight=0.5)])


def convolutional(synchronized=True, use_bias=True):
    image = keras.Input(SHAPE, name="inputs")
    hidden = keras.layers.Conv2D(3, 3, strides=2, use_bias=use_bias)(image)
    hidden = keras.layers.BatchNormalization(synchronized=synchronized)(hidden)
    hidden = keras.layers.Flatten()(keras.layers.Activation("relu")(hidden))
    return gaussian([vr.Bernoulli(), vr.KLDivergence()], heads(image, hidden))


def convolutional_with_adam():
    return convolutional(use_bias=False)  # of a bias that changes nothing Adam makes whole steps


def importance_weighted():
    terms = [vr.Bernoulli(), vr.MonteCarloKL()]
    return gaussian(terms, num_samples=3, importance_weighted=True)


def beta_tcvae(module=AggregatePosterior):
    ratios = [("log_q_z", "log_q_z_product"), ("log_q_z_product", "log_prior")]
    terms = [
        MeanLogRatio(name=p, weight=weight, rename={"log_p": p, "log_q": q})
        for weight, (p, q) in zip((6.0, 1.0), ratios, strict=True)
    ]
    return gaussian([vr.Bernoulli(), vr.KLDivergence(weight=None), *terms], modules=[module(ROWS)])


def factor_vae():
    critic = vr.Critic(Discriminator([8]), [CrossEntropy()], SGD(1e-2), steps=2)
    terms = [vr.Bernoulli(), vr.KLDivergence(), TotalCorrelation(weight=10.0)]
    return gaussian(terms, critics=[critic])


def vector_quantized():
    image = keras.Input(SHAPE, name="inputs")
    vectors = keras.layers.Dense(6)(keras.layers.Flatten()(image))
    network = keras.Model(image, keras.layers.Reshape((3, 2))(vectors))
    terms = [vr.Bernoulli(), vr.Commitment(weight=0.25), vr.Perplexity()]
    bottleneck = vr.VectorQuantizedBottleneck((3, 2), 5)
    return vr.VAE(vr.named(network, "z_mean"), bottleneck, decoder((3, 2)), terms)


MODELS = (dense, convolutional, importance_weighted, beta_tcvae, factor_vae, vector_quantized)


def strategy(devices):
    if not devices:
        return None
    names = [device.name for device in tf.config.list_logical_devices("CPU")][:devices]
    adds_up = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(names, cross_device_ops=adds_up)


def compiled(make, devices, **settings):
    keras.utils.set_random_seed(1)
    chosen = strategy(devices)
    with nullcontext() if chosen is None else chosen.scope():
        model = make()
        # Adam takes nearly the same step for gradients that are twice too large; this one does not.
        adam = make in (dense, convolutional_with_adam)
        kind = keras.optimizers.Adam if adam else functools.partial(SGD, momentum=0.9)
        model.compile(kind(1e-3, **settings), steps_per_execution=5)
        model.data_read(data().train.tensors(slice(0, 2)))
    return model


def trained(make, devices, rows, epochs, **settings):
    model, found = compiled(make, devices, **settings), data()
    history = model.fit(
        found.train.on_device(rows, seed=3),
        validation_data=found.validation.on_device(7),
        epochs=epochs,
        verbose=0,
    )
    return model, {name: values[-1] for name, values in history.history.items()}


def weights(model):
    """Weights, moving averages and codebooks, also of critics, without what only counts."""
    groups = training_state(model)
    found = [*groups["model"], *groups.get("critic", ())]
    return np.concatenate([np.ravel(each.numpy()).astype(np.float64) for each in found])


def compared(cases):
    """Yields how far loss and weights are from those without a strategy after 50 steps and more."""
    alone = {}
    for name, devices, rows in cases:
        make, epochs = globals()[name], -(-50 // -(-ROWS // rows))
        if (name, rows) not in alone:
            model, figures = trained(make, 0, rows, epochs)
            alone[name, rows] = weights(model), figures
        model, figures = trained(make, devices, rows, epochs)
        expected, expected_figures = alone[name, rows]
        found = weights(model)
        yield {
            "case": [name, devices, rows],
            "steps": model.step,
            "weights": np.linalg.norm(found - expected) / np.linalg.norm(expected),
            "figures": {
                each: abs(value - figures[each]) / max(abs(value), 1e-3)
                for each, value in expected_figures.items()
            },
        }


def noise():
    """Returns names of draws of which a row is not that of one device."""
    rows, key = 7, randomness.training_key(5, 11)
    shape = [rows * 2, 3]
    draws = {
        "standard_normal": lambda rows: vr.standard_normal([rows * 2, 3], key),
        "uniform": lambda rows: vr.uniform([rows * 2, 3], key),
        "gumbel": lambda rows: randomness.gumbel([rows * 2, 3], key),
        "gamma": lambda rows: randomness.standard_gamma(tf.fill([rows * 2, 3], 1.5), key),
        "bernoulli": lambda rows: pipeline.bernoulli(tf.fill([rows * 2, 3], 0.4), key),
    }
    different = []
    for name, draw in draws.items():
        whole = draw(rows).numpy()
        assert whole.shape == tuple(shape)
        for replicas in (1, 2, 3, 4):
            parts = []
            for replica in range(replicas):
                share = distribution.Share.of(replica, replicas, rows)
                with distribution.with_share(share), distribution.with_samples(2):
                    parts.append(draw(share.count).numpy())
            found = np.concatenate(parts)
            # Gammas are computed from the noise, by vector units that round the last few another
            # way: their number is that of the rows.
            near = name == "gamma" and np.allclose(found, whole, rtol=1e-6, atol=0.0)
            if not near and not np.array_equal(found, whole):
                different.append(f"{name} of {replicas}")
    return different


def gathered():
    """Returns the kinds of tensors whose rows do not come from all replicas as they were."""
    numbers = [[1, 0], [200, 3], [-1, 7]]
    kinds = [tf.bool, tf.uint8, tf.int8, tf.uint16, tf.int16, tf.uint32, tf.uint64, tf.int32]
    chosen = tf.distribute.MirroredStrategy(strategy(2).extended.worker_devices)  # collective
    kinds += [tf.int64, tf.float16, tf.bfloat16, tf.float32, tf.float64]
    return [kind.name for kind in kinds if not is_gathered(tf.cast(numbers, kind), chosen)]


def is_gathered(whole, chosen):
    """Returns whether each of two replicas gets all rows from its own and those of the other."""
    found = []

    def gather():
        found.append(distribution.whole_rows(distribution.own_rows(whole)) == whole)

    @tf.function(autograph=False)
    def run():
        distribution.run(chosen, gather, len(whole))
        return [tf.reduce_all(each) for each in found]

    equal = run()
    return len(equal) == 2 and all(equal)


class Undeclared(AggregatePosterior):
    """As the one that looks at the whole batch, and does not say so."""

    whole_batch = False


class OwnNoise(keras.layers.Layer):
    """Draws noise that does not know of replicas."""

    def call(self, z, seed):
        return {"noisy": z + tf.random.stateless_normal(tf.shape(z), seed)}


class BatchNorm(keras.layers.Layer):
    """A layer with moments of the batch of its own."""

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, axis=0)


class Spread(vr.LossTerm):
    """A value for each example that depends on the others."""

    def per_example(self, z):
        return tf.reduce_sum((z - tf.reduce_mean(z, axis=0)) ** 2, axis=1)


class LeastMean(vr.LossTerm):
    """The mean of a batch, which is too small to be seen before the first step."""

    def per_example(self, kl):
        return tf.fill(tf.shape(kl)[:1], tf.maximum(tf.reduce_mean(kl), 5.0))


class OwnStep(vr.VAE):
    """A step that clips the gradient of a part of the batch."""

    def train_step(self, batch):
        return super().train_step(batch)


class AddsLoss(keras.layers.Layer):
    """Adds a loss of all rows that it gets."""

    def call(self, inputs):
        self.add_loss(tf.reduce_sum(inputs**2))
        return inputs


class Moving(keras.layers.Layer):
    """Moves a variable by the rows that it gets."""

    def build(self, shape):
        self.seen = self.add_weight(
            shape=shape[1:], initializer="zeros", trainable=False, aggregation="mean"
        )

    def call(self, inputs):
        self.seen.assign_add(tf.reduce_sum(inputs, axis=0))
        return inputs


def own_step():
    terms = [vr.Bernoulli(), vr.KLDivergence()]
    return OwnStep(dense_encoder(), vr.GaussianBottleneck(LATENT), decoder(), terms)


def normalised(layer):
    image = keras.Input(SHAPE, name="inputs")
    hidden = keras.layers.Dense(8)(keras.layers.Flatten()(image))
    return gaussian([vr.Bernoulli(), vr.KLDivergence()], heads(image, layer(hidden)))


REFUSED = {
    "undeclared": lambda: beta_tcvae(Undeclared),
    "noise": lambda: gaussian([vr.Bernoulli(), vr.KLDivergence()], modules=[OwnNoise()]),
    "own step": own_step,
    "added loss": lambda: normalised(AddsLoss()),
    "moved": lambda: normalised(Moving()),
    "own layer": lambda: normalised(BatchNorm()),
    "unsynchronised": lambda: convolutional(synchronized=False),
    "dropout": lambda: normalised(keras.layers.Dropout(0.5)),
    "term": lambda: gaussian([vr.Bernoulli(), vr.KLDivergence(), Spread()]),
    "least mean": lambda: gaussian([vr.Bernoulli(), LeastMean()]),
    "activity": lambda: normalised(keras.layers.Dense(4, activity_regularizer="l2")),
}


OPTIMIZERS = {
    "accumulation": lambda: SGD(1e-3, gradient_accumulation_steps=2),
    "overwriting": lambda: SGD(1e-3, use_ema=True, ema_overwrite_frequency=3),
    "scaled accumulation": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2)
    ),
}


def refused():
    """Returns the messages of what replicas cannot share, by name."""
    messages = {}
    calls = {name: (make, {}) for name, make in REFUSED.items()}
    calls |= {"small batch": (dense, {"rows": 1}), "arrays": (dense, {"rows": None})}
    calls |= {name: (dense, {"optimizer": make}) for name, make in OPTIMIZERS.items()}
    calls["critic's accumulation"] = factor_vae, {"critic": OPTIMIZERS["accumulation"]}
    for name, (make, settings) in calls.items():
        model, rows = compiled(make, 2), settings.get("rows", 8)
        with model.strategy.scope():
            if "optimizer" in settings:
                model.compile(settings["optimizer"]())
            if "critic" in settings:
                model.critics[0].optimizer = settings["critic"]()
        train = data().train
        try:
            model.fit(train.tensors()["inputs"] if rows is None else train.on_device(rows, seed=0))
            messages[name] = None
        except ValueError as error:
            messages[name] = str(error)
    return messages


def out_of_place():
    """Returns the messages of what stands on the wrong side of a scope, by name."""
    terms, rows = [vr.Bernoulli(), vr.KLDivergence()], data().train.on_device(8, seed=0)

    def compile_after_the_scope(scope):
        with scope:
            model = gaussian(terms)
        model.compile("adam")
        return model

    def optimizer_before_the_scope(scope):
        optimizer = SGD()
        with scope:
            model = gaussian(terms)
        model.compile(optimizer)
        return model

    def network_before_the_scope(scope):
        encoder = dense_encoder()
        with scope:
            model = gaussian(terms, encoder)
            model.compile("adam")
        return model

    def model_before_the_scope(scope):
        model = gaussian(terms)
        model.compile("adam")
        with scope:
            model.fit(rows, verbose=0)

    messages = {}
    for wrong in (
        *(compile_after_the_scope, optimizer_before_the_scope),
        *(network_before_the_scope, model_before_the_scope),
    ):
        try:
            wrong(strategy(2).scope()).fit(rows, verbose=0)
            messages[wrong.__name__] = None
        except ValueError as error:
            messages[wrong.__name__] = str(error)
    return messages


def main(asked):
    processor = tf.config.list_physical_devices("CPU")[0]
    each = [tf.config.LogicalDeviceConfiguration()] * DEVICES
    tf.config.set_logical_device_configuration(processor, each)
    if asked.get("mutant"):
        getattr(mutants, asked["mutant"])()
    answer = {"compared": list(compared(asked["cases"]))}
    if asked.get("more"):
        answer |= {"noise": noise(), "gathered": gathered()}
        answer |= {"refused": refused(), "out of place": out_of_place()}
        clipped = {"global_clipnorm": 0.1}
        alone, shared = (weights(trained(dense, n, 21, 3, **clipped)[0]) for n in (0, 2))
        answer["clipped"] = float(np.linalg.norm(shared - alone) / np.linalg.norm(alone))
    print(json.dumps(answer))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
