"""Which runs compare: those with figures of the same data, measured in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vae_research.evaluation import SCORES
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.records import Record, Scalar

# What runs must have in common, and how to say it.
_DATA = {
    "data/fingerprint": "the data (fingerprint)",
    "data/counts/train": "the number of training examples",
    "data/counts/validation": "the number of validation examples",
    "data/counts/test": "the number of test examples",
    "data/shape": "the shape of the data",
    "data/binarize": "--binarize",
}
_UNIT = {
    "data/rescale": "--rescale",
    "data/scaling": "the scaling of the data, and with it the unit of a density,",
}
_LIKELIHOOD = {
    "data/dequantize": "--dequantize",
    "likelihood/measure": "the likelihood",
    "likelihood/note": "the note on the likelihood",
}
_TARGET = {"likelihood/measure": "what the likelihood is of,"}
_SEED = {"evaluation/seed": "--evaluation_seed"}
_OF_SCORES = {"evaluation/factor_examples": "--disentanglement_examples", **_SEED}
_EVALUATION = {"evaluation/importance_samples": "--importance_samples", **_SEED}
_BITS, _STORED = "bits_per_dimension_", "_in_stored_units"
# The logarithm of a mean over draws grows with the number of draws; a mean does not.
_OF_DRAWS = "bits_per_dimension_nll_of_levels"
_DRAWS = {"evaluation/dequantize_draws": "--dequantize_draws"}


def refuse_different(records: Sequence[Record], figures: Sequence[str]) -> None:
    """Raises UsageError unless these test figures can be compared between all finished runs."""
    for other in records[1:]:
        if (difference := difference_between(records[0], other, figures)) is not None:
            names = f"{records[0]['run']} and {other['run']}"
            raise UsageError(
                f"{names} cannot be compared: {difference}.{_advice(records, figures)}"
            )


def difference_between(
    first: Mapping[str, Scalar], second: Mapping[str, Scalar], figures: Sequence[str]
) -> str | None:
    """Returns in words why test figures of two runs cannot be compared, None if they can.

    Bits per dimension describe the values as stored, whatever the likelihood and the scaling of a
    model; figures in stored units do not depend on the scaling, nor scores of disentanglement on
    the likelihood.
    """
    names = _compared(figures)
    units = [f"units/{figure}" for figure in figures]
    names |= {key: f"the unit of {key.removeprefix('units/')}" for key in units}
    in_bits = all(figure.startswith(_BITS) for figure in figures)
    for key, words in names.items():
        mine, others = first.get(key), second.get(key)
        is_unknown = key in units and None in (mine, others)  # a figure that one of them lacks
        if key in _TARGET and in_bits:
            mine, others = _target(mine), _target(others)
        if mine != others and not is_unknown:
            return f"{words} is {_quoted(mine)} and {_quoted(others)}"
    return None


def _compared(figures: Sequence[str]) -> dict[str, str]:
    """Returns what the runs with these figures must have in common, in words by key."""
    if figures and all(figure in SCORES for figure in figures):  # whatever the likelihood is
        return {**_DATA, **_OF_SCORES}
    in_nats = [figure for figure in figures if not figure.startswith(_BITS)]
    in_units_of_model = any(not figure.endswith(_STORED) for figure in in_nats)
    return {
        **_DATA,
        **(_UNIT if in_units_of_model else {}),
        **(_LIKELIHOOD if in_nats else _TARGET),
        **_EVALUATION,
        **(_OF_SCORES if any(figure in SCORES for figure in figures) else {}),
        **(_DRAWS if _OF_DRAWS in figures else {}),
    }


def _target(measure: Scalar) -> Scalar:
    """Returns what a likelihood describes: `targets` if it is the `density of targets`."""
    return measure.partition(" of ")[2] if isinstance(measure, str) else measure


def _advice(records: Sequence[Record], figures: Sequence[str]) -> str:
    """Returns a sentence with the figures that can be compared; empty if there are none."""
    known = [key.removeprefix("units/") for key in records[0] if key.startswith("units/")]
    found = [
        name
        for name in known
        if name not in figures
        and all(run.get(f"test/{name}") is not None for run in records)
        and all(difference_between(records[0], run, [name]) is None for run in records)
    ]
    return f" These can: --figures={','.join(found)}." if found else ""


def _quoted(value: Scalar) -> str:
    return "not recorded" if value is None else repr(value)
