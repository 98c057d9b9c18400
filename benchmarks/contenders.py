"""The contenders, their environments and their processes. No heavy imports."""

from __future__ import annotations

import ctypes.util
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.works import Work

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDER = CHECKOUT / ".benchmark"  # environments, logs and compilers' caches; git ignores it

# numpy reads the images. On Linux, torch from PyPI includes several GB of CUDA libraries, which
# also works; PIP_EXTRA_INDEX_URL can name PyTorch's index of CPU builds.
REQUIREMENTS = {
    "pytorch": ("torch==2.13.0", "numpy"),
    "jax": ("jax==0.10.2", "optax==0.2.8", "numpy"),
    "pythae": ("pythae==0.1.2", "torch==2.13.0", "numpy"),
}

_SLOW_LOOP = "not measured: XLA's kernels for convolutions on a CPU are even slower inside a loop"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One line of a table.

    Attributes:
        name: on the command line.
        title: in tables.
        module: of `benchmarks`; it runs in its own process.
        environment: a key of `REQUIREMENTS`, or "project".
        variant: passed to the module.
        has_nll: whether its evaluation is measured as well.
        leaves_out: by name of a work that is not measured, the reason.
        images: by name of a work, the images in an epoch, if all of them would take minutes.
    """

    name: str
    title: str
    module: str
    environment: str
    variant: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_nll: bool = False
    leaves_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The precision of the matrix products, "float32" or "bfloat16"."""
        return self.variant.get("precision", "float32").removeprefix("mixed_")

    def images_of(self, work: Work) -> int:
        """Returns how many images an epoch has."""
        return min(work.images, self.images.get(work.name, work.images))


def _pytorch(title: str, compiled: bool, precision: str) -> Contender:
    name = f"pytorch_{'compiled' if compiled else 'eager'}"
    name += "_bfloat16" if precision == "bfloat16" else ""
    variant = {"compiled": compiled, "precision": precision}
    has_nll = name == "pytorch_eager"
    return Contender(name, f"PyTorch, {title}", "pytorch", "pytorch", variant, has_nll)


CONTENDERS = (
    Contender("ours", "this package", "ours", "project", has_nll=True),
    Contender(
        "ours_bfloat16",
        "this package, mixed_bfloat16",
        "ours",
        "project",
        {"precision": "mixed_bfloat16"},
    ),
    Contender("keras_fit", "Keras `fit`, step by hand", "keras_fit", "project"),
    _pytorch("eager", False, "float32"),
    _pytorch("compiled", True, "float32"),
    _pytorch("eager, bfloat16", False, "bfloat16"),
    _pytorch("compiled, bfloat16", True, "bfloat16"),
    Contender(
        "jax_step",
        "JAX, compiled step",
        "jax_scan",
        "jax",
        {"loop": "step"},
        images={"convolutional": 1_280},
    ),
    Contender(
        "jax_scan",
        "JAX, scan over an epoch",
        "jax_scan",
        "jax",
        {"loop": "scan"},
        leaves_out={"convolutional": _SLOW_LOOP},
    ),
    Contender("pythae", "pythae's trainer", "pythae_trainer", "pythae", has_nll=True),
)
# For one request; a processor without instructions for bfloat16 can take that long.
_LONGEST_SECONDS = 900.0
BY_NAME = {contender.name: contender for contender in CONTENDERS}


class ContenderError(RuntimeError):
    """A contender's process ended, or its environment could not be made."""


def python_of(environment: str) -> str:
    """Returns the Python of an environment, which is made on first use.

    Raises:
        ContenderError: pip could not install the packages.
    """
    if environment == "project":
        return sys.executable
    requirements = "\n".join(REQUIREMENTS[environment])
    folder = FOLDER / "environments" / environment
    python, made = folder / "bin" / "python", folder / "installed"
    if made.exists() and made.read_text() == requirements:
        return str(python)
    print(f"Making an environment for {environment} (minutes) ...", file=sys.stderr, flush=True)
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [
            str(python),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            *REQUIREMENTS[environment],
        ],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise ContenderError(f"no environment for {environment}: {' '.join(said)}")
    made.write_text(requirements)
    return str(python)


def tcmalloc() -> str | None:
    """Returns the name of tcmalloc's library, or None if it is not installed."""
    return ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")


class Worker:
    """A contender's process, which ends with the `with` block.

    Args:
        contender: the contender.
        caches: folder for compilers' caches; by default one that is kept.
    """

    def __init__(self, contender: Contender, caches: Path | None = None) -> None:
        self.contender = contender
        caches = caches or FOLDER / "caches"
        environment = os.environ | {
            "PYTHONPATH": str(CHECKOUT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        allocator = tcmalloc()
        if allocator and contender.environment in ("pytorch", "pythae"):
            environment["LD_PRELOAD"] = allocator
        python = python_of(contender.environment)
        self.log = FOLDER / "logs" / f"{contender.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self.started = time.time()
            self.process = subprocess.Popen(
                [python, "-m", f"benchmarks.{contender.module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.process.stdin.close()
        else:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Returns the answer to a request.

        Raises:
            ContenderError: the process ended, or took more than a quarter of an hour.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(_LONGEST_SECONDS, give_up)
        timer.start()
        try:
            self.process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if late.is_set():
            raise ContenderError(
                f"{self.contender.name} took more than {_LONGEST_SECONDS:.0f} seconds to {do}"
            )
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ContenderError(f"{self.contender.name} ended: {' '.join(said)} (see {self.log})")
        return json.loads(line)

    def prepare(self, work: Work, epochs: int, **more: Any) -> dict[str, Any]:
        """Builds the model and trains `epochs` epochs; `more` is added to the variant."""
        variant = self.contender.variant | more
        work = dataclasses.replace(work, images=self.contender.images_of(work))
        return self.ask("prepare", work=dataclasses.asdict(work), variant=variant, epochs=epochs)
