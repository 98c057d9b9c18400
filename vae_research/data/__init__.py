"""Data sets with training, validation and test splits.

    data = load_data("mnist", binarize="dynamic")
    data.train.batches(batch_size=128, seed=0)   # tf.data.Dataset
    data.test.prepare()                          # float32 NumPy array

Importing this package does not import TensorFlow.
"""

import difflib
import functools
import os
from pathlib import Path

from vae_research.data.dataset import Data, DataError, Split
from vae_research.data.readers.arrays import load_npy, load_npz
from vae_research.data.readers.folders import load_image_folder
from vae_research.data.readers.idx import holds_idx, load_idx_folder
from vae_research.data.readers.images import SUFFIXES
from vae_research.data.readers.matlab import holds_matlab, load_matlab
from vae_research.data.readers.mnist import load_fashion_mnist, load_mnist
from vae_research.data.readers.published import HDF5_SUFFIXES, load_hdf5
from vae_research.data.scaling import DEQUANTIZATIONS, one_of
from vae_research.data.sprites import load_sprites

__all__ = ["DATASETS", "Data", "DataError", "Split", "load_data"]

_GREY = {"mnist": load_mnist, "fashion_mnist": load_fashion_mnist}
_SPRITES = {
    "sprites": functools.partial(load_sprites, 64, name="sprites"),
    "sprites_32": functools.partial(load_sprites, 32, name="sprites_32"),
    "sprites_colour": functools.partial(load_sprites, 64, colour=True, name="sprites_colour"),
}
GREY_DATASETS = tuple(_GREY)
"""Those of `DATASETS` with grey values, which runs binarise by default."""
DATASETS = (*_GREY, *_SPRITES)
"""Names that `load_data` accepts besides paths."""

_CANNOT_BE_STREAMED = (
    "--stream: {} is read into memory; streamed are an .npy file, which numpy.save writes, an .h5 "
    "file, a folder of images, and whatever a function of your own gives as Rows"
)

_SAVE = "numpy.savez('data.npz', train={})"
# How files of other kinds become .npz; each is read by the library that its users have.
_CONVERSIONS = {
    (".pkl", ".pickle"): "import numpy, pickle; found = pickle.load(open({path!r}, 'rb')); "
    + _SAVE.format("numpy.asarray(found)")
    + " (unpickling can run code: only files that you trust)",
    (".zip",): "import shutil; shutil.unpack_archive({path!r}, 'folder'); then --dataset=./folder",
    (".csv", ".tsv"): "import numpy, pandas; found = pandas.read_csv({path!r}); "
    + _SAVE.format("found.to_numpy('float32')"),
    (".parquet",): "import numpy, pandas; found = pandas.read_parquet({path!r}); "
    + _SAVE.format("found.to_numpy('float32')"),
    SUFFIXES: "it is a single picture; give the folder of the pictures",
}


def load_data(
    name: str | os.PathLike = "mnist",
    rescale: str | None = None,
    binarize: str = "none",
    image_size: int | None = None,
    channels: int | None = None,
    bad_images: int = 0,
    background: str | None = None,
    kind: str | None = None,
    stream: bool | None = None,
    dequantize: str = "none",
    correlated: str | None = None,
) -> Data:
    """Returns the data set `name`.

    Args:
        name: "mnist" (embedded), "fashion_mnist", "sprites", "sprites_32" or "sprites_colour"
            (rendered, see `sprites.load_sprites`), a path that ends in .npz, .npy, .mat or .h5, a
            folder of idx files, of .amat or .mat files, or of images. A folder called mnist is
            written ./mnist.
        rescale, binarize, kind: see `Data.from_arrays`; `kind` is for files of arrays.
        image_size, channels, bad_images, background: for a folder of images; see
            `folders.load_image_folder`.
        stream: read rows of an .npy file or of a folder of images when they are needed, in place of
            all at once; None does so if they do not fit in memory.
        dequantize: "none", or "uniform" for noise that is added to integers; see
            `Data.dequantized`.
        correlated: two factors of sprites and sigma, such as "scale,x,0.2"; see
            `sprites.load_sprites`.

    Raises:
        DataError: there is no such data set, or it cannot be used.
        TypeError: `name` is neither a text nor a path.
        ValueError: unknown `rescale`, `binarize`, `dequantize` or `kind`.

    Example:
        >>> load_data("mnist").summary()["counts"]
        {'train': 50000, 'validation': 10000, 'test': 10000}
    """
    one_of(dequantize, DEQUANTIZATIONS, "dequantize")
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(
            f"load_data takes a name or a path, got {type(name).__name__}; "
            "vr.Data.from_arrays(train, ...) makes a data set of arrays."
        )
    sizes = image_size, channels, bad_images, background
    if name in _SPRITES:
        data = _rendered(str(name), rescale, binarize, correlated, stream)
        return data.dequantized() if dequantize == "uniform" else data
    if correlated is not None:
        raise DataError(
            f"data set {str(name)!r} cannot have correlated factors; {', '.join(_SPRITES)} can"
        )
    data = _as_stored(name, rescale, binarize, *sizes, kind, stream)
    return data.dequantized() if dequantize == "uniform" else data


def _rendered(
    name: str, rescale: str | None, binarize: str, correlated: str | None, stream: bool | None
) -> Data:
    if stream is False:
        raise DataError(f"--nostream: {name} is rendered when steps need it; leave the flag out")
    return _SPRITES[name](rescale, binarize, correlated)


def _as_stored(
    name: str | os.PathLike,
    rescale: str | None,
    binarize: str,
    image_size: int | None,
    channels: int | None,
    bad_images: int,
    background: str | None,
    kind: str | None,
    stream: bool | None,
) -> Data:
    """`load_data` without noise on integers."""
    if name in _GREY:
        if stream:
            raise DataError(_CANNOT_BE_STREAMED.format(name))
        return _GREY[str(name)](rescale, binarize)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # the home folder of a user who does not exist
        raise DataError(f"data set {str(name)!r}: {error}") from error
    if path.suffix.lower() == ".npz" and not stream:
        return load_npz(path, rescale, binarize, kind)
    if path.suffix.lower() == ".npy":
        return load_npy(path, rescale, binarize, kind, stream=stream)
    if path.suffix.lower() in HDF5_SUFFIXES:
        return load_hdf5(path, rescale, binarize, kind, stream)
    if path.suffix.lower() == ".amat" and path.is_file():
        raise DataError(f"{path} is the text of one split; give the folder of all: {path.parent}")
    is_mat = path.suffix.lower() == ".mat" and path.is_file()
    if not stream and (is_mat or (path.is_dir() and not holds_idx(path) and holds_matlab(path))):
        return load_matlab(path, rescale, binarize, kind)
    if path.is_dir() and not holds_idx(path):
        return load_image_folder(
            path, rescale, binarize, image_size, channels, bad_images, background, stream=stream
        )
    for suffixes, conversion in _CONVERSIONS.items():
        if path.suffix.lower() in suffixes and path.is_file():
            raise DataError(
                f"{path}: {path.suffix} files are not read, only .npz, .npy, .mat and .h5, and "
                "folders of idx files, of .amat files or of images; "
                + conversion.format(path=str(path))
            )
    if stream:
        raise DataError(_CANNOT_BE_STREAMED.format(name))
    if path.exists() or len(path.parts) > 1:
        return load_idx_folder(path, rescale, binarize, kind)
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), DATASETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"data set {str(name)!r} does not exist; there are {', '.join(DATASETS)}, a path that ends "
        f"in .npz, .npy, .mat or .h5, or a folder of idx files, .amat files or images{hint}"
    )
