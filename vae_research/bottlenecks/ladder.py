"""Levels of normal latents, each of which depends on the one above it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from vae_research import probability
from vae_research.bottlenecks.gaussian import GaussianBottleneck
from vae_research.bottlenecks.posterior import PosteriorBottleneck, from_saved
from vae_research.priors.prior import Prior
from vae_research.randomness import fold_in
from vae_research.settings import reads
from vae_research.tensors import sum_in_order

_PARTS = "_mean", "_log_var"
_HEADS = "z_mean", "z_log_var"


@keras.saving.register_keras_serializable(package="vae_research")
class LadderBottleneck(PosteriorBottleneck):
    """Normal latents in levels: p(z_L) p(z_{L-1}|z_L) ... p(z_1|z_2), and a posterior of this form.

    The networks `top_down` make the distributions p(z_l|z_{l+1}), diagonal normal. The encoder
    writes an estimate of each level: `z_1_mean`, `z_1_log_var`, `z_2_mean` and so on. That of the
    top level is q(z_L|x); that of any other level is multiplied by p(z_l|z_{l+1}): precisions add
    up, and means are weighted by them. Writes all latents with their densities, `kl_z_1` and so on,
    of the shapes of the latents; that of the top level with the standard normal prior only. The
    decoder reads any of the latents. Sonderby et al. 2016 (arXiv:1602.02282), section 2.1.

    `ladder_encoder` and `ladder_top_down` make networks for it.

    Args:
        top_down: functional Keras models, the first from z_2 to `z_mean` and `z_log_var` of z_1,
            the next from z_3 to those of z_2. They have the shapes of all latents:
            `[dense_encoder((5,), 20)]` for 20 and 5 values. A single model makes two levels.
        prior: of the top level; by default the standard normal one.

    Raises:
        ValueError: a network does not write these in one shape, or not in the shape that the
            network before it reads, or the prior is of other codes.
    """

    def __init__(
        self,
        top_down: keras.Model | Sequence[keras.Model],
        *,
        prior: Prior | None = None,
        **kwargs: Any,
    ) -> None:
        given: Any = top_down if isinstance(top_down, (list, tuple)) else [top_down]
        networks = [from_saved(network) for network in given]
        # Keras asks in its __init__ what `call` reads.
        self._shapes = _shapes_of(networks)
        super().__init__(prior=prior, **kwargs)
        self.top_down = networks
        *lower, top = self._shapes.values()
        self.levels = [*map(GaussianBottleneck, lower), GaussianBottleneck(top, prior=self.prior)]
        for level in self.levels:
            level.built = True  # all there is to build is built; Keras would warn of it

    @property
    def latents(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of a code of each latent, by name."""
        return dict(self._shapes)

    @property
    def estimates(self) -> list[str]:
        """The names of what the encoder writes."""
        return [f"{latent}{part}" for latent in self._shapes for part in _PARTS]

    def _descend(
        self,
        choose: Callable[[_Level], tf.Tensor],
        estimates: Mapping[str, tf.Tensor] | None = None,
    ) -> list[_Level]:
        """Returns the levels from z_1 up, after a code was chosen for each from the top down.

        Args:
            choose: returns the code of a level whose distributions are known.
            estimates: what the encoder wrote; without it, the levels have no posterior.
        """
        levels = [_Level(number, part) for number, part in enumerate(self.levels, 1)]
        for index in reversed(range(len(levels))):
            level = levels[index]
            if index < len(self.top_down):
                # Identities, here and below, so that no tensor has more than two consumers.
                made = self.top_down[index](tf.identity(levels[index + 1].code))
                level.take_prior(*(tf.cast(made[name], tf.float32) for name in _HEADS))
            if estimates is not None:
                level.take_estimate(*(estimates[f"{level.latent}{part}"] for part in _PARTS))
            level.code = choose(level)
        return levels

    @reads(lambda self: self.estimates)
    def call(self, seed: tf.Tensor, **estimates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns one sample of all latents for each row, with their densities."""
        levels = self._descend(lambda level: level.draw(seed), estimates)
        return {name: value for level in levels for name, value in level.named().items()}

    @reads(lambda self: [*self.latents, *self.estimates])
    def log_prob(self, **tensors: tf.Tensor) -> tf.Tensor:
        """Returns log q(z_L|x) + ... + log q(z_1|x, z_2) of given codes, `[rows]`, nats."""
        levels = self._descend(lambda level: tensors[level.latent], tensors)
        return sum_in_order([x.part.log_prob(x.unit, *x.posterior) - x.volume for x in levels])

    @reads(lambda self: self.latents)
    def prior_log_prob(self, **codes: tf.Tensor) -> tf.Tensor:
        """Returns log p(z_L) + ... + log p(z_1|z_2) of given codes, `[rows]`, nats."""
        levels = self._descend(lambda level: codes[level.latent])
        return sum_in_order([x.part.prior_log_prob(x.unit) - x.volume for x in levels])

    @reads(lambda self: self.estimates)
    def center(self, **estimates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns all codes without noise, by name: each the mean, given that of the one above."""
        levels = self._descend(lambda level: level.code_of(level.posterior[0]), estimates)
        return {level.latent: level.code for level in levels}

    def sample_prior(self, count: int, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `[count, ...]` codes of all latents from the prior, by name."""
        levels = self._descend(lambda level: level.draw_prior(count, seed))
        return {level.latent: level.code for level in levels}

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        networks = [keras.saving.serialize_keras_object(network) for network in self.top_down]
        return {**super().get_config(), "top_down": networks}


@dataclasses.dataclass
class _Level:
    """One level on the way down: its code is z = mean + exp(log_var / 2) u.

    With the mean and log-variance of p(z_l|z_{l+1}), u is standard normal in the prior, and the
    level is one like any other. At the top, u is z.
    """

    number: int
    part: GaussianBottleneck
    mean: tf.Tensor | float = 0.0
    log_var: tf.Tensor | float = 0.0
    volume: tf.Tensor | float = 0.0  # the logarithm of dz / du, [rows], nats
    posterior: tuple[tf.Tensor, ...] = ()
    written: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
    code: Any = None

    @property
    def latent(self) -> str:
        return f"z_{self.number}"

    def take_prior(self, mean: tf.Tensor, log_var: tf.Tensor) -> None:
        """Sets p(z_l|z_{l+1})."""
        self.mean, self.log_var = mean, tf.identity(log_var)
        self.volume = 0.5 * probability.sum_over_event(log_var)

    def take_estimate(self, mean: tf.Tensor, log_var: tf.Tensor) -> None:
        """Sets the posterior of u: the estimate, below the top multiplied by the prior."""
        self.part._check_latent_dim(f"{self.latent}_mean", mean)
        self.part._check_latent_dim(f"{self.latent}_log_var", log_var)
        self.posterior = tf.cast(mean, tf.float32), tf.cast(log_var, tf.float32)
        if tf.is_tensor(self.log_var):
            mean, log_var = self.posterior
            more_precise = self.log_var - log_var
            of_gap = tf.identity(self.log_var)
            gap = (mean - self.mean) * tf.exp(-0.5 * of_gap)
            self.posterior = tf.sigmoid(more_precise) * gap, -tf.nn.softplus(more_precise)
            self.log_var = tf.identity(of_gap)

    def code_of(self, unit: tf.Tensor) -> tf.Tensor:
        return self.mean + tf.exp(0.5 * self.log_var) * unit

    @property
    def unit(self) -> tf.Tensor:
        return (self.code - self.mean) * tf.exp(-0.5 * self.log_var)

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        self.written = self.part(*self.posterior, fold_in(seed, self.number))
        return self.code_of(self.written.pop("z"))

    def draw_prior(self, count: int, seed: tf.Tensor) -> tf.Tensor:
        return self.code_of(self.part.sample_prior(count, fold_in(seed, self.number)))

    def named(self) -> dict[str, tf.Tensor]:
        """Returns what was drawn, by the names that it has among several latents."""
        shift = {"log_posterior": self.volume, "log_prior": self.volume}
        values = {name: value - shift.get(name, 0.0) for name, value in self.written.items()}
        return {self.latent: self.code} | {f"{n}_{self.latent}": v for n, v in values.items()}


def _shapes_of(networks: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each latent by name; raises ValueError if networks do not fit."""
    shapes: list[tuple[int, ...]] = []
    for number, network in enumerate(networks or [None], 1):
        written = getattr(network, "output", None)
        written = written if isinstance(written, Mapping) else {}
        mean, log_var = (tuple(written[n].shape[1:]) if n in written else None for n in _HEADS)
        if mean is None or mean != log_var or len(network.inputs) > 1:
            raise ValueError(
                "top_down must be functional models of one input that write z_mean and z_log_var "
                f"in one shape, such as dense_encoder((5,), 20), got {network!r} with {mean} and "
                f"{log_var}."
            )
        if shapes and shapes[-1] != mean:
            raise ValueError(
                f"The top_down network of z_{number} makes codes of shape {mean}, and that of "
                f"z_{number - 1} reads codes of shape {shapes[-1]}: they are ordered from z_1 up."
            )
        shapes[number - 1 :] = [mean, tuple(network.inputs[0].shape[1:])]
    return {f"z_{number}": shape for number, shape in enumerate(shapes, 1)}
