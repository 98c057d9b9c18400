"""One run: flags, run directory, seeds, training, test figures.

    from vae_research import runs

    runs.define_float("kl_weight", 1.0, "weight of the KL divergence, 1 is the ELBO")

    def build(config, data):
        return vae_research.VAE(...)

    if __name__ == "__main__":
        runs.main(build)

Importing this package defines no flag and does not import TensorFlow.
"""

from vae_research.runs.command import main
from vae_research.runs.flags import (
    Config,
    configure,
    define_boolean,
    define_choice,
    define_float,
    define_integer,
    define_integers,
    define_string,
)
from vae_research.runs.loading import Run, load_run

__all__ = [
    "Config",
    "Run",
    "configure",
    "define_boolean",
    "define_choice",
    "define_float",
    "define_integer",
    "define_integers",
    "define_string",
    "load_run",
    "main",
]
