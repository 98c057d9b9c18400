"""The functions that an experiment is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vae_research.data import Data
from vae_research.runs.cli.config import Config
from vae_research.runs.session.loading import Run

if TYPE_CHECKING:
    import keras

    from vae_research.model import VAE
    from vae_research.priors.prior import Prior


# Make callbacks that watch the run of this process, if it is a point of a sweep. They change
# nothing that is trained or saved.
watchers: list[Callable[[], keras.callbacks.Callback]] = []


@dataclasses.dataclass(frozen=True)
class Parts:
    """The functions of an experiment, as `runs.main` describes them.

    Attributes:
        build: makes the model from the flags and the data.
        data: makes the data from the flags, or is the data; None if the flags name them.
        callbacks: makes callbacks from the flags and the data, None for none.
        evaluate: returns test figures of its own for a run, None for none.
        fit_prior: returns a prior that is fitted to the codes of a run, None for none.
    """

    build: Callable[[Config, Data], VAE]
    data: Callable[[Config], Data] | Data | None = None
    callbacks: Callable[[Config, Data], Sequence[keras.callbacks.Callback]] | None = None
    evaluate: Callable[[Run], Mapping[str, Any]] | None = None
    fit_prior: Callable[[Run], Prior] | None = None
