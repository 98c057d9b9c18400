"""What a person sees who gives an experiment something that cannot be.

One row for each mistake: the command line, the exit code, and words that must be in the answer. The
answer is one line on standard error, without a traceback, and nothing on disk is new or changed.
Rows are numbered as the project's list of bad inputs is, which is why numbers are missing here.

Nearly all answers come before TensorFlow is imported: these commands run with a `tensorflow` and a
`keras` that end the process with an exit code of their own.
"""

import collections
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests import forks
from tests.proofs import SOAK, tell
from vae_research import checkpoints, load_run, manifests, runs
from vae_research.data import Data
from vae_research.runs.cli.errors import RunError
from vae_research.runs.session import directory, resume
from vae_research.runs.session.kept import sources
from vae_research.runs.tools import doctor

CHECKOUT = Path(__file__).resolve().parents[1]

FLAGS, DATA, CHECKPOINT, FILE_SYSTEM = 2, 3, 4, 7  # exit codes
DOCTOR = "vae_research.runs.tools.doctor"

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 8, 8), dtype=np.uint8)  # cut into 32, 4 and 4
REALS = RANDOM.uniform(0.0, 1.0, (40, 8, 8)).astype(np.float32)
LABELS = np.arange(40) % 10


def npz(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def bomb_npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, train=np.zeros((200, 1000, 1000), np.uint8))
    return stream.getvalue()


def with_value(value: float) -> np.ndarray:
    """REALS with one other value, at the index (7, 1, 2)."""
    array = REALS.copy()
    array[7, 1, 2] = value
    return array


# An experiment whose loss terms are chosen by a flag.
TERMS = '''"""Loss terms by name."""

import vae_research as vr
from vae_research import runs

runs.define_string("names", "kl", "names of the KL terms, with commas between them")


def build(config, data):
    return vr.VAE(
        vr.dense_encoder(data.shape, 2),
        vr.GaussianBottleneck(2),
        vr.dense_decoder(data.shape, 2),
        [vr.Bernoulli(), *(vr.KLDivergence(name=name) for name in config.names.split(","))],
    )


if __name__ == "__main__":
    runs.main(build)
'''

# Files that are not read, and a word of the lines that convert them.
OTHER_KINDS = {
    "data.pkl": "pickle.load(",
    "data.h5": "cannot be read as HDF5: ",
    "data.hdf5": "cannot be read as HDF5: ",
    "data.zip": "shutil.unpack_archive(",
    "data.csv": "pandas.read_csv(",
    "data.parquet": "pandas.read_parquet(",
    "data.bmp": "give the folder of the pictures",
}

# Made in the current folder where a command mentions them.
FILES: dict[str, Callable[[], bytes]] = {
    "images.npz": lambda: npz(train=IMAGES),
    "text.txt": lambda: b"some text\n",
    "terms.py": TERMS.encode,
    "pickled.npz": lambda: npz(train=np.array([{"a": 1}, {}], dtype=object)),
    "keys.npz": lambda: npz(pictures=IMAGES, names=LABELS),
    "flat.npz": lambda: npz(train=np.arange(40.0)),
    "complex.npz": lambda: npz(train=REALS.astype(np.complex64)),
    "words.npz": lambda: npz(train=np.array([["a", "b"]] * 4)),
    "truncated.npz": lambda: npz(train=IMAGES)[:1000],
    "cut_inside.npz": lambda: npz(train=IMAGES).replace(IMAGES[20:].tobytes(), b""),
    # No source of data reads it, whole or damaged.
    "images.tfrecord": lambda: struct.pack("<QI", 2**40, 0),
    "text.npz": lambda: b"some text\n",
    "nothing.npz": lambda: b"",
    "nan.npz": lambda: npz(train=with_value(np.nan)),
    "nan_in_test.npz": lambda: npz(train=REALS, test=with_value(np.nan)[5:9]),
    "infinite.npz": lambda: npz(train=with_value(-np.inf)),
    "outside.npz": lambda: npz(train=with_value(-0.5)),
    "up_to_255.npz": lambda: npz(train=IMAGES.astype(np.float32)),
    "two_keys.npz": lambda: npz(x_train=IMAGES, train=IMAGES),
    **{name: lambda: b"x" for name in OTHER_KINDS},
    "series.npz": lambda: npz(train=REALS[:, :5]),
    "bomb.npz": bomb_npz,
    "no_validation.npz": lambda: npz(train=IMAGES, validation=IMAGES[:0]),
}


def png(height=8, width=8, *, kind=0, depth=8, rows=None) -> bytes:
    """A PNG: colour type 0 is grey, 2 RGB, 3 palette, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    channels = {0: 1, 2: 3, 3: 1, 6: 4}[kind]
    size = height * (1 + width * channels * depth // 8)
    pixels = zlib.compress(bytes(size) if rows is None else rows, 9)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3)) if kind == 3 else b""
    parts = (chunk(b"IHDR", header), palette, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cmyk() -> bytes:
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(stream, "JPEG")
    return stream.getvalue()


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


# Folders of images; three good ones are beside the odd one where it is not said otherwise.
GOOD = {f"{number}.png": png for number in range(3)}
FOLDERS: dict[str, dict[str, Callable[[], bytes]]] = {
    "empty_folder": {},
    "no_images": {"notes.txt": lambda: b"text", ".hidden.png": png},
    "truncated_folder": GOOD | {"bad.png": lambda: png(rows=bytes(range(72)))[:60]},
    "zero_bytes": GOOD | {"bad.png": lambda: b""},
    "text_as_png": GOOD | {"bad.png": lambda: b"some text"},
    "pdf": GOOD | {"bad.jpg": lambda: b"%PDF-1.7"},
    "mixed_sizes": GOOD | {"bad.png": lambda: png(9, 7)},
    "mixed_channels": GOOD | {"bad.png": lambda: png(kind=2)},
    "transparent": GOOD | {"bad.png": lambda: png(kind=6)},
    "deep": GOOD | {"bad.png": lambda: png(depth=16)},
    "deep_colours": GOOD | {"bad.png": lambda: png(kind=2, depth=16)},
    "cmyk": GOOD | {"bad.jpg": cmyk},
    "no_train": {"test/a.png": png, "cat/a.png": png},
    "two_trains": {"train/a.png": png, "Train/a.png": png, "test/a.png": png},
    "beside_splits": {"train/a.png": png, "test/a.png": png, "cat/a.png": png},
    "splits_below": {"images/train/a.png": png, "images/test/a.png": png},
    "palette": GOOD | {"bad.png": lambda: png(kind=3)},
    "animation": GOOD | {"bad.png": animated},
    "gif": GOOD | {"bad.png": lambda: b"GIF89a" + bytes(20)},
    "bomb": {"bad.png": lambda: png(20_000, 20_000, rows=bytes(10**6))},
}


class Case(NamedTuple):
    """A command that is refused; `words` may be pieces of a line in any order."""

    id: str
    flags: list[str]
    exit_code: int
    words: list[str]
    tensorflow: bool = False
    experiment: str = "vae_mnist.py"


def flag(id: str, given: str, *words: str) -> Case:
    """One flag with a bad value; the answer quotes it."""
    return Case(id, [given], FLAGS, [given, *words])


def data(id: str, file: str, *words: str) -> Case:
    """A data set that cannot be used; the answer names its file."""
    return Case(id, [f"--dataset={file}", "--batch_size=8"], DATA, [file, *words])


def images(id: str, folder: str, *words: str) -> Case:
    """A folder of images that cannot be used."""
    flags = [f"--dataset=./{folder}", "--batch_size=1"]
    return Case(id, flags, DATA, [folder, *words])


def run_dir(id: str, name: str, exit_code: int, *words: str) -> Case:
    return Case(id, [f"--run_dir={name}"], exit_code, list(words))


def terms(id: str, names: str, *words: str) -> Case:
    """Loss terms that cannot be; known when they are built, and their tensors need TensorFlow."""
    flags = ["--dataset=images.npz", "--batch_size=8", f"--names={names}"]
    return Case(id, flags, FLAGS, list(words), tensorflow=True, experiment="terms.py")


def values(id: str, file: str, exit_code: int, *given: str, low: str, high: str) -> Case:
    """Values that the likelihood has no density for; the model says what its likelihood is."""
    flags = [f"--dataset={file}", "--batch_size=8", "--binarize=none", *given]
    words = [file, f"from {low} to {high}", "Bernoulli", "from 0 to 1", "--rescale=unit"]
    return Case(id, flags, exit_code, words, tensorflow=True)


CASES = [
    flag("1-latent_dim-zero", "--latent_dim=0", "an integer >= 1"),
    flag("1-latent_dim-negative", "--latent_dim=-3", "an integer >= 1"),
    flag("1-latent_dim-fraction", "--latent_dim=2.5", "an integer >= 1"),
    flag("1-latent_dim-empty", "--latent_dim=", "an integer >= 1"),
    Case("1-latent_dim-alone", ["--latent_dim"], FLAGS, ["--latent_dim", "value"]),
    flag("2-kl_weight-nan", "--kl_weight=nan", "a finite number >= 0"),
    flag("2-kl_weight-infinite", "--kl_weight=inf", "a finite number >= 0"),
    flag("2-kl_weight-too-large", "--kl_weight=1e400", "a finite number >= 0"),
    flag("3-kl_weight-negative", "--kl_weight=-1", "a finite number >= 0"),
    flag("4-batch_size-zero", "--batch_size=0", "an integer >= 1"),
    flag("4-evaluation_rows-zero", "--evaluation_rows=0", "auto or an integer >= 1"),
    Case(
        "4-batch_size-above-training-set",
        ["--dataset=images.npz", "--batch_size=33"],
        FLAGS,
        ["--batch_size=33", "32 training examples", "images.npz"],
    ),
    flag("6-epochs-zero", "--epochs=0", "an integer >= 1"),
    flag("7-learning_rate-zero", "--learning_rate=0", "a finite number > 0"),
    flag("7-learning_rate-nan", "--learning_rate=nan", "a finite number > 0"),
    Case("8-misspelt-own-flag", ["--kl_wieght=2"], FLAGS, ["--kl_wieght", "'kl_weight'"]),
    Case("8-misspelt-standard-flag", ["--latent_dims=3"], FLAGS, ["--latent_dims", "'latent_dim'"]),
    Case("8-misspelt-switch", ["--nodebugg"], FLAGS, ["--nodebugg", "'debug'"]),
    flag("9-list-with-empty-item", "--hidden_units=8,,8", "integers >= 1", "commas"),
    flag("9-list-with-unknown-item", "--hidden_units=8,a", "integers >= 1", "commas"),
    flag("9-list-with-zero", "--hidden_units=8,0", "integers >= 1", "commas"),
    flag("9-range-backwards", "--profile_steps=5,2", "1 <= first <= last"),
    flag("9-range-of-one", "--profile_steps=5", "1 <= first <= last"),
    flag("9-unknown-choice", "--network=dens", "dense, convolutional", "Did you mean 'dense'?"),
    flag("9-unknown-choice-far-off", "--resume=perhaps", "auto, never, must"),
    Case(
        "9-unknown-data-set",
        ["--dataset=mnits"],
        DATA,
        ["'mnits'", "mnist, fashion_mnist", "did you mean 'mnist'?"],
    ),
    terms("10-same-term-twice", "kl,kl", "Two loss terms are called 'kl'", "another name"),
    Case("11-stray-argument", ["epochs=3"], FLAGS, ["stray argument 'epochs=3'", "--name=value"]),
    Case("11-stray-after-flag", ["--epochs", "3", "7"], FLAGS, ["stray argument '7'"]),
    Case("11-stray-after-dashes", ["--", "--epochs=3"], FLAGS, ["stray argument '--epochs=3'"]),
    Case(
        "12-flag-twice",
        ["--epochs=2", "--kl_weight=1", "--epochs=3"],
        FLAGS,
        ["--epochs is given twice", "as 2 and as 3"],
    ),
    Case("12-flag-twice-in-two-forms", ["--epochs", "2", "-epochs=3"], FLAGS, ["as 2 and as 3"]),
    Case(
        "12-switch-on-and-off",
        ["--run_eagerly", "--norun_eagerly"],
        FLAGS,
        ["--run_eagerly is given twice"],
    ),
    values(
        "13-likelihood-and-data",
        "up_to_255.npz",
        FLAGS,
        "--likelihood=bernoulli",
        low="0",
        high="255",
    ),
    Case(
        "15-interval-and-steps-per-call",
        ["--dataset=images.npz", "--batch_size=8", "--steps_per_call=3", "--checkpoint_steps=4"],
        FLAGS,
        ["--checkpoint_steps=4 is not a multiple of --steps_per_call=3"],
        tensorflow=True,
    ),
    flag("14-seed-negative", "--seed=-1", ">= 0", "<= 4294967295"),
    flag("14-seed-too-large", f"--seed={2**32}", ">= 0", "<= 4294967295"),
    run_dir("20-run_dir-is-a-file", "text.txt", FILE_SYSTEM, "text.txt is a file"),
    run_dir("20-run_dir-below-a-file", "text.txt/run", FILE_SYSTEM, "text.txt is a file"),
    run_dir("24-run_dir-with-line-break", "first\nsecond", FLAGS, r"'first\nsecond'", "line break"),
    run_dir("24-run_dir-with-bell", "ring\a", FLAGS, r"'ring\x07'", "control character"),
    run_dir("24-run_dir-empty", "", FLAGS, "--run_dir=''", "empty"),
    run_dir("24-run_dir-too-long", "long" * 100, FILE_SYSTEM, "long"),
    images("36-folder-missing", "nowhere", "does not exist"),
    images("36-folder-empty", "empty_folder", "nothing"),
    images("36-folder-without-images", "no_images", "1 .txt"),
    images("37-truncated", "truncated_folder", "bad.png", "--bad_images=0"),
    images("38-zero-bytes", "zero_bytes", "bad.png is empty"),
    images("38-text-named-png", "text_as_png", "bad.png is not a PNG, JPEG, BMP or WebP"),
    images("38-pdf", "pdf", "bad.jpg is not a PNG, JPEG, BMP or WebP"),
    images("39-mixed-sizes", "mixed_sizes", "3 of 8x8, 1 of 9x7", "--image_size"),
    images("39-mixed-channels", "mixed_channels", "1 RGB, 3 grey", "--channels"),
    images("39-transparency", "transparent", "bad.png is RGB with transparency", "--background"),
    images("39-16-bits", "deep", "1 16-bit grey, 3 grey", "bad.png"),
    images("39-16-bit-colours", "deep_colours", "bad.png has 16 bits"),
    images("39-cmyk", "cmyk", "bad.jpg has CMYK pixels"),
    images("39-palette", "palette", "1 palette", "--channels"),
    images("39-animation", "animation", "bad.png is an animation"),
    images("39-gif", "gif", "bad.png is not a PNG, JPEG, BMP or WebP"),
    images("40-bomb-png", "bomb", "decompression bomb"),
    data("40-bomb-npz", "bomb.npz", "decompression bomb"),
    data("41-pickled-objects", "pickled.npz", "train", "pickled", "not read"),
    data("41-without-expected-key", "keys.npz", "names, pictures", "train, training"),
    data("41-rank", "flat.npz", "shape (40,)", "reshape"),
    data("41-dtype-complex", "complex.npz", "complex64", "floats"),
    data("41-dtype-text", "words.npz", "<U1", "floats"),
    data("42-truncated", "truncated.npz", "truncated"),
    data("42-cut-inside", "cut_inside.npz"),
    data("42-no-zip", "text.npz", "not a zip file"),
    data("42-zero-bytes", "nothing.npz", "empty"),
    data("52-tfrecord", "images.tfrecord", "is a file", ".npz"),
    data("43-nan", "nan.npz", "1 of 2560 values", "first nan at index (7, 1, 2)"),
    data("70-nan-in-the-test-data", "nan_in_test.npz", "test", "first nan at index (2, 1, 2)"),
    data("43-infinity", "infinite.npz", "1 of 2560 values", "first -inf at index (7, 1, 2)"),
    Case(
        "44-to-be-binarised",
        ["--dataset=outside.npz", "--batch_size=8", "--binarize=dynamic"],
        DATA,
        ["outside.npz", "[-0.5, ", "in [0, 1]", "--rescale=unit"],
    ),
    values("44-outside-the-support", "up_to_255.npz", DATA, low="0", high="255"),
    images("75-test-without-train", "no_train", "the split test but no train"),
    images("75-two-trains", "two_trains", "Train and train could both be train"),
    images("75-images-beside-splits", "beside_splits", "cat with 1 images belongs to none"),
    images("75-splits-below", "splits_below", "images/test is the name of a split"),
    data("75-two-keys", "two_keys.npz", "train and x_train could both be train"),
    data("46-validation-empty", "no_validation.npz", "validation", "is empty"),
    data("78-time-and-features", "series.npz", "float32", "--data_kind=series", "time, features"),
    Case(
        "78-no-such-factor",
        ["--dataset=sprites_32", "--batch_size=8", "--correlated_factors=scale,size,0.2"],
        DATA,
        ["'scale,size,0.2'", "shape, scale, orientation, x, y", "scale,x,0.2"],
    ),
    Case(
        "78-mnist-has-no-factors",
        ["--dataset=mnist", "--batch_size=8", "--correlated_factors=scale,x,0.2"],
        DATA,
        ["'mnist' cannot have correlated factors", "sprites_32"],
    ),
    Case(
        "78-sprites-in-memory",
        ["--dataset=sprites_32", "--batch_size=8", "--nostream"],
        DATA,
        ["--nostream: sprites_32 is rendered when steps need it"],
    ),
    flag("78-unknown-kind", "--data_kind=image", "images, series, table"),
    *(data(f"36-{name}", name, words) for name, words in OTHER_KINDS.items()),
    terms("61-term-name-with-space", "kl,my kl", "'my kl'", "letters, digits"),
    terms("61-term-name-with-slash", "kl,my/kl", "'my/kl'", "letters, digits"),
    terms("61-term-name-with-line-break", "kl,my\nkl", r"'my\nkl'", "letters, digits"),
]


# One of each kind is also started as a shell does it, and not in a fork.
ALONE = {"1-latent_dim-zero", "43-nan"}


def command(experiment: str | Path, flags: list[str], cwd: Path, first: Path | None = None):
    """Runs an experiment to its end, as a person would; modules in `first` hide others."""
    return forks.run(experiment, *flags, cwd=cwd, first=first)


def contents(folder: Path) -> dict[str, tuple]:
    """Everything below a folder, so that two looks at it can be compared."""
    return {
        str(path.relative_to(folder)): (
            (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else ("folder",)
        )
        for path in folder.rglob("*")
    }


def refusal(process, exit_code: int) -> str:
    """The one line with which a command ended."""
    assert "Traceback" not in process.stderr
    assert process.returncode == exit_code, process.stderr
    assert process.stdout == ""
    assert re.fullmatch(r"[^\n]+\n", process.stderr)
    return process.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refused_in_one_line_and_nothing_new_on_disk(case, tmp_path, without_tensorflow):
    mentioned = f"{case.experiment} {' '.join(case.flags)}"
    for name, make in FILES.items():
        if name in mentioned:
            (tmp_path / name).write_bytes(make())
    for name, content in FOLDERS.items():
        if f"./{name}" in mentioned:
            (tmp_path / name).mkdir()
            for file, make in content.items():
                (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / file).write_bytes(make())
    here = tmp_path / case.experiment
    experiment = here if here.exists() else CHECKOUT / "experiments" / case.experiment
    before = contents(tmp_path)
    first = None if case.tensorflow else without_tensorflow
    python = forks.alone if case.id in ALONE else forks.run
    process = python(experiment, *case.flags, cwd=tmp_path, first=first)
    line = refusal(process, case.exit_code)
    assert line.startswith(f"{Path(case.experiment).stem}: ")
    assert [word for word in case.words if word not in line] == []
    if case.exit_code == DATA and not case.tensorflow and int(case.id.split("-")[0]) > 62:
        asked = case.flags[0].removeprefix("--dataset="), *case.flags[2:]
        examined = forks.run("-m", DOCTOR, *asked, cwd=tmp_path, first=first)
        said = refusal(examined, DATA)
        assert [word for word in case.words if word not in said] == []
    assert contents(tmp_path) == before


def test_a_row_that_imports_tensorflow_would_be_noticed(tmp_path, without_tensorflow):
    (tmp_path / "images.npz").write_bytes(FILES["images.npz"]())
    flags = ["--dataset=images.npz", "--batch_size=8"]
    process = command(CHECKOUT / "experiments/vae_mnist.py", flags, tmp_path, without_tensorflow)
    assert process.returncode == 99  # what `without_tensorflow` ends with


def test_20_run_dir_in_a_folder_without_permission(tmp_path, without_tensorflow):
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write to every folder (root)")
    flags = ["--run_dir=closed/run"]
    process = command(CHECKOUT / "experiments/vae_mnist.py", flags, tmp_path, without_tensorflow)
    assert f"{tmp_path}/closed is not writable" in refusal(process, FILE_SYSTEM)
    assert list((tmp_path / "closed").iterdir()) == []


@pytest.mark.slow
def test_20_run_dir_where_nobody_can_write(tmp_path):
    if not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    # Root is told so by the first attempt to write, which comes after the import of TensorFlow.
    (tmp_path / "images.npz").write_bytes(FILES["images.npz"]())
    flags = ["--dataset=images.npz", "--batch_size=8", "--run_dir=/proc/run"]
    process = command(CHECKOUT / "experiments/vae_mnist.py", flags, tmp_path)
    assert "/proc" in refusal(process, FILE_SYSTEM)


@pytest.mark.parametrize(
    ("name", "exit_code"), [("run_dir", FILE_SYSTEM), ("dataset", DATA)], ids=["20", "36"]
)
def test_the_folder_of_an_unknown_user(name, exit_code, tmp_path, without_tensorflow):
    flags = [f"--{name}=~nobody-of-this-name/folder"]
    process = command(CHECKOUT / "experiments/vae_mnist.py", flags, tmp_path, without_tensorflow)
    assert "~nobody-of-this-name" in refusal(process, exit_code)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a run that is not as it was


class Damage(NamedTuple):
    """What happens to the run of the fixture `finished`, and how its command ends.

    The command asks for a third epoch.
    """

    id: str
    do: Callable[[Path], None]
    exit_code: int
    words: list[str]


def remove_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def empty_checkpoints(run: Path) -> None:
    remove_checkpoints(run)
    (run / "checkpoints").mkdir()


def unfinish(run: Path) -> None:
    (run / "summary.json").unlink()
    remove_checkpoints(run)


def with_manifest(**changes: Any) -> Callable[[Path], None]:
    """Gives all checkpoints other entries, with the right checksum; None removes an entry."""

    def change(run: Path) -> None:
        for path in run.glob("checkpoints/*/manifest.json"):
            content = json.loads(path.read_text("utf-8"))["content"]
            new = {k: v for k, v in (content | changes).items() if v is not None}
            new["progress"] = content["progress"] | changes.get("progress", {})
            path.write_bytes(manifests.manifest(new))

    return change


def with_line(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the first line of metrics.jsonl."""

    def damage(run: Path) -> None:
        first, *others = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (run / "metrics.jsonl").write_bytes(change(first) + b"".join(others))

    return damage


def with_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Changes the content of a JSON file."""

    def damage(run: Path) -> None:
        content = json.loads((run / name).read_text("utf-8"))
        (run / name).write_text(json.dumps(change(content)), "utf-8")

    return damage


def with_bytes(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(content) and None


def as_link(name: str) -> Callable[[Path], None]:
    """Moves a part of a run to another place, to which a link leads."""

    def move(run: Path) -> None:
        (run / name).rename(run.parent / "elsewhere")
        (run / name).symlink_to(run.parent / "elsewhere")

    return move


def damaged(id: str, name: str, change: Callable[[Any], Any] | bytes, *words: str) -> Damage:
    """A JSON file that a run did not write so."""
    do = with_bytes(name, change) if isinstance(change, bytes) else with_json(name, change)
    return Damage(id, do, CHECKPOINT, [name, "Restore it from a copy", *words])


def line(id: str, change: Callable[[bytes], bytes], *words: str) -> Damage:
    words = ("line 1 of", "metrics.jsonl is damaged", "remove this line", *words)
    return Damage(id, with_line(change), CHECKPOINT, list(words))


DEEP = b"[" * 100_000
DAMAGES = [
    Damage(
        "64-finished-run-without-checkpoints",
        remove_checkpoints,
        CHECKPOINT,
        ["is complete with 2 epochs and has no checkpoint any more", "--run_dir"],
    ),
    Damage("64-emptied", empty_checkpoints, CHECKPOINT, ["has no checkpoint any more"]),
    Damage("64-unfinished", unfinish, CHECKPOINT, ["from scratch", "--resume=scratch"]),
    Damage(
        "65-checkpoints-of-another-run",
        with_manifest(progress={"identity": "vae_mnist of somebody"}),
        CHECKPOINT,
        ["0000000008 is of the run 'vae_mnist of somebody'", "is the run 'vae_mnist 20"],
    ),
    line("66-flipped", lambda line: line.replace(b"{", b"z", 1), "Expecting value"),
    line("66-zeroed", lambda line: bytes(len(line) - 1) + b"\n"),
    line("66-cut", lambda line: line[: len(line) // 2]),
    line("66-not-utf-8", lambda line: line.replace(b"epoch", b"\xffpoch"), "utf-8"),
    line("66-another-type", lambda line: line.replace(b": 1,", b': "1",', 1), "epoch is a str"),
    damaged("67-config-cut", "config.json", b'{"experiment": "vae_m', "Unterminated"),
    damaged("67-config-nested", "config.json", DEEP, "recursion"),
    damaged("67-config-no-object", "config.json", lambda found: [found], "it is a list"),
    damaged("67-config-without-data", "config.json", lambda x: x | {"data": {}}, "fingerprint"),
    damaged("67-config-type", "config.json", lambda x: x | {"flags": [1]}, "flags is a list"),
    Damage(
        "67-config-with-another-flag",
        with_json("config.json", lambda x: x | {"flags": x["flags"] | {"importance_samples": 9}}),
        CHECKPOINT,
        ["config.json has changed since it was written (checksum)", "remove its entry sha256"],
    ),
    damaged("67-summary-type", "summary.json", lambda x: x | {"epochs": "2"}, "epochs is a str"),
    damaged("67-summary-not-utf-8", "summary.json", b'{"status": "\xff"}', "utf-8"),
    Damage(
        "67-manifest-without-a-key",
        with_manifest(optimizers=None),
        CHECKPOINT,
        ["manifest.json is no manifest: optimizers is missing"],
    ),
    Damage(
        "67-progress-of-another-type",
        with_manifest(progress={"logs": 3}),
        CHECKPOINT,
        ["0000000008 cannot be resumed: progress.logs is a int"],
    ),
    *(
        Damage(f"68-{name}", as_link(name), FILE_SYSTEM, [name, "is a symbolic link to"])
        for name in ("lock", "metrics.jsonl", "figures", "checkpoints", "config.json")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: case.id)
def test_a_damaged_run_is_refused_and_left_as_it_is(
    case, finished, tmp_path, without_tensorflow, capsys
):
    folder, flags, _ = finished
    run = shutil.copytree(folder / STRANGE_NAME, tmp_path / "run")
    case.do(run)
    before = contents(tmp_path)
    experiment = CHECKOUT / "experiments/vae_mnist.py"
    given = [*flags[:-3], f"--dataset={folder / 'stored.npz'}", "--run_dir=run", "--epochs=3"]
    said = refusal(command(experiment, given, tmp_path, without_tensorflow), case.exit_code)
    assert [word for word in case.words if word not in said] == []
    assert doctor.main([str(run)]) == case.exit_code
    told = "".join(capsys.readouterr())
    assert "Traceback" not in told
    assert contents(tmp_path) == before


OTHER_VALUES = [None, True, 7, -1.5, "text", [], {}, [[[1]]], {"a": {"b": 1}}, 10**400]


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a JSON content."""
    if not isinstance(content, dict | list):
        return [path]
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    return [path, *(each for key, value in inner for each in places(value, (*path, key)))]


def replaced(random_: random.Random, content: Any) -> Any:
    """A JSON content in which one value is missing or is another."""
    *path, last = random_.choice(places(content)[1:])
    parent = content = json.loads(json.dumps(content))
    for key in path:
        parent = parent[key]
    if random_.random() < 0.3:
        del parent[last]
    else:
        parent[last] = random_.choice(OTHER_VALUES)
    return content


def at_random(random_: random.Random, file: Path) -> None:
    """Damages a file: a bit, its end, a part, or one JSON value, then with the right checksum."""
    content = bytearray(file.read_bytes())
    at = random_.randrange(len(content))
    kind = random_.choice(["bit", "cut", "zeros", "value", "value", "value"])
    if kind == "bit":
        content[at] ^= 1 << random_.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "zeros":
        content[at : at + 40] = bytes(len(content[at : at + 40]))
    elif file.name == "metrics.jsonl":
        lines = content.decode().splitlines()
        lines[0] = json.dumps(replaced(random_, json.loads(lines[0])))
        content = bytearray("".join(f"{line}\n" for line in lines).encode())
    elif file.name == "manifest.json":
        content = bytearray(manifests.manifest(replaced(random_, json.loads(content)["content"])))
    else:
        content = bytearray(json.dumps(replaced(random_, json.loads(content))).encode())
    file.write_bytes(content)


@pytest.mark.slow
def test_67_damage_at_random_is_answered_without_a_traceback(finished, tmp_path, capsys):
    run = shutil.copytree(finished[0] / STRANGE_NAME, tmp_path / "run")
    record = {"epoch": 1, "step": 2, "causes": ["kl"], "rows": [3], "checkpoint": "nonfinite/1"}
    (run / "nonfinite.json").write_text(json.dumps(record))
    names = ["config.json", "summary.json", "metrics.jsonl", "nonfinite.json"]
    files = [*(run / name for name in names), *run.glob("checkpoints/*/manifest.json")]
    contents = {file: file.read_bytes() for file in files}
    config = runs.Config(**directory.read_config(run)["flags"]).replace(epochs=3)
    source = sources.read(run, "source")
    random_, answers = random.Random(0), collections.Counter()
    for _ in range(1000 if SOAK else 30):
        file = random_.choice(files)
        at_random(random_, file)
        try:
            checkpoint = resume.unfinished(config, run, "vae_mnist", source, {"epochs"})
            resume.complete(config, run, checkpoint, source)
            answers["accepted"] += 1
        except (RunError, checkpoints.CheckpointError) as error:
            answers[type(error).__name__] += 1
        assert doctor.main([str(run)]) in (0, 4)
        file.write_bytes(contents[file])
    assert "Traceback" not in "".join(capsys.readouterr())
    tell("damage at random", **answers)
    assert answers["CheckpointError"] > answers["accepted"] / 2


def edited(finished, tmp_path: Path, old: str, new: str, *more: str) -> tuple[Path, list]:
    """A copy of the run, and the arguments of its command if its experiment has been edited."""
    folder, flags, _ = finished
    run = shutil.copytree(folder / STRANGE_NAME, tmp_path / "run")
    text = (CHECKOUT / "experiments/vae_mnist.py").read_text("utf-8")
    assert old in text
    (tmp_path / "vae_mnist.py").write_text(text.replace(old, new), "utf-8")
    given = [*flags[:-3], f"--dataset={folder / 'stored.npz'}", "--run_dir=run", *more]
    return run, ["vae_mnist.py", given, tmp_path]


WEIGHT = "KLDivergence(weight=weight)", "KLDivergence(weight=25.0)"
DOCUMENTATION = '"""Returns the loss terms."""', '"""Returns terms."""  # of the loss'


@pytest.mark.slow
def test_63_an_edited_experiment_is_refused_with_the_difference(
    finished, tmp_path, without_tensorflow
):
    run, asked = edited(finished, tmp_path, *WEIGHT, "--epochs=3")
    before = contents(run)
    process = command(*asked, without_tensorflow)
    *difference, said = process.stderr.splitlines()
    assert process.returncode == CHECKPOINT, process.stderr
    assert difference[0] == "vae_mnist.py has changed:"
    assert difference[-1] == "+    return [likelihood(**settings), vr.KLDivergence(weight=25.0)]"
    assert "vae_mnist.py has changed. Undo that" in said
    assert "--resume=changed" in said
    assert contents(run) == before
    assert doctor.main([str(run)]) == 0  # the file that the run was made from is as it was


@pytest.mark.slow
def test_63_an_edited_experiment_is_resumed_when_asked(finished, tmp_path):
    run, asked = edited(finished, tmp_path, *WEIGHT, "--epochs=3", "--resume=changed")
    process = command(*asked)
    assert process.returncode == 0, process.stderr
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["reproducibility"] == "valid, not bit-exact: vae_mnist.py has changed"
    assert "warning: this run is valid, not bit-exact: vae_mnist.py" in process.stderr
    # Each checkpoint is of the source that made it.
    for newest, weight in ((True, 25.0), (False, 1.0)):
        if not newest:
            shutil.rmtree(run / "checkpoints" / "0000000012")
        loaded = load_run(run).model.objective.terms
        assert [term.weight for term in loaded if term.label == "kl"] == [weight]
    sessions = json.loads((run / "config.json").read_text("utf-8"))["sessions"]
    assert [session["source"] for session in sessions] == ["source", "source-2"]


@pytest.mark.slow
def test_72_other_flags_of_the_evaluation_evaluate_a_complete_run_again(finished, tmp_path):
    # The experiment has another docstring and a comment, which is no change.
    run, asked = edited(finished, tmp_path, *DOCUMENTATION, "--epochs=2")
    asked[1] = [flag for flag in asked[1] if not flag.startswith("--importance_samples")]
    asked[1] += ["--verbose=0", "--importance_samples=3", "--notensorboard"]
    before = contents(run)
    old = json.loads((run / "summary.json").read_text("utf-8"))
    process = command(*asked)
    assert (process.returncode, process.stderr) == (0, "")
    new = json.loads((run / "summary.json").read_text("utf-8"))
    assert new["evaluation"]["importance_samples"] == 3
    differing = {name for name in old if old[name] != new[name]}
    assert differing == {"evaluation", "notes", "test"}
    assert old["test"].keys() == new["test"].keys()
    assert not (run / "source-2").exists()
    of_checkpoints = [name for name in before if name.startswith(("checkpoints", "metrics"))]
    assert of_checkpoints
    assert {name: contents(run)[name] for name in of_checkpoints} == {
        name: before[name] for name in of_checkpoints
    }


@pytest.mark.slow
def test_64_a_complete_run_without_checkpoints_is_left_alone(
    finished, tmp_path, without_tensorflow
):
    run, asked = edited(finished, tmp_path, *WEIGHT, "--epochs=2")
    empty_checkpoints(run)
    before = contents(run)
    process = command(*asked, without_tensorflow)
    assert process.returncode == 0
    assert process.stderr == f"warning: {run} has no checkpoint any more\n"
    assert "is already complete: 2 epochs" in process.stdout
    assert contents(run) == before


@pytest.mark.slow
def test_64_an_unfinished_run_without_checkpoints_starts_again_when_asked(finished, tmp_path):
    run, asked = edited(finished, tmp_path, *DOCUMENTATION, "--epochs=1", "--resume=scratch")
    unfinish(run)
    before = directory.read_config(run)["identity"]
    asked[1] += ["--notensorboard"]
    process = command(*asked)
    assert (process.returncode, process.stderr) == (0, "")
    assert len((run / "metrics.jsonl").read_text("utf-8").splitlines()) == 1
    config = directory.read_config(run)
    assert config["identity"] != before
    assert config["has_checkpoint"]
    assert config["sessions"][0]["source"] == "source"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["0000000004"]


# Numbers that have their test in another file, which must be there.
ELSEWHERE = {
    5: "test_distribution.py::test_what_cannot_be_shared_is_answered_in_one_line",
    16: "test_cluster.py::test_a_wrong_tf_config_is_named",
    17: "test_runs.py::test_refused_by_the_model_or_the_machine",
    18: "test_execution.py::test_xla_asked_for_and_impossible_names_the_operation",
    19: "test_runs.py::test_going_on_with_other_flags_is_refused",
    21: "test_runs.py::test_a_run_of_another_experiment_is_refused",
    22: "test_runs.py::test_a_directory_in_use_is_refused",
    23: "test_checkpoints.py::test_a_full_disk_at_any_effect_leaves_a_checkpoint",
    25: "test_runs.py::test_a_moved_run_loads_and_is_complete",
    26: "test_checkpoints.py::test_the_newest_is_that_of_the_largest_step",
    27: "test_checkpoints.py::test_a_damaged_checkpoint_is_found_and_the_older_one_used",
    28: "test_checkpoints.py::test_checkpoints_that_are_all_damaged_are_an_error",
    29: "test_checkpoints.py::test_another_architecture_is_refused_by_name_and_shape",
    30: "test_checkpoints.py::test_another_format_is_refused",
    31: "test_resume.py::test_another_profile_is_valid_and_not_bit_exact",
    32: "test_runs.py::test_resume_must_wants_an_old_directory",
    33: "test_checkpoints.py::test_other_formats_are_refused",
    34: "test_checkpoints.py::test_a_checkpoint_that_no_save_writes_is_refused",
    35: "test_checkpoints.py::test_values_that_are_not_finite_are_never_written",
    45: "test_named_arrays.py::test_what_fits_nothing_in_a_file_is_left_out_with_a_warning",
    48: "test_runs.py::test_going_on_with_changed_data_is_refused",
    49: "test_data_folders.py::test_the_walk_is_bounded_and_takes_regular_files_only",
    51: "test_data_folders.py::test_more_than_memory_is_refused_before_decoding",
    53: "test_gate.py::test_the_cause_is_named_and_nothing_of_the_step_is_kept",
    54: "test_resume.py::test_a_kl_divergence_of_nothing_is_warned_of_once",
    55: "test_survival.py::test_a_run_goes_on_after_an_interruption_of_each_kind",
    57: "test_resume.py::test_logs_are_cut_off_at_the_checkpoint",
    59: "test_resume.py::test_out_of_memory_is_one_line_with_a_hint",
    60: "test_survival.py::test_a_run_goes_on_after_an_interruption_of_each_kind",
    69: "test_runs.py::test_loading_runs_the_kept_source_and_nothing_else",
    71: "test_resume.py::test_a_run_directory_that_is_removed_is_not_made_again",
    73: "test_resume.py::test_a_disk_without_room_for_the_files_is_refused",
    74: "test_data_dataset.py::test_binary_bytes_are_binary",
    75: "test_data_folders.py::test_splits_are_never_merged_or_dropped_in_silence",
    76: "test_data_folders.py::test_files_that_are_left_out_are_counted_by_kind",
    77: "test_data_dataset.py::test_a_column_of_labels_and_rows_without_one",
    78: "test_data_dataset.py::test_of_rank_three_what_may_be_a_series_is_asked_about",
    79: "test_hidden_state.py::test_a_run_is_refused_with_the_cure",
    80: "test_suitability.py::test_what_is_no_array_is_refused_with_the_cure",
}


@pytest.mark.parametrize("number", range(1, 81))
def test_every_number_has_its_row_or_its_test(number):
    source = Path(__file__).read_text(encoding="utf-8")
    rows = [case for case in (*CASES, *DAMAGES) if case.id.split("-")[0] == str(number)]
    here = re.search(rf'def test_{number}_|"{number}"|id="(\d+-[\w-]+-)?{number}-', source)
    if number in ELSEWHERE:
        file, _, name = ELSEWHERE[number].partition("::")
        assert f"def {name}" in (Path(__file__).parent / file).read_text(encoding="utf-8")
    else:
        assert rows or here


# What is no mistake, and needs a training.

# Runs an experiment in a process that has no package tensorboard, whatever it has imported so far.
WITHOUT_TENSORBOARD = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")

for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Runs an experiment that writes to pipes which nobody reads any more.
INTO_BROKEN_PIPES = """
import os, runpy, sys

for stream in (1, 2):
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, stream)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TINY = ["--batch_size=8", "--hidden_units=4", "--latent_dim=2", "--importance_samples=2"]
QUICKLY = [*TINY, "--jit=off", "--notensorboard"]  # where neither of them matters
STRANGE_NAME = "my run: 🙂 = größer & 'mehr'"


@pytest.mark.slow
def test_62_a_locale_without_utf_8_and_no_home(tmp_path, monkeypatch):
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HOME", raising=False)
    (tmp_path / "images.npz").write_bytes(FILES["images.npz"]())
    flags = [*QUICKLY, "--dataset=images.npz", "--epochs=1", "--run_dir=run"]
    process = forks.alone(CHECKOUT / "experiments/vae_mnist.py", *flags, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text("utf-8"))["status"] == "done"


def test_56_what_is_said_goes_into_no_file_that_has_the_number_of_a_closed_stream(tmp_path):
    program = (
        "victim = open('victim.txt', 'w'); from vae_research.runs.cli import streams; "
        "streams.redirect_closed_streams(); print('said'); victim.close()"
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "victim.txt").read_text() == ""


@pytest.mark.slow
def test_58_without_the_package_tensorboard_a_run_is_told_so_once(tmp_path, monkeypatch):
    (tmp_path / "images.npz").write_bytes(FILES["images.npz"]())
    monkeypatch.setenv("TF_CONFIG", "{not JSON")  # nor is that of anybody's concern
    flags = [*TINY, "--jit=off", "--dataset=images.npz", "--epochs=2", "--run_dir=run"]
    experiment = CHECKOUT / "experiments/vae_mnist.py"
    program = ["-c", WITHOUT_TENSORBOARD, experiment]
    process = forks.run(*program, *flags, cwd=tmp_path, package=False)
    assert process.returncode == 0, process.stderr
    (line,) = process.stderr.splitlines()
    assert "What TensorBoard shows" in line
    assert "No module named 'tensorboard'" in line
    assert json.loads((tmp_path / "run/summary.json").read_text("utf-8"))["status"] == "done"
    assert len((tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed",
    [
        "pipes whose reader has gone",
        pytest.param("from the beginning", marks=pytest.mark.soak),  # and the test above
    ],
)
def test_56_a_run_goes_on_when_nobody_listens(closed, tmp_path):
    (tmp_path / "images.npz").write_bytes(FILES["images.npz"]())
    experiment = CHECKOUT / "experiments/vae_mnist.py"
    flags = [*QUICKLY, "--dataset=images.npz", "--epochs=1", "--run_dir=run"]
    if closed == "from the beginning":
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, experiment, *flags]
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    else:
        ended = forks.run("-c", INTO_BROKEN_PIPES, experiment, *flags, cwd=tmp_path)
    assert ended.returncode == 0
    assert json.loads((tmp_path / "run/summary.json").read_text("utf-8"))["status"] == "done"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs on strangely stored data, in a directory with a strange name."""
    folder = tmp_path_factory.mktemp("finished")
    stored = np.asfortranarray(REALS.astype(">f8"))
    (folder / "stored.npz").write_bytes(npz(train=stored))
    flags = [*TINY, "--jit=off", "--dataset=stored.npz", f"--run_dir={STRANGE_NAME}", "--epochs=2"]
    process = command(CHECKOUT / "experiments/vae_mnist.py", flags, folder)
    assert (process.returncode, process.stderr) == (0, "")
    return folder, flags, process.stdout


@pytest.mark.slow
def test_24_strange_names_of_run_directories_work(finished):
    folder, _, output = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(["stored.npz", STRANGE_NAME])
    expected = {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "train"}
    assert expected <= {path.name for path in (folder / STRANGE_NAME).iterdir()}
    assert list((folder / STRANGE_NAME / "train").glob("events.out.tfevents.*"))
    assert f"Run directory: {folder / STRANGE_NAME}\n" in output


@pytest.mark.slow
def test_50_big_endian_and_fortran_order_are_converted(finished):
    folder, *_ = finished
    config = json.loads((folder / STRANGE_NAME / "config.json").read_text("utf-8"))
    usual = Data.from_arrays(REALS.astype(np.float64))
    assert config["data"]["dtype"] == "float32"
    assert config["data"]["fingerprint"] == usual.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2])
def test_6_epochs_that_are_trained_already(finished, epochs, without_tensorflow):
    folder, flags, _ = finished
    before = contents(folder)
    again = [*flags[:-1], f"--epochs={epochs}"]
    experiment = CHECKOUT / "experiments/vae_mnist.py"
    process = command(experiment, again, folder, without_tensorflow)
    assert (process.returncode, process.stderr) == (0, "")
    assert f"{STRANGE_NAME} is already complete: 2 epochs" in process.stdout
    assert contents(folder) == before


def mixed_up() -> bytes:
    train = IMAGES.copy()
    train[:2] = [[[0]], [[255]]]
    return npz(train=train, validation=IMAGES[3:6], test=255 - IMAGES[:10])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "batch_size", "warnings"),
    [
        pytest.param(
            mixed_up,
            8,
            [
                "3 of 3 validation images are also in train",
                "2 of 40 train images are constant",
            ],
            id="46-splits-overlap-47-constant-images",
        ),
        pytest.param(
            lambda: npz(train=IMAGES[:1]),
            1,
            ["train holds a single image"],
            id="47-one-image",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_odd_data_are_trained_with_a_warning(make, batch_size, warnings, tmp_path):
    (tmp_path / "odd.npz").write_bytes(make())
    flags = [*QUICKLY[1:], "--epochs=1", "--dataset=odd.npz", f"--batch_size={batch_size}"]
    process = command(CHECKOUT / "experiments/vae_mnist.py", [*flags, "--run_dir=run"], tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stderr.splitlines()
    for warning in warnings:
        assert [line for line in lines if line.startswith("warning: ") and warning in line]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["status"] == "done"
    for warning in warnings:  # also beside the figures, where nobody can miss it later
        assert any(warning in note for note in summary["notes"])
