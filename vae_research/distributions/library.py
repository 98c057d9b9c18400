"""What the parts of this folder ask of TensorFlow Probability and of its distributions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vae_research.extras import require

if TYPE_CHECKING:
    import tensorflow as tf

_PACKAGES = {"tensorflow_probability": "tensorflow-probability", "tf_keras": "tf-keras"}


def check_installed(part: str) -> None:
    """Raises ImportError if a package of the extra `probability` is missing; imports nothing."""
    require(part, "probability", _PACKAGES)


def distributions() -> Any:
    """Returns the module `tensorflow_probability.distributions`, which takes seconds to import."""
    import tensorflow_probability as tfp

    return tfp.distributions


def key_of(seed: tf.Tensor) -> tf.Tensor:
    """Returns the key of the library, `[2]` int32, for a key of ours, `[2]` int64."""
    import tensorflow as tf

    from vae_research.randomness import philox_bits

    return tf.bitcast(philox_bits([2], seed), tf.int32)


def checked(part: str, made: Any, shape: Any, variables: Iterable[Any] = ()) -> Any:
    """Returns a distribution, if it is one of values of a shape.

    Args:
        part: the class that made it.
        made: what its method `distribution` returned.
        shape: of the values, a `tf.TensorShape`: batch and event together.
        variables: the weights of the part. Others would be neither trained nor saved.

    Raises:
        TypeError: it is not a distribution of one tensor.
        ValueError: it is one of other values, or uses variables that are not weights of the part.
    """
    import tensorflow as tf

    if not isinstance(made, distributions().Distribution) or not isinstance(
        made.event_shape, tf.TensorShape
    ):
        raise TypeError(
            f"{part}.distribution returned a {type(made).__name__}; it must return a distribution "
            "of one tensor, of the class tfp.distributions.Distribution."
        )
    if not made.batch_shape.concatenate(made.event_shape).is_compatible_with(shape):
        raise ValueError(
            f"{part}.distribution returned a {type(made).__name__} with batch shape "
            f"{made.batch_shape} and event shape {made.event_shape}; together they must be the "
            f"shape of the values, {shape}."
        )
    weights = {variable.value.ref() for variable in variables}
    for variable in made.variables:
        if variable.ref() not in weights:
            raise ValueError(
                f"{part}.distribution uses the variable {variable.name!r}, which is not a weight "
                "of a Keras layer: it would be neither trained nor saved. Weights are made by "
                "add_weight, or by layers that are attributes, in the method build of a prior or a "
                "bottleneck."
            )
    return made


def checked_continuous(part: str, made: Any) -> Any:
    """Returns a distribution of real codes, if it is not one of discrete values.

    Raises:
        ValueError: it is discrete: it has no density at real codes, and no gradient.
    """
    if is_discrete(made):
        raise ValueError(
            f"{part}.distribution returned a {type(made).__name__}, whose values are discrete, and "
            "the codes are real numbers: it has no density there. Choose a continuous "
            "distribution; a prior of integers says so in its class, of = 'indices of codes'."
        )
    return made


def is_discrete(made: Any) -> bool:
    """Returns whether the values of a distribution are discrete, whatever their type is.

    The library has no bijector from real numbers to discrete values, and none for a mixture.
    """
    tfd = distributions()
    if isinstance(made, tfd.MixtureSameFamily):
        return is_discrete(made.components_distribution)
    if isinstance(made, tfd.Mixture):
        return any(is_discrete(component) for component in made.components)
    wrappers = tfd.Independent, tfd.Sample, tfd.TransformedDistribution, tfd.Masked
    if isinstance(made, (*wrappers, tfd.BatchBroadcast, tfd.BatchReshape)):
        return is_discrete(made.distribution)
    try:
        return made.dtype.is_integer or made.experimental_default_event_space_bijector() is None
    except (NotImplementedError, TypeError):  # TypeError: the softmax bijector with NumPy 2
        return False


def typical(part: str, method: str, made: Any) -> tf.Tensor:
    """Returns the mean of a distribution as float32, or its mode if no mean is known or finite.

    Of a distribution of integers, such as classes, it is the mode.

    Raises:
        ValueError: neither is known.
    """
    import tensorflow as tf

    of_integers = made.dtype.is_integer
    found = []
    for known in (made.mode, made.mean) if of_integers else (made.mean, made.mode):
        with contextlib.suppress(NotImplementedError):
            found.append(tf.cast(known(), tf.float32))
    if not found or (len(found) == 1 and _has_no_mean(made)):
        raise ValueError(
            f"{part}.distribution returned a {type(made).__name__}, which knows neither its mean "
            f"nor its mode: write {method} in {part}."
        )
    # The library knows the mean of Student's t, which is NaN for one degree of freedom.
    return tf.where(tf.math.is_finite(found[0]), found[0], found[-1])


def _has_no_mean(made: Any) -> bool:
    """Returns whether the mean, or that of a component, is known to be undefined."""
    import tensorflow as tf

    for part in (made, *made.submodules):
        if "allow_nan_stats" in getattr(part, "parameters", {}):
            try:
                with contextlib.suppress(NotImplementedError):
                    part.copy(allow_nan_stats=False).mean()
            except (ValueError, tf.errors.InvalidArgumentError):
                return True
    return False
