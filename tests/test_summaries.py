"""The event files: one for all callbacks, written in the background, and never a training's end."""

import errno
import io
import os
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae_research import Summaries
from vae_research.callbacks.tensorboard import background as background_module
from vae_research.callbacks.tensorboard import event_protos
from vae_research.callbacks.tensorboard import summaries as summaries_module
from vae_research.callbacks.tensorboard.background import Background, background
from vae_research.callbacks.tensorboard.drawing import framed, heat, over_time, sprite
from vae_research.plots import encode_png


def events_of(folder):
    return sorted(Path(folder).glob("events.out.tfevents.*"))


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


# One file.


def test_all_who_write_to_a_folder_share_one_file(tmp_path):
    # TensorBoard reads the files of a folder in order and does not come back to an earlier one.
    first, second = Summaries(tmp_path), Summaries(str(tmp_path))
    for step in range(3):
        first.scalars("train", {"a": float(step)}, step)
        second.scalars("train", {"b": -float(step)}, step)
    first.close()
    second.scalars("train", {"b": -3.0}, 3)
    second.close()
    assert len(events_of(tmp_path / "train")) == 1
    found = read(tmp_path / "train")
    assert [step for step, _ in found["a"]] == [0, 1, 2]
    assert [float(value) for _, value in found["b"]] == [0.0, -1.0, -2.0, -3.0]


def test_a_later_file_sorts_behind_the_earlier_one_and_both_are_read(tmp_path):
    for step in range(12):
        summaries = Summaries(tmp_path)
        summaries.scalars("train", {"a": 1.0}, step)
        summaries.close()
    files = events_of(tmp_path / "train")
    assert len(files) == 12
    assert files == sorted(files, key=lambda path: path.stat().st_mtime_ns)
    assert [step for step, _ in read(tmp_path / "train")["a"]] == list(range(12))


def test_what_is_flushed_is_there_while_the_file_is_open(tmp_path):
    summaries = Summaries(tmp_path)
    summaries.scalars("train", {"a": 1.0}, 1)
    summaries.flush("train")
    assert background().wait()
    assert [step for step, _ in read(tmp_path / "train")["a"]] == [1]
    summaries.close()


def test_what_was_written_before_settling_is_in_the_file(tmp_path):
    summaries = Summaries(tmp_path)
    for step in range(20):
        summaries.image("train", "picture", np.zeros([200, 200, 3]), step)
    summaries_module.settle()
    (file,) = events_of(tmp_path / "train")
    size = file.stat().st_size
    assert len(read(tmp_path / "train")["picture"]) == 20
    summaries.close()
    assert file.stat().st_size == size


# Nothing that goes wrong ends a training.


@pytest.fixture
def told():
    """The warnings of a test, as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(warning.message) for warning in caught]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_once(tmp_path, monkeypatch, told):
    def on_full_disk(path):
        Path(path).touch()
        return tf.io.TFRecordWriter("/dev/full")

    full = types.SimpleNamespace(io=types.SimpleNamespace(TFRecordWriter=on_full_disk))
    summaries = Summaries(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(summaries_module, "tf", full)
        for step in range(5):
            for split in ("train", "validation"):
                summaries.scalars(split, {"a": 1.0}, step)
                summaries.flush(split)
            background().wait()
    # Somebody makes room.
    summaries.scalars("train", {"a": 1.0}, 5)
    summaries.close()
    (message,) = told()
    assert "No space left on device" in message
    assert str(tmp_path) in message
    assert "Training continues" in message
    assert [step for step, _ in read(tmp_path / "train")["a"]] == [5]


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path, told):
    (tmp_path / "file").write_text("in the way")
    summaries = Summaries(tmp_path / "file")
    for step in range(5):
        summaries.scalars("train", {"a": 1.0}, step)
        background().wait()
    summaries.close()
    summaries.scalars("run", {"test/a": 1.0}, 5)  # as a run does after its training
    summaries.close()
    assert len(told()) == 1
    assert "file" in told()[0]


def test_a_removed_folder_is_told_once_and_made_again(tmp_path, told):
    import shutil

    folder = tmp_path / "run"
    summaries = Summaries(folder)
    for step in range(6):
        summaries.scalars("train", {"a": 1.0}, step)
        background().wait()
        if step in (1, 3):
            shutil.rmtree(folder)
    summaries.close()
    (message,) = told()
    assert "was removed" in message
    assert read(folder / "train")["a"][-1][0] == 5


def test_a_mistake_in_a_picture_is_told_once_and_what_follows_is_written(tmp_path, told):
    summaries = Summaries(tmp_path)
    for step in range(3):
        summaries.image("train", "picture", np.zeros([2, 2]), step)  # has no channels
        summaries.scalars("train", {"a": 1.0}, step)
    summaries.close()
    assert len(told()) == 1
    assert "not enough values to unpack" in told()[0]
    assert [step for step, _ in read(tmp_path / "train")["a"]] == [0, 1, 2]


def test_another_run_is_told_of_its_own_failure(tmp_path, told):
    for name in ("a", "b"):
        (tmp_path / name).write_text("in the way")
        summaries = Summaries(tmp_path / name)
        summaries.scalars("train", {"a": 1.0}, 0)
        summaries.close()
    assert len(told()) == 2


def test_a_disk_that_stands_still_stalls_nothing(monkeypatch):
    monkeypatch.setattr(background_module, "_QUEUE_LENGTH", 5)
    slow, gate = Background(), threading.Event()
    assert slow.submit(gate.wait)
    # They return while the gate is closed, or this test would stand still itself.
    taken = [slow.submit(lambda: None) for _ in range(20)]
    assert not slow.wait(0.05)
    assert taken.count(True) in (4, 5)  # the first may have left the queue already
    gate.set()
    # Its queue may be full for a moment.
    assert any(slow.wait(600.0) or time.sleep(0.01) for _ in range(60_000))


def test_work_is_done_in_its_order():
    own, done = Background(), []
    for number in range(100):
        own.submit(lambda number=number: done.append(number))
    assert own.wait()
    assert done == list(range(100))


# What is drawn.


def test_heat_gets_brighter_all_the_way():
    colours = heat(np.linspace(0.0, 1.0, 50))
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance) > 0.0)


def test_numbers_over_time_have_a_row_each_and_time_to_the_right():
    values = np.array([[0.0, 1.0, 2.0], [4.0, 3.0, 2.0]])
    picture = over_time(values, cell=3, width=400)
    assert picture.shape == (9, 12, 3)  # three dimensions of 3 pixels, two times of 6
    for dimension in range(3):
        for at in range(2):
            block = picture[3 * dimension : 3 * dimension + 3, 6 * at : 6 * at + 6]
            np.testing.assert_allclose(
                block, np.broadcast_to(heat(values[at, dimension] / 4.0), block.shape)
            )


@pytest.mark.parametrize("finite", [[1.0, 2.0, 5.0], []])
def test_a_histogram_is_that_of_the_finite_values(finite):
    values = np.array([np.inf, *finite, np.nan, -np.inf], np.float32)
    assert event_protos.histogram("tag", values) == event_protos.histogram("tag", np.array(finite))


def test_a_long_time_is_shown_from_its_first_to_its_last():
    values = np.arange(1000.0)[:, np.newaxis]
    picture = over_time(values, cell=1, width=100)
    assert picture.shape == (1, 100, 3)
    np.testing.assert_allclose(picture[0, 0], heat(0.0))
    np.testing.assert_allclose(picture[0, -1], heat(1.0))


def test_divergences_that_are_not_finite_are_as_bright_as_the_largest():
    values = np.array([[0.0, 1.0, 4.0], [np.inf, np.nan, 2.0]])
    wanted = over_time(np.array([[0.0, 1.0, 4.0], [4.0, 4.0, 2.0]]))
    np.testing.assert_array_equal(over_time(values), wanted)


def test_a_framed_picture_keeps_its_pixels_beside_a_scale():
    picture = heat(np.linspace(0.0, 1.0, 40 * 60).reshape([40, 60]))
    framed_one = framed(picture, 2.5, "nats", left=("0", "39"), below=("epoch 1", "60"))
    height, width = framed_one.shape[:2]
    inside = [
        (row, column)
        for row in range(height - 39)
        for column in range(width - 59)
        if np.abs(framed_one[row : row + 40, column : column + 60] - picture).max() < 0.003
    ]
    assert len(inside) == 1 and inside[0][0] == 0
    beside = framed_one[:40, inside[0][1] + 60 :]
    is_scale = [np.abs(beside[0, at] - heat(1.0)).max() < 0.003 for at in range(beside.shape[1])]
    (bar,) = np.flatnonzero(np.diff(is_scale, prepend=0) > 0)
    luminance = beside[:, bar] @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance) < 0.0)
    words = framed_one.min(axis=-1) < 0.3
    assert words[:, : inside[0][1]].any() and words[41:].any()
    assert words[:40, inside[0][1] + 60 + bar + 14 :].any()


def test_divergences_of_zero_are_black():
    np.testing.assert_allclose(over_time(np.zeros([3, 2])), np.broadcast_to(heat(0.0), [10, 30, 3]))


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_thumbnails_follow_each_other_row_by_row_in_a_square(count):
    images = np.random.default_rng(0).random([count, 4, 3, 1]).astype("float32")
    picture, size = sprite(images)
    assert size == (3, 4)
    columns = {1: 1, 2: 2, 5: 3, 9: 3}[count]
    assert picture.shape == (4 * columns, 3 * columns, 1)
    for index, image in enumerate(images):
        line, column = divmod(index, columns)
        found = picture[4 * line : 4 * line + 4, 3 * column : 3 * column + 3]
        np.testing.assert_allclose(found, image, atol=1e-6)


def test_thumbnails_of_large_images_are_small():
    picture, size = sprite(np.zeros([4, 200, 100, 3], np.float32))
    assert size == (25, 50)
    assert picture.shape == (100, 50, 3)


def test_a_png_has_the_pixels():
    picture = np.random.default_rng(0).random([5, 4, 3])
    found = tf.io.decode_png(encode_png(picture)).numpy()
    np.testing.assert_array_equal(found, np.rint(picture * 255.0))


# The metrics file, which is no event file but must not end a training either.


def test_metrics_that_cannot_be_written_are_kept(tmp_path, told, monkeypatch):
    from vae_research.callbacks import metrics_file

    file = metrics_file.MetricsFile(tmp_path / "run" / "metrics.jsonl")
    record = metrics_file.EpochRecord(1, 3, 5, 1.0, 1.0, 0.1, {"train": {"loss": 1.0}}, {})
    file.on_record(record)
    file.on_record(record)
    (message,) = told()
    assert os.strerror(errno.ENOENT) in message
    (tmp_path / "run").mkdir()
    file.on_record(record)
    assert file.path.read_text().count("\n") == 3
    file.on_train_end()
    assert file.path.read_text().count("\n") == 3


def test_no_half_line_is_left_on_a_full_disk(tmp_path, told, monkeypatch):
    from vae_research.callbacks import metrics_file

    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")

    class Half(io.FileIO):
        def write(self, content):
            return super().write(content[: len(content) // 2])

    monkeypatch.setattr(
        metrics_file, "open", lambda path, *_, **__: Half(path, "ab"), raising=False
    )
    file = metrics_file.MetricsFile(path)
    file.on_record(metrics_file.EpochRecord(1, 3, 5, 1.0, 1.0, 0.1, {"train": {"loss": 1.0}}, {}))
    assert path.read_text() == "{}\n"
    assert os.strerror(errno.ENOSPC) in told()[0]
