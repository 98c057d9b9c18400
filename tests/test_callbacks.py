"""Callbacks, each alone with plain `fit`: what they write is what was trained, at the right step.

Here are all of them together, what a run is, profiles, the metrics file and the screen. The models,
and readers of what is written, are in `tests.watched`.
"""

import json
import re
import types

import keras
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from tests.traced import as_new
from tests.watched import (
    BATCH,
    IMAGES,
    LATENT,
    SHAPE,
    STEPS,
    VALIDATION,
    AtEpochEnd,
    MeanSquare,
    autoencoder,
    float32,
    lines,
    make,
    read,
    scalars,
    train,
    usual,
)
from vae_research import (
    Bernoulli,
    Console,
    Gradients,
    HParams,
    KLDivergence,
    Latents,
    LinearWarmup,
    LossTerm,
    MetricsFile,
    Overview,
    Pictures,
    Profile,
    Projector,
    Scalars,
)
from vae_research.callbacks.base import EpochCallback
from vae_research.checkpoints import weights_sha256
from vae_research.data import Data

# All of them.


def dropout_encoder():
    inputs = keras.Input(SHAPE, name="inputs")
    features = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(inputs))
    features = keras.layers.Dropout(0.4)(keras.layers.BatchNormalization()(features))
    heads = {name: keras.layers.Dense(LATENT)(features) for name in ("z_mean", "z_log_var")}
    return keras.Model(inputs, heads)


@pytest.mark.slow
def test_watching_changes_nothing(tmp_path):
    """A callback that draws from Keras' generator, or runs the networks as in training, would."""

    def make_plain():
        return make(encoder=dropout_encoder, run_eagerly=False)

    def hash_after(model, *callbacks):
        keras.utils.set_random_seed(11)
        history = train(model, *callbacks, shuffle=True, batch_size=8)
        return weights_sha256(model), history

    watched = hash_after(
        make_plain(),
        Scalars(tmp_path, every_steps=2),
        Latents(tmp_path, VALIDATION),
        Pictures(tmp_path, VALIDATION),
        Gradients(tmp_path, IMAGES[:BATCH], every_steps=2),
        Projector(tmp_path, VALIDATION),
        Overview(tmp_path, IMAGES),
        HParams(tmp_path, {"latent_dim": LATENT}),
        MetricsFile(tmp_path / "metrics.jsonl"),
        Console(bar=True),
    )
    assert watched == hash_after(as_new(make_plain))
    # The mutant.
    disturbing = AtEpochEnd(lambda model: model.encoder(VALIDATION, training=True))
    assert hash_after(as_new(make_plain), disturbing) != watched


@pytest.mark.slow
def test_a_record_that_nobody_writes_is_refused():
    with pytest.raises(TypeError):
        train(usual(), EpochCallback(), validation=None, epochs=1)


# What a run is.


@pytest.mark.slow
def test_the_graph_is_that_of_one_step(tmp_path):
    train(make(run_eagerly=False), Overview(tmp_path, IMAGES), epochs=2)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    graph = events.Graph()
    operations = [node.op for node in graph.node]
    # The products of one forward and one backward pass through four layers, not a loop of them.
    assert 10 <= operations.count("MatMul") <= 14
    assert not {"While", "StatelessWhile", "PartitionedCall"} & set(operations)


@pytest.mark.slow
def test_the_graph_of_a_step_is_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_research.callbacks.overview.graph_of_one_step", None)
    data = Data.from_arrays(IMAGES, VALIDATION, VALIDATION)
    batches = data.train.on_device(len(IMAGES) - 1, seed=0)  # and a last one of a single image
    model = make(run_eagerly=False)
    assert model.graph_of_one_step is None
    model.fit(batches, callbacks=[Overview(tmp_path, IMAGES)], verbose=0)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    operations = [node.op for node in events.Graph().node]
    assert 10 <= operations.count("MatMul") <= 14
    assert not {"While", "StatelessWhile", "PartitionedCall"} & set(operations)


@pytest.mark.slow
def test_text_has_the_layers_the_terms_and_the_settings(tmp_path):
    train(usual(), Overview(tmp_path, IMAGES, {"latent_dim": 2, "data": "a|b"}), epochs=1)
    found = {tag: written[0][1] for tag, written in read(tmp_path / "run").items()}
    text = {tag: str(value.item(), "utf-8") for tag, value in found.items() if "/" in tag}
    assert "z_log_var (Dense)" in text["model/summary"]
    assert "logits" in text["model/summary"]
    assert "| kl | KLDivergence(weight=0.5) |" in text["model/terms"]
    assert "| latent_dim | 2 |\n| data | a&#124;b |" in text["run/settings"]


@pytest.mark.slow
def test_every_tag_of_the_layout_is_written(tmp_path):
    train(
        usual(),
        Overview(tmp_path, IMAGES),
        Scalars(tmp_path),
        Latents(tmp_path, VALIDATION),
        Gradients(tmp_path, IMAGES),
        epochs=1,
    )
    written = {tag for split in ("train", "validation") for tag in scalars(tmp_path / split)}
    (tag,) = (tag for tag in read(tmp_path / "run") if "custom_scalars" in tag)
    layout = layout_pb2.Layout.FromString(read(tmp_path / "run")[tag][0][1].item())
    charts = {chart.title: chart for group in layout.category for chart in group.chart}
    for chart in charts.values():
        for expression in chart.multiline.tag:
            assert any(re.match(expression, tag) for tag in written), expression
    together = charts["reconstruction, KL and ELBO (nats)"].multiline.tag
    shown = {tag for tag in written if any(re.match(each, tag) for each in together)}
    assert shown == {"terms/reconstruction", "terms/kl", "elbo"}


@pytest.mark.slow
def test_a_run_is_a_row_of_settings_and_final_figures(tmp_path):
    settings = {"epochs": 2, "rate": 0.1, "on": True, "units": (8, 4), "name": "x", "none": None}
    history = train(usual(), HParams(tmp_path, settings))
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    found = events.PluginTagToContent("hparams")
    row = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_start_info"])
    shown = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in row.session_start_info.hparams.items()
    }
    assert shown == settings | {"units": "8, 4", "none": ""}
    end = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_end_info"])
    assert end.session_end_info.status == api_pb2.STATUS_SUCCESS
    final = scalars(tmp_path / "run")
    assert final["trained/validation/elbo"] == [(10, *float32(history["val_elbo"][-1:]))]
    assert final["trained/epochs"] == [(10, 2.0)]
    assert final["trained/train/loss"] == [(10, *float32(history["loss"][-1:]))]


@pytest.mark.slow
def test_a_row_counts_the_epochs_that_were_made(tmp_path):
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1)
    )
    model = usual()
    train(model, HParams(tmp_path, {}), stop, epochs=5)
    assert [value for _, value in scalars(tmp_path / "run")["trained/epochs"]] == [2.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorBoard will have no graph")
def test_a_step_that_cannot_be_traced_has_no_graph(tmp_path):
    class Eager(LossTerm):
        weight = None

        def per_example(self, z_mean):
            return tf.constant(z_mean.numpy().sum(axis=1))

    model = make([Bernoulli(), KLDivergence(), Eager()])
    with pytest.warns(UserWarning, match="will have no graph of the step"):
        train(model, Overview(tmp_path, IMAGES), validation=None, epochs=1)
    assert model.step == STEPS


# A profile.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The profile will be written")
@pytest.mark.parametrize(
    ("steps_per_call", "recorded"), [(1, [3, 4, 5, 6]), (2, [4, 5, 7])], ids=str
)
def test_a_profile_covers_the_calls_of_the_chosen_steps(
    steps_per_call, recorded, tmp_path, monkeypatch
):
    running, seen = [], []
    profiler = types.SimpleNamespace(start=running.append, stop=running.clear)
    monkeypatch.setattr(tf.profiler, "experimental", profiler)

    class See(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if running:
                seen.append(self.model.step)

    model = make(run_eagerly=False)
    model.steps_per_execution = steps_per_call
    train(model, See(), Profile(tmp_path, 3, 6), validation=None)
    assert seen == recorded
    assert not running


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The profile will be written")
def test_a_profile_is_a_file_that_the_dashboard_knows(tmp_path):
    train(make(run_eagerly=False), Profile(tmp_path, 2, 3), validation=None, epochs=1)
    assert list((tmp_path / "train" / "plugins" / "profile").glob("*/*.xplane.pb"))


@pytest.mark.slow
def test_a_second_profile_at_the_same_time_is_told_and_ends_nothing(tmp_path):
    tf.profiler.experimental.start(str(tmp_path / "other"))
    try:
        with pytest.warns(UserWarning, match="There is no profile: .*Training continues"):
            train(usual(), Profile(tmp_path, 2, 3), validation=None, epochs=1)
    finally:
        tf.profiler.experimental.stop()


@pytest.mark.parametrize(("first", "last"), [(0, 3), (4, 3)])
def test_steps_of_a_profile_have_an_order(first, last, tmp_path):
    with pytest.raises(ValueError, match=f"got {first},{last}"):
        Profile(tmp_path, first, last)


# The metrics file.


@pytest.mark.slow
def test_a_line_an_epoch_with_the_keys_of_the_contract(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"epoch": 2}\n')
    terms = [Bernoulli(), KLDivergence(weight=0.5), MeanSquare(weight=None)]
    history = train(make(terms), MetricsFile(file), epochs=4, initial_epoch=2)
    # What was there is kept, and every line ends.
    assert file.read_text().startswith('{"epoch": 2}\n')
    assert file.read_text().endswith("}\n")
    found = lines(file)[1:]
    assert [line["epoch"] for line in found] == [3, 4]
    assert [line["step"] for line in found] == [5, 10]
    figures = ("loss", "elbo", "reconstruction", "kl", "mean_square")
    for at, line in enumerate(found):
        assert line.keys() == {"epoch", "step", "seconds", "images_per_second"} | {
            f"{split}/{name}"
            for split in ("train", "validation")
            for name in (*figures, "weight/reconstruction", "weight/kl")
        }
        for name in figures:
            assert line[f"train/{name}"] == history[name][at]
            assert line[f"validation/{name}"] == history[f"val_{name}"][at]
        for split in ("train", "validation"):
            assert line[f"{split}/weight/kl"] == 0.5
            assert line[f"{split}/weight/reconstruction"] == 1.0
        assert line["images_per_second"] > 0.0


@pytest.mark.slow
def test_the_weight_in_the_metrics_file_is_that_of_the_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    terms = [Bernoulli(), KLDivergence(weight=LinearWarmup(steps=8))]
    train(make(terms), MetricsFile(file), validation=None)
    assert [line["train/weight/kl"] for line in lines(file)] == [0.625, 1.0]


@pytest.mark.slow
def test_without_validation_data_the_line_has_none(tmp_path):
    train(usual(), MetricsFile(tmp_path / "metrics.jsonl"), validation=None, epochs=1)
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert "train/loss" in line
    assert not any(name.startswith("validation/") for name in line)


@pytest.mark.slow
def test_every_line_is_on_disk_when_its_epoch_is_over(tmp_path):
    file = tmp_path / "metrics.jsonl"
    count = AtEpochEnd(lambda model: len(lines(file)))
    train(usual(), MetricsFile(file), count, validation=None)
    assert count.found == [1, 2]


class NotANumber(LossTerm):
    weight = None

    def per_example(self, z_mean):
        return tf.math.log(-tf.abs(z_mean[:, 0]) - 1.0)


@pytest.mark.slow
def test_a_figure_that_is_no_number_leaves_the_line_json(tmp_path):
    file = tmp_path / "metrics.jsonl"
    train(make([Bernoulli(), KLDivergence(), NotANumber()]), MetricsFile(file), epochs=1)

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    (line,) = (json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines())
    assert [name for name, value in line.items() if value is None] == [
        "train/not_a_number",
        "validation/not_a_number",
    ]


def test_a_name_that_begins_as_keras_marks_validation_is_refused():
    # A record tells the splits apart by that prefix.
    with pytest.raises(ValueError, match=r"'val_square' cannot be the name.*validation"):
        MeanSquare(name="val_square", weight=None)


# The screen.


@pytest.mark.slow
def test_a_line_an_epoch_has_the_figures_of_both_splits(capsys):
    history = train(usual(), Console(bar=False), epochs=12, initial_epoch=10)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    for at, line in enumerate(printed):
        splits = []
        for split, prefix in (("train", ""), ("validation", "val_")):
            shown = [history[prefix + name][at] for name in ("reconstruction", "kl", "elbo")]
            splits.append("{} reconstruction {:.2f} KL {:.2f} ELBO {:.2f}".format(split, *shown))
        assert line.startswith(f"epoch {11 + at}/12 | {splits[0]} | {splits[1]} nats | ")
        speed = re.fullmatch(r".* \| ([\d,]+) images/s", line)
        assert int(speed[1].replace(",", "")) > 0


def test_without_validation_data_the_line_is_of_training(capsys):
    train(usual(), Console(bar=False), validation=None, epochs=1)
    assert re.fullmatch(
        r"epoch 1/1 \| train reconstruction [\d.]+ KL [\d.]+ ELBO -[\d.]+ nats \| .*\n",
        capsys.readouterr().out,
    )


@pytest.mark.slow
def test_without_an_elbo_the_line_has_the_loss(capsys):
    history = train(autoencoder(), Console(bar=False), epochs=1)
    assert capsys.readouterr().out.startswith(
        f"epoch 1/1 | train loss {history['loss'][0]:.2f} | "
        f"validation loss {history['val_loss'][0]:.2f} nats | "
    )


@pytest.mark.slow
def test_the_bar_is_for_a_terminal(monkeypatch, capsys):
    train(usual(), Console(), epochs=1, validation=None)
    without = capsys.readouterr().out
    assert without.count("\n") == 1
    assert "\r" not in without
    assert "\x08" not in without
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    train(usual(), Console(), epochs=2, validation=None)
    shown = capsys.readouterr().out
    assert "5/5" in shown
    # The bar ends before the line of the epoch begins.
    assert len(re.findall(r"^epoch [12]/2 \|", shown, flags=re.MULTILINE)) == 2
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert Console().bar is False
    assert Console(bar=True).bar is True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_the_bar_ends_where_the_length_of_the_data_is_not_known(capsys):
    data = tf.data.Dataset.from_generator(
        lambda: (IMAGES[start : start + 8] for start in range(0, 24, 8)),
        output_signature=tf.TensorSpec((8, *SHAPE)),
    )
    make().fit(data, epochs=2, verbose=0, callbacks=[Console(bar=True)])
    assert len(re.findall(r"^epoch [12]/2 \|", capsys.readouterr().out, flags=re.MULTILINE)) == 2
