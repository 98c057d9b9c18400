"""The gate against values that are not finite: what it stops, names, undoes, and leaves alone."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import forks
from tests.proofs import SOAK, tell
from vae_research import (
    VAE,
    Bernoulli,
    Data,
    GaussianBottleneck,
    KLDivergence,
    LossTerm,
    checkpoints,
    dense_decoder,
    sum_over_event,
)
from vae_research.data.pipeline import epoch_order
from vae_research.runs.cli.errors import DivergedError
from vae_research.runs.session.gate import FiniteGate, not_finite
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
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), jit_compile=jit, run_eagerly=eagerly)
    model.steps_per_execution = 1 if eagerly else 3
    model.forward(IMAGES[:2, ..., np.newaxis])
    model.optimizer.build(model.trainable_variables)
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
    "gradient": (lambda at, value: {"terms": [Steep(bad_at=at)]}, "the gradient of "),
    "slot": (lambda at, value: {"optimizer": BrokenAdam(at)}, "velocity"),
    "layer": (lambda at, value: {"layer": BrokenLayer(at)}, "count"),
}
MODES = {"graph": {}, "XLA": {"jit": True}, "eager": {"eagerly": True}}


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


# The first step, one in the middle of a call, the smaller last batch, and the same an epoch later.
PLACES = [0, 1, 4, 5, 9]
WHERE, COMPILED = list(INJECTIONS), ["graph", "XLA"]
# Each injection as a graph and with XLA, and each place; `--soak` has all with all.
CASES = [
    *((where, "graph", PLACES[number % len(PLACES)]) for number, where in enumerate(WHERE)),
    *((where, "XLA", PLACES[(2 * number + 2) % len(PLACES)]) for number, where in enumerate(WHERE)),
]
if SOAK:
    CASES = list(itertools.product(WHERE, COMPILED, PLACES))


@pytest.mark.slow
@pytest.mark.parametrize(("where", "mode", "at"), [*CASES[:2], *slow(*CASES[2:])])
def test_the_cause_is_named_and_nothing_of_the_step_is_kept(where, mode, at, tmp_path):
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


# The first step, one in the middle of a call, and the smaller last batch.
@pytest.mark.slow
@pytest.mark.parametrize("at", [0, *slow([1], [4])])
@pytest.mark.parametrize("mode", COMPILED if SOAK else ["graph"])
def test_a_value_of_the_data_is_named(mode, at, tmp_path):
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
    wanted = make([Sparse()])
    train_alone(wanted, 4)
    model = make([Sparse(bad_at=4)])
    with pytest.raises(DivergedError):
        fit(model, tmp_path)
    assert state(model) == state(wanted)


@pytest.mark.slow
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path):
    class Overflows(keras.layers.Layer):
        def call(self, z_mean, training=False):
            return z_mean * (3e38 if training else 1.0) * 3e38

    model = make(head=Overflows(name="overflows"))
    with pytest.raises(DivergedError, match=r"term 'reconstruction' \(first of all z_mean\)"):
        fit(model, tmp_path)


def test_a_state_that_was_not_finite_before_is_said_to_be_so(tmp_path):
    model = make()
    model.encoder.get_layer("z_mean").bias.assign([np.nan, 0.0])
    with pytest.raises(DivergedError, match=r"before step 1 .*z_mean/bias"):
        fit(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", *slow(["XLA"], ["eager"])])
def test_steps_are_those_without_a_gate(mode, tmp_path):
    gated, free = make([Sparse()], **MODES[mode]), make([Sparse()], **MODES[mode])
    fit(gated, tmp_path)
    free.fit(DATA.train.on_device(BATCH, seed=0), epochs=EPOCHS, verbose=0)
    assert state(gated) == state(free)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", COMPILED if SOAK else ["graph"])
def test_no_false_alarm_in_many_clean_steps(mode, tmp_path):
    epochs = 100 if SOAK else 5  # of 100 steps
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
@pytest.mark.parametrize("mode", ["graph", "XLA"])
def test_skipping_leaves_one_step_out_and_says_so(mode, tmp_path, capsys):
    model = make([Sparse(bad_at=4)], **MODES[mode])
    gate = fit(model, tmp_path, skip=True)
    assert gate.skipped == 1
    assert model.step == EPOCHS * STEPS
    assert "epoch 1, step 5; step skipped (1 so far" in capsys.readouterr().err
    assert not_finite(all_variables(model)) == []
    # By hand: four steps, one that only counts, and the others.
    wanted = make([Sparse()], **MODES[mode])
    train_alone(wanted, 4)
    wanted.step_counter.assign_add(1)
    rest = DATA.train.on_device(BATCH, seed=0, first_epoch=1)
    wanted.fit(rest, epochs=1, verbose=0)
    ours, theirs = model.get_weights(), wanted.get_weights()
    for mine, other in zip(ours, theirs, strict=True):
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

    model, wanted = make([Fails()]), make([Sparse()])
    with pytest.raises(tf.errors.InvalidArgumentError):
        fit(model, tmp_path)
    assert model.step == 3  # the second call has steps 3 and 4 and the rest
    train_alone(wanted, 3)
    assert np.isfinite(model.get_weights()[0]).all()
    assert checkpoints.weights_sha256(model) != checkpoints.weights_sha256(make([Fails()]))


class NoGate(FiniteGate):
    """The mutant: looks at nothing."""

    def _is_finite(self):
        return True


@pytest.mark.slow
def test_without_a_gate_the_weights_would_be_lost(tmp_path):
    model = make([Sparse(bad_at=4)])
    batches = DATA.train.on_device(BATCH, seed=0)
    model.guard = NoGate(model, batches, tmp_path)
    model.fit(batches, epochs=EPOCHS, verbose=0)
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
    replayed = forks.alone(*replay, "run", cwd=tmp_path)
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
