"""Runs and studies of several runs: flags, run directory, seeds, training, test figures.

    from vae_research import runs

    runs.define_float("kl_weight", 1.0, "weight of the KL divergence, 1 is the ELBO")

    def build(config, data):
        return vae_research.VAE(...)

    if __name__ == "__main__":
        runs.main(build)  # also data=, callbacks=, evaluate= and after=, functions of yours

In a notebook, `runs.train(build, data=data, run_dir="runs/first", epochs=20)` is the same run.

Where to look, in the order in which a command passes through:

    cli/command.py        from the command line to an exit code; cli/standard_flags.py has the flags
    session/resume.py     what the run directory already holds, and whether it can be resumed
    session/experiment.py from the functions of an experiment to a run, also without a command
    session/training.py   one run from the data to its results; session/studies.py for several
    session/fit/          what runs within Keras' fit: the gate, saves, callbacks and their states
    session/kept/         what made a run: its source, kept and compared, its identity
    report/               what is written and printed: description (config.json), screen, outputs
    compare/              several finished runs side by side: records, tables, plots
    tools/                programs that examine runs afterwards: doctor, replay, compare

Importing this package defines no flag and does not import TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vae_research.runs.cli.command import main, study
from vae_research.runs.cli.config import Config
from vae_research.runs.cli.definitions import (
    define_boolean,
    define_choice,
    define_float,
    define_floats,
    define_integer,
    define_integers,
    define_string,
    set_defaults,
)
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import configure
from vae_research.runs.session.experiment import train
from vae_research.runs.session.loading import Run, load_run
from vae_research.runs.session.loading import named_data as load_data
from vae_research.tables import markdown_table, median_and_range

__all__ = [
    "Config",
    "Run",
    "StopAtSignal",
    "StopWhenDiverged",
    "UsageError",
    "configure",
    "define_boolean",
    "define_choice",
    "define_float",
    "define_floats",
    "define_integer",
    "define_integers",
    "define_string",
    "load_data",
    "load_run",
    "main",
    "markdown_table",
    "median_and_range",
    "set_defaults",
    "study",
    "train",
]

# Names whose modules import TensorFlow, which are imported on first use.
_LATER = {
    "StopAtSignal": "session.fit.stopping",
    "StopWhenDiverged": "session.fit.stopping",
}

if TYPE_CHECKING:
    from vae_research.runs.session.fit.stopping import StopAtSignal, StopWhenDiverged
else:

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
