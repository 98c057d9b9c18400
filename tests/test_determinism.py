"""No gradient is a sum of three or more numbers, whose order could change from run to run."""

import collections
import json
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import vae_research as vr
from tests import forks
from tests.proofs import SOAK
from vae_research.tensors import sum_in_order


def models():
    """Returns functions that make a model and data for it, by name.

    They are the whole models of the table of all public parts, and what no part stands for: every
    divergence at a time, several samples, mixtures of colours.
    """
    from tests import test_whole_models as whole

    def found(parts):
        return lambda: whole.model_of(**parts)

    each = {
        f"{place} {name}": {place: name} | parts
        for parts in whole.ALONE
        for place, name in [next(iter(parts.items()))]
    }
    together = {f"with {parts['bottleneck']}": parts for parts in whole.TOGETHER}
    return {name: found(parts) for name, parts in (each | together).items()} | FURTHER


def dense(terms, **settings):
    shape = (8, 8, 1)
    model = vr.VAE(
        vr.dense_encoder(shape, 3, hidden_units=(4,)),
        vr.GaussianBottleneck(3),
        vr.dense_decoder(shape, 3, hidden_units=(4,)),
        terms,
        **settings,
    )
    return model, {"inputs": np.round(np.random.default_rng(0).random((4, *shape), np.float32))}


FURTHER = {
    "every divergence": lambda: dense(
        [
            vr.Bernoulli(),
            vr.KLDivergence(),
            vr.MonteCarloKL(name="monte_carlo"),
            vr.FreeBits(),
            vr.CapacityKL(),
        ]
    ),
    "importance weighted": lambda: dense(
        [vr.Bernoulli(), vr.MonteCarloKL()], num_samples=5, importance_weighted=True
    ),
}
# What is looked at every day; `scripts/check --soak` looks at all.
DAILY = [
    "with LadderBottleneck",
    "with FullCovarianceGaussianBottleneck",
    "with VectorQuantizedBottleneck",
    "with RealNVPPrior",
    "decoder residual_decoder",
    "every divergence",
    "importance weighted",
]


# Operations whose result is in the memory of an input, or of a variable.
SHARE_MEMORY = {"Identity", "Reshape", "Squeeze", "ExpandDims", "ReadVariableOp", "_Arg"}


def sums_of_three(step, *arguments):
    """Returns the names of the operations that add three or more tensors in no fixed order."""
    return [name for name, in_order in executed_sums(step, *arguments) if not in_order]


def executed_sums(step, *arguments):
    """Returns names of the operations that add three or more tensors, and whether in a fixed order.

    They are those of the graph that is executed: TensorFlow turns chains of additions into one AddN
    only then. See `has_fixed_order`.
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
            operations = {node.name: node.op for node in nodes}
            for node in nodes:
                added = [name for name in node.input if name[0] != "^"]
                # Arguments of a function are not among its nodes.
                of = {name: operations.get(name.partition(":")[0], "_Arg") for name in added}
                free = {n for n in added if uses[n] == 1 and of[n] not in SHARE_MEMORY}
                kept = {name for name in added if of[name] == "Const"}
                in_order = has_fixed_order(added, free, kept)
                if node.op == "AddN" and len(added) > 2:
                    found.append((node.name, in_order))
    return found


def has_fixed_order(added, free, kept):
    """Returns whether an AddN always adds its inputs in the same order.

    It exchanges the first one with the first whose memory nobody else needs any more, which depends
    on what has run before, unless there is one that nobody else reads, nor the memory that it is
    in. The first two may be exchanged: a + b is b + a.

    Args:
        added: names of the inputs.
        free: those of them that nobody else ever needs.
        kept: those that others always need, as that of a constant.
    """
    first = set()
    for at, name in enumerate(added):
        if name not in kept:
            first.add(max(at, 1))
        if name in free:
            return len(first) == 1
    return first <= {1}


@pytest.mark.parametrize(
    ("free", "kept", "fixed"),
    [
        ("abc", "", True),
        ("bc", "", True),
        ("b", "a", True),
        ("c", "ab", True),
        ("c", "b", False),
        ("c", "", False),
        ("", "bc", True),
        ("", "abc", True),
        ("", "", False),
    ],
)
def test_the_order_of_a_sum(free, kept, fixed):
    assert has_fixed_order("abc", free, kept) == fixed


def look_at(names):
    """Prints which models add three tensors in no fixed order in a step, and where, as JSON."""
    found = {}
    for name in names:
        vae, data = models()[name]()
        vae.compile(jit_compile=False)
        batch = {each: tf.constant(values[:4]) for each, values in data.items()}
        vae.forward(batch)
        vae.optimizer.build(vae.trainable_variables)  # outside of the traced step
        if sums := sums_of_three(vae.train_step, (batch,)):
            found[name] = sums
    print(json.dumps(found))


@pytest.mark.slow
def test_training_steps_add_at_most_two_gradients(tmp_path):
    # In a process of their own: the graphs of all functions of a process are written each time.
    names = list(models()) if SOAK else DAILY
    for at in range(0, len(names), 8):
        run = forks.run("-m", "tests.test_determinism", *names[at : at + 8], cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout) == {}


def test_the_check_finds_a_chain_of_additions():
    def step(add):
        def read_again(x):
            added = tf.sin(x), tf.cos(x), tf.exp(x)
            return add(*added), [tf.reduce_max(each) for each in added]

        return read_again

    x = tf.constant([1.0, 2.0])
    assert sums_of_three(step(lambda *each: tf.add_n(each)), x) != []
    assert sums_of_three(step(lambda a, b, c: a + b + c), x) != []
    # A subtraction of the negative is an addition.
    assert sums_of_three(step(lambda a, b, c: a + b - (-c)), x) != []
    assert sums_of_three(step(lambda *each: sum_in_order(each)), x) == []
    assert sums_of_three(lambda x: tf.sin(x) + tf.cos(x) + tf.exp(x), x) == []


def test_a_sum_whose_first_may_be_exchanged_with_the_second_has_an_order():
    def step(x):
        first = tf.sin(x)
        return tf.add_n([first, tf.cos(x), tf.exp(x)]), tf.reduce_max(first)

    ((_, in_order),) = executed_sums(step, tf.constant([1.0, 2.0]))
    assert in_order


if __name__ == "__main__":
    look_at(sys.argv[1:])
