"""No gradient is a sum of three or more numbers, whose order could change from run to run."""

import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr

SHAPE = (8, 8, 1)


def model(terms, *, outputs=("logits",), convolutional=False, **settings):
    encoder = vr.convolutional_encoder if convolutional else vr.dense_encoder
    decoder = vr.convolutional_decoder if convolutional else vr.dense_decoder
    return vr.VAE(
        encoder(SHAPE, 3),
        vr.GaussianBottleneck(3),
        decoder(SHAPE, 3, outputs=outputs),
        terms,
        **settings,
    )


MODELS = {
    "vae": lambda: model([vr.Bernoulli(), vr.KLDivergence()]),
    "convolutional": lambda: model([vr.Bernoulli(), vr.KLDivergence()], convolutional=True),
    "importance weighted": lambda: model(
        [vr.Bernoulli(), vr.MonteCarloKL()], num_samples=5, importance_weighted=True
    ),
    "every divergence": lambda: model(
        [
            vr.Bernoulli(),
            vr.KLDivergence(),
            vr.MonteCarloKL(name="monte_carlo"),
            vr.FreeBits(),
            vr.CapacityKL(),
        ]
    ),
    "continuous Bernoulli": lambda: model([vr.ContinuousBernoulli(), vr.KLDivergence()]),
    "Gaussian with variance": lambda: model(
        [vr.GaussianWithVariance(), vr.KLDivergence()], outputs=("x_mean", "x_log_var")
    ),
    "Laplace": lambda: model([vr.Laplace(), vr.KLDivergence()], outputs=("x_mean",)),
    "bounded variance": lambda: model(
        [
            vr.GaussianWithVariance(min_standard_deviation=0.1, max_standard_deviation=9.0),
            vr.KLDivergence(),
        ],
        outputs=("x_mean", "x_log_var"),
    ),
    "Poisson": lambda: model([vr.Poisson(), vr.KLDivergence()], outputs=("x_log_rate",)),
    "discretized logistic": lambda: model(
        [vr.DiscretizedLogistic(), vr.KLDivergence()], outputs=("x_mean", "x_log_var")
    ),
}


def mixture_of_rgb():
    return vr.VAE(
        vr.dense_encoder((8, 8, 3), 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder((8, 8, 3), 2, hidden_units=(4,), outputs={"x_mixture": 20}),
        [vr.DiscretizedLogisticMixture(components=2), vr.KLDivergence()],
    )


def residual():
    return vr.VAE(
        vr.residual_encoder(SHAPE, 3, filters=(4,)),
        vr.GaussianBottleneck(3),
        vr.residual_decoder(SHAPE, 3, filters=(4,)),
        [vr.Bernoulli(), vr.KLDivergence()],
    )


def recurrent():
    return vr.VAE(
        vr.recurrent_encoder((8, 8), 2, units=(4,)),
        vr.GaussianBottleneck(2),
        vr.recurrent_decoder((8, 8), 2, units=(4,)),
        [vr.Gaussian(), vr.KLDivergence()],
    )


MODELS |= {"mixture of RGB": mixture_of_rgb, "residual": residual, "recurrent": recurrent}


def sums_of_three(step, *arguments):
    """Returns the names of the operations that add three or more tensors."""
    graph = tf.function(step, autograph=False).get_concrete_function(*arguments).graph
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return [
        node.name
        for node in nodes
        if node.op == "AddN" and len([name for name in node.input if name[0] != "^"]) > 2
    ]


@pytest.mark.parametrize(
    "name", ["vae", *(pytest.param(name, marks=pytest.mark.slow) for name in [*MODELS][1:])]
)
def test_training_step_adds_at_most_two_gradients(name):
    vae = MODELS[name]()
    vae.compile(jit_compile=False)
    shape = vae.encoder.inputs[0].shape[1:]
    images = np.round(np.random.default_rng(0).random((4, *shape), np.float32))
    vae.forward(images)
    vae.optimizer.build(vae.trainable_variables)  # outside of the traced step
    assert sums_of_three(vae.train_step, (tf.constant(images),)) == []


def test_the_check_finds_a_sum_of_three():
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.sin(x) + tf.cos(x) + tf.exp(x)
        return tape.gradient(value, x)

    assert sums_of_three(step, tf.constant(1.0)) != []
