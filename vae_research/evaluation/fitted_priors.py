"""Priors that are fitted to the codes of a trained model."""

from __future__ import annotations

import math
import numbers
import random
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vae_research.arguments import checked_integer, checked_seed
from vae_research.evaluation.estimates import named_arrays
from vae_research.model import VAE
from vae_research.priors.fitted import refuse_other_codes
from vae_research.priors.prior import Prior
from vae_research.priors.vamp import VampPrior
from vae_research.priors.whitened import WhitenedPrior
from vae_research.randomness import evaluation_key, fold_in

_ROWS_PER_CALL = 1000  # examples that are encoded at once


def fit_prior(
    vae: VAE,
    data: Any,
    prior: Prior,
    *,
    epochs: int = 30,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
    verbose: int = 0,
) -> Prior:
    """Returns a prior that is fitted to the codes of a trained model, which stays as it is.

    The codes are one sample of the posterior for each example, whose density under the fitted prior
    is what the ELBO has, or the codes themselves if they have no noise. The prior is trained by
    maximum likelihood (or by its own `training_loss`) with Adam, whose learning rate falls to zero;
    a mixture begins with what the EM algorithm finds. Codes of real numbers are whitened first:
    what is returned is `WhitenedPrior(prior)`.
    Of several latents the codes are columns, as `code_layout.flatten` makes them.

        prior = vr.fit_prior(vae, data.train.prepare(), vr.MixturePrior(10))
        vae.sample(16, prior=prior)
        vr.estimate(vae, data.test.prepare(), prior=prior)

    Ghosh et al. 2020 (arXiv:1903.12436), section 4; Dai and Wipf 2019 (arXiv:1903.05789), section
    4.

    Args:
        vae: a trained model.
        data: the training data, `[count, ...]`, or a dictionary of such arrays.
        prior: a new one, which no model has and which was not fitted before.
        epochs: of the codes.
        batch_size: codes in a step.
        learning_rate: of the first step.
        seed: of initial weights, noise and order, 0 to 2**32 - 1.
        verbose: 1 shows a progress bar.

    Raises:
        ValueError: the prior belongs to a model, was fitted before, or is of other codes; there are
            no data, or they differ in length; codes are not finite, or the fit does not stay so; an
            argument is not a positive number.
    """
    for name, value in {"epochs": epochs, "batch_size": batch_size}.items():
        checked_integer(name, value, 1)
    is_number = isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool)
    if not is_number or not 0.0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a positive number, got {learning_rate!r}.")
    checked_seed(seed)
    _refuse_used(prior, vae)
    values = _values_of_codes(vae, named_arrays("fit_prior", data), seed)
    refuse_other_codes(prior, vae.bottleneck, values)
    if np.issubdtype(values.dtype, np.floating) and not isinstance(prior, WhitenedPrior):
        prior = WhitenedPrior(prior)
    state = random.getstate()
    random.seed(seed)  # of which Keras takes the seeds of initial weights
    try:
        prior.build_for(values.shape[1:])
    finally:
        random.setstate(state)
    prior.adapt(values, seed)
    _train(prior, values, epochs, min(batch_size, len(values)), learning_rate, seed, verbose)
    return prior


def _refuse_used(prior: Prior, vae: VAE) -> None:
    """Raises ValueError for what is not a prior, or for one whose values would be lost."""
    if not isinstance(prior, Prior):
        raise ValueError(f"fit_prior needs a Prior, for example MixturePrior(10), got {prior!r}.")
    if isinstance(prior, VampPrior) or prior is getattr(vae.bottleneck, "prior", None):
        raise ValueError(
            f"{type(prior).__name__} {prior.name!r} is trained with a model. Fit another one: "
            "MixturePrior(10), RealNVPPrior() or SecondStagePrior()."
        )
    parts = (prior, prior.prior) if isinstance(prior, WhitenedPrior) else (prior,)
    for part in parts:
        if part.built:
            raise ValueError(
                f"{type(part).__name__} {part.name!r} has values already, of another fit or model, "
                "and would lose them: make a new one."
            )


def _values_of_codes(vae: VAE, data: Mapping[str, Any], seed: int) -> np.ndarray:
    """Returns what a prior is fitted to, `[count, ...]`; see `VAE.prior_values`."""
    found = []
    for start in range(0, len(data["inputs"]), _ROWS_PER_CALL):
        rows = slice(start, start + _ROWS_PER_CALL)
        batch = {name: tf.constant(values[rows]) for name, values in data.items()}
        key = fold_in(evaluation_key(seed, start), "codes of a fitted prior")
        found.append(vae.prior_values(vae.infer(batch, seed=key, num_samples=1)).numpy())
    values = np.concatenate(found)
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(values))} values of the codes are not finite: the "
            "model has diverged, and no prior can be fitted."
        )
    return values


def _train(
    prior: Prior,
    values: np.ndarray,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    verbose: int,
) -> None:
    variables = prior.trainable_variables
    if not variables:  # all there is was computed by `adapt`
        return
    steps = len(values) // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    optimizer = keras.optimizers.Adam(schedule)
    optimizer.build(variables)
    codes = tf.constant(values)

    def step(index: tf.Tensor, total: tf.Tensor, order: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = order[index * batch_size : (index + 1) * batch_size]
        key = fold_in(evaluation_key(seed, optimizer.iterations.value), "noise of a fitted prior")
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(prior.training_loss(tf.gather(codes, rows), key))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return index + 1, total + loss, order

    @tf.function(autograph=False)
    def train_epoch(order: tf.Tensor) -> tf.Tensor:
        start = tf.constant(0), tf.constant(0.0), order
        return tf.while_loop(lambda index, *_: index < steps, step, start)[1] / steps

    orders = np.random.default_rng(seed)
    bar = keras.utils.Progbar(epochs, verbose=verbose, unit_name="epoch")
    for epoch in range(1, epochs + 1):
        loss = float(train_epoch(tf.constant(orders.permutation(len(values)))))
        bad = [variable.path for variable in variables if not np.all(np.isfinite(variable))]
        if bad or not np.isfinite(loss):
            problem = f"{', '.join(bad)} not finite" if bad else f"loss {loss}"
            raise ValueError(
                f"The fit of {type(prior).__name__} has diverged in epoch {epoch}, {problem}: "
                f"choose a smaller learning_rate than {learning_rate:g}."
            )
        bar.update(epoch, [("loss", loss)])
