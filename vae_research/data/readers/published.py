"""Published data sets of images and their factors, in the files of their authors. NumPy only.

dSprites is `dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz` (Matthey et al. 2017,
github.com/google-deepmind/dsprites-dataset): `imgs` `[n, 64, 64]`, 0 or 1, `latents_classes` and
`latents_values` `[n, 6]`. 3D Shapes is `3dshapes.h5` (Burgess and Kim 2018,
github.com/google-deepmind/3d-shapes): `images` `[n, 64, 64, 3]`, and `labels` `[n, 6]`, the values
of the factors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.factors import FACTORS
from vae_research.data.readers.file_checks import fits, reason, refuse_too_large, regular_file
from vae_research.data.sources import Rows

HDF5_SUFFIXES = (".h5", ".hdf5")

_OF_DSPRITES = ("shape", "scale", "orientation", "x", "y")
_OF_3D_SHAPES = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")


def with_factors_of_dsprites(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """The arrays of a file, with `factors` if it has the layout of dSprites, and their names.

    The first column of `latents_classes` is the colour. It has one value and is not a factor.
    """
    classes = arrays.get("latents_classes")
    known = {"latents_values"} <= arrays.keys() and FACTORS not in arrays
    columns = 1 + len(_OF_DSPRITES)
    if classes is None or not known or classes.ndim != 2 or classes.shape[1] != columns:
        return dict(arrays), None
    return {**arrays, FACTORS: classes[:, 1:]}, _OF_DSPRITES


def load_hdf5(
    path: str | os.PathLike,
    rescale: str | None = None,
    binarize: str = "none",
    kind: str | None = None,
    stream: bool | None = None,
    memory_limit: int | None = None,
) -> Data:
    """A data set from an HDF5 file in the layout of 3D Shapes: `images`, and `labels` if there are.

    Missing splits are cut by `Data.from_arrays`. The factors are the distinct values of each column
    of `labels`, numbered in their order.

    Args:
        path: of the file.
        rescale, binarize, kind: see `Data.from_arrays`.
        stream: read images from the file when they are needed; None does so if they do not fit in
            memory. Each read decompresses whole chunks of the file.
        memory_limit: bytes that may be used; None asks the system.

    Raises:
        DataError: no such file, h5py is not installed, another layout, a damaged file, more data
            than memory, or arrays that cannot be used.
    """
    path = regular_file(path)
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path} is read by h5py: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            images, labels = file.get("images"), file.get("labels")
            if not isinstance(images, h5py.Dataset) or images.ndim < 2:
                raise DataError(_other_layout(path, [str(name) for name in file]))
            size = images.size * images.dtype.itemsize
            needed = 2 * size  # the splits are copies
            arrays: dict[str, Any] = {"inputs": _rows_of(path, images)}
            if not (stream or (stream is None and not fits(needed, memory_limit))):
                stored = path.stat().st_size
                refuse_too_large(str(path), size, stored, memory_limit, needed=needed)
                arrays["inputs"] = images[:]
            names = None
            if isinstance(labels, h5py.Dataset) and labels.ndim == 2:
                arrays[FACTORS] = _numbers(labels[:])
                names = _OF_3D_SHAPES if labels.shape[1] == len(_OF_3D_SHAPES) else None
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} cannot be read as HDF5: {reason(error)}") from error
    return Data.from_arrays(
        arrays, rescale=rescale, binarize=binarize, kind=kind, name=path.name, factors=names
    )


def _numbers(values: np.ndarray) -> np.ndarray:
    """Numbers of the distinct values of each column, int64."""
    columns = [np.unique(column, return_inverse=True)[1].reshape(-1) for column in values.T]
    return np.stack(columns, axis=1).astype(np.int64)


def _rows_of(path: Path, images: Any) -> Rows:
    """The rows of a data set of an HDF5 file, which is opened for each read.

    An open file is not to be used by the processes of a fork.
    """
    import h5py

    def read(numbers: np.ndarray) -> np.ndarray:
        distinct, places = np.unique(numbers, return_inverse=True)  # h5py reads in rising order
        try:
            with h5py.File(path, "r") as file:
                return file["images"][distinct][places]
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"{path} cannot be read any more: {reason(error)}") from error

    # Colours of bytes are taken to reach 255, so that not all of them are read to see.
    bounds = (0, 255) if images.dtype == np.uint8 and images.ndim == 4 else None
    return Rows(read, len(images), images.shape[1:], images.dtype, bounds)


def _other_layout(path: Path, found: list[str]) -> str:
    return (
        f"{path}: HDF5 files are read in the layout of 3D Shapes, images [n, height, width, "
        f"channels] and labels [n, k]; found {', '.join(found) or 'nothing'}. For others: import "
        f"h5py, numpy; found = h5py.File({str(path)!r}); "
        "numpy.savez('data.npz', train=found['NAME'][:])"
    )
