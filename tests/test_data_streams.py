"""A second `fit` continues: order and noise of the data go on where the last `fit` ended.

Which epochs a model was trained on is read from the rows that its steps got: row i of the data
holds i everywhere, and the order of an epoch is that of `epoch_order`.
"""

import functools
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research import checkpoints
from vae_research.data import Data
from vae_research.data.pipeline import epoch_order
from vae_research.data.streams import was_made_from_batches
from vae_research.data.threads import Calls

ROWS, BATCH, SEED = 10, 4, 3
STEPS = 3  # the last batch of an epoch has 2 rows
ORDERS = [epoch_order(ROWS, SEED, epoch).numpy().tolist() for epoch in range(12)]


def numbered(**keywords) -> Data:
    rows = np.tile(np.arange(ROWS, dtype=np.float32)[:, None], (1, 3)) / ROWS
    return Data.from_arrays(rows, rows, rows, **keywords)


def device(data: Data, **keywords):
    return data.train.on_device(BATCH, SEED, **keywords)


def stream(data: Data, **keywords):
    return data.train.batches(BATCH, SEED, **keywords)


def mapped(data: Data, **keywords):
    return stream(data, **keywords).map(lambda batch: {**batch, "targets": batch["inputs"]})


class Recording(vr.VAE):
    """Keeps the rows of each training step, and learns nothing."""

    def train_step(self, data):
        inputs = data["inputs"] if isinstance(data, dict) else data[0]["inputs"]
        self.seen.append(np.rint(inputs[:, 0] * ROWS).astype(int).tolist())
        _, report = self.report({"inputs": inputs}, training=True, seed=self.step_key())
        return self.finish_step(report)


def compiled(kind=vr.VAE, learning_rate=0.1, **settings) -> vr.VAE:
    keras.utils.set_random_seed(1)
    vae = kind(
        vr.dense_encoder((3,), 2, hidden_units=()),
        vr.GaussianBottleneck(2),
        vr.dense_decoder((3,), 2, hidden_units=()),
        [vr.Bernoulli(), vr.KLDivergence()],
        seed=SEED,
    )
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    vae.compile(optimizer, **{"run_eagerly": True} | settings)
    return vae


def recording() -> Recording:
    vae = compiled(Recording)
    vae.seen = []
    return vae


def fit(vae, x, **settings):
    return vae.fit(x, verbose=0, **settings).history


def epochs_of(vae) -> list[int]:
    """The epochs of the data that a recording model has seen, and forgets them."""
    rows = [row for batch in vae.seen for row in batch]
    vae.seen = []
    epochs = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    return [next(e for e, order in enumerate(ORDERS) if order[: len(one)] == one) for one in epochs]


def assert_same_weights(ours, theirs):
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C after the second step of an epoch of Keras."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.here = epoch, False

    def on_epoch_begin(self, epoch, logs=None):
        self.here = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.here and batch == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def after():
    """Returns a model that one `fit` has trained on the first epochs of binarised data.

    Steps run eagerly, one after the other: how they are grouped does not change a bit.
    """

    @functools.cache
    def train(epochs):
        vae = compiled()
        fit(vae, device(numbered(binarize="dynamic")), epochs=epochs)
        return vae

    return train


# Three fits of one epoch are one fit of three.


@pytest.mark.slow
@pytest.mark.parametrize(("make", "validation"), [(device, device), (stream, lambda data: None)])
def test_three_fits_of_one_epoch_are_one_fit_of_three(make, validation, after):
    data = numbered(binarize="dynamic")
    vae = compiled(steps_per_execution=2)  # the second call of an epoch has one step
    for _ in range(3):
        fit(vae, make(data), validation_data=validation(data))
    assert vae.step == 3 * STEPS
    assert_same_weights(vae, after(3))


@pytest.mark.slow
def test_what_a_fit_begins_with():
    vae = recording()
    data = numbered()
    fit(vae, mapped(data), epochs=7, initial_epoch=5)  # resumed in another process
    assert epochs_of(vae) == [5, 6]
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    # Without learning the second epoch is no better. The initial epoch is the default, written out.
    validation = device(data)
    fit(vae, mapped(data), epochs=4, initial_epoch=0, callbacks=stop, validation_data=validation)
    assert epochs_of(vae) == [7, 8]
    from_three = mapped(data, first_epoch=3)
    fit(vae, from_three, epochs=7, initial_epoch=6)
    fit(vae, from_three)
    assert epochs_of(vae) == [3, 3]
    fit(vae, {"inputs": data.train.prepare()}, batch_size=5)  # other data in between
    vae.seen = []
    fit(vae, data.train.on_device(ROWS, SEED))  # batches of another size
    assert epochs_of(vae) == [4]
    assert vae.data_epoch == 5


@pytest.mark.slow
def test_a_position_within_the_first_epoch_is_of_that_epoch_alone():
    vae = recording()
    fit(vae, device(numbered(), first_epoch=2, first_position=2), epochs=2)
    assert [len(batch) for batch in vae.seen] == [2, 4, 4, 2]
    assert vae.seen[0] == ORDERS[2][8:]
    assert vae.data_epoch == 4
    fit(vae, device(numbered(), first_epoch=5, first_position=3))  # nothing is left of the epoch
    assert len(vae.seen) == 4
    assert vae.data_epoch == 6


@pytest.mark.slow
@pytest.mark.parametrize(("make", "steps"), [(stream, 2), (device, 7)])
def test_epochs_of_keras_of_another_length(make, steps):
    vae = recording()
    fit(vae, make(numbered()), epochs=2, steps_per_epoch=steps)
    rows = [row for batch in vae.seen for row in batch]
    assert rows == [row for order in ORDERS for row in order][: len(rows)]
    assert len(vae.seen) == 2 * steps
    assert vae.data_epoch == -(-2 * steps // STEPS)  # those that have begun


# Interruptions.


class FailingStep(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_epoch_is_not_repeated_and_one_without_a_step_does_not_count():
    vae = recording()
    with pytest.raises(KeyboardInterrupt):
        fit(vae, device(numbered()), callbacks=[FailingStep()])
    fit(vae, device(numbered()))
    assert epochs_of(vae) == [0]
    with pytest.raises(KeyboardInterrupt):
        fit(vae, stream(numbered()), epochs=3, callbacks=[Interrupt(epoch=1)])
    assert len(vae.seen) == STEPS + 2
    vae.seen = []
    fit(vae, device(numbered()))
    assert epochs_of(vae) == [3]


# Saving.


@pytest.mark.slow
@pytest.mark.parametrize("how", ["model", "weights", "checkpoint"])
def test_a_loaded_model_continues(how, after, tmp_path):
    if how == "model":
        after(2).save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        loaded.run_eagerly = True
    else:
        loaded = compiled()
    if how == "weights":
        after(2).save_weights(tmp_path / "model.weights.h5")
        loaded.load_weights(tmp_path / "model.weights.h5")
    if how == "checkpoint":
        loaded.load_checkpoint(checkpoints.save(tmp_path, after(2), epoch=2))
    assert loaded.data_epoch == 2
    fit(loaded, device(numbered(binarize="dynamic")))
    assert_same_weights(loaded, after(3))


@pytest.mark.slow
def test_a_checkpoint_within_an_epoch_continues_with_the_next(after, tmp_path):
    vae = compiled()
    vae.load_checkpoint(checkpoints.save(tmp_path, after(2), epoch=1, position=2))
    assert vae.data_epoch == 2


# Evaluation.


@pytest.mark.slow
@pytest.mark.parametrize(("make", "steps"), [(device, 2), (mapped, None)])
def test_every_evaluation_sees_the_same(make, steps):
    data = numbered(binarize="dynamic")
    vae = compiled(learning_rate=0.0)
    how = {"validation_data": make(data), "validation_steps": steps}
    losses = fit(vae, device(data), epochs=2, **how)["val_loss"]
    again = vae.evaluate(make(data), steps=steps, verbose=0)[0]
    assert losses == [again] * 2
    assert vae.evaluate(make(data, first_epoch=1), steps=steps, verbose=0)[0] != again


# BackupAndRestore of Keras.


def backed_up(folder, data, *, interrupted=False, first=0, **keywords):
    """A training of two epochs with backups, after some that the script made before it."""
    vae = compiled()
    if first:
        fit(vae, data, epochs=first)
    callbacks = [keras.callbacks.BackupAndRestore(str(folder), **keywords)]
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            fit(vae, data, epochs=2, callbacks=[*callbacks, Interrupt(epoch=1)])
    else:
        fit(vae, data, epochs=2, callbacks=callbacks)
    return vae


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "first"),
    [
        pytest.param(device, 1, id="second fit"),
        pytest.param(stream, 0, id="stream"),
        pytest.param(
            functools.partial(device, first_epoch=0), 0, id="first_epoch", marks=pytest.mark.soak
        ),
    ],
)
def test_backup_and_restore_is_exact(make, first, after, tmp_path):
    data = make(numbered(binarize="dynamic"))
    backed_up(tmp_path, data, interrupted=True, first=first)
    # Another process makes the same model and the same calls.
    restored, unbroken = backed_up(tmp_path, data, first=first), after(first + 2)
    assert_same_weights(restored, unbroken)
    for one, other in zip(restored.optimizer.variables, unbroken.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert restored.data_epoch == first + 2


@pytest.mark.slow
def test_backup_and_restore_in_one_process(after, tmp_path):
    data = device(numbered(binarize="dynamic"))
    vae = compiled()
    backup = keras.callbacks.BackupAndRestore(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        fit(vae, data, epochs=2, callbacks=[backup, Interrupt(epoch=1)])
    fit(vae, data, epochs=2, callbacks=[backup])
    fit(vae, data)  # Keras would begin this one with the restored epoch 1, and train nothing
    assert_same_weights(vae, after(3))


@pytest.mark.slow
def test_backups_within_an_epoch_are_not_exact_and_say_so(tmp_path):
    data = device(numbered())
    with pytest.warns(UserWarning, match=r"BackupAndRestore\(save_freq=2\).*repeats that epoch"):
        backed_up(tmp_path, data, interrupted=True, save_freq=2)
    with pytest.warns(UserWarning, match="With save_freq='epoch' they are, bit for bit"):
        restored = backed_up(tmp_path, data, save_freq=2)
    assert restored.step == 2 * STEPS + 1  # one step of the second epoch was made twice


# What else fit accepts, and what it refuses.


@pytest.mark.slow
def test_a_derived_dataset_that_begins_again_is_told():
    vae = recording()
    derived = stream(numbered()).prefetch(1)
    fit(vae, derived, steps_per_epoch=STEPS)
    with pytest.warns(UserWarning, match=r"begin with epoch 0 again.*only map\(\)"):
        fit(vae, derived, steps_per_epoch=STEPS)
    assert epochs_of(vae) == [0, 0]
    assert not was_made_from_batches(stream(numbered(), first_epoch=1).prefetch(1))
    assert not was_made_from_batches(tf.data.Dataset.range(3))


@pytest.mark.slow
def test_it_is_a_dataset_for_everyone_else():
    batches = mapped(numbered(), first_epoch=2)
    assert isinstance(batches, tf.data.Dataset)
    assert sorted(batches.element_spec) == ["inputs", "targets"]
    rows = [row for batch in batches.take(STEPS) for row in batch["targets"][:, 0].numpy() * ROWS]
    assert np.rint(rows).astype(int).tolist() == ORDERS[2]
    plain = keras.Sequential([keras.layers.Dense(3)])
    plain.compile("sgd", "mse", run_eagerly=True)
    pairs = stream(numbered()).map(lambda batch: (batch["inputs"], batch["inputs"]))
    history = plain.fit(pairs, steps_per_epoch=STEPS, epochs=2, shuffle=False, verbose=0).history
    assert len(history["loss"]) == 2


@pytest.mark.slow
def test_a_ready_callback_list_is_used_twice():
    vae = recording()
    ready = keras.callbacks.CallbackList(
        [keras.callbacks.LambdaCallback()], add_history=True, model=vae, epochs=1, steps=STEPS
    )
    length = None
    for _ in range(2):
        vae.fit(device(numbered()), callbacks=ready, verbose=0)
        length = length or len(ready.callbacks)
    assert epochs_of(vae) == [0, 1]
    assert len(ready.callbacks) == length


@pytest.mark.parametrize("initial_epoch", [-1, 1.5, None])
def test_what_is_not_the_number_of_an_epoch_is_refused(initial_epoch):
    with pytest.raises(ValueError, match=r"initial_epoch must be an integer from 0 to .*, got"):
        fit(compiled(), device(numbered()), initial_epoch=initial_epoch)


@pytest.mark.parametrize("make", [device, stream])
def test_a_step_on_a_whole_data_set_is_refused(make):
    vae = compiled()
    for method in (vae.train_on_batch, vae.test_on_batch):
        with pytest.raises(ValueError, match=r"data for fit.*not a single batch"):
            method(make(numbered()))


def test_calls_of_threads_end_before_the_process_does():
    calls, is_read, may_end = Calls(), threading.Event(), threading.Event()

    def read():
        is_read.set()
        may_end.wait(60)
        return "rows"

    found = []
    reader = threading.Thread(target=lambda: found.append(calls.run(read, ())))
    reader.start()
    is_read.wait(60)
    ending = threading.Thread(target=calls.end)
    ending.start()
    ending.join(0.3)
    assert ending.is_alive() and not found
    may_end.set()
    ending.join(60)
    reader.join(60)
    assert found == ["rows"] and not ending.is_alive()
    with pytest.raises(RuntimeError, match="the process ends"):
        calls.run(read, ())
