"""Text of zeros and ones as Larochelle published it, and MATLAB's .mat files."""

import hashlib
import sys

import numpy as np
import pytest
from scipy import io

from vae_research.data import DataError, load_data
from vae_research.data.readers import matlab

IMAGES = (np.random.default_rng(0).random((30, 6, 6)) < 0.3).astype(np.uint8)
PARTS = {"train": IMAGES[:20], "valid": IMAGES[20:26], "test": IMAGES[26:]}


def text_of(images, newline="\n"):
    """The layout of the published files: a byte for a number, and a byte after each."""
    return "".join(" ".join(map(str, row.ravel())) + newline for row in images).encode()


@pytest.fixture
def folder(tmp_path):
    for split, images in PARTS.items():
        (tmp_path / f"binarized_mnist_{split}.amat").write_bytes(text_of(images))
    return tmp_path


def refusal(path, *args, **keywords):
    with pytest.raises(DataError) as caught:
        load_data(path, *args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_layout_is_that_of_the_published_files():
    # Bytes of the published test file, 10 000 lines of 784 numbers: url_checksums of TFDS.
    assert len(text_of(np.zeros((10, 784), np.uint8))) * 1000 == 15_680_000


def test_a_folder_of_texts_is_three_splits_of_binary_images(folder):
    data = load_data(folder)
    assert data.is_image
    assert data.shape == (6, 6, 1)
    for split, images in zip(data.splits, PARTS.values(), strict=True):
        np.testing.assert_array_equal(split.prepare()[..., 0], images)
    assert not data.grey_values
    assert data.warnings == ()
    assert load_data(folder, kind="table").shape == (36,)


def test_a_note_says_whether_the_files_are_the_published_ones(folder, monkeypatch):
    (note,) = load_data(folder).notes
    assert note.startswith("This is not the published static binarisation of MNIST")
    assert all(f"binarized_mnist_{split}.amat" in note for split in PARTS)

    spelt = zip(("train", "validation", "test"), PARTS.values(), strict=True)
    sums = {split: hashlib.sha256(text_of(images)).hexdigest() for split, images in spelt}
    monkeypatch.setattr(matlab, "PUBLISHED", sums)
    (note,) = load_data(folder).notes
    assert note.startswith("All three files are those of the published static binarisation")

    (folder / "binarized_mnist_test.amat").write_bytes(text_of(PARTS["test"], "\r\n"))
    data = load_data(folder)  # the same numbers in another file
    np.testing.assert_array_equal(data.test.prepare()[..., 0], PARTS["test"])
    assert data.notes[0].endswith("binarized_mnist_test.amat differ in SHA-256.")
    (folder / "binarized_mnist_test.amat").unlink()
    assert load_data(folder).notes[0].endswith(": test missing.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"0 1\n1 10\n", "line 2 has '10'; only 0 and 1"),
        (b"0 1\n1 0.5\n", "line 2 has '0.5'; only 0 and 1"),
        (b"0 1 2\n", "line 1 has '2'"),
        (b"PK\x03\x04", r"line 1 has 'PK\x03\x04'"),
        (b"0 1 1\n1 0\n", "line 2 has 2 numbers, line 1 has 3"),
        (b"0 1\n\n1 0\n", "line 2 has 0 numbers"),
        (b" \n", "nothing but blanks"),
        (b"", "is empty"),
    ],
)
def test_a_text_of_anything_else_is_refused(folder, text, words):
    (folder / "binarized_mnist_train.amat").write_bytes(text)
    assert words in refusal(folder)


def test_what_is_beside_the_files(folder):
    (folder / "README.txt").write_bytes(b"x")
    (warning,) = load_data(folder).warnings
    assert warning.endswith("these are not read: 1 .txt")
    assert "give the folder" in refusal(folder / "binarized_mnist_train.amat")
    assert "3 .amat, 1 .txt" in refusal(folder, stream=True)  # of a folder of images it would be
    io.savemat(folder / "other_train.mat", {"x": IMAGES})
    assert "could both be train; keep one" in refusal(folder)


def test_memory_is_asked_for_before_a_text_is_read(folder):
    with pytest.raises(DataError, match="bytes of memory"):
        matlab.read_amat(folder / "binarized_mnist_train.amat", memory_limit=1000)


def test_a_mat_file_has_the_arrays_of_an_npz_file(tmp_path):
    path = tmp_path / "digits.mat"
    labels = np.arange(20) % 3
    arrays = {"x_train": IMAGES[:20], "y_train": labels, "x_valid": IMAGES[20:26]}
    io.savemat(path, {**arrays, "x_test": IMAGES[26:], "mean": IMAGES.mean(0), "name": "digits"})
    data = load_data(path)
    assert (data.name, data.shape, data.notes) == ("digits.mat", (6, 6, 1), ())
    for split, images in zip(data.splits, PARTS.values(), strict=True):
        np.testing.assert_array_equal(split.prepare()[..., 0], images)
    np.testing.assert_array_equal(data.train.labels, labels)
    assert data.warnings == ("digits.mat: these are not read: mean",)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_folder_of_mat_files_with_examples_in_rows_or_columns(tmp_path, transposed):
    for split, images in PARTS.items():
        rows = images.reshape(len(images), -1).astype(np.float64)
        io.savemat(tmp_path / f"mnist_{split}.mat", {split: rows.T if transposed else rows})
    data = load_data(tmp_path, kind="images")
    np.testing.assert_array_equal(data.train.prepare()[..., 0], PARTS["train"])
    assert (data.shape, len(data.test)) == ((6, 6, 1), 4)
    assert load_data(tmp_path).shape == (36,)


def test_mat_files_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.mat"
    path.write_bytes(b"some text that is no file of MATLAB" * 10)
    assert "cannot be read as .mat" in refusal(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    assert "version 7.3" in refusal(path)
    io.savemat(path, {"train": IMAGES})
    path.write_bytes(path.read_bytes()[:500])
    assert "cannot be read as .mat" in refusal(path)
    io.savemat(path, {"pictures": IMAGES})
    assert "found the keys pictures" in refusal(path)
    io.savemat(tmp_path / "x_train.mat", {"a": IMAGES, "b": IMAGES})
    assert "has the arrays a, b; the file of a split has one" in refusal(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert "pip install 'vae_research[matlab]'" in refusal(path)
