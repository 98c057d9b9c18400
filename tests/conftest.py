"""The sets of tests, and fixtures that more than one file needs.

fast    `scripts/check --fast`: all that is not marked `slow`; the aim is 3 minutes on two cores. It
        has the unit tests of every room, every mistake on a command line, and one whole run.
all     `scripts/check`: every promise; the aim is 18 minutes on two cores. Where there are many
        cases of a kind (kills, signals, full disks, set-ups) it has one of each kind.
soak    `scripts/check --soak`: all, with long series of these cases, and with the tests marked
        `soak`: long trainings, and what is measured by the clock.

Tests must not depend on how busy the machine is: they wait for what happens and not for seconds.
Programs run in forks (see `tests.forks`); a few tests start them as a shell does, one for each kind
of command. Compiling by XLA and writing for TensorBoard are most of a tiny run, so that runs in
which they do not matter have `--jit=off --notensorboard`.
"""

import gc
import math
import os
import time
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="long series, and what is marked soak")
    parser.addoption(
        "--fast-first",
        metavar="FILE",
        help="the slow tests come last; a file gets the time when all others were done",
    )


def pytest_configure(config):
    from tests import forks, proofs

    gc.disable()  # until all is imported: nothing of that is garbage
    proofs.SOAK = config.getoption("--soak")
    forks.flush_nothing()
    file = config.getoption("--fast-first")
    if file and not hasattr(config, "workerinput"):  # it reports what all workers did
        config.pluginmanager.register(FastTests(file))


def pytest_collection_modifyitems(config, items):
    for item in items:
        if isinstance(item, pytest.DoctestItem) and "keras_losses" in item.nodeid:
            item.add_marker(pytest.mark.slow)  # these train
    if not config.getoption("--soak"):
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    if config.getoption("--fast-first"):
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        items[:] = fast_first(items, workers)


def pytest_collection_finish():
    """What has been imported stays, and is not looked through for garbage in every test."""
    gc.freeze()
    gc.enable()


def fast_first(items, workers):
    """Orders tests so that each worker begins with the fast ones of its share.

    pytest-xdist gives the first worker the first half of the tests, if there are two. A file is in
    one share as a whole, fast and slow, so that what its tests have in common is made once. Of the
    slow tests those come first that start programs: they are the longest, and a worker that began
    one at the end would run alone.
    """

    def place(item):
        is_slow = item.get_closest_marker("slow") is not None
        return is_slow, is_slow and not starts_programs(item)

    ordered, at = [], 0
    for left in range(workers, 0, -1):
        end = at + (len(items) - at) // left
        share = items[at:end]
        ordered += sorted(share, key=place)
        at = end
    return ordered


def starts_programs(item):
    """Whether the file of a test can start processes."""
    names = vars(getattr(item, "module", None) or object).keys()
    return not names.isdisjoint(["forks", "trials", "subprocess"])


class FastTests:
    """Writes when the last test that is not slow was done, in seconds since 1970."""

    def __init__(self, file):
        self.file = Path(file)

    def pytest_runtest_logreport(self, report):
        if "slow" not in report.keywords:
            self.file.write_text(f"{time.time():.0f}")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """The flag for a small data set of images."""
    import numpy as np

    from tests.proofs import IMAGES

    path = tmp_path_factory.mktemp("data") / "images.npz"
    rows = {"train": slice(38), "validation": slice(38, 43), "test": slice(43, None)}
    labels = np.arange(len(IMAGES)) % 3
    arrays = {name: IMAGES[part] for name, part in rows.items()}
    np.savez(path, **arrays, **{f"{name}_labels": labels[part] for name, part in rows.items()})
    return f"--dataset={path}"


@pytest.fixture(scope="session")
def unbroken(dataset, tmp_path_factory):
    """Outcomes of runs that nothing happened to, by name, number of epochs, and mutant."""
    from tests.proofs import COMMON, RUNS, SELDOM, go_on

    found = {}

    def of(name, epochs=4, **how):
        key = (name, epochs, *how.items())
        if key not in found:
            run_dir = tmp_path_factory.mktemp("unbroken") / "run"
            flags = [dataset, *COMMON, f"--epochs={epochs}", SELDOM, *RUNS[name]]
            flags.append("--notensorboard")
            found[key] = go_on(run_dir, *flags, **how)
        return found[key]

    return of


@pytest.fixture(scope="session")
def without_tensorflow(tmp_path_factory):
    """A folder to be put before all others: who imports TensorFlow or Keras is ended with 99."""
    folder = tmp_path_factory.mktemp("without_tensorflow")
    for name in ("tensorflow", "keras"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("import os\n\nos._exit(99)\n")
    return folder


@pytest.fixture(scope="session")
def formulate():
    """Puts the loss of a VAE at one of four places; see `vae_research.keras_losses.layers`.

    Returns a function of a place, two networks, a factor and a seed. What it returns has `model`,
    `encoder`, `decoder`, `loss` (for `compile`), `start(step)` and `fit(x)`.
    """
    import keras

    import vae_research as vr

    class Formulation:
        def __init__(self, place, encoder, decoder, factor, seed=0):
            self.place, self.encoder, self.decoder = place, encoder, decoder
            self.factor, self.seed, self.loss, self.sampling = factor, seed, None, None
            if place != "step":
                self.sampling = vr.SamplingLayer(seed)
            self.model = getattr(self, f"in_{place}")()

        def in_top(self):  # "Solution I"
            inputs = keras.Input(self.encoder.input_shape[1:])
            codes = self.encoder(inputs)
            logits = self.decoder(self.sampling(codes["z_mean"], codes["z_log_var"]))["logits"]
            loss = vr.VAELossLayer(self.factor)
            outputs = loss(codes["z_mean"], codes["z_log_var"], inputs, logits)
            return keras.Model(inputs, outputs)

        def in_encoder(self):  # strategy 1
            inputs = keras.Input(self.encoder.input_shape[1:])
            codes = self.encoder(inputs)
            codes = vr.KLLossLayer(self.factor)(codes["z_mean"], codes["z_log_var"])
            whole_encoder = keras.Model(inputs, self.sampling(*codes))
            self.loss = keras.losses.BinaryCrossentropy(from_logits=True)
            return keras.Model(inputs, self.decoder(whole_encoder(inputs))["logits"])

        def in_model(self):  # strategy 2
            model = vr.AddLossModel(self.encoder, self.decoder, self.factor, seed=self.seed)
            self.sampling = model.sampling
            return model

        def in_step(self):  # strategy 3
            latent_dim = self.encoder.output["z_mean"].shape[-1]
            pixels = math.prod(self.encoder.input_shape[1:])
            terms = vr.pixel_mean_terms(factor=self.factor, pixels=pixels, latent_dim=latent_dim)
            bottleneck = vr.GaussianBottleneck(latent_dim)
            return vr.VAE(self.encoder, bottleneck, self.decoder, terms, seed=self.seed)

        def compile(self, optimizer, **settings):
            self.model.compile(optimizer, loss=self.loss, **settings)
            return self

        def start(self, step):
            """The noise that follows is that of a training step."""
            if isinstance(self.model, vr.VAE):
                self.model.step_counter.assign(step)
            if self.sampling is not None:
                self.sampling.counter.assign(step)
            return self

        def fit(self, x, **settings):
            """Returns the figures of every epoch, by name."""
            arrays = (x, x) if self.place == "encoder" else (x,)
            settings = {"batch_size": len(x), "shuffle": False, "verbose": 0} | settings
            return self.model.fit(*arrays, **settings).history

        def weights(self):
            return self.encoder.get_weights() + self.decoder.get_weights()

    return Formulation
