"""All checks of a model, in the order of the table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vae_research.codes import CodeLayout
from vae_research.data.split import Split
from vae_research.losses.term import Likelihood
from vae_research.model import VAE
from vae_research.priors.prior import Prior
from vae_research.randomness import evaluation_key
from vae_research.selfcheck import densities, divergences, gradients, recomputation
from vae_research.selfcheck.outcome import NotApplicableError, Outcome
from vae_research.selfcheck.repetition import resumed_apart
from vae_research.tensors import bind

# Examples of a forward pass, of an evaluation, and its samples.
_ROWS, _EXAMPLES, _SAMPLES = 4, 50, 100
_HEADS = 2
_KEY = 3


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        model: with its trained values, or new.
        train, test: splits of its data.
        names: further arrays of the data that the model reads.
        batch_size, seed: of the training.
        fresh: makes the model again, new, compiled and built.
        of_size: makes it with codes of so many values; raises an error if it cannot.
        checkpoint: the values of the model, None if it is new.
    """

    model: VAE
    train: Split
    test: Split
    names: Sequence[str]
    batch_size: int
    seed: int
    fresh: Callable[[], VAE]
    of_size: Callable[[int], VAE]
    checkpoint: Path | None = None

    def data(self, count: int) -> dict[str, Any]:
        """Returns the first test examples, as the model reads them."""
        return self.test.tensors(slice(0, count), self.names)


def checked(subject: Subject) -> Iterator[Outcome]:
    """Yields what each check found."""
    for values in (1, 2):
        yield from small_codes(subject, values)
    yield from codes(subject)
    yield from likelihoods(subject)
    yield from terms(subject)
    yield from figures(subject)
    yield resumed_training(subject)


def resumed_training(subject: Subject) -> Outcome:
    """Trains a few steps with an interruption, and without one."""
    return measured(
        "resumed training",
        "state with and without an interruption, every bit",
        0.0,
        lambda: resumed_apart(
            subject.fresh,
            subject.train,
            subject.batch_size,
            subject.seed,
            subject.names,
            subject.checkpoint,
        ),
    )


def measured(
    name: str, compared: str, tolerance: float, difference: Callable[[], float]
) -> Outcome:
    """Returns the outcome of a check; an error of the part is a failure with its message."""
    try:
        return Outcome(name, compared, difference(), tolerance)
    except NotApplicableError as error:
        return Outcome(name, compared, reason=str(error))
    except Exception as error:  # of the part, which may raise anything
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Outcome(name, compared, float("nan"), tolerance, reason=why)


# ---------------------------------------------------------------- codes of one or two values


def small_codes(subject: Subject, values: int) -> Iterator[Outcome]:
    """Checks densities by sums over a grid, of a model whose codes are small enough for that."""
    size = f"{values} value{'s' * (values > 1)}"
    key = evaluation_key(_KEY, values)
    try:
        model = _model_of_size(subject, values)
        bottleneck = model.bottleneck
    except NotApplicableError as error:
        for part in ("prior", "posterior"):
            yield Outcome(f"{part}, {size}", "integral of the density and 1", reason=str(error))
        return
    prior = getattr(bottleneck, "prior", None)
    if isinstance(prior, Prior):
        yield from _density(
            f"prior, {size}",
            lambda: densities.Grid.of(
                prior.of, prior.size, lambda: prior.sample(densities.DRAWS, key)
            ),
            prior.log_prob,
        )
    else:
        reason = "the bottleneck holds no Prior"
        yield Outcome(f"prior, {size}", "integral of the density and 1", reason=reason)
    heads = _heads(model, subject.data(1))
    kind = getattr(prior, "of", "real numbers")

    def log_prob(columns: tf.Tensor) -> tf.Tensor:
        codes = divergences.named_codes(bottleneck, columns)
        return bottleneck.log_prob(**codes, **divergences.of_rows(heads, len(columns)))

    def grid() -> densities.Grid:
        if not hasattr(bottleneck, "log_prob"):
            raise NotApplicableError("the bottleneck has no log_prob")
        return densities.Grid.of(
            kind,
            CodeLayout.of(bottleneck).size,
            lambda: divergences.codes_of(bottleneck, heads, densities.DRAWS, key),
        )

    yield from _density(f"posterior, {size}", grid, log_prob)


def _model_of_size(subject: Subject, values: int) -> VAE:
    """Returns the model itself if its codes have so many values, otherwise one with moved weights.

    A new prior is often a standard normal one, whatever it can become.
    """
    if subject.model.bottleneck.latent_dim == values:
        return subject.model
    try:
        model = subject.of_size(values)
    except Exception as error:  # of `build`, which may need larger codes
        raise NotApplicableError(" ".join(str(error).split())) from error
    found = model.bottleneck.latent_dim
    if found != values:
        raise NotApplicableError(f"with --latent_dim={values} codes have {found} values")
    random = np.random.default_rng(_KEY)
    for variable in model.bottleneck.trainable_variables:
        variable.assign(variable + 0.4 * random.standard_normal(variable.shape))
    return model


def _density(
    name: str,
    grid: Callable[[], densities.Grid],
    log_prob: Callable[[tf.Tensor], tf.Tensor],
) -> Iterator[Outcome]:
    kept: list[Any] = []

    def mass() -> float:
        kept.append(grid())
        kept.append(kept[0].mass(log_prob))
        return abs(float(kept[1].sum()) - 1.0)

    def samples() -> float:
        shape = kept[1] / kept[1].sum()  # the factor was checked above
        moments = kept[0].moments_apart(shape) / densities.MOMENTS_TOLERANCE
        cells = kept[0].cells_apart(shape) / densities.CELLS_TOLERANCE
        return max(float(moments), float(cells))

    first = measured(name, "integral of the density and 1", densities.MASS_TOLERANCE, mass)
    yield first
    if len(kept) == 2:
        yield measured(name, "samples and density, share of the tolerances", 1.0, samples)


# ---------------------------------------------------------------- codes of any size


def _heads(model: VAE, data: Mapping[str, Any], row: int = 0) -> dict[str, tf.Tensor]:
    """Returns what the bottleneck reads of one example, float32, beside `seed`."""
    tensors = model.forward(data, num_samples=1)
    read = bind("selfcheck", model.bottleneck, tensors)
    return {
        name: tf.cast(value[row : row + 1], tf.float32)
        if value.dtype.is_floating
        else value[row : row + 1]
        for name, value in read.items()
        if name != "seed"
    }


def codes(subject: Subject) -> Iterator[Outcome]:
    """Checks closed forms against samples, of the model as it is."""
    bottleneck = subject.model.bottleneck
    heads = [_heads(subject.model, subject.data(_HEADS), row) for row in range(_HEADS)]
    key = evaluation_key(_KEY, 0)
    count = divergences.draws_of(bottleneck)

    @functools.cache
    def drawn(row: int) -> divergences.Drawn:
        return divergences.drawn(bottleneck, heads[row], count, key)

    def each(apart: Callable[[Mapping[str, tf.Tensor], divergences.Drawn], float]) -> float:
        return max(apart(one, drawn(row)) for row, one in enumerate(heads))

    def value(one: Mapping[str, tf.Tensor], found: divergences.Drawn) -> float:
        closed, _ = divergences.closed_form(bottleneck, one, key)
        return float(np.max(divergences.errors_of(found.ratio, closed)))

    def gradient(one: Mapping[str, tf.Tensor], found: divergences.Drawn) -> float:
        _, by_head = divergences.closed_form(bottleneck, one, key)
        return max(
            float(np.max(divergences.errors_of(found.gradients[name], wanted)))
            for name, wanted in by_head.items()
        )

    def again(index: int, one: Mapping[str, tf.Tensor], found: divergences.Drawn) -> float:
        return divergences.densities_again(bottleneck, one, found)[index]

    errors = divergences.STANDARD_ERRORS
    yield measured(
        "KL divergence", "closed form and samples, standard errors", errors, lambda: each(value)
    )
    yield measured(
        "KL divergence", "its gradient and samples, standard errors", errors, lambda: each(gradient)
    )
    for index, part in enumerate(("log_posterior", "log_prior")):
        yield measured(
            part,
            "as written and by log_prob of the same codes",
            divergences.AGAIN_TOLERANCE,
            functools.partial(each, functools.partial(again, index)),
        )


def likelihoods(subject: Subject) -> Iterator[Outcome]:
    """Yields whether the densities of the likelihoods integrate to one."""
    tensors = subject.model.forward(subject.data(_ROWS), num_samples=1)

    def apart(likelihood: Likelihood) -> float:
        mass = densities.mass_of_single_values(likelihood, tensors)
        return float(np.max(np.abs(mass - 1.0)))

    for likelihood in subject.model.objective.likelihood.factors:
        yield measured(
            f"likelihood {likelihood.label}",
            "integral of p(x|z) over single values and 1",
            densities.MASS_TOLERANCE,
            functools.partial(apart, likelihood),
        )


def terms(subject: Subject) -> Iterator[Outcome]:
    """Checks every loss term of the objective."""
    data = subject.data(_ROWS)
    objective = subject.model.objective
    tensors = subject.model.forward(data)
    given = {*data, "inputs", "targets", "step", "seed"}
    factors = objective.likelihood.factors
    for term in [*(t for t in objective.terms if t not in factors), *factors]:
        if len(getattr(term, "factors", ())) > 1:
            continue  # its factors are checked
        names = gradients.tensors_differentiated(term, tensors, given)
        if term.weight is None or not names:
            reason = "it is only logged" if term.weight is None else "it reads only data"
            yield Outcome(f"term {term.label}", "gradient and differences", reason=reason)
            continue
        for name in names:
            yield measured(
                f"term {term.label}",
                f"gradient by {name} and float64 differences, share",
                gradients.GRADIENT_TOLERANCE,
                functools.partial(gradients.gradient_apart, term, tensors, name),
            )
    yield measured(
        "ELBO",
        "with all weights 1 and all 3.7, nats",
        0.0,
        lambda: gradients.elbo_apart(objective, tensors),
    )


def figures(subject: Subject) -> Iterator[Outcome]:
    """Checks the ELBO and the test figures against NumPy."""
    data = subject.data(_EXAMPLES)
    yield measured(
        "ELBO",
        "of the model and of NumPy, same samples, share of parts",
        recomputation.SAME_SAMPLES_TOLERANCE,
        lambda: recomputation.Recomputation(subject.model).elbo_apart(data),
    )
    yield measured(
        "test figures",
        "of estimate and of NumPy, standard errors",
        recomputation.OTHER_SAMPLES_TOLERANCE,
        lambda: max(
            recomputation.Recomputation(subject.model).figures_apart(data, _SAMPLES).values()
        ),
    )
