"""Folders of images: what is read, in which order, and what is refused."""

import os

import numpy as np
import pytest
import tensorflow as tf

from vae_research.data import DataError, load_data
from vae_research.data.readers import folders

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (12, 6, 8, 1), dtype=np.uint8)


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_jpeg if path.suffix == ".jpg" else tf.io.encode_png
    path.write_bytes(encode(picture).numpy())


@pytest.fixture
def folder(tmp_path):
    for number, picture in enumerate(PICTURES):
        write(tmp_path / "all" / f"{number:02d}.png", picture)
    return tmp_path / "all"


def test_pictures_come_back_in_the_order_of_their_names(folder):
    data = folders.load_image_folder(folder)
    found = np.concatenate([split.raw for split in data.splits])
    assert data.is_image
    assert found.dtype == np.uint8
    order = np.concatenate(
        [np.where((row == PICTURES).all((1, 2, 3)))[0] for row in data.train.raw]
    )
    assert list(order) == sorted(order)
    assert {row.tobytes() for row in found} == {row.tobytes() for row in PICTURES}
    assert folders.load_image_folder(folder).fingerprint == data.fingerprint


def test_folders_are_splits_and_labels(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for number in range(count):
            name = f"{'ba'[number % 2]}/{number}.png"
            write(tmp_path / split / name, PICTURES[number])
    data = load_data(tmp_path)
    assert [len(split) for split in data.splits] == [4, 2, 2]
    assert data.train.labels.tolist() == [0, 0, 1, 1]  # a/1, a/3, b/0, b/2
    np.testing.assert_array_equal(data.train.raw[0], PICTURES[1])


def test_sizes_and_channels_as_they_are_asked_for(folder):
    write(folder / "colour.png", RANDOM.integers(0, 256, (20, 10, 3), dtype=np.uint8))
    data = folders.load_image_folder(folder, image_size=4, channels=3)
    assert data.shape == (4, 4, 3)
    grey = np.full((6, 8, 1), 100, np.uint8)
    write(folder / "00.png", grey)
    assert folders.load_image_folder(folder, image_size=4, channels=1).shape == (4, 4, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(channels, tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.jpg", np.full((8, 8, channels), 50 * number, np.uint8))
    assert folders.header(tmp_path / "0.jpg") == (8, 8, {1: "grey", 3: "RGB"}[channels])
    data = folders.load_image_folder(tmp_path)
    assert sorted(int(split.raw.mean()) for split in data.splits) == [0, 50, 100]


def test_damaged_images_are_left_out_up_to_a_limit(folder):
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[:-20])
    (folder / "05.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"05\.png is empty"):
        folders.load_image_folder(folder)
    with pytest.raises(DataError, match=r"2 bad images, --bad_images=1 "):
        folders.load_image_folder(folder, bad_images=1)
    data = folders.load_image_folder(folder, bad_images=2)
    assert sum(len(split) for split in data.splits) == 10
    assert any("2 images were left out" in warning for warning in data.warnings)


def test_the_walk_is_bounded_and_takes_regular_files_only(folder, monkeypatch):
    (folder / "loop").symlink_to(folder)
    (folder / "link.png").symlink_to(folder / "00.png")
    os.mkfifo(folder / "pipe.png")
    (folder / ".hidden.png").write_bytes(b"x")
    assert [path.name for path in folders.images_in(folder)] == [f"{n:02d}.png" for n in range(12)]
    monkeypatch.setattr(folders, "_MOST_FILES", 5)
    with pytest.raises(DataError, match="more than 5 files"):
        folders.images_in(folder)


@pytest.mark.parametrize(
    ("flags", "needed", "advice"),
    [
        # 12 images of 48 bytes three times, two of them once and as float32, 8 being decoded.
        ({}, (3 * 10 + 2 * 5) * 48 + 8 * 48, "--image_size below 8 needs less"),
        (
            {"channels": 3, "image_size": 4},
            (3 * 10 + 2 * 5) * 48 + 8 * 144,
            "--image_size below 4 or --channels=1 needs less",
        ),
    ],
)
def test_more_than_memory_is_refused_before_decoding(flags, needed, advice, folder, monkeypatch):
    monkeypatch.setattr(folders, "_decoded", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(DataError, match=f"needs {needed} bytes of memory, 500 are available; "):
        folders.load_image_folder(folder, memory_limit=500, **flags)
    with pytest.raises(DataError, match=advice):
        folders.load_image_folder(folder, memory_limit=needed - 1, **flags)
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        folders.load_image_folder(folder, memory_limit=needed, **flags)
