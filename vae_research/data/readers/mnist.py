"""MNIST, embedded in the package, and Fashion-MNIST from the disk or a download. NumPy only."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vae_research.data.checks import DataError
from vae_research.data.dataset import Data
from vae_research.data.readers.arrays import read_npz_splits
from vae_research.data.readers.file_checks import reason
from vae_research.data.readers.idx import load_idx_folder

_MNIST = Path(__file__).parents[1] / "mnist.npz"
_COUNTS = (50_000, 10_000, 10_000)

# Where Debian's package dataset-fashion-mnist puts its files.
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_DOWNLOAD_TIMEOUT_SECONDS = 10.0


def load_mnist(rescale: str | None = None, binarize: str = "none") -> Data:
    """MNIST: 50 000 training, 10 000 validation, 10 000 test images of 28 x 28 grey pixels.

    Test is the original test set; validation is the last 10 000 images of the original training
    set. The file in the package is built by scripts/build_mnist; see MNIST-NOTICE.txt.

    Args:
        rescale, binarize: see `Data.from_arrays`.

    Raises:
        DataError: the embedded file is damaged (install the package again).
    """
    splits, _ = read_npz_splits(_MNIST)
    arrays = splits["train"]
    cuts = np.cumsum(_COUNTS)[:2]
    train, validation, test = np.split(arrays["inputs"], cuts)
    train_labels, validation_labels, test_labels = np.split(arrays["labels"], cuts)
    return Data.from_arrays(
        train,
        validation,
        test,
        train_labels=train_labels,
        validation_labels=validation_labels,
        test_labels=test_labels,
        rescale=rescale,
        binarize=binarize,
        name="mnist",
    )


def load_fashion_mnist(rescale: str | None = None, binarize: str = "none") -> Data:
    """Fashion-MNIST, split as MNIST is: 50 000, 10 000 and 10 000 images of 28 x 28 grey pixels.

    It is searched for in the folder of Debian's package dataset-fashion-mnist and in Keras' cache,
    otherwise Keras downloads it. Xiao, Rasul and Vollgraf 2017 (arXiv:1708.07747), MIT licence.

    Args:
        rescale, binarize: see `Data.from_arrays`.

    Raises:
        DataError: it was not found; the message lists what was tried, with reasons.
    """
    sources: tuple[tuple[str, Callable[[], Path]], ...] = (
        ("Debian's package", lambda: _DEBIAN_FOLDER),
        ("Keras' cache", _keras_folder),
        ("download by Keras", _download),
    )
    tried = []
    for source, folder in sources:
        try:
            place = folder()
            data = load_idx_folder(place, rescale, binarize, name="fashion_mnist")
            if (counts := tuple(map(len, data.splits))) == _COUNTS:
                return data
            tried.append(f"{source} ({place} holds {sum(counts)} images, not {sum(_COUNTS)})")
        except DataError as error:
            tried.append(f"{source} ({error})")
    raise DataError(
        "Fashion-MNIST was not found; apt install dataset-fashion-mnist brings it. Tried: "
        + "; ".join(tried)
    )


def _keras_folder() -> Path:
    home = os.environ.get("KERAS_HOME") or Path("~", ".keras")
    return Path(home, "datasets", "fashion-mnist").expanduser()


def _download() -> Path:
    """Returns Keras' cache after Keras has filled it; imports Keras and with it a backend."""
    before = socket.getdefaulttimeout()
    # Keras sets no timeout: a network that drops packets would hang the run.
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        from keras.datasets import fashion_mnist

        fashion_mnist.load_data()
    except Exception as error:  # whatever it is, it becomes a line in the list of what was tried
        raise DataError(reason(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    return _keras_folder()
