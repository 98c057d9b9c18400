"""The values of the flags of a run."""

from __future__ import annotations

from typing import Any

from vae_research.settings import did_you_mean

# Seeds of a part of a run, each of which is --seed unless it is given.
SEEDS_OF_PARTS = ("init_seed", "data_seed", "noise_seed")


class Config:
    """The values of all flags of a run, as attributes.

    `as_dict` and `replace` have the seeds of parts as they were given, None for most, so that a
    config with another `seed` has other seeds of parts.

    Attributes:
        init_seed, data_seed, noise_seed: `seed` unless they are given.

    Raises:
        AttributeError: there is no such flag; the message names the nearest.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"There is no flag {name!r}.{did_you_mean(name, self.__dict__)}")

    @property
    def init_seed(self) -> Any:
        """The seed of initial weights, and of Keras layers that draw by themselves."""
        return _seed_of(self, "init_seed")

    @property
    def data_seed(self) -> Any:
        """The seed of the order of training data, and of their binarisation and augmentation."""
        return _seed_of(self, "data_seed")

    @property
    def noise_seed(self) -> Any:
        """The seed of the noise in training steps."""
        return _seed_of(self, "noise_seed")

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    def as_dict(self) -> dict[str, Any]:
        """Returns the values by name."""
        return dict(vars(self))

    def replace(self, **values: Any) -> Config:
        """Returns a config with some values changed or added."""
        return Config(**{**vars(self), **values})


def _seed_of(config: Config, part: str) -> Any:
    # Not by `vars`, which a WatchedConfig takes for a look at all flags.
    given = object.__getattribute__(config, "__dict__").get(part)
    return config.seed if given is None else given


class WatchedConfig(Config):
    """A copy of a config that knows which of its values were read.

    Attributes:
        names_read: names of the values; all of them if they were read together.
    """

    __slots__ = ("names_read",)  # not one of the flags

    def __init__(self, config: Config) -> None:
        self.names_read: set[str] = set()
        super().__init__(**vars(config))
        self.names_read.clear()

    def __getattribute__(self, name: str) -> Any:
        if name != "names_read":
            values = object.__getattribute__(self, "__dict__")
            self.names_read.update(values if name == "__dict__" else [name])
        return super().__getattribute__(name)
