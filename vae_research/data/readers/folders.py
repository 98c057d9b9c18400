"""A folder of images: which files it has, and their pixels in memory.

Sizes and kinds are read from the headers of all files before anything is decoded, so that mixed
sizes, mixed channels and more pixels than memory are refused early. Decoding is parallel (Pillow
releases Python's lock) and keeps the order.
"""

import dataclasses
import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.readers import images
from vae_research.data.readers.file_checks import fits, reason, refuse_too_large, what_is_in
from vae_research.data.sources import Rows
from vae_research.data.split_names import by_split, split_and_content

_MOST_FILES = 2_000_000
# More threads than processors would make small images slower: decoding is not all of the work.
_DECODED_AT_ONCE = min(8, os.cpu_count() or 1)
_FILES_OF_A_TASK = 16
_SUBMITTED_AT_ONCE = 1024
# A transparent image is there as stored, as RGBA, as the result and as a converted copy.
_BYTES_OF_DECODED_PIXEL = 16


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The images of a folder by split, and what all of them are converted to.

    Attributes:
        folder: that was searched.
        headers: by split, what the header of each file says, in the order of the names.
        labels: by split, int64 class numbers of its files, or None.
        size: height and width in pixels.
        channels: 1 or 3.
        deep: whether the values have 16 bits (all images are 16-bit grey).
        background: colour behind transparent images, or None.
        bad: one line for each image that cannot be decoded, as far as headers tell.
        warnings: one line for each kind of thing that was left out.
    """

    folder: Path
    headers: Mapping[str, Mapping[Path, images.Header]]
    labels: Mapping[str, np.ndarray | None]
    size: tuple[int, int]
    channels: int
    deep: bool
    background: str | None
    bad: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of the values: uint16 or uint8."""
        return np.dtype(np.uint16 if self.deep else np.uint8)

    @property
    def bytes_of_pixels(self) -> int:
        """Bytes of all images as arrays."""
        count = sum(map(len, self.headers.values()))
        return count * math.prod(self.size) * self.channels * self.dtype.itemsize

    def decoded(self, path: Path) -> np.ndarray:
        """One of the images, `[height, width, channels]`; see `images.decoded`."""
        array = images.decoded(path, self.size, self.channels, self.background)
        if array.dtype != self.dtype:
            raise DataError(f"{path} was changed while it was read")
        return array


def load_image_folder(
    folder: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    image_size: int | None = None,
    channels: int | None = None,
    bad_images: int = 0,
    background: str | None = None,
    memory_limit: int | None = None,
    stream: bool | None = None,
) -> Data:
    """A data set from a folder of PNG, JPEG, BMP or WebP images.

    Args:
        folder: see `list_images`.
        rescale, binarize: see `Data.from_arrays`.
        image_size, channels, background: see `list_images`.
        bad_images: how many images may be left out because they cannot be decoded.
        memory_limit: bytes that may be used; None asks the system.
        stream: decode images when they are needed, in place of all at once; None does so if they
            do not fit in memory. What cannot be decoded then ends the training.

    Raises:
        DataError: as `list_images`, too many bad images, or more pixels than memory.
    """
    files = list_images(folder, image_size, channels, bad_images, background)
    if stream is None:
        stream = not fits(_bytes_at_a_time(files), memory_limit)
    if stream:
        rows = {split: _rows(files, list(found)) for split, found in files.headers.items()}
        return _data(files, rows, files.labels, files.bad, rescale, binarize)
    refuse_too_large(
        str(files.folder),
        files.bytes_of_pixels,
        sum(path.stat().st_size for found in files.headers.values() for path in found),
        memory_limit,
        needed=_bytes_at_a_time(files),
        advice=f"--image_size below {max(files.size)}"
        f"{' or --channels=1' if files.channels > 1 else ''} needs less, and so do fewer images",
    )
    bad = list(files.bad)
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray | None] = {}
    for split, found in files.headers.items():
        arrays[split], kept = _decoded(files, list(found), bad)
        numbers = files.labels[split]
        labels[split] = None if numbers is None else numbers[kept]
    _refuse_too_many(bad, bad_images, files.folder)
    return _data(files, arrays, labels, bad, rescale, binarize)


def _data(
    files: ImageFiles,
    arrays: Mapping[str, Any],
    labels: Mapping[str, np.ndarray | None],
    bad: Sequence[str],
    rescale: str | None,
    binarize: str,
) -> Data:
    data = Data.from_arrays(
        arrays["train"],
        arrays.get("validation"),
        arrays.get("test"),
        train_labels=labels["train"],
        validation_labels=labels.get("validation"),
        test_labels=labels.get("test"),
        rescale=rescale,
        binarize=binarize,
        name=files.folder.name or str(files.folder),
    )
    left_out = files.warnings
    if bad:
        left_out += (f"{data.name}: {len(bad)} images were left out, the first: {bad[0]}",)
    return dataclasses.replace(data, warnings=data.warnings + left_out)


def _rows(files: ImageFiles, paths: Sequence[Path]) -> Rows:
    """The images of a split, which several threads decode when they are needed."""
    threads = ThreadPoolExecutor(_DECODED_AT_ONCE)

    def decode(numbers: np.ndarray) -> list[np.ndarray]:
        return [files.decoded(paths[number]) for number in numbers]

    def read(numbers: np.ndarray) -> np.ndarray:
        parts = threads.map(decode, np.array_split(numbers, _DECODED_AT_ONCE))
        return np.stack([image for part in parts for image in part])

    shape = (*files.size, files.channels)
    bounds = (0, np.iinfo(files.dtype).max)
    return Rows(read, len(paths), shape, files.dtype, bounds)


def list_images(
    folder: str | os.PathLike,
    image_size: int | None = None,
    channels: int | None = None,
    bad_images: int = 0,
    background: str | None = None,
) -> ImageFiles:
    """The images of a folder, from their headers; nothing is decoded.

    Folders `train`, `validation` and `test` are the splits, also by another of the names that
    `split_names` understands; otherwise all images are one split. If all images of a split are in
    subfolders, these are the labels, numbered by name.

    Args:
        folder: searched with all its subfolders. Hidden files are left out, links are not followed,
            and only regular files count. The order is that of the names, on every machine.
        image_size: height and width in pixels to which images are resized, without keeping their
            aspect ratio; None if all have the same size already.
        channels: 1 for grey or 3 for RGB; None if all images have the same already.
        bad_images: how many images may be left out because they cannot be decoded.
        background: colour behind transparent images, see `images.colour`; None refuses them.

    Raises:
        DataError: no images, too many bad ones, names of splits that are not clear, mixed sizes or
            channels, transparency without a background.
    """
    folder = Path(folder).expanduser()
    if background is not None:
        try:
            images.colour(background)
        except ValueError as error:
            raise DataError(f"--background={background}: {error}; #rrggbb is one") from error
    places, others = _places(folder)
    files = {split: images_in(place) for split, place in places.items()}
    left_out = sum((kinds for _, kinds in files.values()), others)
    if not any(found for found, _ in files.values()):
        raise DataError(
            f"{folder} holds no train-images-idx3-ubyte (or .gz) and no images "
            f"({', '.join(images.SUFFIXES)}), but {what_is_in(folder)}"
        )
    bad: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's; what matters here is refused or counted
        headers = {split: _headers(found, bad) for split, (found, _) in files.items()}
    _refuse_too_many(bad, bad_images, folder)
    if not headers["train"]:
        raise DataError(f"{folder}: no image of {places['train']} can be decoded")
    size, channels, deep = _common(folder, headers, image_size, channels, background)
    name = folder.name or str(folder)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    return ImageFiles(
        folder,
        headers,
        _labels({split: list(found) for split, found in headers.items()}, places),
        size,
        channels,
        deep,
        background,
        tuple(bad),
        (f"{name}: {left_out.total()} files are not read: {listed}",) if left_out else (),
    )


def images_in(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images in a folder and its subfolders by name, and numbers of other files by kind.

    Raises:
        DataError: a folder cannot be listed, or there are more than two million files.
    """
    found, others = [], Counter[str]()
    waiting, seen = [folder], 0
    while waiting:
        for entry in _entries(waiting.pop()):
            seen += 1
            if seen > _MOST_FILES:
                raise DataError(f"{folder} holds more than {_MOST_FILES:,} files")
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif (kind := _kind_of_other(entry)) is not None:
                others[kind] += 1
            else:
                found.append(Path(entry.path))
    order = sorted(
        found, key=lambda path: path.relative_to(folder).as_posix().encode(errors="replace")
    )
    return order, others


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, without hidden names."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {reason(error)}") from error


def _kind_of_other(entry: os.DirEntry[str]) -> str | None:
    """What a file is, for a message, or None if it is an image."""
    if entry.is_symlink():
        return "links"
    if not entry.is_file(follow_symlinks=False):
        return "pipes, sockets or devices"
    suffix = Path(entry.name).suffix.lower()
    return None if suffix in images.SUFFIXES else suffix or "files without suffix"


def _places(folder: Path) -> tuple[dict[str, Path], Counter[str]]:
    """The folder of each split, and numbers of the files beside them by kind.

    Raises:
        DataError: images of which it is not clear which split they belong to.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    entries = list(itertools.islice(_entries(folder), _MOST_FILES + 1))
    names = by_split((entry.name for entry in entries if entry.is_dir()), folder)
    if not names:
        for path in images_in(folder)[0]:
            parts = path.relative_to(folder).parts[:-1]
            inner = next((i for i, part in enumerate(parts) if split_and_content(part)), None)
            if inner is not None:
                raise DataError(
                    f"{folder}: {'/'.join(parts[: inner + 1])} is the name of a split, and splits "
                    "are looked for in the data set's folder itself; give the folder above it as "
                    "--dataset, or rename it if it is a class"
                )
        return {"train": folder}, Counter()
    if "train" not in names:
        raise DataError(
            f"{folder} holds the split {' and '.join(names.values())} but no train; name the "
            "folder of the training images train, or rename a class of this name"
        )
    others = Counter[str]()
    for entry in entries:
        if entry.name in names.values():
            continue
        if not entry.is_dir(follow_symlinks=False):
            others[_kind_of_other(entry) or "images beside the splits"] += 1
            continue
        found, kinds = images_in(Path(entry.path))
        if found:
            raise DataError(
                f"{folder} holds the splits {', '.join(names.values())}, and the folder "
                f"{entry.name} with {len(found)} images belongs to none; move it away, or rename "
                "the others if they are classes"
            )
        others += kinds
    return {split: folder / name for split, name in names.items()}, others


def _headers(paths: Sequence[Path], bad: list[str]) -> dict[Path, images.Header]:
    found = {}
    for path in paths:
        try:
            found[path] = images.header(path)
        except DataError as error:
            bad.append(str(error))
    return found


def _refuse_too_many(bad: Sequence[str], allowed: int, folder: Path) -> None:
    if len(bad) > allowed:
        raise DataError(
            f"{folder}: {len(bad)} bad images, --bad_images={allowed} may be left out; the first: "
            f"{bad[0]}"
        )


def _common(
    folder: Path,
    headers: Mapping[str, Mapping[Path, images.Header]],
    image_size: int | None,
    channels: int | None,
    background: str | None,
) -> tuple[tuple[int, int], int, bool]:
    """Size and number of channels that all images get, and whether their values have 16 bits."""
    found = [pair for split in headers.values() for pair in split.items()]
    sizes = Counter((header.height, header.width) for _, header in found)
    kinds = Counter(header.kind for _, header in found)
    if image_size is None and len(sizes) > 1:
        listed = ", ".join(f"{n} of {h}x{w}" for (h, w), n in sizes.most_common(3))
        raise DataError(f"{folder}: images of {len(sizes)} sizes ({listed}); give --image_size")
    for path, header in found:
        images.refuse_transparent(path, header, background)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    deep = "16-bit grey" in kinds
    if deep and (len(kinds) > 1 or channels == 3):
        first = next(path for path, header in found if header.kind == "16-bit grey")
        raise DataError(
            f"{folder}: {listed} images, the first of 16 bits {first}; 16-bit grey becomes neither "
            "8 bits nor colours, convert it first"
        )
    grey_behind = background is None or len(set(images.colour(background))) == 1
    colours = {
        1 if "grey" in header.kind and (grey_behind or not header.transparent) else 3
        for _, header in found
    }
    if channels is None and len(colours) > 1:
        raise DataError(f"{folder}: {listed} images; give --channels=1 or --channels=3")
    size = (image_size, image_size) if image_size is not None else next(iter(sizes))
    return size, channels or colours.pop(), deep


def _bytes_at_a_time(files: ImageFiles) -> int:
    """Returns the peak memory of a run for these images, in bytes, computed from their headers.

    All images are in memory once, and twice while missing splits are cut from them. Later, training
    and validation images are there three times, since TensorFlow takes two bytes for each byte that
    steps read (measured), and test images are also there as float32. Images that are being decoded
    come on top, in the size of their files.
    """
    counts = {split: len(found) for split, found in files.headers.items()}
    total = sum(counts.values())
    tested = counts.get("test", total // 5)  # at most this many are cut off for it
    largest = max(
        one.height * one.width for found in files.headers.values() for one in found.values()
    )
    being_decoded = min(total, _DECODED_AT_ONCE) * largest * _BYTES_OF_DECODED_PIXEL
    return (3 * total + 2 * tested) * (files.bytes_of_pixels // total) + being_decoded


def _decoded(
    files: ImageFiles, paths: Sequence[Path], bad: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The images that could be decoded, `[n, height, width, channels]`, and which they are."""

    def decode(task: Sequence[Path]) -> list[np.ndarray | DataError]:
        results: list[np.ndarray | DataError] = []
        for path in task:
            try:
                results.append(files.decoded(path))
            except DataError as error:
                results.append(error)
        return results

    array = np.empty((len(paths), *files.size, files.channels), files.dtype)
    kept = np.zeros(len(paths), bool)
    count = 0
    with ThreadPoolExecutor(_DECODED_AT_ONCE) as threads, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as for headers
        for start in range(0, len(paths), _SUBMITTED_AT_ONCE):
            block = paths[start : start + _SUBMITTED_AT_ONCE]
            tasks = [
                block[at : at + _FILES_OF_A_TASK] for at in range(0, len(block), _FILES_OF_A_TASK)
            ]
            results = itertools.chain.from_iterable(threads.map(decode, tasks))
            for number, image in enumerate(results, start):
                if isinstance(image, DataError):
                    bad.append(str(image))
                else:
                    array[count] = image
                    kept[number] = True
                    count += 1
    return array[:count], kept


def _labels(
    paths: Mapping[str, Sequence[Path]], places: Mapping[str, Path]
) -> dict[str, np.ndarray | None]:
    """Class numbers by split from the subfolders of images; None if one image is in none.

    Raises:
        DataError: a class of another split that train does not have.
    """
    classes: dict[str, list[str]] = {}
    for split, found in paths.items():
        parents = [path.relative_to(places[split]).parts[:-1] for path in found]
        if parents and all(parents):
            classes[split] = [parts[0] for parts in parents]
    known = sorted(set(classes.get("train", ())))
    for split, names in classes.items():
        if "train" in classes and (new := sorted(set(names) - set(known))):
            raise DataError(
                f"{places[split]}: the folder {new[0]} is a class that train does not have, which "
                f"are {', '.join(known[:20])}"
            )
    if "train" not in classes:
        return dict.fromkeys(paths)
    number = {name: i for i, name in enumerate(known)}
    return {
        split: np.array([number[name] for name in classes[split]], np.int64)
        if split in classes
        else None
        for split in paths
    }
