"""Likelihoods p(x|z): they interpret the decoder's output and compare it with the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow as tf

from vae_research import probability
from vae_research.arguments import checked_integer
from vae_research.losses.term import Likelihood
from vae_research.tensors import sum_in_order


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels, from logits: the binary cross-entropy, summed over pixels.

    Reads `targets` `[rows, ...]` in [0, 1] and `logits` of the same shape. For values between 0 and
    1, the cross-entropy is not a normalised likelihood, and `note` says so.
    Kingma and Welling 2014 (arXiv:1312.6114), appendix C.1.
    """

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def log_likelihood(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | logits)`, `[rows]`, nats."""
        _check_shapes(self, targets, logits=logits)
        targets, logits = probability.flat_events(targets, logits)
        return probability.sum_over_event(probability.bernoulli_log_density(targets, logits))

    def mean(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the probability of a one."""
        return tf.sigmoid(tf.cast(logits, tf.float32))

    def note(self, grey_values: bool) -> str | None:
        """Returns a remark for grey values, which have no normalised Bernoulli likelihood."""
        if not grey_values:
            return None
        return (
            "Bernoulli on grey values is not a normalised likelihood: do not compare these figures "
            "with those of binarised data (--binarize=dynamic) or of another likelihood."
        )


class ContinuousBernoulli(Likelihood):
    """Independent continuous Bernoulli pixels on [0, 1]: the normalised form of the Bernoulli.

    Reads `targets` `[rows, ...]` in [0, 1] and `logits` of the same shape.
    Loaiza-Ganem and Cunningham 2019 (arXiv:1907.06845).
    """

    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def log_likelihood(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | logits)`, `[rows]`, nats (a density: it may be positive)."""
        _check_shapes(self, targets, logits=logits)
        density = probability.continuous_bernoulli_log_density(targets, logits)
        return probability.sum_over_event(density)

    def mean(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the mean, which is not the sigmoid of the logits."""
        return probability.continuous_bernoulli_mean(logits)


class Gaussian(Likelihood):
    """Independent normal values around the decoder's output, with a fixed standard deviation.

    Reads `targets` `[rows, ...]` and `x_mean` of the same shape. The value is the squared error
    over `2 * standard_deviation**2`, plus the constant that makes it a density.
    """

    standard_deviation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "standard_deviation")

    def log_likelihood(self, targets: tf.Tensor, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `log N(targets; x_mean, standard_deviation^2)`, `[rows]`, nats."""
        _check_shapes(self, targets, x_mean=x_mean)
        log_var = 2.0 * math.log(self.standard_deviation)
        return probability.sum_over_event(probability.normal_log_density(targets, x_mean, log_var))

    def mean(self, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `x_mean`."""
        return tf.cast(x_mean, tf.float32)


class GaussianWithVariance(Likelihood):
    """Independent normal values; the decoder writes their mean and logarithm of variance.

    Reads `targets` `[rows, ...]`, `x_mean` of the same shape, and `x_log_var` of the same shape or
    one that broadcasts to it (a shared variance). With an unbounded variance, the likelihood of a
    constant pixel would grow without limit: the heads of the package's networks bound it.
    """

    def log_likelihood(
        self, targets: tf.Tensor, x_mean: tf.Tensor, x_log_var: tf.Tensor
    ) -> tf.Tensor:
        """Returns `log N(targets; x_mean, exp(x_log_var))`, `[rows]`, nats."""
        _check_shapes(self, targets, x_mean=x_mean)
        _check_broadcasts(self, targets, x_log_var=x_log_var)
        density = probability.normal_log_density(targets, x_mean, x_log_var)
        return probability.sum_over_event(density)

    def mean(self, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `x_mean`."""
        return tf.cast(x_mean, tf.float32)


class Laplace(Likelihood):
    """Independent Laplace values around the decoder's output, with a fixed scale.

    Reads `targets` `[rows, ...]` and `x_mean` of the same shape. The value is the absolute error
    over `scale`, plus the constant that makes it a density.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "scale")

    def log_likelihood(self, targets: tf.Tensor, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `log Laplace(targets; x_mean, scale)`, `[rows]`, nats."""
        _check_shapes(self, targets, x_mean=x_mean)
        density = probability.laplace_log_density(targets, x_mean, math.log(self.scale))
        return probability.sum_over_event(density)

    def mean(self, x_mean: tf.Tensor) -> tf.Tensor:
        """Returns `x_mean`."""
        return tf.cast(x_mean, tf.float32)


class Categorical(Likelihood):
    """Independent values that are each one of several classes.

    Reads `targets` `[rows, ...]`, integers from 0 to `classes - 1`, and `logits`
    `[rows, ..., classes]`. For labels: `Categorical(classes=10, rename={"targets": "labels",
    "logits": "label_logits"})`.
    """

    classes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("Categorical.classes", self.classes, 2)
        object.__setattr__(self, "support", (0.0, self.classes - 1.0))

    def log_likelihood(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns `log p(targets | logits)`, `[rows]`, nats."""
        wanted = targets.shape.concatenate([self.classes])
        if targets.dtype.is_floating or not wanted.is_compatible_with(logits.shape):
            raise ValueError(
                f"Loss term {self.label!r} compares targets of shape {targets.shape} and type "
                f"{targets.dtype.name} with 'logits' of shape {logits.shape}; it needs integers "
                f"and logits of shape {wanted}."
            )
        log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        chosen = tf.one_hot(targets, self.classes) * log_p
        return probability.sum_over_event(tf.reduce_sum(chosen, axis=-1))

    def mean(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the most probable class as float32: classes have no mean."""
        return tf.cast(tf.argmax(logits, axis=-1), tf.float32)


class ProductLikelihood(Likelihood):
    """The product of likelihoods of several targets, such as image and label, or table columns.

    The targets are independent given z: log p(x|z) is the sum over the factors. All but one of them
    compare other arrays of the data than `targets`, and read other names of the decoder:

        ProductLikelihood(
            factors=[
                Bernoulli(),
                Categorical(classes=10, rename={"targets": "labels", "logits": "label_logits"}),
            ]
        )

    The value of each factor is logged by its name, which is `reconstruction_ARRAY` unless it has
    one. The mean of each is a tensor `reconstruction_ARRAY`; that of the factor of `targets`, or of
    the first factor if none compares these, is `reconstruction`.

    Settings:
        factors: likelihoods of weight 1.
    """

    factors: tuple[Likelihood, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factors or not all(isinstance(each, Likelihood) for each in self.factors):
            raise ValueError(f"ProductLikelihood needs factors=[...], likelihoods: {self!r}.")
        if self.observed is not None:
            raise ValueError("observed=... belongs to the factors of a ProductLikelihood.")
        for each in self.factors:
            if each.weight != 1.0 or isinstance(each, ProductLikelihood):
                raise ValueError(
                    f"The factor {each!r} of a ProductLikelihood must be a single likelihood of "
                    "weight 1: log p(x|z) is their sum. The product may have a weight."
                )
        factors = tuple(
            dataclasses.replace(each, name=each.name or f"reconstruction_{each.target}")
            for each in self.factors
        )
        labels = [each.label for each in factors]
        if len(set(labels)) < len(labels) or self.label in labels:
            raise ValueError(
                f"The factors of a ProductLikelihood are called {', '.join(labels)}, and the "
                f"product {self.label}: give each a name of its own, name='...'."
            )
        object.__setattr__(self, "factors", factors)

    def reads(self) -> set[str]:
        """Returns the names of the tensors that the factors read."""
        return set().union(*(each.reads() for each in self.factors))

    def mean_reads(self) -> set[str]:
        """Returns the names of the tensors that the means of the factors read."""
        return set().union(*(each.mean_reads() for each in self.factors))

    def __call__(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns `-log p(x|z)`, `[rows]`, nats."""
        return sum_in_order([each(tensors) for each in self.factors])

    def log_likelihood(self) -> tf.Tensor:
        """Raises TypeError: the factors read named tensors."""
        raise TypeError("A ProductLikelihood is called with named tensors: likelihood(tensors).")

    def mean(self) -> tf.Tensor:
        """Raises TypeError: the factors read named tensors."""
        raise TypeError("Means of a ProductLikelihood are its reconstructions(tensors).")

    def reconstruction(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the mean of the factor of `targets`, or of the first factor."""
        return self._main.reconstruction(tensors)

    def reconstructions(self, tensors: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the means of all factors by name."""
        found = {
            f"reconstruction_{each.target}": each.reconstruction(tensors) for each in self.factors
        }
        return {"reconstruction": found[f"reconstruction_{self._main.target}"], **found}

    @property
    def _main(self) -> Likelihood:
        of_targets = [each for each in self.factors if each.target == "targets"]
        return (*of_targets, self.factors[0])[0]

    def note(self, grey_values: bool) -> str | None:
        """Returns the remarks of the factors; grey values are those of `targets`."""
        notes = [each.note(grey_values and each.target == "targets") for each in self.factors]
        return " ".join(note for note in notes if note) or None


def _check_positive(term: Likelihood, setting: str) -> None:
    value = getattr(term, setting)
    if value <= 0:
        raise ValueError(f"{type(term).__name__}.{setting} must be positive, got {value}.")


def _check_shapes(term: Likelihood, targets: tf.Tensor, **parameters: Any) -> None:
    """Refuses parameters of another shape, which would broadcast to a meaningless number."""
    for name, value in parameters.items():
        if not targets.shape.is_compatible_with(value.shape):
            raise ValueError(
                f"Loss term {term.label!r} compares targets of shape {targets.shape} with {name!r} "
                f"of shape {value.shape}; they must have the same shape. The decoder writes "
                f"{name!r}."
            )


def _check_broadcasts(term: Likelihood, targets: tf.Tensor, **parameters: Any) -> None:
    """Refuses a parameter with more values than the data: pixels would count several times."""
    for name, value in parameters.items():
        try:
            together = tf.broadcast_static_shape(targets.shape, value.shape)
        except ValueError:
            together = None
        if together is None or not together.is_compatible_with(targets.shape):
            raise ValueError(
                f"Loss term {term.label!r}: {name!r} has shape {value.shape}, which does not "
                f"broadcast to the targets of shape {targets.shape}."
            )
