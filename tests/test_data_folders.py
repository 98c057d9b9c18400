"""Folders of images: what is read, in which order, and what is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from vae_research.data import DataError, load_data
from vae_research.data.readers import folders, images

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (12, 6, 8, 1), dtype=np.uint8)


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(path)


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
    assert images.header(tmp_path / "0.jpg") == (8, 8, {1: "grey", 3: "RGB"}[channels], False)
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
    found, others = folders.images_in(folder)
    assert [path.name for path in found] == [f"{n:02d}.png" for n in range(12)]
    assert others == {"links": 2, "pipes, sockets or devices": 1}
    monkeypatch.setattr(folders, "_MOST_FILES", 5)
    with pytest.raises(DataError, match="more than 5 files"):
        folders.images_in(folder)


@pytest.mark.parametrize(
    ("flags", "needed", "advice"),
    [
        # 12 images of 48 bytes three times, two of them once and as float32, 8 being decoded at 16
        # bytes a pixel.
        ({}, (3 * 10 + 2 * 5) * 48 + 8 * 48 * 16, "--image_size below 8 needs less"),
        (
            {"channels": 3, "image_size": 4},
            (3 * 10 + 2 * 5) * 48 + 8 * 48 * 16,
            "--image_size below 4 or --channels=1 needs less",
        ),
    ],
)
def test_more_than_memory_is_refused_before_decoding(flags, needed, advice, folder, monkeypatch):
    flags = flags | {"stream": False}
    monkeypatch.setattr(folders, "_DECODED_AT_ONCE", 8)
    monkeypatch.setattr(folders, "_decoded", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(DataError, match=f"needs {needed} bytes of memory, 500 are available; "):
        folders.load_image_folder(folder, memory_limit=500, **flags)
    with pytest.raises(DataError, match=advice):
        folders.load_image_folder(folder, memory_limit=needed - 1, **flags)
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        folders.load_image_folder(folder, memory_limit=needed, **flags)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("train", "valid", "test"), (6, 2, 2)),
        (("Train", "Val", "Test"), (6, 2, 2)),
        (("training", "dev", "testing"), (6, 2, 2)),
        (("train2017", "val2017", "test2017"), (6, 2, 2)),
        (("X_train", "x_valid", "test_images"), (6, 2, 2)),
        (("TRAIN", None, "TEST"), (4, 2, 2)),
    ],
)
def test_names_of_splits_in_use(names, counts, tmp_path):
    pictures = iter(RANDOM.integers(0, 256, (10, 6, 8, 1), dtype=np.uint8))
    for name, count in zip(names, (6, 2, 2), strict=True):
        for number in range(count if name else 0):
            write(tmp_path / name / f"{number}.png", next(pictures))
    data = load_data(tmp_path)
    assert tuple(len(split) for split in data.splits) == (counts if names[1] else (5, 1, 2))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train/a.png", "Train/a.png"), "Train and train could both be train"),
        (("train/a.png", "val/a.png", "valid/a.png"), "val and valid could both be validation"),
        (("test/a.png", "cat/a.png"), "holds the split test but no train"),
        (
            ("Train/a.png", "cat/a.png", "test/a.png"),
            "the folder cat with 1 images belongs to none",
        ),
        (("images/train/a.png", "images/test/a.png"), "images/test is the name of a split"),
        (("cat/train/a.png", "dog/train/a.png"), "cat/train is the name of a split"),
        (("train/a/0.png", "test/b/0.png"), "the folder b is a class that train does not have"),
    ],
)
def test_splits_are_never_merged_or_dropped_in_silence(names, words, tmp_path):
    for number, name in enumerate(names):
        write(tmp_path / name, PICTURES[number])
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    assert words in str(caught.value)


def test_a_test_folder_without_classes_has_no_labels(tmp_path):
    for number in range(4):
        write(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", PICTURES[number])
        write(tmp_path / "test" / f"{number}.png", PICTURES[number + 4])
    data = load_data(tmp_path)
    assert data.train.labels is not None
    assert data.test.labels is None


def test_files_that_are_left_out_are_counted_by_kind(tmp_path):
    for number in range(6):
        write(tmp_path / "train" / f"{number}.png", PICTURES[number])
        write(tmp_path / "test" / f"{number}.png", PICTURES[number + 6])
    for name in ("a.txt", "b.TXT", "train/c.csv", "train/d.gif", "labels", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loose.png").write_bytes(b"x")
    (warning,) = load_data(tmp_path).warnings
    assert warning == (
        f"{tmp_path.name}: 6 files are not read: 1 .csv, 1 .gif, 2 .txt, 1 files without suffix, "
        "1 images beside the splits"
    )


def test_a_picture_beside_idx_files_is_left_alone(tmp_path):
    content = RANDOM.integers(0, 256, (30, 6, 8), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + np.array(content.shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + content.tobytes())
    write(tmp_path / "preview.png", PICTURES[0])
    data = load_data(tmp_path)
    assert sum(map(len, data.splits)) == 30
    assert any("1 .png" in warning for warning in data.warnings)
