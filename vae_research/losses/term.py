"""The base classes of loss terms. TensorFlow is imported only when a term is evaluated."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vae_research.arguments import checked_label
from vae_research.controllers import Controller
from vae_research.schedules import Schedule
from vae_research.settings import Settings, declared_names, did_you_mean, snake_case

if TYPE_CHECKING:
    import tensorflow as tf


class LossTerm(Settings, abc.ABC):
    """One term of the objective: reads named tensors, returns nats per example, unweighted.

    A subclass annotates its settings and writes `per_example`, whose parameters name the tensors
    that it reads. It has no variables and does not import the model.

    >>> class SecondMoment(LossTerm):
    ...     '''Squared length of the posterior mean.'''
    ...
    ...     def per_example(self, z_mean):
    ...         return (z_mean**2)[:, 0]
    >>> SecondMoment(weight=0.5).label
    'second_moment'

    Settings:
        weight: a number, a `Schedule` of the optimizer step, a `Controller`, which reacts to the
            value of a term, or `None` for a term that is logged and not trained.
        name: in logs and TensorBoard; by default the class name in snake case.
        rename: `{"kl": "kl_top"}` passes the tensor `kl_top` as the parameter `kl`.

    The parameters `kl`, `log_posterior` and `log_prior` are those of all latents; see
    `vae_research.tensors`.

    `batch_statistic = True` in the class means that the term is a statistic of the whole batch: it
    returns a scalar instead of one value per example; with `whole_data_set = True` it may be given
    all rows of a data set at once, and has a test figure of them. `adds_log_posterior = True` means
    that the value is `log_posterior` plus something that does not depend on it; gradient estimators
    need such a term. `unit` is what the table of test figures says behind the value, for a term
    that is logged and not measured in nats. `not_differentiated` names parameters whose gradient
    the term stops on purpose, so that `scripts/selfcheck` does not take it for a mistake.
    """

    batch_statistic: ClassVar[bool] = False
    whole_data_set: ClassVar[bool] = False
    adds_log_posterior: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    not_differentiated: ClassVar[tuple[str, ...]] = ()
    default_name: ClassVar[str | None] = None

    weight: float | Schedule | Controller | Callable[[Any], Any] | None = 1.0
    name: str | None = None
    rename: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.weight
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        is_function = callable(weight) and not isinstance(weight, type)  # a class is a mistake
        if not (is_number or weight is None or isinstance(weight, Controller) or is_function):
            raise TypeError(
                f"The weight of {self.label!r} is {weight!r}; it must be a number, a Schedule, a "
                "Controller, or None for a term that is only logged."
            )
        readable = self._readable()
        for parameter in self.rename or {}:
            if parameter not in readable:
                raise ValueError(
                    f"Loss term {self.label!r} renames {parameter!r}, which it does not read; it "
                    f"reads {', '.join(readable)}.{did_you_mean(parameter, readable)}"
                )
        checked_label("loss term", self.label)

    @property
    def label(self) -> str:
        """The name in logs, in TensorBoard and in messages."""
        if self.name is not None:
            return self.name
        return type(self).default_name or snake_case(type(self).__name__)

    def reads(self) -> set[str]:
        """Returns the names of the tensors that this term reads."""
        return self._renamed(self._reader())

    def _renamed(self, method: Callable[..., Any]) -> set[str]:
        renamed = self.renamed()
        return {renamed.get(name, name) for name in declared_names(method)}

    def renamed(self) -> Mapping[str, str]:
        """Returns the names of the tensors that are passed as parameters of another name."""
        return self.rename or {}

    def renamed_in(self, tensors: Mapping[str, tf.Tensor]) -> Mapping[str, str]:
        """Returns `renamed()`, by the names that a forward pass wrote."""
        return self.renamed()

    def _reader(self) -> Callable[..., Any]:
        return self.per_example

    def _readable(self) -> list[str]:
        return declared_names(self._reader())

    @abc.abstractmethod
    def per_example(self, *tensors: tf.Tensor) -> tf.Tensor:
        """Returns `[rows]`, nats, summed over event axes (a scalar for a batch statistic).

        In a subclass, the parameters of this method name the tensors that it reads.
        """

    def __call__(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the unweighted values, float32, `[rows]` or a scalar.

        Args:
            tensors: the named tensors of a forward pass.

        Raises:
            ValueError: a tensor is missing, the result has another shape, or the term uses a
                symbolic tensor that is not one of `tensors`.
        """
        from vae_research.tensors import graph_scope

        with graph_scope(self.label):
            return self._checked(self._apply(self._reader(), tensors))

    def _apply(self, method: Callable[..., Any], tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        from vae_research.captured_tensors import without_captured_tensors
        from vae_research.tensors import bind

        reader = f"loss term {self.label!r}"
        # Equal to the message today, but not one: another key is other noise for a term that reads
        # `seed`.
        key = f"loss term {self.label!r}"
        renamed = self.renamed_in(tensors)
        arguments = bind(reader, method, tensors, key=key, rename=renamed, joined_levels=True)
        return without_captured_tensors(reader, method, **arguments)

    def _checked(self, values: Any) -> tf.Tensor:
        import tensorflow as tf

        if values is None:
            raise ValueError(
                f"Loss term {self.label!r} returned nothing; does its method end with a return?"
            )
        values = tf.cast(values, tf.float32)
        if values.shape.rank == (0 if self.batch_statistic else 1):
            return values
        if self.batch_statistic:
            wanted = "a scalar, since batch_statistic is True"
        else:
            wanted = "one value per example, [rows] (sum_over_event adds up the other axes)"
        raise ValueError(
            f"Loss term {self.label!r} returned shape {values.shape}; it must return {wanted}."
        )


class Likelihood(LossTerm):
    """The term of the likelihood p(x|z): its value is the negative log-likelihood.

    A subclass writes `log_likelihood` and `mean`. A model has exactly one likelihood, which may be
    a `ProductLikelihood` of several.

    Settings:
        observed: the name of an array of the data, shaped as the targets: 0 where a value is
            missing, otherwise 1. Missing values have no part in log p(x|z); in the data they are
            any finite numbers, usually 0. Of values that depend on each other given z, such as the
            channels of a pixel (`event_rank`), all are missing if one is. Mattei and Frellsen 2019
            (arXiv:1812.02633), equation 4.
    """

    default_name: ClassVar[str | None] = "reconstruction"
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """Smallest and largest value that the data may have."""
    spacing: ClassVar[float | None] = None
    """Distance between the values that the data may have; None for real numbers."""
    event_rank: ClassVar[int] = 0
    """Number of last axes of the targets whose values depend on each other, given z."""

    observed: str | None = None

    @property
    def factors(self) -> tuple[Likelihood, ...]:
        """The likelihoods whose product this is: itself, unless it is one of several."""
        return (self,)

    @property
    def is_density(self) -> bool:
        """Whether p(x|z) is a density, which depends on the unit of x; otherwise a probability."""
        return self.spacing is None

    @property
    def target(self) -> str:
        """The name of the tensor that is compared with what the decoder wrote."""
        return self.renamed().get("targets", "targets")

    def reads(self) -> set[str]:
        """Returns the names of the tensors that this term reads."""
        return super().reads() | ({self.observed} if self.observed else set())

    @abc.abstractmethod
    def log_likelihood(self, *tensors: tf.Tensor) -> tf.Tensor:
        """Returns `[rows]`, nats, normalised on `support` unless `note` says otherwise."""

    @abc.abstractmethod
    def mean(self, *tensors: tf.Tensor) -> tf.Tensor:
        """Returns the mean of p(x|z), in data space, shaped as the targets."""

    def sample(self, *tensors: tf.Tensor) -> tf.Tensor:
        """Returns a draw from p(x|z), shaped as the targets, float32.

        In a subclass, the first parameter is `seed`, a stateless key `[2]`, and the others name the
        tensors that it reads, which `log_likelihood` reads as well.

        Raises:
            TypeError: the subclass does not define it.
        """
        raise TypeError(
            f"{type(self).__name__} must define sample(self, seed, ...), a draw from p(x|z), whose "
            "further parameters name what the decoder wrote."
        )

    def samples(self, tensors: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns a draw from p(x|z) by the name of its array; a product has one of each factor."""
        if type(self).sample is Likelihood.sample:
            self.sample()  # says what is missing
        return {self.target: self._apply(self.sample, tensors)}

    def note(self, grey_values: bool) -> str | None:
        """Returns a remark that must accompany figures of this likelihood, or None.

        Args:
            grey_values: whether the data have values other than 0 and 1.
        """
        return None

    def _reader(self) -> Callable[..., Any]:
        return self.log_likelihood

    def _readable(self) -> list[str]:
        return [*declared_names(self.log_likelihood), *declared_names(self.mean)]

    def per_example(self, *tensors: tf.Tensor) -> tf.Tensor:
        """Returns the negative log-likelihood, `[rows]`, nats."""
        return -self.log_likelihood(*tensors)

    def __call__(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns `-log p(x|z)`, `[rows]`, nats."""
        _check_targets(self.label, tensors)
        name = (self.rename or {}).get("logits", "logits")
        if "logits" in self._readable() and name in tensors:
            _refuse_probabilities(self.label, name, tensors[name])
        if self.observed is None:
            return -super().__call__(tensors)
        from vae_research.tensors import graph_scope

        with graph_scope(self.label):
            return -self._checked(self._of_observed(self.observed, tensors))

    def _of_observed(self, name: str, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the log-likelihood of the values that are not missing, `[rows]`, nats."""
        import tensorflow as tf

        from vae_research.captured_tensors import without_captured_tensors
        from vae_research.tensors import bind

        reader = f"loss term {self.label!r}"
        given = bind(reader, self.log_likelihood, tensors, key=reader, rename=self.renamed())
        known = bind(reader, lambda observed: None, tensors, rename={"observed": name})["observed"]
        targets = given.get("targets")
        if targets is None or not targets.shape.is_compatible_with(known.shape):
            has = "it reads no targets" if targets is None else f"these have shape {targets.shape}"
            raise ValueError(
                f"Loss term {self.label!r}: {name!r} has shape {known.shape} and says which values "
                f"of the targets are known, but {has}. It must be shaped as the targets."
            )
        # Each value, or group of values that depend on each other, becomes a row of its own.
        rank = targets.shape.rank - self.event_rank
        rows = {
            key: of_single_values(self.label, key, v, targets, rank) for key, v in given.items()
        }
        values = without_captured_tensors(reader, self.log_likelihood, **rows)
        known = tf.reduce_all(
            tf.cast(known, tf.float32) > 0, axis=list(range(rank, known.shape.rank))
        )
        values = tf.where(tf.reshape(known, [-1]), values, 0.0)
        values = tf.reshape(values, tf.shape(targets)[:rank])
        return tf.reduce_sum(values, axis=list(range(1, rank)))

    def mean_reads(self) -> set[str]:
        """Returns the names of the tensors that `mean` reads."""
        return self._renamed(self.mean)

    def reconstruction(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the mean of p(x|z), in data space."""
        return self._apply(self.mean, tensors)

    def reconstructions(self, tensors: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns `reconstruction`, the mean of p(x|z); a product has those of its factors, too."""
        return {"reconstruction": self.reconstruction(tensors)}


def of_single_values(
    label: str, name: str, value: tf.Tensor, targets: tf.Tensor, rank: int
) -> tf.Tensor:
    """Returns what a likelihood reads for each value of the targets, `[values, 1]` or with classes.

    Args:
        label: of the likelihood.
        name, value: of what it reads; of a distribution of classes, these are the last axis.
        targets: `[rows, ...]`.
        rank: number of axes of the targets that count values; the axes behind them belong to one.
    """
    import tensorflow as tf

    if name in ("step", "seed"):
        return value
    if rank < targets.shape.rank == value.shape.rank:  # values that depend on each other
        return tf.reshape(value, [-1, *value.shape[rank:]])
    if value.shape.rank == rank:
        return tf.reshape(tf.broadcast_to(value, tf.shape(targets)), [-1, 1])
    if value.shape.rank == rank + 1:
        return tf.reshape(value, [-1, 1, value.shape[-1]])
    raise ValueError(
        f"Loss term {label!r} reads {name!r} of shape {value.shape}, which has no value for each "
        f"of the targets of shape {targets.shape}: missing values cannot be left out."
    )


def _check_targets(label: str, tensors: Mapping[str, tf.Tensor]) -> None:
    """Catches the usual mistake of giving labels as Keras' `y`: `fit(images, labels)`."""
    if "targets" in tensors and "inputs" in tensors:
        targets, inputs = tensors["targets"].shape, tensors["inputs"].shape
        if targets.rank is not None and inputs.rank is not None and targets.rank != inputs.rank:
            raise ValueError(
                f"Loss term {label!r} reconstructs 'targets' (Keras' y), which have shape "
                f"{targets}; the inputs have shape {inputs}. Leave y out to reconstruct the "
                "inputs. Labels go into a dictionary: fit({'inputs': x, 'labels': y})."
            )


# Operations that change neither order nor sign of values.
_PASS_ON = ("Reshape", "Identity", "Cast", "Transpose", "Squeeze", "ExpandDims")


def _refuse_probabilities(label: str, name: str, logits: tf.Tensor) -> None:
    """Catches logits that end in a sigmoid or softmax, when a step is traced.

    The likelihood applies the sigmoid itself: with two, no probability could be below 0.5.
    """
    operation = None if hasattr(logits, "numpy") else logits.op
    while operation is not None and operation.type in _PASS_ON:
        operation = operation.inputs[0].op
    if operation is not None and operation.type in ("Sigmoid", "Softmax"):
        raise ValueError(
            f"Loss term {label!r} reads {name!r}, which end in a {operation.type.lower()}: these "
            "are probabilities. Leave the activation out; the likelihood applies its own."
        )
