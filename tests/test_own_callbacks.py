"""Callbacks of an experiment: what a run saves of them, what it refuses, and what they see."""

import collections
import functools
import json
import random
import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.cluster import KMeans

import vae_research as vr
from vae_research import checkpoints, manifests, runs
from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.session import directory, training
from vae_research.runs.session.fit.own_callbacks import OwnCallbacks
from vae_research.runs.session.fit.saving import Saving
from vae_research.runs.session.kept import provenance
from vae_research.runs.session.resume import has_stopped

DATA = vr.Data.from_arrays(np.zeros((40, 4, 4), np.uint8))


@pytest.fixture(scope="module")
def model():
    """A model with an optimizer, as small as there is one."""
    vae = vr.VAE(
        vr.dense_encoder([2], 1, hidden_units=(2,)),
        vr.GaussianBottleneck(1),
        vr.dense_decoder([2], 1, hidden_units=(2,)),
        [vr.Bernoulli(), vr.KLDivergence()],
    )
    vae.compile("adam", steps_per_execution=3)
    vae.report(np.zeros((2, 2), np.float32))
    vae.build_optimizer()
    vae.set_steps_per_epoch(5)
    return vae


def begun(model, callbacks, *, resumes=False, position=0):
    """Callbacks of a training that has begun."""
    own = OwnCallbacks(callbacks, resumes=resumes, position=position)
    own.set_model(model)
    own.set_params({"epochs": 9, "steps": 5})
    own.on_train_begin()
    return own


LOGS = [{"val_elbo": value, "val_loss": -value} for value in (-5.0, -3.0, -4.0, -6.0)]


def test_callbacks_of_keras_continue_where_they_were(model):
    def made():
        return [
            keras.callbacks.EarlyStopping("val_elbo", patience=2, mode="max"),
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=1),
            keras.callbacks.EarlyStopping("val_loss", patience=9, min_delta=0.5),
        ]

    whole, before, after = begun(model, made()), begun(model, made()), begun(model, made())
    for epoch, logs in enumerate(LOGS[:3]):
        whole.on_epoch_end(epoch, dict(logs))
        before.on_epoch_end(epoch, dict(logs))
    after.set_state(before.get_state())
    assert [found.wait for found in after.callbacks] == [1, 0, 1]
    assert after.callbacks[0].best == -3.0
    model.stop_training = False
    after.on_epoch_end(3, dict(LOGS[3]))
    assert model.stop_training
    whole.on_epoch_end(3, dict(LOGS[3]))
    assert after.get_state() == whole.get_state()


class Plain(keras.callbacks.Callback):
    """Changes what JSON can hold, and nothing else."""

    def __init__(self, patience):
        super().__init__()
        self.patience, self.epochs, self.history = patience, 0, []
        self.fixed = {3, 4}

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.history.append({"elbo": logs["val_elbo"], "at": [epoch, None]})
        self.new = "set later"


def test_plain_attributes_that_changed_are_saved(model):
    before, after = begun(model, [Plain(3)]), begun(model, [Plain(4)])
    before.on_epoch_end(0, LOGS[0])
    after.set_state(before.get_state())
    (found,) = after.callbacks
    assert (found.epochs, found.new) == (1, "set later")
    assert found.history == [{"elbo": -5.0, "at": [0, None]}]
    assert found.patience == 4  # an argument, which has not changed during training


class Records(vr.callbacks.EpochCallback):
    """Inherits `get_state`, which knows nothing of `records`."""

    def __init__(self):
        super().__init__()
        self.records = 0

    def on_record(self, record):
        self.records += 1


def test_what_a_base_class_does_not_know_is_saved_as_well(model):
    before, after = begun(model, [Records()]), begun(model, [Records()])
    before.on_epoch_begin(0)
    before.callbacks[0].on_record(None)
    state = before.get_state()
    assert state["Records"]["attributes"] == {"records": 1}
    assert list(state["Records"]["returned"]) == ["seconds"]
    after.on_epoch_begin(0)
    after.set_state(state)
    assert after.callbacks[0].records == 1


class Changes(keras.callbacks.Callback):
    """Changes one attribute when it is told to."""

    def __init__(self, value, change):
        super().__init__()
        self.kept, self.change = value, change

    def on_epoch_end(self, epoch, logs=None):
        self.kept = self.change(self.kept)


class Tracker:
    """Of a user."""

    def __init__(self):
        self.inner = [np.zeros(2)]


class Slots:
    """Of a user, without a dictionary of attributes."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def step(self):
        self.count += 1


def in_place(function):
    def change(value):
        function(value)
        return value

    return change


CHANGES = {
    "set": (set(), in_place(lambda found: found.add(1))),
    "tuple": ((1,), lambda found: (*found, 2)),
    "deque": (collections.deque(maxlen=3), in_place(lambda found: found.append(0.5))),
    "keys": ({1: 2}, in_place(lambda found: found.update({2: 3}))),
    "array": (np.zeros(3), in_place(lambda found: np.add.at(found, 0, 1.0))),
    "float32": (np.float32(1), lambda found: found + np.float32(1)),
    "generator": (np.random.default_rng(0), in_place(lambda found: found.normal())),
    "random": (random.Random(0), in_place(lambda found: found.random())),
    "variable": (tf.Variable(1.0), in_place(lambda found: found.assign_add(1.0))),
    "keras variable": (keras.Variable(1.0), in_place(lambda found: found.assign(2.0))),
    "layer": (keras.layers.Normalization(), in_place(lambda found: found.adapt(np.eye(2)))),
    "metric": (keras.metrics.Mean(), in_place(lambda found: found.update_state(1.0))),
    "object": (Tracker(), in_place(lambda found: found.inner[0].fill(2.0))),
    "slots": (Slots(), in_place(Slots.step)),
    "random state": (np.random.RandomState(0), in_place(lambda found: found.normal())),
    "seeds of Keras": (keras.random.SeedGenerator(0), in_place(lambda found: found.next())),
    "generator of TensorFlow": (
        tf.random.Generator.from_seed(0),
        in_place(lambda found: found.normal([])),
    ),
    "iterator": (iter([1, 2]), in_place(next)),
    "estimator": (KMeans(2, n_init=1), in_place(lambda found: found.fit(np.eye(2)))),
    "objects": (np.array([[], 1], object), in_place(lambda found: found[0].append(1))),
    "masked": (np.ma.zeros(2), in_place(lambda found: found.__setitem__(0, np.ma.masked))),
    "in another package's": (
        functools.partial(next, Slots()),
        in_place(lambda f: f.args[0].step()),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_state_that_no_checkpoint_holds_is_refused_by_name(kind, model):
    value, change = CHANGES[kind]
    own = begun(model, [Plain(1), Changes(value, lambda found: found)])
    own.on_epoch_end(0, LOGS[0])  # nothing has changed yet
    own.callbacks[1].change = change
    own = begun(model, own.callbacks)
    message = (
        f"callback Changes: kept changes during training and is of type {type(value).__name__}"
    )
    with pytest.raises(UsageError, match=message):
        own.on_epoch_end(0, LOGS[0])


def test_what_cannot_be_compared_is_refused_by_name(model):
    held = SimpleNamespace(draws=(draw for draw in range(3)))
    message = "callback Changes: kept holds a SimpleNamespace, whose changes cannot be noticed"
    with pytest.raises(UsageError, match=message):
        begun(model, [Changes(held, lambda found: found)])


def test_what_does_not_change_is_not_refused(model, tmp_path):
    around = [tmp_path, threading.Lock(), np, len, keras.losses.MeanSquaredError(), KMeans(2)]
    cyclic = SimpleNamespace(around=around)
    tracker = Tracker()
    tracker.inner, cyclic.inner = cyclic, tracker
    writer = tf.summary.create_file_writer(str(tmp_path / "own"))
    with open(tmp_path / "file", "w") as file:
        kept = [cyclic, writer, file, DATA, tf.function(lambda: model), tf.constant(1.0)]
        own = begun(model, [Changes(kept, lambda found: found)])
        file.write("line")
        own.on_epoch_end(0, LOGS[0])
    assert own.get_state()["Changes"]["attributes"] == {}


def test_what_a_closure_remembers_is_refused(model):
    times = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: times.append(epoch))
    with pytest.raises(UsageError, match="LambdaCallback: on_epoch_end changes"):
        begun(model, [callback]).on_epoch_end(0, LOGS[0])


def test_the_model_that_is_trained_may_be_held(model):
    own = begun(model, [Changes([model, model.optimizer, tf.constant(1.0)], lambda found: found)])
    model.optimizer.learning_rate.assign(0.5)
    model.weights[0].assign_add(tf.ones_like(model.weights[0]))
    own.on_epoch_end(0, LOGS[0])
    assert own.get_state() == {"Changes": {"returned": {}, "attributes": {}}}


class Knows(keras.callbacks.Callback, vr.callbacks.Resumable):
    """Says its state itself."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


class Duck(keras.callbacks.Callback):
    """Says its state itself, and derives from nothing that says so."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def on_epoch_end(self, epoch, logs=None):
        self.seen.add(epoch)

    def get_state(self):
        return {"seen": sorted(self.seen)}

    def set_state(self, state):
        self.seen = set(state["seen"])


def test_a_state_needs_two_methods_and_no_base_class(model):
    before, after = begun(model, [Duck()]), begun(model, [Duck()])
    before.on_epoch_end(4, LOGS[0])
    after.set_state(json.loads(json.dumps(before.get_state())))
    assert after.callbacks[0].seen == {4}


@pytest.mark.parametrize("base", [keras.callbacks.Callback, vr.callbacks.EpochCallback])
@pytest.mark.parametrize("names", [("get_state", "set_state"), ("set_state", "get_state")])
def test_half_a_state_is_refused_by_name(base, names):
    half = type("Half", (base,), {names[0]: getattr(Duck, names[0])})
    with pytest.raises(UsageError, match=f"callback Half defines {names[0]} and not {names[1]}"):
        OwnCallbacks([half()], resumes=False, position=0)


def test_a_state_that_is_none_is_refused_by_name(model):
    with pytest.raises(
        UsageError, match=r"callback Knows: get_state\(\) returned \{'seen': \{1\}\}"
    ):
        begun(model, [Knows({"seen": {1}})]).get_state()


class Session(training.Session):
    """What a session has when it makes its callbacks."""

    def __init__(self, made, run_dir, resume, checkpoint=None, states=()):
        self.parts = SimpleNamespace(callbacks=lambda config, data: made)
        self.config, self.data = runs.configure(begun, resume=resume), None
        self.run_dir, self.checkpoint = run_dir, checkpoint
        self.model = SimpleNamespace(optimizer=None)
        saved = {"OwnCallbacks": dict(states)}
        self.progress = {"source": "source", "callbacks": saved, "claim": "bit-exact"}


def test_other_callbacks_are_refused_before_anything_is_written(model, tmp_path):
    before = begun(model, [Plain(1), Plain(2)])
    before.on_epoch_end(0, LOGS[0])
    states, checkpoint = before.get_state(), SimpleNamespace(position=0)
    assert list(states) == ["Plain", "Plain-2"]
    callbacks = [Plain(1), Knows({})]
    session = Session(callbacks, tmp_path, "auto", checkpoint, states)
    with pytest.raises(
        CheckpointError, match=r"callbacks were Plain, Plain-2, now Plain, Knows.*--resume=changed"
    ):
        session.make_callbacks()
    assert list(tmp_path.iterdir()) == []
    session = Session(callbacks, tmp_path, "changed", checkpoint, states)
    session.make_callbacks()
    assert session.claim == "valid, not bit-exact: callbacks were Plain, Plain-2, now Plain, Knows"
    session.own.set_state(states)
    assert (callbacks[0].epochs, callbacks[1].state) == (1, {})
    session = Session([Plain(1), Plain(2)], tmp_path, "auto", checkpoint, states)
    session.make_callbacks()
    assert session.claim == "bit-exact"


@pytest.mark.parametrize(
    ("is_new", "others", "left"),
    [
        (True, [], None),
        (False, [], []),  # the user has made the folder
        (True, ["figure.png"], ["config.json", "figure.png", "lock", "source"]),
    ],
)
def test_callbacks_that_fail_do_not_block_their_directory(is_new, others, left, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "source").mkdir(parents=True)
    for name in ("config.json", "lock", *others):
        (run_dir / name).touch()
    session = Session(None, run_dir, "auto")
    session.is_new_directory = is_new
    with pytest.raises(UsageError, match="must return a list"):
        session.make_callbacks()
    found = sorted(path.name for path in run_dir.iterdir()) if run_dir.exists() else None
    assert found == left


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (keras.callbacks.BackupAndRestore("folder"), "a run saves and resumes by itself"),
        (keras.callbacks.CSVLogger("file.csv"), "metrics.jsonl has them"),
        (keras.callbacks.TensorBoard("logs"), "a run writes for TensorBoard"),
        (keras.callbacks.SwapEMAWeights(), "--ema averages the weights"),
        (keras.callbacks.EarlyStopping(restore_best_weights=True), "no checkpoint holds"),
        (print, "must return a list of instances of keras.callbacks.Callback"),
    ],
)
def test_what_cannot_be_part_of_a_run_is_refused(callback, words):
    with pytest.raises(UsageError, match=words):
        OwnCallbacks([callback], resumes=False, position=0)


def test_what_is_no_list_of_callbacks_is_refused():
    with pytest.raises(UsageError, match=r"callbacks\(\) returned None; it must return a list"):
        OwnCallbacks(None, resumes=False, position=0)


class Watches(keras.callbacks.Callback):
    """Notes what it is called with, and moves a variable whenever something begins."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def move(self):
        self.model.optimizer.learning_rate.assign_add(1.0)

    def on_train_begin(self, logs=None):
        self.move()

    def on_epoch_begin(self, epoch, logs=None):
        self.move()

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(-batch)

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(batch)


@pytest.mark.parametrize(
    ("resumes", "position", "calls", "moved"),
    [
        (False, 0, [0, 2, -3, 4, 0, 2, -3, 4], 3),
        (True, 0, [0, 2, -3, 4, 0, 2, -3, 4], 2),
        (True, 3, [-3, 4, 0, 2, -3, 4], 1),
        (True, 4, [-3, 4, 0, 2, -3, 4], 1),  # the session before made other calls
        (True, 5, [0, 2, -3, 4], 1),
    ],
)
def test_a_resumed_epoch_is_not_seen_twice(resumes, position, calls, moved, model):
    model.optimizer.learning_rate.assign(0.0)
    own = begun(model, [Watches()], resumes=resumes, position=position)
    for epoch in range(2):
        own.on_epoch_begin(epoch)
        for first, last in ((0, 2), (3, 5)):  # calls of 3 steps; the last has 2, and Keras counts 3
            own.on_train_batch_begin(first)
            own.on_train_batch_end(min(last, 4))
        own.on_epoch_end(epoch, LOGS[0])
    assert own.callbacks[0].calls == calls
    assert float(model.optimizer.learning_rate) == moved


def test_a_learning_rate_that_follows_a_schedule_cannot_be_set(model):
    own = OwnCallbacks([keras.callbacks.ReduceLROnPlateau()], resumes=False, position=0)
    own.refuse_unsettable_learning_rate(model)
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 9)
    other = keras.Sequential()
    other.compile(keras.optimizers.Adam(schedule))
    with pytest.raises(UsageError, match="ReduceLROnPlateau sets the learning rate, which follows"):
        own.refuse_unsettable_learning_rate(other)


class Stops(keras.callbacks.Callback):
    """Ends training within the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step > 5:
            self.model.stop_training = True


@pytest.fixture
def saved_run(tmp_path, model):
    """The least that a save needs of a run: its directory, and its flags."""
    model.step_counter.assign(0)
    flags = {"epochs": 3, "batch_size": 4, "precision": "float32"}
    data = {"fingerprint": "", "streamed": False}
    description = {"experiment": "", "file": "", "flags": flags, "data": data, "versions": {}}
    directory.write_config(tmp_path, description)
    return tmp_path, runs.configure(begun, checkpoint_steps=1, checkpoint_minutes=0.0)


@pytest.mark.slow
def test_a_run_that_is_ended_within_an_epoch_ends_after_it(model, saved_run):
    run_dir, config = saved_run
    own = OwnCallbacks([Stops()], resumes=False, position=0)
    saving = Saving(run_dir, [own], config, None, {})
    model.fit(np.zeros((20, 2)), batch_size=4, epochs=3, callbacks=[own, saving], verbose=0)
    assert (model.step, model.stop_training) == (10, True)
    kept = [checkpoints.load(path, model) for path in manifests.listed(run_dir / "checkpoints")]
    assert [(found.epoch, found.position) for found in kept[:2]] == [(2, 0), (1, 3)]
    # A run that resumes within that epoch ends after it as well.
    progress = checkpoints.restore(model, kept[1])
    assert has_stopped(config, progress)
    saving = Saving(run_dir, [], config, kept[1], progress)
    saving.set_model(model)
    saving.on_train_begin()
    model.stop_training = False
    saving.on_epoch_begin(1)
    asked = []
    for batch in (2, 4):
        saving.on_train_batch_end(batch)
        asked.append(model.stop_training)
    assert asked == [False, True]


class Late(keras.callbacks.Callback):
    """Has a state that JSON can hold, until the second epoch ends."""

    def __init__(self):
        super().__init__()
        self.ended = []

    def on_epoch_end(self, epoch, logs=None):
        self.ended.append(epoch)
        if epoch:
            self.ended.append({epoch})


@pytest.mark.slow
def test_a_state_that_becomes_unsavable_costs_no_training(model, saved_run):
    run_dir, config = saved_run
    own = OwnCallbacks([Late()], resumes=False, position=0)
    saving = Saving(run_dir, [own], config.replace(checkpoint_steps=0), None, {})
    with pytest.raises(UsageError, match="Late: ended changes"), saving.after_an_error():
        model.fit(np.zeros((20, 2)), batch_size=4, epochs=3, callbacks=[own, saving], verbose=0)
    newest = checkpoints.newest(run_dir / "checkpoints")
    assert (newest.epoch, newest.position) == (1, 5)
    progress = provenance.progress_of(manifests.read_manifest(newest.path), newest.path)
    # Of the time before the epoch ended.
    assert progress["callbacks"]["OwnCallbacks"]["Late"]["attributes"] == {"ended": [0]}


def test_a_saved_state_that_set_state_does_not_take_is_said_by_name(model):
    class Knows(keras.callbacks.Callback):
        def get_state(self):
            return {"epochs": 3}

        def set_state(self, state):
            self.seen = state["seen"]

    after = begun(model, [Knows()], resumes=True)
    with pytest.raises(
        CheckpointError, match=r"callback Knows: set_state\(\) failed .*\(KeyError: 'seen'; --debug"
    ):
        after.set_state(begun(model, [Knows()]).get_state())
