"""Training on rows that are read when they are needed, beside the same rows on the device.

    python -m benchmarks.streams CASE PATH SECONDS

One case per process, so that each has its own peak of memory. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

import vae_research as vr
from benchmarks.protocol import own_memory
from benchmarks.works import DENSE_128, LEARNING_RATE
from vae_research import runs

CASES = {
    "device": "rows on the device",
    "streamed": "the same, streamed",
    "pillow": "decoding alone, Pillow",
    "reader": "decoding alone, the reader of a run",
}
_READERS = 2  # as many as a training reads with
_ROWS_AT_ONCE = 1024


def write_images(folder: Path, count: int) -> None:
    """Writes JPEG files of 32 x 32 coloured pixels: smooth, as photographs are."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32)).save(folder / f"{number:06}.jpg", quality=90)


def write_rows(path: Path, count: int) -> None:
    """Writes rows of MNIST's size as an .npy file, in blocks."""
    rows = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 28, 28))
    random = np.random.default_rng(0)
    for begin in range(0, count, 10_000):
        shape = rows[begin : begin + 10_000].shape
        rows[begin : begin + 10_000] = random.integers(0, 2, shape, dtype=np.uint8) * 255
    rows.flush()


def measure(case: str, path: Path, seconds: float) -> dict[str, float]:
    """Returns images, seconds and largest memory, in bytes, of epochs that last `seconds`."""
    if case == "pillow":
        files = sorted(path.glob("*.jpg"))
        return _read(lambda rows: [_decoded(files[row]) for row in rows], len(files), seconds)
    data = vr.load_data(path, stream=case != "device")
    if case == "reader":
        return _read(lambda rows: data.train.raw[rows], len(data.train), seconds)
    return _trained(data, seconds)


def _decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _read(read: Callable[[np.ndarray], object], count: int, seconds: float) -> dict[str, float]:
    blocks = np.array_split(np.arange(count), -(-count // _ROWS_AT_ONCE))
    started, images = time.perf_counter(), 0
    with ThreadPoolExecutor(_READERS) as threads:
        while time.perf_counter() - started < seconds:
            for _ in threads.map(read, blocks):
                pass
            images += count
    passed = time.perf_counter() - started
    return {"images": images, "seconds": passed, "memory": own_memory()}


def _trained(data: vr.Data, seconds: float) -> dict[str, float]:
    import keras

    from benchmarks.keras_fit import Epochs
    from vae_research.runs.session import training

    def build(config: runs.Config, data: vr.Data) -> vr.VAE:
        units = DENSE_128.hidden_units
        return vr.VAE(
            vr.dense_encoder(data.shape, config.latent_dim, hidden_units=units),
            vr.GaussianBottleneck(config.latent_dim),
            vr.dense_decoder(data.shape, config.latent_dim, hidden_units=units),
            [vr.Bernoulli(), vr.KLDivergence()],
        )

    config = vr.configure(
        build,
        latent_dim=DENSE_128.latent_dim,
        batch_size=DENSE_128.batch_size,
        learning_rate=LEARNING_RATE,
    )
    keras.utils.set_random_seed(config.init_seed)
    model = training.build_model(build, config, data)
    training.choose_execution(model, config, data)
    ends: list[float] = []  # the first epoch, which also compiles, does not count
    memory = [0]

    def go_on() -> bool:
        ends.append(time.perf_counter())
        return len(ends) < 2 or ends[-1] - ends[0] < seconds

    def watch() -> None:
        memory[0] = max(memory[0], own_memory())

    model.fit(
        data.train.on_device(config.batch_size, config.data_seed),
        epochs=10**6,
        callbacks=[Epochs(go_on, watch)],
        verbose=0,
    )
    return {
        "images": (len(ends) - 1) * len(data.train),
        "seconds": ends[-1] - ends[0],
        "memory": memory[0],
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))))
