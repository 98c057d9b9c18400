"""The model counts its own steps, and a step of one's own is counted and logged like ours."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import vae_research as vr
from vae_research.data import Data
from vae_research.running_means import RunningMeans

IMAGES = np.random.default_rng(0).random((16, 4, 4, 1)).astype("float32")
BATCH = IMAGES[:8]
DATA = Data.from_arrays(IMAGES, IMAGES[:4], IMAGES[:4])


def make(cls=vr.VAE, *, weight=1.0, optimizer=None, run_eagerly=True):
    """A model whose weights stand still unless an optimizer is given: only the noise differs."""
    keras.utils.set_random_seed(1)
    model = cls(
        vr.dense_encoder(IMAGES.shape[1:], 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(IMAGES.shape[1:], 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.KLDivergence(weight=weight)],
        seed=3,
    )
    model.compile(optimizer or keras.optimizers.SGD(0.0), run_eagerly=run_eagerly)
    return model


def losses(model, count):
    """The losses of steps on one batch, each with its own noise."""
    found = []
    for _ in range(count):
        model.reset_metrics()
        found.append(float(model.train_on_batch(BATCH, return_dict=True)["reconstruction"]))
    return found


def kl_weight(model):
    return float(model.term_weights()["kl"])


@pytest.fixture(scope="module")
def unbroken():
    return losses(make(), 8)


@pytest.mark.slow
def test_every_micro_batch_has_noise_of_its_own(unbroken):
    model = make(optimizer=keras.optimizers.SGD(0.0, gradient_accumulation_steps=4))
    assert losses(model, 8) == unbroken
    assert len(set(unbroken)) == 8
    assert (model.step, int(model.optimizer.iterations)) == (8, 2)


@pytest.mark.slow
def test_a_warm_up_keeps_its_length_under_accumulation():
    optimizer = keras.optimizers.SGD(0.0, gradient_accumulation_steps=4)
    model = make(weight=vr.LinearWarmup(steps=8), optimizer=optimizer)
    losses(model, 4)
    assert kl_weight(model) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["the same", "another"])
def test_compile_again_continues_noise_and_warm_up(optimizer, unbroken):
    model = make(weight=vr.LinearWarmup(steps=8))
    first = losses(model, 4)
    model.compile(
        model.optimizer if optimizer == "the same" else keras.optimizers.Adam(0.0), run_eagerly=True
    )
    assert kl_weight(model) == 0.5
    assert [*first, *losses(model, 4)] == unbroken


@pytest.mark.slow
def test_freezing_continues_noise_and_warm_up(unbroken):
    model = make(weight=vr.LinearWarmup(steps=8))
    first = losses(model, 4)
    model.encoder.trainable = False
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    assert [*first, *losses(model, 4)] == unbroken
    assert kl_weight(model) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "weights"])
def test_loading_continues_noise_and_warm_up(kind, unbroken, tmp_path):
    model = make(weight=vr.LinearWarmup(epochs=4))
    model.fit(BATCH, batch_size=2, verbose=0)  # one epoch of 4 steps
    if kind == "model":
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    else:
        model.save_weights(tmp_path / "model.weights.h5")
        loaded = make(weight=vr.LinearWarmup(epochs=4))
        loaded.set_steps_per_epoch(7)  # of other data, before
        loaded.report(BATCH)
        loaded.load_weights(tmp_path / "model.weights.h5")
    assert loaded.step == 4
    assert losses(loaded, 4) == unbroken[4:]
    # One epoch in four steps, and two of these epochs again.
    assert kl_weight(loaded) == 0.5


class Own(vr.VAE):
    """Records one figure and returns another."""

    def train_step(self, data):
        batch, sample_weight = vr.unpack(data)
        with tf.GradientTape() as tape:
            _, report = self.report(batch, training=True, seed=self.step_key())
            loss = self.scaled_loss(report, sample_weight)
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        logs = self.finish_step(report, sample_weight, recorded=tf.linalg.global_norm(gradients))
        return {**logs, "returned": tf.cast(self.step_counter.value, tf.float32)}


@pytest.mark.slow
def test_a_step_written_by_hand_is_the_step(unbroken):
    assert losses(make(Own), 8) == unbroken


@pytest.mark.slow
def test_figures_of_an_own_step_reach_logs_and_metrics_jsonl(tmp_path):
    model = make(Own, run_eagerly=False)
    metrics = vr.MetricsFile(tmp_path / "metrics.jsonl")
    history = model.fit(
        DATA.train.on_device(8, seed=0), epochs=2, callbacks=[metrics], verbose=0
    ).history
    assert history["returned"] == [1.5, 3.5]  # means over the two steps of an epoch
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/returned"] for line in lines] == [1.5, 3.5]
    assert all(line["train/recorded"] > 0.0 for line in lines)


@pytest.mark.parametrize("importance_weighted", [False, True])
def test_elbo_reconstruction_and_divergence_of_a_line_belong_together(importance_weighted):
    keras.utils.set_random_seed(1)
    model = vr.VAE(
        vr.dense_encoder(IMAGES.shape[1:], 2, hidden_units=(4,)),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(IMAGES.shape[1:], 2, hidden_units=(4,)),
        [vr.Bernoulli(), vr.MonteCarloKL()],
        num_samples=3,
        importance_weighted=importance_weighted,
    )
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    steps = model.train_on_batch, model.test_on_batch
    for logs in (step(BATCH, return_dict=True) for step in steps):
        parts = -logs["reconstruction"] - logs["kl"]
        assert logs["elbo"] == pytest.approx(parts, rel=1e-6)
    _, report = model.report(BATCH)
    of_samples, closed = (
        float(tf.reduce_mean(each["kl"])) for each in (report.values, report.logged)
    )
    assert closed == pytest.approx(logs["kl"], rel=1e-6)
    assert abs(of_samples - closed) > 1e-3  # what was logged


def test_running_sums_keep_what_a_few_steps_add_to_a_long_epoch():
    """Figures of an interval are differences of these sums; in float32 this one would be 0."""
    means = RunningMeans([vr.Bernoulli()])
    count = tf.constant(8)
    means.update({"loss": tf.fill([8], 1e9), "reconstruction": tf.fill([8], 1e9)}, count)
    (loss,) = [mean for mean in means.reported if mean.name == "loss"]
    before = float(loss.total), float(loss.count)
    means.update({"loss": tf.fill([8], 0.1), "reconstruction": tf.fill([8], 0.1)}, count)
    total, added = (
        float(now) - old for now, old in zip((loss.total, loss.count), before, strict=True)
    )
    assert total / added == pytest.approx(0.1, rel=1e-5)
    assert float(np.float32(before[0] + total) - np.float32(before[0])) == 0.0
