"""Which runs compare: those with figures of the same data, measured in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vae_research.runs.cli.errors import UsageError
from vae_research.runs.compare.records import Record, Scalar

# What runs must have in common, and how to say it.
_COMPARED = {
    "data/fingerprint": "the data (fingerprint)",
    "data/counts/train": "the number of training examples",
    "data/counts/validation": "the number of validation examples",
    "data/counts/test": "the number of test examples",
    "data/shape": "the shape of the data",
    "data/rescale": "--rescale",
    "data/scaling": "the scaling of the data, and with it the unit of a density,",
    "data/binarize": "--binarize",
    "data/dequantize": "--dequantize",
    "likelihood/measure": "the likelihood",
    "likelihood/note": "the note on the likelihood",
    "evaluation/importance_samples": "--importance_samples",
    "evaluation/seed": "--evaluation_seed",
}


def refuse_different(records: Sequence[Record]) -> None:
    """Raises UsageError unless the test figures of all finished runs compare."""
    for other in records[1:]:
        if (difference := difference_between(records[0], other)) is not None:
            raise UsageError(
                f"{records[0]['run']} and {other['run']} do not compare: {difference}."
            )


def difference_between(first: Mapping[str, Scalar], second: Mapping[str, Scalar]) -> str | None:
    """Returns in words why two runs do not compare, None if they do."""
    units = [key for key in first if key.startswith("units/") and key in second]
    names = _COMPARED | {key: f"the unit of {key.removeprefix('units/')}" for key in units}
    for key, words in names.items():
        mine, others = first.get(key), second.get(key)
        is_unknown = key in units and None in (mine, others)  # a figure that one of them lacks
        if mine != others and not is_unknown:
            return f"{words} is {_quoted(mine)} and {_quoted(others)}"
    return None


def _quoted(value: Scalar) -> str:
    return "not recorded" if value is None else repr(value)
