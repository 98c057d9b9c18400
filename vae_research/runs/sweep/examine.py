"""Whether the points of a sweep can run, before the first one starts; runs in a fork."""

from __future__ import annotations

import dataclasses
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from vae_research.data import Data
from vae_research.runs.cli import forks, streams
from vae_research.runs.cli.command import given_flags, taken_parts
from vae_research.runs.cli.config import Config, WatchedConfig
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.flags import may_change, parse
from vae_research.runs.cli.functions import experiment_name
from vae_research.runs.cli.tools import end_of
from vae_research.runs.session import directory
from vae_research.runs.session.experiment import (
    load_data,
    look_up,
    with_absolute_dataset,
)
from vae_research.runs.session.loading import data_of
from vae_research.runs.session.parts import Parts

flags.disclaim_key_flags()


def examine(
    commands: Sequence[tuple[str, Sequence[str]]], *, distinct: bool = False, build: bool = False
) -> dict[str, Any]:
    """Examines the commands of points, up to the first one that cannot run; writes nothing.

    Args:
        commands: names of points, and what `python` is given to run them.
        distinct: no two of them may have the same flags.
        build: also load the data and build the models, which imports TensorFlow.

    Returns:
        `error`, the exit code and message of the first point that cannot run, or None; the name of
        the `experiment`; the points that are `complete`; and the flags that `may_change`.
    """
    _, first = commands[0]
    with taken_parts() as taken:
        code = forks.exit_code_of([first[0]])
    answer: dict[str, Any] = {"error": None, "complete": [], "may_change": []}
    if code:
        raise SystemExit(code)
    if not taken or taken[0] is None:
        what = "is a study, which trains several models by itself" if taken else "runs nothing"
        message = f"{first[0]} {what}; a sweep needs an experiment, which calls runs.main."
        return answer | {"error": [2, message]}
    parts = taken[0]
    answer |= {"experiment": experiment_name(parts.build), "may_change": []}
    remembered = _Remembered(parts.data) if build else None
    seen: dict[str, str] | None = {} if distinct else None
    warnings.simplefilter("ignore")  # the run of a point prints them
    for name, arguments in commands:
        try:
            complete = _examine_point(parts, arguments, remembered, name, seen)
        except (Exception, SystemExit) as error:
            if flags.FLAGS["debug"].value:
                traceback.print_exc()
            # The functions of an experiment may raise anything.
            unexpected = 1, f"{type(error).__name__}: {error} (--debug shows where)"
            code, message = end_of(error) or unexpected
            return answer | {"error": [code, f"{name}: {message}"]}
        if complete:
            answer["complete"].append(name)
    return answer | {"may_change": sorted(may_change(parts.build))}


def _examine_point(
    parts: Parts,
    arguments: Sequence[str],
    remembered: _Remembered | None,
    name: str,
    seen: dict[str, str] | None,
) -> bool:
    """Returns whether a point is complete; raises what its command would end with."""
    flags.FLAGS.unparse_flags()
    sys.argv = list(arguments)
    config = with_absolute_dataset(parse(parts.build, arguments[1:]))
    given = given_flags(config)
    values = repr(sorted(config.replace(run_dir=None).as_dict().items()))
    if seen is not None and (other := seen.setdefault(values, name)) != name:
        raise UsageError(f"it has the same flags as {other}.")
    held = look_up(parts, experiment_name(parts.build), config, given)
    if held.complete is not None:
        return True
    if remembered is None:
        return False
    config, data = load_data(held.config, remembered, given)
    if held.checkpoint is not None:
        directory.refuse_changed_data(held.run_dir, directory.read_config(held.run_dir), data)
    with streams.hide_startup_output():
        import keras

        from vae_research.runs.session.building import build_model, choose_device
    choose_device(config.device)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    build_model(parts.build, config, data)
    keras.backend.clear_session()
    return False


@dataclasses.dataclass
class _Remembered:
    """Makes the data of a point, or returns those of one with the same flags of the data.

    Attributes:
        make: of the experiment, None if the flags name the data.
    """

    make: Callable[[Config], Data] | Data | None
    found: list[tuple[dict[str, Any], Data]] = dataclasses.field(default_factory=list)

    __name__ = "data"

    def __call__(self, config: Config) -> Data:
        for read, data in self.found:
            if all(getattr(config, name) == value for name, value in read.items()):
                return data
        watched = WatchedConfig(config)
        assert not isinstance(self.make, Data)  # which only runs.train is given
        data = data_of(watched, self.make)
        read = {name: getattr(config, name) for name in watched.names_read}
        self.found = [*self.found[-1:], (read, data)]  # no more than two in memory
        return data


def file_of(text: str) -> Path:
    """Returns the file of an experiment.

    Raises:
        UsageError: there is none.
    """
    path = Path(text).expanduser().absolute()
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(
            f"the first argument is the file of an experiment, and {text!r} is no Python file. "
            "Write scripts/sweep experiments/NAME.py --over 'flag=value,value' --into FOLDER."
        )
    return path
