"""The likelihood p(x|z) of several targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tensorflow as tf

from vae_research.losses.term import Likelihood
from vae_research.tensors import sum_in_order


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

    def samples(self, tensors: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns a draw from each factor by the name of its array."""
        return {name: each for part in self.factors for name, each in part.samples(tensors).items()}

    @property
    def _main(self) -> Likelihood:
        of_targets = [each for each in self.factors if each.target == "targets"]
        return (*of_targets, self.factors[0])[0]

    def note(self, grey_values: bool) -> str | None:
        """Returns the remarks of the factors; grey values are those of `targets`."""
        notes = [each.note(grey_values and each.target == "targets") for each in self.factors]
        return " ".join(note for note in notes if note) or None
