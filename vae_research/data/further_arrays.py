"""Arrays beside the inputs of a data set, such as labels and masks: what can be used of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_research.data.checks import (
    DataError,
    as_further_array,
    as_further_rows,
    as_labels,
    number_names,
)
from vae_research.data.factors import FACTORS
from vae_research.data.sources import Rows

# Names that a forward pass writes, or passes to a network itself.
_OF_CODES = ("z", "z_mean", "z_log_var", "z_prior", "kl", "log_posterior", "log_prior")
_OF_DECODER = ("logits", "x_mean", "x_log_var", "reconstruction")
_OF_LEVELS = ("kl_", "log_posterior_", "log_prior_")  # the beginnings of such names
_WRITTEN = {"step", "seed", "training", *_OF_CODES, *_OF_DECODER}


def unpacked(values: Any, numbers: npt.ArrayLike | None, where: str) -> tuple[Any, dict[str, Any]]:
    """The values of a split and its further arrays, unchecked."""
    given: dict[str, Any] = dict(values) if isinstance(values, Mapping) else {"inputs": values}
    if "inputs" not in given:
        raise DataError(f"{where}: has {', '.join(map(str, given)) or 'nothing'}, and no 'inputs'")
    if numbers is not None:
        if "labels" in given:
            raise DataError(f"{where}: labels are given twice, in the dictionary and beside it")
        given["labels"] = numbers
    return given.pop("inputs"), given


def checked_further(
    further: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, np.ndarray], name: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """The further arrays of each split that can be used, and why others cannot, by name."""
    checked: dict[str, dict[str, np.ndarray]] = {key: {} for key in further}
    left_out: dict[str, str] = {}
    labels = {
        key: arrays["labels"]
        for key, arrays in further.items()
        if "labels" in arrays and not isinstance(arrays["labels"], Rows)
    }
    try:
        labels = number_names(labels, name)
    except DataError as error:
        left_out["labels"] = str(error)
    for key, arrays in further.items():
        for label, values in arrays.items():
            where = f"{name}: {key}" if label == "labels" else f"{name}: {key} {label}"
            try:
                _check_name(label, where)
                if isinstance(values, Rows):
                    array = as_further_rows(values, len(inputs[key]), where)
                elif label == "labels":
                    array = as_labels(labels[key], len(inputs[key]), where)
                else:
                    array = as_further_array(values, len(inputs[key]), where)
                    if label == FACTORS and array.dtype.kind in "ui" and array.ndim == 2:
                        array = array.astype(np.int64, copy=False)
                _check_kind(label, array, checked, where)
            except DataError as error:
                left_out.setdefault(label, str(error))
            else:
                checked[key][label] = array
    for arrays in checked.values():
        for label in left_out.keys() & arrays.keys():
            del arrays[label]
    return checked, left_out


def _check_name(label: object, where: str) -> None:
    of_level = isinstance(label, str) and label.startswith(_OF_LEVELS)
    if label in _WRITTEN or of_level:
        raise DataError(f"{where}: a forward pass writes {label!r} itself; give another name")
    if not isinstance(label, str) or not label.isidentifier():
        raise DataError(f"{where}: {label!r} cannot be the name of a parameter; give another name")


def _check_kind(
    label: str, array: np.ndarray, checked: Mapping[str, Mapping[str, np.ndarray]], where: str
) -> None:
    if label == "targets" and array.dtype.kind != "f":
        raise DataError(
            f"{where}: targets are read as stored, and a likelihood needs floats; got {array.dtype}"
        )
    for key, arrays in checked.items():
        other = arrays.get(label, array)
        if (other.dtype, other.shape[1:]) != (array.dtype, array.shape[1:]):
            raise DataError(
                f"{where}: rows are {array.dtype} {array.shape[1:]}, those of {key} {other.dtype} "
                f"{other.shape[1:]}; all splits need the same"
            )
