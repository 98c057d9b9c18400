"""Several independent latents, each of a bottleneck of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from vae_research.bottlenecks.bottleneck import Bottleneck
from vae_research.bottlenecks.posterior import from_saved
from vae_research.priors.prior import DIAGONAL_POSTERIORS
from vae_research.randomness import fold_in
from vae_research.tensors import RELAXED, sum_in_order


def _outer(latent: str, name: str) -> str:
    """Returns what a tensor of one bottleneck is called beside those of others.

    >>> [_outer("c", name) for name in ("z", "z_logits", "step")]
    ['c', 'c_logits', 'step']
    """
    return latent + name[1:] if name == "z" or name.startswith("z_") else name


def _with_parameters(
    joint: JointBottleneck, name: str, method: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns a method of all parts as one whose parameters name the tensors that it reads."""
    parameters = {
        outer: inspect.Parameter(outer, inspect.Parameter.KEYWORD_ONLY, default=each.default)
        for latent, part in joint.parts.items()
        for each in inspect.signature(getattr(part, name)).parameters.values()
        for outer in [_outer(latent, each.name)]
    }

    def named(**tensors: Any) -> Any:
        return method(**tensors)

    named.__dict__ |= {
        "__self__": joint,  # as a method of a layer has it
        "__signature__": inspect.Signature(list(parameters.values())),
    }
    return named


@keras.saving.register_keras_serializable(package="vae_research")
class JointBottleneck(Bottleneck):
    """Latents that are independent, given the example and in the prior, each by its own name.

    Each is the `z` of a bottleneck, whose tensors are renamed: `z` is the name of the latent, and
    `z_mean` begins with it. Of `{"z": GaussianBottleneck(9), "c": RelaxedCategoricalBottleneck(9)}`
    the encoder writes `z_mean`, `z_log_var` and `c_logits`; divergences and densities are `kl_z`,
    `kl_c` and so on, of which `CapacityKL(latent="c")` takes one. `log_prob` is there if each of
    them has it.
    Continuous and discrete latents: Dupont 2018 (arXiv:1804.00104).

    Args:
        parts: the bottleneck of each latent, by name; two or more, each with a prior and a single
            latent z.

    Raises:
        ValueError: `parts` are not such bottlenecks.
    """

    def __init__(self, parts: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts: dict[str, Bottleneck] = {name: from_saved(part) for name, part in parts.items()}
        for name, part in self.parts.items():
            given = isinstance(part, Bottleneck) and part.has_prior and list(part.latents) == ["z"]
            if not given or len(self.parts) < 2:
                raise ValueError(
                    "parts must be two bottlenecks or more, each with a prior and a single latent "
                    f"z, got {part!r} as {name!r} of {len(self.parts)}."
                )
            if getattr(getattr(part, "prior", None), "of", None) == DIAGONAL_POSTERIORS:
                raise ValueError(
                    f"The part {name!r} has a {type(part.prior).__name__}, which needs the encoder "
                    "of a model with this latent alone: give it another prior."
                )
        methods: dict[str, Callable[..., Any]] = {
            "call": self._call,
            "center": functools.partial(self._of_parts, "center"),
            "log_prob": functools.partial(self._sum_of_parts, "log_prob"),
            "prior_log_prob": functools.partial(self._sum_of_parts, "prior_log_prob"),
        }
        for name, method in methods.items():
            if all(hasattr(part, name) for part in self.parts.values()):
                setattr(self, name, _with_parameters(self, name, method))

    def call(self, *, training: bool = False, **tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns one sample of each latent for each row, with divergences and densities."""
        return self._call(training=training, **tensors)

    def build(self, *shapes: Any) -> None:
        """Does nothing: the first call builds the parts."""
        self.built = True

    def _call(self, **tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        found: dict[str, tf.Tensor] = {}
        for latent, written in self._of_parts("call", **tensors).items():
            for name, value in written.items():
                outer = name if name == RELAXED else f"{name}_{latent}"
                found[latent if name == "z" else outer] = value
        return found

    def _of_parts(self, method: str, **tensors: Any) -> dict[str, Any]:
        """Returns what a method of each part makes of its own tensors, by latent."""
        found = {}
        for number, (latent, part) in enumerate(self.parts.items()):
            parameters = inspect.signature(getattr(part, method)).parameters
            read = {name: _outer(latent, name) for name in parameters}
            given = {name: tensors[outer] for name, outer in read.items() if outer in tensors}
            if "seed" in given:
                given["seed"] = fold_in(given["seed"], number)
            function = part if method == "call" else getattr(part, method)
            found[latent] = function(**given)
        return found

    def _sum_of_parts(self, method: str, **tensors: Any) -> tf.Tensor:
        return sum_in_order(list(self._of_parts(method, **tensors).values()))

    def sample_prior(self, count: int, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `[count, ...]` codes of each latent from its prior, by name."""
        return {
            latent: part.sample_prior(count, fold_in(seed, number))
            for number, (latent, part) in enumerate(self.parts.items())
        }

    def codes_of_values(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the codes whose columns are given; of each latent, those nearest to them."""
        return {
            latent: self.parts[latent].codes_of_values(self.parts[latent].values_of_codes(codes))
            for latent, codes in super().codes_of_values(values).items()
        }

    def set_steps_per_epoch(self, steps_per_epoch: int, ahead: float = 0.0) -> bool:
        """Converts lengths of schedules in epochs to steps; returns whether one has changed."""
        lengths = steps_per_epoch, ahead
        return sum(part.set_steps_per_epoch(*lengths) for part in self.parts.values()) > 0

    @property
    def latents(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of a code of each latent, by name."""
        return {latent: part.latents["z"] for latent, part in self.parts.items()}

    @property
    def takes(self) -> tuple[str, ...]:
        """What the priors of the parts are distributions of."""
        return tuple(of for part in self.parts.values() for of in getattr(part, "takes", ()))

    @property
    def one_hot(self) -> tuple[str, ...]:  # type: ignore[override]  # it depends on the parts
        """The latents whose codes are one-hot in the last axis."""
        return tuple(latent for latent, part in self.parts.items() if part.one_hot)

    @property
    def note(self) -> str | None:  # type: ignore[override]  # it depends on the parts
        """The remarks of the parts."""
        notes = [f"{latent}: {part.note}" for latent, part in self.parts.items() if part.note]
        return " ".join(notes) or None

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        parts = {
            latent: keras.saving.serialize_keras_object(part) for latent, part in self.parts.items()
        }
        return {**super().get_config(), "parts": parts}
