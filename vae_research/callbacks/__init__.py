"""Keras callbacks that write to TensorBoard, to metrics.jsonl and to the screen.

Each works on its own with plain Keras `fit`. `Scalars`, `Latents`, `Pictures`, `Gradients`,
`Projector`, `Overview`, `HParams` and `Profile` write for TensorBoard; `MetricsFile` and `Console`
do not. `Disentanglement`, for data with known factors, comes before those that log: it adds scores
to the figures of an epoch. An `Inference` lets several of them share one pass over the validation
data.

To write your own, derive from `keras.callbacks.Callback`, or from a class in `base`:

- `EpochCallback` measures every epoch: define `on_record(self, record)`, which is called at the end
  of each one with an `EpochRecord`.
- `StepCallback` counts optimizer steps, however many a compiled call makes: define
  `on_step(self, step)`.
- `Resumable` is the type of callbacks with a state: define `get_state` and `set_state`.

A run saves the state of callbacks that it gets by `runs.main(build, callbacks=function)`: what
`get_state` returns if their class defines it and `set_state`, derived from `Resumable` or not;
otherwise every attribute that has changed since training began. One that changes and is neither a
number nor a string, nor lists or dictionaries of them, is refused by name.

>>> from vae_research.callbacks.base import EpochCallback
>>> class PrintLoss(EpochCallback):
...     def on_record(self, record):
...         print(record.epoch, record.figures["train"]["loss"])
"""

from typing import TYPE_CHECKING

from vae_research.lazy import lazy_names

if TYPE_CHECKING:
    from vae_research.callbacks.base import EpochCallback as EpochCallback
    from vae_research.callbacks.base import EpochRecord as EpochRecord
    from vae_research.callbacks.base import Resumable as Resumable
    from vae_research.callbacks.base import StepCallback as StepCallback
    from vae_research.callbacks.console import Console as Console
    from vae_research.callbacks.disentanglement import Disentanglement as Disentanglement
    from vae_research.callbacks.gradients import Gradients as Gradients
    from vae_research.callbacks.inference import Inference as Inference
    from vae_research.callbacks.latents import Latents as Latents
    from vae_research.callbacks.metrics_file import MetricsFile as MetricsFile
    from vae_research.callbacks.overview import HParams as HParams
    from vae_research.callbacks.overview import Overview as Overview
    from vae_research.callbacks.pictures import Pictures as Pictures
    from vae_research.callbacks.pictures import decoded_plane as decoded_plane
    from vae_research.callbacks.profile import Profile as Profile
    from vae_research.callbacks.projector import Projector as Projector
    from vae_research.callbacks.scalars import Scalars as Scalars
    from vae_research.callbacks.tensorboard.summaries import Summaries as Summaries

_MODULES = {
    "base": ("EpochCallback", "EpochRecord", "Resumable", "StepCallback"),
    "console": ("Console",),
    "disentanglement": ("Disentanglement",),
    "gradients": ("Gradients",),
    "inference": ("Inference",),
    "latents": ("Latents",),
    "metrics_file": ("MetricsFile",),
    "overview": ("HParams", "Overview"),
    "pictures": ("Pictures", "decoded_plane"),
    "profile": ("Profile",),
    "projector": ("Projector",),
    "scalars": ("Scalars",),
    "tensorboard.summaries": ("Summaries",),
}

if not TYPE_CHECKING:
    __all__, __getattr__, __dir__ = lazy_names(__name__, _MODULES)
