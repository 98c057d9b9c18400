"""Critics: networks with their own loss terms and optimizer, trained in the step of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import keras
import tensorflow as tf

from vae_research.arguments import checked_integer, checked_label
from vae_research.controllers import Controller
from vae_research.distribution import whole_batch
from vae_research.losses.term import Likelihood, LossTerm
from vae_research.objective import (
    ControllerStates,
    CriticReport,
    check_labels,
    controllers_of,
    plus,
    weights_of,
)
from vae_research.settings import from_config
from vae_research.tensors import Tensors, call_module, reads_of

# First parts of names in logs, groups of the training state, and `gradients/total`.
_RESERVED = (
    *("contribution", "gradients", "latent", "terms", "total", "weight"),
    *("controllers", "model", "optimizer", "seeds", "step"),
)


class Critic:
    """A network that is trained on its own terms beside a model, such as a discriminator.

    It reads named tensors of the forward pass and writes new ones, which its own terms and those of
    the model read. Its loss trains its variables only, and the losses of the model and of other
    critics do not train them. It runs after the model's modules, and only in training and
    evaluation.

    Besides what the forward pass wrote, it may read `z_prior`, `[rows, latent]`: a sample of the
    prior for each row.

    Args:
        layer: any Keras network; `named` gives names to outputs that have none.
        terms: what it is trained on, the weighted sum of the means over rows. No likelihoods.
        optimizer: a Keras optimizer of its own, or the name of one.
        steps: updates of the critic in a step of the model. All but the last one come first, on the
            same batch, each with noise of its own; the last one is made together with the
            model's, from the same forward pass.
        name: in logs, TensorBoard and messages; no two critics of a model share it.

    Raises:
        ValueError: no terms, two of one name, a likelihood, a name that cannot be a tag, or `steps`
            is not an integer of at least 1.
        TypeError: an argument has another type.

    >>> class Realness(LossTerm):
    ...     '''How real the critic finds a sample of the prior.'''
    ...
    ...     def per_example(self, realness):
    ...         return -realness[:, 0]
    >>> from vae_research.tensors import named
    >>> network = named(keras.layers.Dense(1), "realness", reads=["z_prior"])
    >>> Critic(network, [Realness()], "sgd", name="judge").name
    'judge'
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        terms: Iterable[LossTerm],
        optimizer: Any = "adam",
        *,
        steps: int = 1,
        name: str = "critic",
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"A critic is a Keras layer or model, got {layer!r}.")
        self.layer = layer
        self.terms = self._declared_terms = tuple(terms)
        self.optimizer = keras.optimizers.get(optimizer)
        self.steps = checked_integer("steps", steps, 1)
        self.name = checked_label("critic", name)
        if name in _RESERVED:
            raise ValueError(f"A critic may not be called {name!r}: logs and checkpoints use it.")
        if not self.terms:
            raise ValueError(f"Critic {name!r} has no loss terms; it would learn nothing.")
        for term in self.terms:
            if not isinstance(term, LossTerm) or isinstance(term, Likelihood):
                raise TypeError(f"{term!r} cannot be a term of a critic. Subclass LossTerm.")
        check_labels(self.terms)

    @property
    def optimizer_group(self) -> str:
        """The name of its optimizer's variables in `training_state`."""
        return f"{self.name} optimizer"

    @property
    def role(self) -> str:
        """What messages call it, and the writer of its tensors."""
        return f"critic {self.name!r}"

    @property
    def trainable_variables(self) -> list[Any]:
        """What its optimizer trains."""
        return list(self.layer.trainable_variables)

    def state(self) -> dict[str, list[Any]]:
        """Returns its variables by group; see `vae_research.state`."""
        return {
            self.name: list(self.layer.variables),
            self.optimizer_group: list(self.optimizer.variables),
        }

    def reads(self, tensors: Tensors) -> list[str]:
        """Returns the names that its network reads."""
        return reads_of(self.layer, tensors)

    def build_optimizer(self) -> None:
        """Creates the slots of its optimizer, if its variables exist."""
        if self.layer.built and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def set_steps_per_epoch(self, steps_per_epoch: int, ahead: float) -> None:
        """Converts lengths of schedules in epochs to steps; see `Settings.in_steps`."""
        self.terms = tuple(term.in_steps(steps_per_epoch, ahead) for term in self._declared_terms)

    def run(self, tensors: Tensors, *, training: bool) -> None:
        """Runs its network and writes its tensors; every replica does so on the global batch."""
        call_module(self.role, self.layer, tensors, training=training, of_whole_batch=True)

    def controllers(self) -> dict[str, Controller]:
        """Returns the weights that have a state, by the names of their terms in the logs."""
        return {
            f"{self.name}/{label}": found for label, found in controllers_of(self.terms).items()
        }

    def weights(
        self, step: int | tf.Tensor, states: ControllerStates | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns the weights of its trained terms at a step, float32 scalars by name.

        Args:
            step: of the model.
            states: of controllers, by the names of their terms in the logs.
        """
        prefix = f"{self.name}/"
        own = {
            name.removeprefix(prefix): state
            for name, state in (states or {}).items()
            if name.startswith(prefix)
        }
        return weights_of(self.terms, step, own)

    def report(self, tensors: Tensors, states: ControllerStates | None = None) -> CriticReport:
        """Returns its loss on a forward pass in which it has run.

        Args:
            tensors: of the forward pass.
            states: of controllers, by the names of their terms in the logs.
        """
        whole = tensors.of_whole_batch()
        with whole_batch():
            values = {term.label: tf.reduce_mean(term(whole)) for term in self.terms}
        weights = self.weights(tensors["step"], states)
        loss = tf.zeros([])
        for name, weight in weights.items():
            loss = plus(loss, weight, values[name])
        for regularization in self.layer.losses:
            loss = plus(loss, 1.0, tf.reduce_sum(tf.cast(regularization, tf.float32)))
        return CriticReport(loss, values, weights)

    def figure_names(self) -> list[str]:
        """Returns the names of its figures in the logs: its loss, and each term."""
        return [f"{self.name}/{name}" for name in ("loss", *(term.label for term in self.terms))]

    def describe(self) -> dict[str, Any]:
        """Returns what a reader of a run must know of it, in words: terms, optimizer, steps."""
        return {
            "terms": {term.label: repr(term) for term in self.terms},
            "optimizer": type(self.optimizer).__name__,
            "steps": self.steps,
        }

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs, as plain data."""
        return {
            "layer": keras.saving.serialize_keras_object(self.layer),
            "terms": [term.to_config() for term in self._declared_terms],
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "steps": self.steps,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Critic:
        """Returns the critic that `get_config` described.

        Raises:
            ValueError: as for `VAE.from_config`.
        """
        config = dict(config)
        return cls(
            keras.saving.deserialize_keras_object(config.pop("layer")),
            cast(list[LossTerm], [from_config(term) for term in config.pop("terms")]),
            keras.saving.deserialize_keras_object(config.pop("optimizer")),
            **config,
        )


def checked_critics(critics: Iterable[Any]) -> tuple[Critic, ...]:
    """Returns the critics of a model.

    Raises:
        TypeError: one of them is not a `Critic`.
        ValueError: two of them have the same name, network or optimizer.
    """
    found = tuple(critics)
    for critic in found:
        if not isinstance(critic, Critic):
            raise TypeError(f"{critic!r} is not a Critic: Critic(layer, terms, optimizer).")
    for kind in ("name", "layer"):
        values = [getattr(critic, kind) for critic in found]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(f"Two critics have the same {kind}, {twice[0]!r}.")
    check_optimizers({critic.name: critic.optimizer for critic in found})
    return found


def check_variables(trained: Mapping[str, Iterable[Any]]) -> None:
    """Refuses variables that two losses would train.

    Args:
        trained: the trainable variables by whose they are.

    Raises:
        ValueError: two have the same variable.
    """
    owners: dict[int, str] = {}
    for owner, variables in trained.items():
        for variable in variables:
            other = owners.setdefault(id(variable), owner)
            if other != owner:
                raise ValueError(
                    f"{other} and {owner} both train {variable.path!r}. A loss trains its own "
                    "variables only: let one of them write a tensor that the other reads."
                )


def check_optimizers(optimizers: Mapping[str, Any]) -> None:
    """Refuses an optimizer that is to train two sets of variables.

    Args:
        optimizers: by what they train.

    Raises:
        ValueError: two of them are one object.
    """
    owners: dict[int, str] = {}
    for owner, optimizer in optimizers.items():
        other = owners.setdefault(id(optimizer), owner)
        if other != owner:
            raise ValueError(
                f"{other} and {owner} have the same optimizer object. Each needs one of its own, "
                "with slots for its own variables."
            )
