"""The embedded MNIST, the script that built it, and where Fashion-MNIST is looked for."""

import hashlib
import runpy
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vae_research.data import DataError, load_data
from vae_research.data.readers import mnist

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "build_mnist"
EMBEDDED = ROOT / "vae_research" / "data" / "mnist.npz"

# Of the values in the original files, whose MD5 sums scripts/build_mnist has checked.
IMAGES_SHA256 = "5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96"
LABELS_SHA256 = "671ff9d70b4811116d55c3dd479efa7a981e2e62753ef7a6d5c15fea81e63d27"

# Digits 0 to 9 in the original training and test set, as published with the data set.
TRAIN_DIGITS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_DIGITS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def data():
    return load_data()


def test_split_sizes_and_shape(data):
    assert [len(split) for split in data.splits] == [50_000, 10_000, 10_000]
    assert data.shape == (28, 28, 1)
    assert data.is_image
    assert data.rescale == "unit"
    assert data.value_range() == (0.0, 1.0)
    assert data.grey_values
    assert data.warnings == ()  # no digit occurs in two splits


def test_the_values_are_those_of_the_original_files(data):
    images, labels = hashlib.sha256(), hashlib.sha256()
    for split in data.splits:
        images.update(split.raw.data)
        labels.update(split.labels.astype(np.uint8).data)
    assert images.hexdigest() == IMAGES_SHA256
    assert labels.hexdigest() == LABELS_SHA256


def test_the_notice_and_the_embedded_file_agree():
    notice = EMBEDDED.with_name("MNIST-NOTICE.txt").read_text(encoding="utf-8")
    assert IMAGES_SHA256 in notice
    assert LABELS_SHA256 in notice
    for name, md5, *_ in runpy.run_path(str(SCRIPT))["ORIGINALS"]:
        assert f"{name}" in notice
        assert md5 in notice


def test_digits_are_counted_as_published(data):
    digits = [np.bincount(split.labels, minlength=10) for split in data.splits]
    assert (digits[0] + digits[1]).tolist() == TRAIN_DIGITS
    assert digits[2].tolist() == TEST_DIGITS


def test_the_mean_pixel_is_the_published_one(data):
    # 0.1307 and 0.3081: mean and deviation of the 60 000, in every tutorial that normalises.
    original = np.concatenate([data.train.prepare(), data.validation.prepare()])
    assert original.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert original.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.slow
def test_loading_takes_well_under_a_second():
    seconds = []
    for _ in range(3):
        start = time.process_time()  # of this process: the machine may be busy with others
        assert load_data("mnist").fingerprint
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0


def test_a_damaged_file_is_a_data_error(tmp_path, monkeypatch):
    damaged = tmp_path / "mnist.npz"
    damaged.write_bytes(EMBEDDED.read_bytes()[:1_000_000])
    monkeypatch.setattr(mnist, "_MNIST", damaged)
    with pytest.raises(DataError, match="truncated"):
        load_data("mnist")


# The script


def test_the_file_depends_on_nothing_but_the_arrays(tmp_path, monkeypatch):
    write_npz = runpy.run_path(str(SCRIPT))["write_npz"]
    arrays = {"images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "labels": np.uint8([1, 2])}
    write_npz(tmp_path / "a.npz", arrays)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    write_npz(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as written:
        np.testing.assert_array_equal(written["images"], arrays["images"])
    with zipfile.ZipFile(EMBEDDED) as archive:
        assert [member.filename for member in archive.infolist()] == ["images.npy", "labels.npy"]
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_script_refuses_other_files(tmp_path):
    target = tmp_path / "out.npz"
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--output", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "neither" in done.stderr
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"other")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not the original file" in done.stderr
    assert not target.exists()


# Fashion-MNIST


def write_fashion(folder: Path, train: int = 60_000) -> None:
    """Files like the real ones, but with tiny images."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", 10_000)):
        for content, shape in (("images", (count, 3, 2)), ("labels", (count,))):
            sizes = np.array(shape, ">u4").tobytes()
            values = generator.integers(0, 10, shape, dtype=np.uint8).tobytes()
            path = folder / f"{prefix}-{content}-idx{len(shape)}-ubyte"
            path.write_bytes(bytes([0, 0, 8, len(shape)]) + sizes + values)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No Debian package, an empty Keras home, no network."""

    def no_network():
        raise DataError("no network")

    monkeypatch.setattr(mnist, "_DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(mnist, "_download", no_network)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path


@pytest.mark.parametrize("place", ["debian", "keras/datasets/fashion-mnist"])
def test_fashion_mnist_is_found(nowhere, place):
    write_fashion(nowhere / place)
    data = load_data("fashion_mnist", binarize="dynamic")
    assert data.name == "fashion_mnist"
    assert [len(split) for split in data.splits] == [50_000, 10_000, 10_000]
    assert data.binarize == "dynamic"


def test_fashion_mnist_is_downloaded_last(nowhere, monkeypatch):
    def download():
        write_fashion(nowhere / "new")
        return nowhere / "new"

    monkeypatch.setattr(mnist, "_download", download)
    assert len(load_data("fashion_mnist").train) == 50_000


def test_fashion_mnist_found_nowhere_lists_what_was_tried(nowhere):
    write_fashion(nowhere / "debian", train=600)
    with pytest.raises(DataError) as caught:
        load_data("fashion_mnist")
    message = str(caught.value)
    assert "\n" not in message
    assert "apt install dataset-fashion-mnist" in message
    assert f"Debian's package ({nowhere / 'debian'} holds 10600 images, not 70000)" in message
    assert (
        f"Keras' cache ({nowhere / 'keras' / 'datasets' / 'fashion-mnist'} does not exist"
        in message
    )
    assert "download by Keras (no network)" in message


def test_a_failed_download_is_a_data_error_and_cannot_hang(monkeypatch):
    limits = []

    def load_nothing():
        limits.append(socket.getdefaulttimeout())
        raise OSError("URL fetch failure:\n unreachable")

    module = type(sys)("fashion_mnist")
    module.load_data = load_nothing
    package = type(sys)("keras.datasets")
    package.fashion_mnist = module
    monkeypatch.setitem(sys.modules, "keras.datasets", package)
    with pytest.raises(DataError, match="URL fetch failure: unreachable"):
        mnist._download()
    assert limits == [10.0]
    assert socket.getdefaulttimeout() is None
