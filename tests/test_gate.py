"""The gate against values that are not finite: what it stops, names, undoes, and leaves alone."""

import itertools
import json
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import forks
from tests.proofs import SOAK, tell
from tests.traced import way_back
from vae_research import (
    VAE,
    Bernoulli,
    Controller,
    Critic,
    Data,
    GaussianBottleneck,
    GradientEstimator,
    KLDivergence,
    LossTerm,
    MonteCarloKL,
    checkpoints,
    dense_decoder,
    sum_over_event,
)
from vae_research.data.pipeline import epoch_order
from vae_research.runs.cli.errors import DivergedError
from vae_research.runs.session.fit.causes import causes, not_finite
from vae_research.runs.session.fit.gate import FiniteGate, Step
from vae_research.runs.tools import replay
from vae_research.state import all_variables

BATCH, STEPS, EPOCHS = 8, 5, 2
IMAGES = np.random.default_rng(0).random((38, 4, 4)).astype("float32")
DATA = Data.from_arrays(IMAGES, IMAGES[:5], IMAGES[:5])
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


class Sparse(LossTerm):
    """A term of somebody, with a weight."""

    bad_at: int = -1
    value: str = "nan"

    def per_example(self, z, step):
        here = tf.equal(tf.cast(step, tf.int32), self.bad_at)
        return sum_over_event(tf.abs(z)) * tf.where(here, BAD[self.value], 1.0)


class Steep(LossTerm):
    """A term whose value is finite, and whose gradient is not at one step."""

    bad_at: int = -1

    def per_example(self, z, step):
        here = tf.equal(tf.cast(step, tf.int32), self.bad_at)
        # The derivative of a square root at 0 is infinite.
        return sum_over_event(tf.sqrt(tf.where(here, z * 0.0, tf.abs(z) + 1.0)))


class HiddenBranch(LossTerm):
    """A term that hides NaN in a branch of `where`: its value is finite, its gradient is not."""

    def per_example(self, z_log_var):
        return sum_over_event(tf.where(z_log_var > 9.0, 1.0 / tf.nn.relu(z_log_var - 9.0), 0.0))


class SteepBernoulli(Bernoulli):
    """The likelihood, whose gradient at the logits is not finite."""

    def log_likelihood(self, targets, logits):
        flat = sum_over_event(tf.sqrt(logits * 0.0))
        return super().log_likelihood(targets, logits) + flat


class Pull(LossTerm):
    """A term of value 0 with almost the largest gradient."""

    batch_statistic = True

    def per_example(self, z_mean):
        return (z_mean - tf.stop_gradient(z_mean))[0, 0] * 2e38


class SteepEstimator(GradientEstimator):
    """Differentiates something whose gradient is not finite, while those of all terms are."""

    def surrogate(self, samples):
        return -samples.bound(tf.sqrt(samples.log_weight * 0.0))

    def is_unbiased(self, num_samples, importance_weighted):
        return True


class Realness(LossTerm):
    """What a critic is trained on, not finite at one step."""

    bad_at: int = -1

    def per_example(self, realness, step):
        return realness[:, 0] * tf.where(tf.equal(step, float(self.bad_at)), np.nan, 1.0)


class SteepRealness(LossTerm):
    """What a critic, or with it the model, is trained on; its gradient is not finite."""

    def per_example(self, realness):
        return tf.sqrt(realness[:, 0] * 0.0)


class BadBernoulli(Bernoulli):
    """The likelihood, not finite at one step."""

    bad_at: int = -1
    value: str = "nan"

    def log_likelihood(self, targets, logits, step):
        here = tf.equal(tf.cast(step, tf.int32), self.bad_at)
        return super().log_likelihood(targets, logits) * tf.where(here, BAD[self.value], 1.0)


class BadDivergence(KLDivergence):
    """The divergence, not finite at one step."""

    bad_at: int = -1
    value: str = "nan"

    def per_example(self, kl, step):
        here = tf.equal(tf.cast(step, tf.int32), self.bad_at)
        return super().per_example(kl) * tf.where(here, BAD[self.value], 1.0)


class BrokenAdam(keras.optimizers.Adam):
    """Writes NaN into a slot at one step."""

    def __init__(self, bad_at, **settings):
        super().__init__(**settings)
        self.bad_at = bad_at

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        slot = self._velocities[self._get_variable_index(variable)]
        bad = tf.equal(tf.cast(self.iterations, tf.int32), self.bad_at)
        slot.assign(tf.where(bad, np.nan, slot))


class Runaway(Controller):
    """Its state is not finite after one step."""

    bad_at: int = -1

    def initial(self):
        return {"now": 1.0}

    def update(self, state, value, step):
        return {"now": tf.where(tf.equal(step, float(self.bad_at)), np.inf, state["now"] + 0.1)}

    def weight(self, state):
        return state["now"]


class Judge(keras.layers.Layer):
    """The network of a critic, which counts its calls in training and goes wrong in one of them."""

    def __init__(self, bad_at=-1, how="value", regularizer=None):
        super().__init__(name="judge")
        self.bad_at, self.how, self.regularizer = bad_at, how, regularizer

    def build(self, shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(shape[-1], 1), regularizer=self.regularizer
        )
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)

    def call(self, z, training=False):
        here = tf.logical_and(tf.equal(self.count, self.bad_at), training)
        if training:
            self.count.assign_add(1.0)
        if self.how == "codes":  # the gradient by z is not finite, that by the kernel is
            return {"realness": tf.sqrt(z * 0.0) @ self.kernel}
        realness = z @ self.kernel
        if self.how == "value":
            return {"realness": realness * tf.where(here, np.nan, 1.0)}
        return {"realness": tf.sqrt(tf.where(here, realness * 0.0, tf.abs(realness) + 1.0))}


def judged(judge, terms=None, optimizer=None, steps=1):
    """A critic, as an argument of `make`."""
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    critic = Critic(judge, terms or [Realness()], optimizer, steps=steps, name="judge")
    return {"critics": [critic], "eagerly": True}


class BrokenLayer(keras.layers.Layer):
    """Has a variable that it assigns in its call, as batch normalization does, once to infinity."""

    def build(self, shape):
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)

    def __init__(self, bad_at, **settings):
        super().__init__(**settings)
        self.bad_at = bad_at

    def call(self, inputs, training=False):
        if training:
            self.count.assign(tf.where(tf.equal(self.count, self.bad_at), np.inf, self.count + 1))
        return inputs


def make(
    terms=(),
    *,
    optimizer=None,
    jit=False,
    eagerly=False,
    layer=None,
    head=None,
    likelihood=None,
    divergence=None,
    critics=(),
    **options,
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1), name="inputs")
    features = keras.layers.Dense(6, activation="relu")(keras.layers.Flatten()(inputs))
    features = keras.layers.Dropout(0.2)(keras.layers.BatchNormalization()(features))
    if layer is not None:
        features = layer(features)
    heads = {name: keras.layers.Dense(2, name=name)(features) for name in ("z_mean", "z_log_var")}
    if head is not None:
        heads["z_mean"] = head(heads["z_mean"])
    model = VAE(
        keras.Model(inputs, heads),
        GaussianBottleneck(2),
        dense_decoder((4, 4, 1), 2, hidden_units=(6,)),
        [likelihood or Bernoulli(), divergence or KLDivergence(), *terms],
        critics=critics,
        **options,
    )
    # It has slots as Adam has, and far fewer operations to trace and compile.
    optimizer = optimizer or keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, jit_compile=jit, run_eagerly=eagerly)
    model.steps_per_execution = 1 if eagerly else 3
    model.forward(IMAGES[:2, ..., np.newaxis])
    model.build_optimizer()
    return model


def fit(model, run_dir, **options):
    batches = DATA.train.on_device(BATCH, seed=0)
    model.guard = gate = FiniteGate(model, batches, run_dir, **options)
    model.fit(batches, epochs=EPOCHS, verbose=0)
    return gate


def state(model):
    return [np.asarray(variable.value).tobytes() for variable in all_variables(model)]


def train_alone(model, steps):
    """Trains so many steps, one in a call, without a gate."""
    model.steps_per_execution = 1
    model.fit(DATA.train.on_device(BATCH, seed=0), epochs=1, steps_per_epoch=steps, verbose=0)


INJECTIONS = {
    "likelihood": (
        lambda at, value: {"likelihood": BadBernoulli(bad_at=at, value=value)},
        "term 'reconstruction'",
    ),
    "divergence": (
        lambda at, value: {"divergence": BadDivergence(bad_at=at, value=value)},
        "term 'kl'",
    ),
    "own term": (lambda at, value: {"terms": [Sparse(bad_at=at, value=value)]}, "term 'sparse'"),
    "monitor": (
        lambda at, value: {"terms": [Sparse(bad_at=at, value=value, weight=None)]},
        "term 'sparse'",
    ),
    "gradient": (
        lambda at, value: {"terms": [Steep(bad_at=at)]},
        "the gradient of term 'steep' at z (and of ",
    ),
    "slot": (lambda at, value: {"optimizer": BrokenAdam(at)}, "velocity"),
    "layer": (lambda at, value: {"layer": BrokenLayer(at)}, "count"),
}
MODES = {"graph": {}, "XLA": {"jit": True}, "eager": {"eagerly": True}}


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


# The first step, one in the middle of a call, the smaller last batch, and the same an epoch later.
PLACES = [0, 1, 4, 5, 9]
WHERE, COMPILED = list(INJECTIONS), ["graph", "XLA"]
# Each injection, each place and each mode: the gate looks at the state between calls alone, however
# they were compiled, and eager steps need no tracing. `--soak` has all with all.
MODE_OF = dict.fromkeys(("likelihood", "gradient", "slot"), "graph")
CASES = [
    *(
        (where, MODE_OF.get(where, "eager"), PLACES[number % len(PLACES)])
        for number, where in enumerate(WHERE)
    ),
    ("own term", "XLA", 1),
]
if SOAK:
    CASES = list(itertools.product(WHERE, COMPILED, PLACES))


@pytest.mark.slow
@pytest.mark.parametrize(("where", "mode", "at"), [*CASES[:2], *slow(*CASES[2:])])
def test_the_cause_is_named_and_nothing_of_the_step_is_kept(
    where, mode, at, tmp_path, monkeypatch, capsys
):
    injection, named = INJECTIONS[where]
    value = list(BAD)[at % 3]
    model = make(**injection(at, value), **MODES[mode])
    with pytest.raises(DivergedError) as raised:
        fit(model, tmp_path)
    epoch = at // STEPS + 1
    assert f"not finite in epoch {epoch}, step {at + 1}." in str(raised.value)
    assert named in str(raised.value)
    assert model.step == at
    assert not_finite(all_variables(model)) == []
    record = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (record["epoch"], record["step"]) == (epoch, at + 1)
    saved = make(**injection(at, value))
    found = saved.load_checkpoint(tmp_path / record["checkpoint"])
    assert (found.step, found.epoch, found.position) == (at, at // STEPS, at % STEPS)
    flags = SimpleNamespace(batch_size=BATCH, data_seed=0)
    monkeypatch.setattr(replay, "rebuild", lambda run_dir: (saved, DATA, flags, {}))
    assert replay.replay(tmp_path) == 0
    # Keras numbers the names of layers in a process: dense_3.
    then, now = re.sub(r"_\d+(?=[/_ ])", "", capsys.readouterr().out).splitlines()[1:]
    assert now == f"{then.replace('then: not finite was', 'now: ')} not finite"


def causes_in(model):
    """What is named in the first step of a model; naming it changes nothing."""
    before = state(model)
    place = Step(tf.constant(0, tf.int64), tf.constant(0, tf.int64), tf.range(BATCH))
    found = causes(model, place.batch(DATA.train.on_device(BATCH, seed=0)))
    assert state(model) == before
    return found


def flat(weights):
    return tf.reduce_sum(tf.sqrt(weights * 0.0))


def last_layer(function, regularizer=None):
    """A layer between `z_mean` and the rest of the encoder: a function, and the sum with a bias."""

    class Last(keras.layers.Layer):
        def build(self, shape):
            self.bias = self.add_weight(name="bias", shape=shape[1:], regularizer=regularizer)

        def call(self, z_mean):
            return function(z_mean) + self.bias

    return Last(name="last")


FIRST = r"dense(_\d+)?/kernel and \d+ more"  # of the encoder's variables
OF_CODES = rf"at z \(and of {FIRST}\)"
REALNESS = r"term 'judge/realness'"
SLOT = r"the update of \w+/judge_kernel_velocity \(judge optimizer\)"
FINITE_VALUES = {
    # A square root at 0, and a branch of `where`; a monitor trains nothing.
    "terms": (
        lambda: {
            "terms": [Steep(bad_at=0), HiddenBranch(), Steep(name="seen", weight=None, bad_at=0)],
            "num_samples": 2,
        },
        [f"term 'steep' {OF_CODES}", rf"term 'hidden_branch' at z_log_var \(and of {FIRST}\)"],
    ),
    "likelihood": (
        lambda: {"likelihood": SteepBernoulli()},
        [rf"term 'reconstruction' at logits \(and of {FIRST}\)"],
    ),
    "within the encoder": (
        lambda: {"head": last_layer(lambda z_mean: tf.sqrt(z_mean * 0.0))},
        [f"term 'reconstruction' at {FIRST}", f"term 'kl' at {FIRST}"],
    ),
    "overflow of a sum": (
        lambda: {"head": last_layer(tf.stop_gradient), "terms": [Pull(), Pull(name="another")]},
        [r"the loss at z_mean \(and of last/bias\)"],
    ),
    "regularization": (
        lambda: {
            "head": last_layer(tf.identity, regularizer=flat),
            **judged(Judge(regularizer=flat)),
        },
        ["term 'regularization' at last/bias", "the loss of critic 'judge' at judge/kernel"],
    ),
    "what a critic wrote": (
        lambda: {
            "terms": [SteepRealness()],
            **judged(Judge(), terms=[Realness(), SteepRealness()]),
        },
        [
            rf"term 'steep_realness' at realness \(and of {FIRST}\)",
            r"term 'judge/steep_realness' at realness \(and of judge/kernel\)",
        ],
    ),
    "what a critic does not train": (lambda: judged(Judge(how="codes")), []),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=[] if n == "terms" else pytest.mark.slow) for n in FINITE_VALUES],
)
def test_term_whose_gradient_is_not_finite_is_named_with_its_tensor(case):
    injection, named = FINITE_VALUES[case]
    found = causes_in(make(**injection()))
    assert len(found) == len(named), found
    for cause, pattern in zip(found, named, strict=True):
        assert re.fullmatch(f"the gradient of {pattern}", cause), cause


# How a critic fails, in which of its updates of a step (from 0), and what is said.
UPDATES = {
    "value, alone": (
        lambda: judged(Judge(0), steps=2),
        rf"{REALNESS} \(first of all realness\) in update 1 of 2",
    ),
    "gradient, alone": (
        lambda: judged(Judge(1, "gradient"), steps=3),
        f"the gradient of {REALNESS} at judge/kernel in update 2 of 3",
    ),
    "slot, alone": (
        lambda: judged(Judge(), optimizer=BrokenAdam(0), steps=2),
        f"{SLOT} in update 1 of 2",
    ),
    "slot, with the model": (
        lambda: judged(Judge(), optimizer=BrokenAdam(1), steps=2),
        SLOT,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", UPDATES)
def test_update_in_which_a_critic_fails_is_named(case):
    injection, named = UPDATES[case]
    (found,) = causes_in(make(**injection()))
    assert re.fullmatch(named, found), found


@pytest.mark.slow
def test_variable_whose_update_is_not_finite_is_named():
    (found,) = causes_in(make(optimizer=BrokenAdam(0)))
    assert re.fullmatch(r"the update of \w+/\w+_velocity and \d+ more \(optimizer\)", found)


def test_weight_that_is_not_finite_is_named():
    model = make([Sparse(weight=lambda step: np.inf)])
    assert causes_in(model) == ["the weight of term 'sparse'"]


@pytest.mark.slow
def test_what_an_estimator_differentiates_is_named():
    estimator = SteepEstimator()
    model = make(divergence=MonteCarloKL(), num_samples=2, gradient_estimator=estimator)
    (found,) = causes_in(model)
    assert re.fullmatch(rf"the gradient of the surrogate at logits \(and of {FIRST}\)", found)


@pytest.mark.slow
def test_skip_undoes_critics_and_controllers_and_counts_for_the_model_alone(tmp_path, capsys):
    weight = Runaway(bad_at=1)
    critic = judged(Judge(), terms=[Realness(bad_at=0)], steps=2)
    model = make(divergence=KLDivergence(weight=weight), **critic)
    before = state(model)
    batches = DATA.train.on_device(19, seed=0)
    model.guard = gate = FiniteGate(model, batches, tmp_path, skip=True)
    model.fit(batches, epochs=1, verbose=0)
    said = capsys.readouterr().err
    assert f"{REALNESS} in update 1 of 2 not finite in epoch 1, step 1; step skipped (1 so" in said
    assert "the update of kl now (controllers) not finite in epoch 1, step 2; step ski" in said
    assert (gate.skipped, model.step) == (2, 2)
    model.step_counter.assign(0)
    assert state(model) == before


# The first step, one in the middle of a call, and the smaller last batch.
@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1, 4] if SOAK else [4])
@pytest.mark.parametrize("mode", COMPILED if SOAK else ["graph"])
def test_a_value_of_the_data_is_named(mode, at, tmp_path, monkeypatch):
    """A value that the first look at the data does not meet."""
    monkeypatch.setattr("vae_research.trainer.refuse_unsuitable_data", lambda *given: None)
    model = make(**MODES[mode])
    batches = DATA.train.on_device(BATCH, seed=0)
    row = int(epoch_order(len(DATA.train), 0, 0)[at * BATCH])
    stored = batches.reader.tensors["stored"].numpy()
    stored[row, 3] = list(BAD.values())[at % 3]
    batches.reader.tensors["stored"] = tf.constant(stored)
    model.guard = FiniteGate(model, batches, tmp_path)
    with pytest.raises(DivergedError, match=r"'reconstruction' \(first of all inputs\)") as raised:
        model.fit(batches, epochs=1, verbose=0)
    assert f"not finite in epoch 1, step {at + 1}." in str(raised.value)
    assert model.step == at
    assert not_finite(all_variables(model)) == []
    assert row in json.loads((tmp_path / "nonfinite.json").read_text())["rows"]


@pytest.mark.slow
def test_the_state_is_that_of_a_training_that_ended_before(tmp_path):
    model = make([Sparse(bad_at=4)])
    put_back = way_back(model)
    train_alone(model, 4)
    wanted = state(model)
    put_back()
    model.steps_per_execution = 3
    with pytest.raises(DivergedError):
        fit(model, tmp_path)
    assert state(model) == wanted


@pytest.mark.slow
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path):
    class Overflows(keras.layers.Layer):
        def call(self, z_mean, training=False):
            return z_mean * (3e38 if training else 1.0) * 3e38

    model = make(head=Overflows(name="overflows"), eagerly=True)
    with pytest.raises(DivergedError, match=r"term 'reconstruction' \(first of all z_mean\)"):
        fit(model, tmp_path)


@pytest.mark.slow
def test_a_state_that_was_not_finite_before_is_said_to_be_so(tmp_path):
    model = make(eagerly=True)
    model.encoder.get_layer("z_mean").bias.assign([np.nan, 0.0])
    with pytest.raises(DivergedError, match=r"before step 1 .*z_mean/bias"):
        fit(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES if SOAK else ["graph"])
def test_steps_are_those_without_a_gate(mode, tmp_path):
    model = make([Sparse()], **MODES[mode])
    put_back = way_back(model)
    fit(model, tmp_path)
    gated = state(model)
    put_back()
    assert state(model) != gated
    model.guard = None
    model.fit(DATA.train.on_device(BATCH, seed=0), epochs=EPOCHS, verbose=0)
    assert state(model) == gated
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
@pytest.mark.parametrize("mode", COMPILED)
def test_no_false_alarm_in_many_clean_steps(mode, tmp_path):
    epochs = 100  # of 100 steps
    images = np.random.default_rng(1).random((800, 4, 4)).astype("float32")
    batches = Data.from_arrays(images, images[:5], images[:5]).train.on_device(BATCH, seed=0)
    checks = []

    class Watched(FiniteGate):
        def _is_finite(self):
            checks.append(super()._is_finite())
            return checks[-1]

    model = make([Sparse()], **MODES[mode])
    model.steps_per_execution = 100
    model.guard = Watched(model, batches, tmp_path)
    model.fit(batches, epochs=epochs, verbose=0)
    assert model.step == 100 * epochs
    assert checks == [True] * epochs
    assert list(tmp_path.iterdir()) == []
    tell(f"clean steps, {mode}", steps=model.step, checks=len(checks), alarms=checks.count(False))


@pytest.mark.slow
@pytest.mark.parametrize("mode", COMPILED if SOAK else ["graph"])
def test_skipping_leaves_one_step_out_and_says_so(mode, tmp_path, capsys):
    model = make([Sparse(bad_at=4)], **MODES[mode])
    gate = fit(model, tmp_path, skip=True)
    assert gate.skipped == 1
    assert model.step == EPOCHS * STEPS
    assert int(model.optimizer.iterations) == EPOCHS * STEPS - 1
    assert "epoch 1, step 5; step skipped (1 so far" in capsys.readouterr().err
    assert not_finite(all_variables(model)) == []
    # By hand, eagerly: four steps, one that only counts, and the others.
    by_hand = make([Sparse(bad_at=4)], eagerly=True)
    train_alone(by_hand, 4)
    by_hand.step_counter.assign_add(1)
    rest = DATA.train.on_device(BATCH, seed=0, first_epoch=1)
    by_hand.fit(rest, epochs=1, verbose=0)
    for mine, other in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_skips_that_run_on_end_the_training(tmp_path):
    class AlwaysBad(LossTerm):
        def per_example(self, z):
            return sum_over_event(z) * np.nan

    model = make([AlwaysBad(name="always_bad")])
    batches = DATA.train.on_device(BATCH, seed=0)
    model.guard = gate = FiniteGate(model, batches, tmp_path, skip=True)
    with pytest.raises(DivergedError, match=r"step 11, the 11th step in a row"):
        model.fit(batches, epochs=5, verbose=0)
    assert gate.skipped == 10


@pytest.mark.slow
def test_large_values_are_no_alarm(tmp_path):
    model = make()
    # Their sum overflows, and each of them is finite.
    model.optimizer.variables[-1].assign(np.full(model.optimizer.variables[-1].shape, 3e38))
    gate = FiniteGate(model, DATA.train.on_device(BATCH, seed=0), tmp_path)
    assert not np.isfinite(float(gate._total()))
    assert gate._is_finite()


@pytest.mark.slow
def test_an_error_in_a_call_leaves_the_state_of_its_beginning(tmp_path):
    class Fails(LossTerm):
        def per_example(self, z, step):
            with tf.control_dependencies([tf.debugging.assert_less(step, 4.0)]):
                return sum_over_event(tf.identity(z))

    model = make([Fails()])
    with pytest.raises(tf.errors.InvalidArgumentError):
        fit(model, tmp_path)
    assert model.step == 3  # the second call has steps 3 and 4 and the rest
    assert np.isfinite(model.get_weights()[0]).all()
    assert checkpoints.weights_sha256(model) != checkpoints.weights_sha256(make([Fails()]))


class NoGate(FiniteGate):
    """The mutant: looks at nothing."""

    def _is_finite(self):
        return True


@pytest.mark.slow
def test_without_a_gate_the_weights_would_be_lost(tmp_path):
    model = make([Sparse(bad_at=4)], eagerly=True)
    batches = DATA.train.on_device(BATCH, seed=0)
    model.guard = NoGate(model, batches, tmp_path)
    model.fit(batches, epochs=1, verbose=0)
    assert not_finite(all_variables(model)) != []


@pytest.mark.slow
def test_the_command_repeats_the_step_of_a_run(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    np.savez(tmp_path / "images.npz", train=IMAGES)
    flags = ["--dataset=images.npz", "--batch_size=8", "--epochs=3", "--run_dir=run", "--verbose=0"]
    flags += ["--jit=off", "--notensorboard"]
    trained = forks.run("own.py", *flags, cwd=tmp_path)
    assert trained.returncode == 6
    assert "term 'sparse' not finite in epoch 2, step 7." in trained.stderr
    replay = "-m", "vae_research.runs.tools.replay"
    replayed = forks.run(*replay, "run", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert replayed.stdout.endswith("now:  term 'sparse' not finite\n")
    examined = forks.run("-m", "vae_research.runs.tools.doctor", "run", cwd=tmp_path)
    assert "diverged in epoch 2, step 7: term 'sparse' not finite" in examined.stdout
    assert forks.run(*replay, ".", cwd=tmp_path).returncode == 2


OWN = '''"""A term that fails at one step."""

import tensorflow as tf

import vae_research as vr
from vae_research import runs


class Sparse(vr.LossTerm):
    def per_example(self, z, step):
        return vr.sum_over_event(tf.abs(z)) * tf.where(tf.equal(step, 6.0), float("nan"), 1.0)


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(), Sparse()],
    )


if __name__ == "__main__":
    runs.main(build)
'''
