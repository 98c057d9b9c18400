"""A folder of images, PNG or JPEG, decoded once into memory as 8-bit values.

Sizes and channels are read from the headers of all files before anything is decoded, so that mixed
sizes, mixed channels and more pixels than memory are refused early. Only decoding needs TensorFlow;
it is parallel and keeps the order.
"""

import dataclasses
import math
import os
import stat
import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.readers.file_checks import reason, refuse_too_large, what_is_in

SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_MOST_FILES = 2_000_000
_DECODED_AT_ONCE = 8
_LARGEST_SIDE = 2**15
_CHANNELS = {1: "grey", 3: "RGB"}


class Header(NamedTuple):
    """Height and width of an image in pixels, and the kind of its channels."""

    height: int
    width: int
    channels: str


def load_image_folder(
    folder: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    image_size: int | None = None,
    channels: int | None = None,
    bad_images: int = 0,
    memory_limit: int | None = None,
) -> Data:
    """A data set from a folder of images.

    Folders `train`, `validation` (or `val`) and `test` are the splits; otherwise all images are cut
    into three, see `Data.from_arrays`. If all images of a split are in subfolders, these are the
    labels, numbered by name.

    Args:
        folder: searched with all its subfolders. Hidden files are left out, links are not followed,
            and only regular files count. The order is that of the names, on every machine.
        rescale, binarize: see `Data.from_arrays`.
        image_size: height and width in pixels to which images are resized, without keeping their
            aspect ratio; None if all have the same size already.
        channels: 1 for grey or 3 for RGB; None if all images have the same already.
        bad_images: how many images may be left out because they cannot be decoded.
        memory_limit: bytes that may be used; None asks the system.

    Raises:
        DataError: no images, too many bad ones, mixed sizes or channels, transparency, 16 bits, an
            animation, or more pixels than memory.
    """
    folder = Path(folder).expanduser()
    places = _places(folder)
    files = {split: images_in(place) for split, place in places.items()}
    if not any(files.values()):
        raise DataError(
            f"{folder} holds no images ({', '.join(SUFFIXES)}), but {what_is_in(folder)}"
        )
    bad: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray | None] = {}
    kinds: dict[str, list[str]] = {}
    headers = {split: _headers(found, bad) for split, found in files.items()}
    _refuse_too_many(bad, bad_images, folder)
    size, channels = _common(folder, headers, image_size, channels)
    pixels = sum(map(len, headers.values())) * math.prod(size) * channels
    stored = sum(path.stat().st_size for found in headers.values() for path in found)
    refuse_too_large(
        str(folder),
        pixels,
        stored,
        memory_limit,
        needed=_bytes_at_a_time(headers, size, channels),
        advice=f"--image_size below {max(size)}{' or --channels=1' if channels > 1 else ''} needs "
        "less, and so do fewer images",
    )
    for split, found in headers.items():
        paths, arrays[split] = _decoded(list(found), size, channels, bad)
        labels[split], kinds[split] = _labels(paths, places[split])
    _refuse_too_many(bad, bad_images, folder)
    if len({tuple(kind) for kind in kinds.values()}) > 1:
        raise DataError(f"{folder}: the splits hold folders of different names: {kinds}")
    data = Data.from_arrays(
        arrays["train"],
        arrays.get("validation"),
        arrays.get("test"),
        train_labels=labels["train"],
        validation_labels=labels.get("validation"),
        test_labels=labels.get("test"),
        rescale=rescale,
        binarize=binarize,
        name=folder.name or str(folder),
    )
    if bad:
        warning = f"{data.name}: {len(bad)} images were left out, the first: {bad[0]}"
        return dataclasses.replace(data, warnings=(*data.warnings, warning))
    return data


def images_in(folder: Path) -> list[Path]:
    """Returns the images in a folder and its subfolders, in the order of their names.

    Raises:
        DataError: a folder cannot be listed, or there are more than two million files.
    """
    found, waiting, seen = [], [folder], 0
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    seen += 1
                    if seen > _MOST_FILES:
                        raise DataError(f"{folder} holds more than {_MOST_FILES:,} files")
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.name.lower().endswith(SUFFIXES) and entry.is_file(
                        follow_symlinks=False
                    ):
                        found.append(Path(entry.path))
        except OSError as error:
            raise DataError(f"{place} cannot be listed: {reason(error)}") from error
    return sorted(
        found, key=lambda path: path.relative_to(folder).as_posix().encode(errors="replace")
    )


def header(path: Path) -> Header:
    """Returns size and channels of a PNG or JPEG, from its first bytes, whatever its name.

    Raises:
        DataError: it is neither, or it would lose something: 16 bits, or further pictures.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise DataError(f"{path} is not a regular file")
        with open(path, "rb") as stream:
            start = stream.read(2**16)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        found = _png(path, start)
    elif start.startswith(b"\xff\xd8"):
        found = _jpeg(path, start)
    else:
        what = "is empty" if not start else f"is not a PNG or JPEG, it begins with {start[:4]!r}"
        raise DataError(f"{path} {what}")
    if not (0 < found.height <= _LARGEST_SIDE and 0 < found.width <= _LARGEST_SIDE):
        raise DataError(f"{path} claims to have {found.height} x {found.width} pixels")
    return found


def _png(path: Path, start: bytes) -> Header:
    if len(start) < 33 or start[12:16] != b"IHDR":
        raise DataError(f"{path} is a truncated or damaged PNG")
    width, height, depth, kind = struct.unpack(">IIBB", start[16:26])
    if depth == 16:
        raise DataError(f"{path} has 16 bits a channel, of which 8 would be lost; convert it first")
    if b"acTL" in start:
        raise DataError(f"{path} is an animation; give its pictures one by one")
    names = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with transparency", 6: "RGBA"}
    if kind not in names:
        raise DataError(f"{path} is a damaged PNG: colour type {kind}")
    transparent = kind == 3 and b"tRNS" in start
    return Header(height, width, "palette with transparency" if transparent else names[kind])


def _jpeg(path: Path, start: bytes) -> Header:
    at = 2
    while at + 9 <= len(start):
        marker, length = start[at + 1], int.from_bytes(start[at + 2 : at + 4], "big")
        if start[at] != 0xFF or length < 2:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack(">HHB", start[at + 5 : at + 10])
            names = {1: "grey", 3: "RGB", 4: "CMYK"}
            return Header(height, width, names.get(components, f"{components} channels"))
        at += 2 + length
    raise DataError(f"{path} is a truncated or damaged JPEG")


def _places(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    found = {
        split: folder / name
        for split, names in _SPLITS.items()
        for name in names
        if (folder / name).is_dir()
    }
    return found if "train" in found else {"train": folder}


def _headers(paths: list[Path], bad: list[str]) -> dict[Path, Header]:
    found = {}
    for path in paths:
        try:
            found[path] = header(path)
        except DataError as error:
            bad.append(str(error))
    return found


def _refuse_too_many(bad: list[str], allowed: int, folder: Path) -> None:
    if len(bad) > allowed:
        raise DataError(
            f"{folder}: {len(bad)} bad images, --bad_images={allowed} may be left out; the first: "
            f"{bad[0]}"
        )


def _common(
    folder: Path,
    headers: dict[str, dict[Path, Header]],
    image_size: int | None,
    channels: int | None,
) -> tuple[tuple[int, int], int]:
    """Returns the size and the number of channels that all images get."""
    found = [header for split in headers.values() for header in split.values()]
    sizes = Counter((header.height, header.width) for header in found)
    kinds = Counter(header.channels for header in found)
    if image_size is None and len(sizes) > 1:
        listed = ", ".join(f"{n} of {h}x{w}" for (h, w), n in sizes.most_common(3))
        raise DataError(f"{folder}: images of {len(sizes)} sizes ({listed}); give --image_size")
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    lossy = [kind for kind in kinds if "transparency" in kind or kind in ("RGBA", "CMYK")]
    if lossy or any(kind.endswith("channels") for kind in kinds):
        raise DataError(f"{folder}: {listed} images; convert them to grey or RGB first")
    colours = {1 if kind == "grey" else 3 for kind in kinds}
    if channels is None and len(colours) > 1:
        raise DataError(f"{folder}: {listed} images; give --channels=1 or --channels=3")
    size = (image_size, image_size) if image_size is not None else next(iter(sizes))
    return size, channels or colours.pop()


def _bytes_at_a_time(
    headers: dict[str, dict[Path, Header]], size: tuple[int, int], channels: int
) -> int:
    """Returns the peak memory of a run for these images, in bytes, computed from their headers.

    All images are in memory once, and twice while missing splits are cut from them. Later, training
    and validation images are there three times, since TensorFlow takes two bytes for each byte that
    steps read (measured), and test images are also there as float32. Images that are being decoded
    come on top, in the size of their files.
    """
    counts = {split: len(found) for split, found in headers.items()}
    total = sum(counts.values())
    tested = counts.get("test", total // 5)  # at most this many are cut off for it
    largest = max(one.height * one.width for found in headers.values() for one in found.values())
    being_decoded = min(total, _DECODED_AT_ONCE) * largest * channels
    return (3 * total + 2 * tested) * math.prod(size) * channels + being_decoded


def _decoded(
    paths: list[Path], size: tuple[int, int], channels: int, bad: list[str]
) -> tuple[list[Path], np.ndarray]:
    """Returns the images that could be decoded, `[n, height, width, channels]` uint8."""
    import tensorflow as tf  # here, so that reading headers needs no TensorFlow

    def decode(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels, expand_animations=False)
        if tf.reduce_any(tf.shape(image)[:2] != size):
            # Antialiased: otherwise fine structures would become noise.
            image = tf.image.resize(image, size, "area")
            image = tf.cast(tf.round(image), tf.uint8)
        return tf.ensure_shape(image, [*size, channels])

    array = np.empty((len(paths), *size, channels), np.uint8)
    kept: list[Path] = []
    for start in range(0, len(paths), 1024):
        block = paths[start : start + 1024]
        names = tf.constant([os.fsencode(path) for path in block])
        dataset = tf.data.Dataset.from_tensor_slices(names).map(
            decode, _DECODED_AT_ONCE, deterministic=True
        )
        iterator = iter(dataset)
        for path in block:
            try:
                array[len(kept)] = next(iterator).numpy()
            except tf.errors.InvalidArgumentError:
                bad.append(f"{path} cannot be decoded; it is truncated or damaged")
            else:
                kept.append(path)
    return kept, array[: len(kept)]


def _labels(paths: list[Path], place: Path) -> tuple[np.ndarray | None, list[str]]:
    """Returns labels and their names from the subfolders of images; None if one is in none."""
    parents = [path.relative_to(place).parts[:-1] for path in paths]
    if not parents or not all(parents):
        return None, []
    names = sorted({parts[0] for parts in parents})
    return np.array([names.index(parts[0]) for parts in parents], np.int64), names
