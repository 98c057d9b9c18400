"""VAE under Keras' `fit`: weights that follow a schedule, and Keras' own callbacks."""

import csv
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.small_models import (
    BATCH,
    FEW,
    IMAGES,
    STEPS,
    assert_same_weights,
    build,
    compiled,
    copies,
    divergence,
    moved,
    standing,
    traced,
    train,
)
from vae_research import (
    Bernoulli,
    CapacityKL,
    KLDivergence,
    LinearWarmup,
)

# Schedules.


def contributions(vae, count):
    """Weight of the KL term at each step, out of the logs."""
    steps = [vae.train_on_batch(IMAGES, return_dict=True) for _ in range(count)]
    for step in steps:
        total = step["reconstruction"] + step["contribution/kl"]
        assert step["loss"] == pytest.approx(total, rel=1e-5)
    return [step["contribution/kl"] / step["kl"] for step in steps]


@pytest.mark.slow
def test_a_warm_up_changes_the_weight_in_a_traced_step():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(peak=2.0, steps=4))])
    vae.run_eagerly = False
    assert contributions(vae, 6) == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0], abs=1e-5)


class FromAttribute(KLDivergence):
    """The mutant: a KL divergence times a Python number that somebody changes between steps."""

    default_name = "kl"
    factor = {"now": 0.0}  # noqa: RUF012

    def per_example(self, kl):
        return self.factor["now"] * super().per_example(kl)


@pytest.mark.slow
def test_a_python_number_that_a_callback_changes_does_not_reach_a_traced_step():
    class Counting(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            FromAttribute.factor["now"] = float(epoch)

    def values(run_eagerly):
        vae = standing([Bernoulli(), FromAttribute()], run_eagerly=run_eagerly)
        return train(vae, IMAGES[:BATCH], epochs=3, callbacks=[Counting()])["kl"]

    assert values(run_eagerly=False) == [0.0, 0.0, 0.0]
    eagerly = values(run_eagerly=True)
    assert eagerly[0] == 0.0 < eagerly[1] < eagerly[2]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 9])
def test_a_step_under_a_schedule_is_one_with_the_weight_of_that_step(step):
    weight = min(step / 4, 1.0)
    after = []
    for value in (LinearWarmup(steps=4), weight, 0.9 * weight):
        vae = compiled([Bernoulli(), KLDivergence(weight=value)])
        vae.step_counter.assign(step)
        vae.train_on_batch(IMAGES)
        after.append(copies(vae))
    assert_same_weights(after[0], after[1])
    assert moved(after[0], after[2])


@pytest.mark.slow
def test_lengths_in_epochs_are_resolved_by_fit():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=2))], run_eagerly=False)
    same = np.concatenate([IMAGES[:BATCH]] * STEPS)  # every batch has the same kl
    history = train(vae, same, epochs=3, validation_data=same)
    weights = np.divide(history["contribution/kl"], history["kl"])
    # Steps 0..3, 4..7 and 8..11 of min(step / 8, 1); validation is made after 4, 8 and 12 steps.
    assert weights == pytest.approx([1.5 / 8, 5.5 / 8, 1.0], abs=1e-5)
    validation = np.divide(history["val_contribution/kl"], history["val_kl"])
    assert validation == pytest.approx([0.5, 1.0, 1.0], abs=1e-5)


@pytest.mark.slow
def test_lengths_in_epochs_follow_the_data_of_the_next_fit():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=4))], run_eagerly=False)
    train(vae)  # one epoch of four, in 4 steps
    for epoch in (1, 2, 3, 4, 5):  # and now an epoch is one step
        history = train(vae, IMAGES[:BATCH])
        weight = np.divide(history["contribution/kl"], history["kl"])
        assert weight == pytest.approx([min(epoch / 4, 1.0)], rel=1e-5)
    train(vae, np.concatenate([IMAGES] * 5))  # a longer one moves a finished warm-up nowhere
    assert float(vae.objective.weights(vae.step)["kl"]) == 1.0


@pytest.mark.slow
def test_lengths_in_epochs_inside_a_term_are_resolved_too():
    term = CapacityKL(capacity=LinearWarmup(peak=6.0, epochs=2))
    vae = standing([Bernoulli(), term])
    kl = divergence(vae.posterior(IMAGES)).sum(axis=1).mean()
    history = train(vae, batch_size=len(IMAGES), epochs=3)
    wanted = [abs(kl - capacity) for capacity in (0.0, 3.0, 6.0)]
    assert history["capacity_kl"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_lengths_in_epochs_and_data_without_a_length_are_refused():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=2))])
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(BATCH).filter(lambda batch: True)
    with pytest.raises(ValueError, match=r"counts in epochs.*otherwise give steps="):
        vae.fit(data, verbose=0)


@pytest.mark.slow
def test_a_warm_up_longer_than_training_is_said_with_its_numbers():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(steps=5))])
    wanted = r"'kl'.*settles at step 5,.*ends at step 4 \(2 epochs of 2 steps\)"
    with pytest.warns(UserWarning, match=wanted):
        train(vae, FEW, epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("length", [{"steps": 4}, {"epochs": 2}])
def test_a_warm_up_that_fits_is_silent(length):
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(**length))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(vae, FEW, epochs=2)


@pytest.mark.slow
def test_a_continued_run_is_the_unbroken_run():
    terms = [Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=2))]
    unbroken, continued = compiled(terms, optimizer="adam"), compiled(terms, optimizer="adam")
    whole = train(unbroken, FEW, epochs=2)
    with pytest.warns(UserWarning, match="ends at step 2"):
        first = train(continued, FEW, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = train(continued, FEW, epochs=2, initial_epoch=1)
    assert [*first["loss"], *second["loss"]] == whole["loss"]
    assert_same_weights(copies(unbroken), copies(continued))
    # 9 steps are over, and initial_epoch says that of 3 epochs only one is left.
    longer = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(steps=14))])
    longer.step_counter.assign(9)
    with pytest.warns(UserWarning, match="ends at step 11"):
        train(longer, FEW, epochs=3, initial_epoch=2)


# Callbacks of Keras.


@pytest.mark.slow
@pytest.mark.parametrize(("learning_rate", "epochs"), [(0.0, 2), (0.05, 4)])
def test_early_stopping_on_the_validation_loss(learning_rate, epochs):
    # Without learning, val_loss repeats exactly, since every evaluation has the same noise.
    vae = traced(learning_rate)
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=1)
    history = train(vae, epochs=4, validation_data=IMAGES, callbacks=stop)
    assert len(history["val_loss"]) == epochs


@pytest.mark.slow
def test_model_checkpoint_keeps_the_best_model(tmp_path):
    path = str(tmp_path / "best.keras")
    keep = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    vae = compiled(optimizer=keras.optimizers.SGD(0.05))
    history = train(vae, FEW, epochs=2, validation_data=FEW, callbacks=[keep])
    best = keras.models.load_model(path)
    figures = best.evaluate(FEW, batch_size=BATCH, verbose=0, return_dict=True)
    assert figures["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-5)


@pytest.mark.slow
def test_csv_logger_writes_the_history(tmp_path):
    path = tmp_path / "log.csv"
    vae = compiled([Bernoulli(), KLDivergence(weight=LinearWarmup(steps=2))])
    history = train(
        vae,
        FEW,
        epochs=2,
        validation_data=FEW,
        callbacks=[keras.callbacks.CSVLogger(str(path))],
    )
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {"epoch", *history}
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values, rel=1e-6)


@pytest.mark.slow
def test_learning_rate_scheduler_reaches_the_traced_step():
    weights = []
    vae = traced()
    train(
        vae,
        epochs=2,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * (epoch == 0)),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: weights.append(copies(vae))),
        ],
    )
    assert moved(copies(build()), weights[0])
    assert_same_weights(*weights)


@pytest.mark.slow
def test_a_ready_callback_list_is_taken_as_it_is():
    vae = standing([Bernoulli(), KLDivergence(weight=LinearWarmup(epochs=1))])
    seen = []
    ready = keras.callbacks.CallbackList(
        [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append("epoch"))],
        add_history=True,
        model=vae,
        verbose=0,
        epochs=1,
        steps=STEPS,
    )
    train(vae, callbacks=ready)
    assert seen == ["epoch"]
    assert vae.steps_per_epoch == STEPS
