"""Data files and folders: what is read, and one line of plain words for each that is not."""

import gzip
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vae_research.data import DataError, load_data
from vae_research.data.readers.arrays import load_npy, load_npz
from vae_research.data.readers.file_checks import available_memory, refuse_too_large, what_is_in
from vae_research.data.readers.idx import load_idx_folder, read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 6), dtype=np.uint8)
LABELS = np.arange(30) % 3


def refusal(function, *args, **keywords) -> str:
    """The message of the DataError that the call must raise; one line."""
    with pytest.raises(DataError) as caught:
        function(*args, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, code, array.ndim]) + sizes + array.tobytes()


# .npz


def test_npz_with_our_names(tmp_path):
    path = tmp_path / "mine.npz"
    parts = {"train": IMAGES[:20], "validation": IMAGES[20:25], "test": IMAGES[25:]}
    labels = {"train_labels": LABELS[:20], "test_labels": LABELS[25:]}
    np.savez_compressed(path, **parts, **labels)
    data = load_data(str(path))
    assert data.name == "mine.npz"
    for split in data.splits:
        np.testing.assert_array_equal(split.raw[..., 0], parts[split.name])
    np.testing.assert_array_equal(data.train.labels, LABELS[:20])
    assert data.validation.labels is None
    np.testing.assert_array_equal(data.test.labels, LABELS[25:])
    assert data.warnings == ()


def test_npz_with_the_names_of_keras(tmp_path):
    path = tmp_path / "keras.npz"
    named = {"x_train": IMAGES[:25], "y_train": LABELS[:25]}
    np.savez(path, **named, x_test=IMAGES[25:], y_test=LABELS[25:])
    data = load_data(path)
    assert [len(split) for split in data.splits] == [20, 5, 5]
    np.testing.assert_array_equal(data.validation.raw[..., 0], IMAGES[20:25])
    np.testing.assert_array_equal(data.test.labels, LABELS[25:])


@pytest.mark.parametrize(
    ("train", "validation", "labels"),
    [
        ("X_train", "X_val", "y_val"),
        ("train_images", "val_images", "val_labels"),
        ("training", "x_valid", "y_valid"),
        ("trainX", "validX", "validY"),
    ],
)
def test_npz_with_the_names_in_use(tmp_path, train, validation, labels):
    arrays = {train: IMAGES[:20], validation: IMAGES[20:25], labels: LABELS[20:25]}
    np.savez(tmp_path / "a.npz", **arrays, x_TEST=IMAGES[25:])
    data = load_npz(tmp_path / "a.npz")
    assert [len(split) for split in data.splits] == [20, 5, 5]
    np.testing.assert_array_equal(data.validation.raw[..., 0], IMAGES[20:25])
    np.testing.assert_array_equal(data.validation.labels, LABELS[20:25])
    assert data.warnings == ()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("x_train", "X_train"), "X_train and x_train could both be train"),
        (("train", "x_val", "valid"), "valid and x_val could both be validation"),
        (("train", "test", "y_test", "test_labels"), "test_labels and y_test could both be test"),
        (("train", "train_labels", "y"), "train_labels and y could both be train labels"),
    ],
)
def test_npz_with_two_keys_for_one_array_is_refused(tmp_path, keys, words):
    np.savez(tmp_path / "a.npz", **dict.fromkeys(keys, IMAGES))
    assert words in refusal(load_data, tmp_path / "a.npz")


@pytest.mark.parametrize("key", ["images", "imgs", "data", "x", "arr_0", "train"])
@pytest.mark.parametrize("label_key", ["labels", "y"])
def test_npz_with_one_array(tmp_path, key, label_key):
    path = tmp_path / "one.npz"
    np.savez(path, **{key: LABELS[:, None], label_key: LABELS})
    data = load_npz(path)
    assert [len(split) for split in data.splits] == [24, 3, 3]
    for split in data.splits:
        np.testing.assert_array_equal(split.raw[:, 0], split.labels)


def test_npz_passes_the_options_on(tmp_path):
    np.savez(tmp_path / "a.npz", train=IMAGES)
    data = load_data(tmp_path / "a.npz", rescale="unit", binarize="static")
    assert (data.rescale, data.binarize) == ("unit", "static")


def test_npz_arrays_that_are_not_used_are_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, IMAGES, LABELS, LABELS[1:])  # arr_0, arr_1, arr_2
    data = load_npz(path)
    assert data.warnings == ("a.npz: these arrays are not used: arr_2",)
    assert data.names == ("arr_1",)


def test_npz_without_a_key_lists_found_and_understood(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=IMAGES, numbers=LABELS)
    message = refusal(load_data, tmp_path / "a.npz")
    assert "found the keys numbers, pictures" in message
    assert "understood are train, training, valid" in message


def test_npz_with_two_candidates_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", train=IMAGES, images=IMAGES)
    assert "train and images could both be train" in refusal(load_data, tmp_path / "a.npz")


class _Trap:
    """Unpickling this would make the file named in `made`."""

    made = None

    def __reduce__(self):
        return (Path.touch, (self.made,))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_pickled_objects_are_refused_and_not_run(tmp_path, suffix):
    trap = _Trap()
    trap.made = tmp_path / "made"
    array = np.array([[trap, 1], [2, 3]], dtype=object)
    path = tmp_path / f"a{suffix}"
    save = {".npz": lambda: np.savez(path, train=array), ".npy": lambda: np.save(path, array)}
    save[suffix]()
    assert "pickled Python objects" in refusal(load_data, path)
    assert not trap.made.exists()


def test_pickled_objects_beside_the_data_are_left_alone(tmp_path):
    # dSprites has its description in such an array.
    np.savez(tmp_path / "a.npz", imgs=IMAGES, metadata=np.array({"a": 1}, dtype=object))
    assert len(load_data(tmp_path / "a.npz").train) == 24


@pytest.mark.parametrize("keep", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_truncated_files_are_refused(tmp_path, name, keep):
    path = tmp_path / name
    np.savez_compressed(path, train=IMAGES) if name == "a.npz" else np.save(path, IMAGES)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(keep * len(whole)))])
    assert str(path) in refusal(load_data, path)


def test_truncated_files_give_the_numbers(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, IMAGES)
    path.write_bytes(path.read_bytes()[:-40])
    message = refusal(load_data, path)
    assert f"promises {IMAGES.nbytes} bytes" in message
    assert f"found {IMAGES.nbytes - 40}" in message
    np.savez(tmp_path / "a.npz", train=IMAGES)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    assert "truncated" in refusal(load_data, tmp_path / "a.npz")


def test_a_flipped_bit_in_an_npz_is_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, train=IMAGES)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 700] ^= 4
    path.write_bytes(content)
    assert "CRC" in refusal(load_data, path)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    generator = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "a.npz", train=IMAGES)
    np.save(tmp_path / "a.npy", IMAGES.astype(np.float32))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    loaders = {"a.npz": load_npz, "a.npy": load_npy, "train-images-idx3-ubyte": read_idx}
    refused = 0
    for name, load in loaders.items():
        whole = (tmp_path / name).read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[generator.integers(min(len(whole), 160))] = generator.integers(256)
            damaged[generator.integers(len(whole))] = generator.integers(256)
            path = tmp_path / f"damaged{Path(name).suffix}"
            path.write_bytes(damaged)
            try:
                load(path)
            except DataError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 150


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_text_and_empty_files_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("epoch,loss\n1,2\n")
    assert "begins with b'epoch,lo" in refusal(load_data, path)
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in refusal(load_data, path)


def test_an_npz_named_npy_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", train=IMAGES)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    assert "is not a NumPy array: begins with b'PK" in refusal(load_data, tmp_path / "a.npy")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, train=IMAGES)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # "encrypted", in the local header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(load_data, path)


def test_npy_is_one_array(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(IMAGES.astype(">f4")))
    data = load_data(tmp_path / "a.npy", kind="images")
    assert [len(split) for split in data.splits] == [24, 3, 3]
    everything = np.concatenate([split.raw for split in data.splits])[..., 0]
    assert sorted(everything.sum((1, 2))) == sorted(IMAGES.sum((1, 2)).astype(np.float32))


# More than there should be


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        description = {"descr": "|u1", "fortran_order": False, "shape": (200, 1_000_000)}
        np.lib.format.write_array_header_1_0(header, description)
        archive.writestr("train.npy", header.getvalue() + bytes(200_000_000))
    assert path.stat().st_size < 250_000
    message = refusal(load_data, path)
    assert "200000000" in message
    assert "decompression bomb" in message


def test_what_is_no_bomb():
    refuse_too_large("dSprites", 737_280 * 4096, 26_000_000, memory_limit=10**12)
    refuse_too_large("small and blank", 90_000_000, 90_000, memory_limit=10**12)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a-ubyte"])
def test_more_data_than_memory_is_refused_by_the_header(tmp_path, name):
    path = tmp_path / name
    np.savez(tmp_path / "a.npz", train=IMAGES, test=IMAGES[:5])
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "a-ubyte").write_bytes(idx_bytes(IMAGES))
    load = {"a.npz": load_npz, "a.npy": load_npy, "a-ubyte": read_idx}[name]
    needed = IMAGES.nbytes + (IMAGES[:5].nbytes if name == "a.npz" else 0)
    load(path, memory_limit=needed)
    in_memory = {"stream": False} if name == "a.npy" else {}
    message = refusal(load, path, memory_limit=needed - 1, **in_memory)
    assert f"needs {needed} bytes of memory, {needed - 1} are available" in message


def test_a_header_that_promises_the_moon_allocates_nothing(tmp_path):
    header = io.BytesIO()
    shape = (2**40, 2**20)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(100))
    assert str(4 * 2**60) in refusal(load_data, tmp_path / "a.npy")
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    assert str((2**32 - 1) ** 3) in refusal(read_idx, tmp_path / "a")


def test_the_memory_of_this_machine_is_a_sane_number():
    memory = available_memory()
    assert memory is None or 2**20 < memory < 2**50


# Paths


def test_a_missing_file_names_the_nearest_folder(tmp_path):
    message = refusal(load_data, tmp_path / "no" / "such" / "file.npz")
    assert f"the nearest folder there is {tmp_path}" in message
    assert "does not exist" in refusal(load_data, tmp_path / "no" / "folder")


def test_a_folder_named_npz_is_refused(tmp_path):
    (tmp_path / "a.npz").mkdir()
    assert "is a folder, not a file; it holds nothing" in refusal(load_data, tmp_path / "a.npz")


def test_a_loop_of_links_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "a.npz").symlink_to(tmp_path / "b.npz")
    (tmp_path / "b.npz").symlink_to(tmp_path / "a.npz")
    assert "symbolic links in a loop" in refusal(load_data, tmp_path / "a.npz")
    os.mkfifo(tmp_path / "c.npz")
    assert "pipe" in refusal(load_data, tmp_path / "c.npz")


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", train=IMAGES)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    assert "permission denied" in refusal(load_data, tmp_path / "a.npz")


def test_names_with_spaces_and_emoji(tmp_path):
    path = tmp_path / "my data: 🐙.npz"
    np.savez(path, train=IMAGES)
    assert load_data(path).name == path.name


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", train=IMAGES)
    assert len(load_data("~/a.npz").train) == 24


@pytest.mark.parametrize(
    ("name", "nearest"), [("mnits", "mnist"), ("Fashion-MNIST", "fashion_mnist")]
)
def test_an_unknown_name_lists_what_exists(name, nearest):
    message = refusal(load_data, name)
    assert f"data set '{name}' does not exist; there are mnist, fashion_mnist" in message
    assert message.endswith(f"did you mean '{nearest}'?")


def test_an_existing_file_of_another_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("image.png").write_bytes(b"\x89PNG")
    assert "give the folder of the pictures" in refusal(load_data, "image.png")


# idx


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")],
)
def test_idx_types(tmp_path, code, dtype):
    array = np.arange(-4, 20).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a").write_bytes(idx_bytes(array, code))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), array)


def test_idx_is_unpacked_by_its_first_bytes_not_by_its_name(tmp_path):
    (tmp_path / "packed").write_bytes(gzip.compress(idx_bytes(IMAGES)))
    (tmp_path / "plain.gz").write_bytes(idx_bytes(IMAGES))
    np.testing.assert_array_equal(read_idx(tmp_path / "packed"), IMAGES)
    np.testing.assert_array_equal(read_idx(tmp_path / "plain.gz"), IMAGES)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_of_the_wrong_length_names_both(tmp_path, pack):
    path = tmp_path / "a"
    path.write_bytes(pack(idx_bytes(IMAGES)[:-7]))
    message = refusal(read_idx, path)
    assert f"needs {IMAGES.nbytes} bytes after the header, found {IMAGES.nbytes - 7}" in message
    path.write_bytes(pack(idx_bytes(IMAGES) + b"x"))
    assert f"needs {IMAGES.nbytes} bytes after the header, found more" in refusal(read_idx, path)


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n", b"\0\0\x07\x03" + bytes(12), b"\0\0\x08\0", b"\0\0", b"\x01\0\x08\x01"],
)
def test_idx_magic_is_verified(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert "is not an idx file: begins with" in refusal(read_idx, tmp_path / "a")


def test_idx_with_a_truncated_header_or_gzip(tmp_path):
    (tmp_path / "a").write_bytes(idx_bytes(IMAGES)[:9])
    assert "needs 12 bytes of sizes, found 5" in refusal(read_idx, tmp_path / "a")
    (tmp_path / "b").write_bytes(gzip.compress(idx_bytes(IMAGES))[:-20])
    assert "cannot be read" in refusal(read_idx, tmp_path / "b")


@pytest.mark.parametrize("test_prefix", ["t10k", "test"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files(tmp_path, test_prefix, suffix):
    pack = gzip.compress if suffix else bytes
    files = {
        "train-images-idx3-ubyte": IMAGES[:25],
        "train-labels-idx1-ubyte": LABELS[:25].astype(np.uint8),
        f"{test_prefix}-images-idx3-ubyte": IMAGES[25:],
        f"{test_prefix}-labels-idx1-ubyte": LABELS[25:].astype(np.uint8),
    }
    for name, array in files.items():
        (tmp_path / (name + suffix)).write_bytes(pack(idx_bytes(array)))
    data = load_data(tmp_path)
    assert [len(split) for split in data.splits] == [20, 5, 5]
    np.testing.assert_array_equal(data.test.raw[..., 0], IMAGES[25:])
    np.testing.assert_array_equal(data.validation.labels, LABELS[20:25])
    assert data.name == tmp_path.name


def test_a_folder_with_training_images_only(tmp_path):
    (tmp_path / "train-images.idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    assert [len(split) for split in load_idx_folder(tmp_path).splits] == [24, 3, 3]


def test_a_folder_without_idx_files_says_what_it_holds(tmp_path):
    for name in ("a.dat", "b.DAT", "c.txt", ".hidden", "README"):
        (tmp_path / name).touch()
    (tmp_path / "more.d").mkdir()
    expected = "2 .dat, 1 .txt, 1 files without suffix, 1 folders"
    assert what_is_in(tmp_path) == expected
    message = refusal(load_data, tmp_path)
    assert "holds no train-images-idx3-ubyte (or .gz) and no images (.png, .jpg" in message
    assert message.endswith(f"but {expected}")


def test_counting_a_huge_folder_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_research.data.readers.file_checks._MOST_ENTRIES_COUNTED", 5)
    for number in range(9):
        (tmp_path / f"{number}.png").touch()
    assert what_is_in(tmp_path) == "5 .png and more"


# Imports


def test_data_is_loaded_without_tensorflow(tmp_path):
    np.savez(tmp_path / "a.npz", train=IMAGES)
    program = (
        "import sys; from vae_research.data import load_data; "
        "load_data(sys.argv[1], binarize='static').train.prepare(); "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.npz")]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "[]\n"
