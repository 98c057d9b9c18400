"""No gradient is a sum of three or more numbers, whose order could change from run to run."""

import collections
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import vae_research as vr
from vae_research.tensors import sum_in_order

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


# Operations whose result is in the memory of an input, or of a variable.
SHARE_MEMORY = {"Identity", "Reshape", "Squeeze", "ExpandDims", "ReadVariableOp", "_Arg"}


def sums_of_three(step, *arguments):
    """Returns the names of the operations that add three or more tensors in no fixed order."""
    return [name for name, in_order in executed_sums(step, *arguments) if not in_order]


def executed_sums(step, *arguments):
    """Returns names of the operations that add three or more tensors, and whether in a fixed order.

    They are those of the graph that is executed: TensorFlow turns chains of additions into one AddN
    only then. It begins with the first of its inputs whose memory nobody else needs any more: that
    is always the same one if nobody else reads any of them, nor the memory that they are in, or if
    others always need it, as that of a constant.
    """
    mark = f"of_step_{time.time_ns()}"  # graphs of earlier functions are collected, too

    def marked(*arguments):
        return step(*arguments), tf.constant(0.0, name=mark)

    function = tf.function(marked, autograph=False)
    context.enable_run_metadata()
    try:
        function(*arguments)
        graphs = [
            run.post_optimization_graph
            for run in context.export_run_metadata().function_graphs
            if any(node.name == mark for node in run.pre_optimization_graph.node)
        ]
    finally:
        context.disable_run_metadata()
    assert graphs
    found = []
    for graph in graphs:
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            uses = collections.Counter(name for node in nodes for name in node.input)
            shared = {node.name for node in nodes if node.op in SHARE_MEMORY}
            constants = {node.name for node in nodes if node.op == "Const"}
            for node in nodes:
                added = [name for name in node.input if name[0] != "^"]
                in_order = all(
                    name in constants or (uses[name] == 1 and name not in shared) for name in added
                )
                if node.op == "AddN" and len(added) > 2:
                    found.append((node.name, in_order))
    return found


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


def test_the_check_finds_a_chain_of_additions():
    def step(add):
        def read_again(x):
            first = tf.sin(x)
            return add(first, tf.cos(x), tf.exp(x)), tf.reduce_max(first)

        return read_again

    x = tf.constant([1.0, 2.0])
    assert sums_of_three(step(lambda *each: tf.add_n(each)), x) != []
    assert sums_of_three(step(lambda a, b, c: a + b + c), x) != []
    # A subtraction of the negative is an addition.
    assert sums_of_three(step(lambda a, b, c: a + b - (-c)), x) != []
    assert sums_of_three(step(lambda *each: sum_in_order(each)), x) == []
    assert sums_of_three(lambda x: tf.sin(x) + tf.cos(x) + tf.exp(x), x) == []
