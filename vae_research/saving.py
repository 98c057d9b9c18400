"""How a model is saved and loaded: the methods that Keras and checkpoints call.

What is in a file is in `vae_research.serialization`; that a file holds this model is checked by
`vae_research.round_trip`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from vae_research import checkpoints, round_trip, serialization
from vae_research.critics import Critic
from vae_research.epochs import EpochClock
from vae_research.objective import Objective
from vae_research.state import RUNNING_SUMS, load_groups, save_groups
from vae_research.steps import TrainingSteps

_CLOCK, _DATA_EPOCH = "clock", "data_epoch"  # among what Keras saves of the model itself


class SavableModel(TrainingSteps):
    """A model whose file holds all that a step may change.

    A subclass has `networks`, and is made by the arguments that `serialization.model_arguments`
    returns. Its first forward pass creates every variable.

    Args:
        objective, critics, seed, name: as for `TrainingSteps`.
    """

    def __init__(
        self, objective: Objective, critics: Sequence[Critic], *, seed: int, name: str
    ) -> None:
        super().__init__(objective, critics, seed=seed, name=name)
        self._input_specs: dict[str, tuple[tuple[int | None, ...], str]] = {}
        self._has_run = False  # whether a whole forward pass was made

    def networks(self) -> dict[str, Any]:
        """Returns the networks by role, those of critics among them."""
        raise TypeError(f"{type(self).__name__} must define networks(self).")

    def load_checkpoint(self, path: str | Path) -> checkpoints.Checkpoint:
        """Loads the values of a checkpoint, a folder of a run's `checkpoints`, into this model.

        Returns:
            What was loaded: its step and epoch. A model that is compiled gets the optimizer's state
            as well, and `fit` continues as the run would have, with the next epoch of the data if
            the checkpoint was taken within one.

        Raises:
            CheckpointError: it is not a checkpoint, is damaged, or is of another model; nothing is
                changed then.
        """
        self.build_optimizer()
        return checkpoints.load(path, self)

    @property
    def built(self) -> bool:
        """Whether every variable exists. Keras asks before it saves and after it has loaded."""
        return self._has_run or serialization.has_all_variables(self.networks())

    @built.setter
    def built(self, value: bool) -> None:
        """Does nothing. Keras sets it after `call`, which does not run the whole model."""

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the first forward pass builds the networks."""

    def build_optimizer(self) -> None:
        """Creates the slots of all optimizers, if every variable exists or can be created."""
        self._create_variables()
        if self.built:
            super().build_optimizer()

    def _create_variables(self) -> None:
        if self._input_specs and not self.built:
            serialization.create_variables(self, self._input_specs)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs; Keras saves it with the weights."""
        config = serialization.model_config(
            self.networks(), self.critics, self._declared_objective, self._input_specs
        )
        return config | {
            "seed": self.seed,
            "name": self.name,
            "steps_per_epoch": self.steps_per_epoch,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Returns the model that `get_config` described, with all its variables.

        Raises:
            ValueError: a term's class is not imported, or a schedule was a plain function.
        """
        arguments, specs = serialization.model_arguments(config)
        steps_per_epoch = arguments.pop("steps_per_epoch")
        model = cls(**arguments)
        if steps_per_epoch is not None:
            model.set_steps_per_epoch(steps_per_epoch)
        model._input_specs = dict(specs)
        model._create_variables()
        return model

    def save(
        self,
        filepath: str | Path,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Keras' `save`. The file gets its name after it was loaded and found to be this model.

        Compared are all variables, also those of optimizers, and the ELBO of two rows, to the last
        bit.

        Raises:
            ValueError: the file cannot be loaded, or loads as another model; the message says why,
                and nothing is written.
            FileExistsError: there is such a file, and `overwrite` is False. (Keras would ask.)
        """
        self.build_optimizer()  # as the loaded model does
        round_trip.save_checked(
            self,
            filepath,
            functools.partial(super().save, zipped=zipped, **kwargs),
            functools.partial(round_trip.figures_of, specs=self._input_specs),
            overwrite=overwrite,
        )

    def export(
        self,
        filepath: str | Path,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Keras' `export` of `call`, the reconstruction, for batches of any size.

        It needs no `input_signature` once the model has seen data, also before it was saved.

        Raises:
            ValueError: the model has not seen data, and there is no `input_signature`.
        """
        self._create_variables()
        if input_signature is None:
            input_signature = serialization.input_signature(self.call, self._input_specs)
        super().export(filepath, format, verbose, input_signature, **kwargs)

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Keras' `load_weights`, with step and slots of the optimizer if they were saved."""
        self.build_optimizer()
        super().load_weights(*args, **kwargs)

    def save_own_variables(self, store: Any) -> None:
        """Saves step, critics and the seeds of random layers beside what Keras saves."""
        super().save_own_variables(store)
        save_groups(store, self._own_groups())
        self.averaging.save(store)
        clock = self.epoch_clock
        if clock.steps_per_epoch is not None:
            store[_CLOCK] = np.array(dataclasses.astuple(clock), np.float64)
        store[_DATA_EPOCH] = np.array(self.data_epoch, np.int64)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved."""
        self.build_optimizer()
        own = load_groups(store, self._own_groups()) | {_CLOCK, _DATA_EPOCH}
        own |= self.averaging.load(store)
        names = set(store.keys())
        super().load_own_variables({name: store[name] for name in names - own})
        if _CLOCK in names:
            self.epoch_clock = EpochClock.from_values(np.asarray(store[_CLOCK]).tolist())
        if _DATA_EPOCH in names:
            self.data_epoch = int(np.asarray(store[_DATA_EPOCH]))

    def _own_groups(self) -> dict[str, list[Any]]:
        groups = self.further_state() | {"seeds": serialization.seeds_of(self)}
        del groups[RUNNING_SUMS]
        return groups
