"""Settings that differ between runs, and the runs of each setting: its seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from vae_research.runs.cli.definitions import STANDARD, defined
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.standard_flags import define_standard_flags
from vae_research.runs.compare.records import Record, Scalar
from vae_research.settings import did_you_mean

# Standard flags that are no settings of the model or its training: where and how a run was made,
# its seed, and what must be equal anyway, the data and the evaluation.
_OTHER_SECTIONS = ("The run", "Data", "Test figures", "TensorBoard", "Checkpoints")
_OTHER_FLAGS = ("device", "strategy", "threads", "jit", "steps_per_call", "run_eagerly")
# How the data were changed. Figures in bits and in stored units can be compared all the same.
_OF_DATA = ("rescale", "dequantize")
_TERMS, _SOURCE = "terms/", "source/"

# The first is that of the others which are not given.
_SEEDS = ("seed", "init_seed", "data_seed", "noise_seed")
# All seeds of a run: a number, or a text if its parts have their own.
Seed = int | str


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only.

    Attributes:
        values: of the settings that differ between all runs, by name.
        runs: by seed, in the order of seeds.
    """

    values: dict[str, Scalar]
    runs: dict[Seed, Record]

    def figure(self, key: str) -> dict[Seed, float]:
        """Returns a figure by seed, of the runs that have it."""
        return {
            seed: float(value)
            for seed, run in self.runs.items()
            if isinstance(value := run.get(key), int | float)
        }

    @property
    def changed_files(self) -> list[str]:
        """The files of the source that differ between the seeds: these may not be replicates."""
        keys = [key for run in self.runs.values() for key in run if key.startswith(_SOURCE)]
        known = [run for run in self.runs.values() if any(run[key] for key in keys)]
        return [
            key.removeprefix(_SOURCE)
            for key in dict.fromkeys(keys)
            if len({run[key] for run in known}) > 1
        ]

    def __str__(self) -> str:
        return in_words(self.values) or "all runs"


def in_words(values: Mapping[str, Scalar]) -> str:
    """Returns settings as text, `kl_weight=2.0, latent_dim=10`."""
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Scalar) -> str:
    """Returns the value of a setting as on a command line.

    >>> shown(1.0), shown(0.001), shown(None)
    ('1', '0.001', 'default')
    """
    if value is None:
        return "default"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def differing(records: Sequence[Record]) -> list[str]:
    """Returns the names of the settings that differ between runs, in the order of the flags.

    Terms of the loss, `terms/NAME`, are included if they differ between runs with equal flags,
    because the source differs.
    """
    define_standard_flags()
    others = {
        f"flags/{name}"
        for name, flag in defined[STANDARD].items()
        if flag.section in _OTHER_SECTIONS or name in _OTHER_FLAGS
    }
    flags = [key for key in records[0] if key.startswith("flags/") and key not in others]
    names = ["experiment", *_OF_DATA, *(key.removeprefix("flags/") for key in flags)]
    found = [name for name in names if len({value_of(run, name) for run in records}) > 1]
    for term in (key for key in records[0] if key.startswith(_TERMS)):
        if len(_values(records, [*found, term])) > len(_values(records, found)):
            found.append(term)
    return found


def _values(records: Sequence[Record], names: Sequence[str]) -> set[tuple[Scalar, ...]]:
    """Returns the combinations of values of these settings that occur."""
    return {tuple(value_of(run, name) for name in names) for run in records}


def value_of(record: Record, name: str) -> Scalar:
    """Returns the value of a setting: `experiment`, a flag, a term, or one of the data."""
    return record.get(_key_of(name))


def _key_of(name: str) -> str:
    """Returns the key of a setting in a record."""
    if name == "experiment" or name.startswith(_TERMS):
        return name
    return f"data/{name}" if name in _OF_DATA else f"flags/{name}"


def seed_of(record: Record) -> Seed:
    """Returns the seeds of a run as one value; runs with equal ones have the same noise.

    >>> seed_of({"flags/seed": 3, "flags/init_seed": None})
    3
    >>> seed_of({"flags/seed": 3, "flags/init_seed": 0})
    '3, init_seed=0'
    """
    seed = record["flags/seed"]
    given = {name: record.get(f"flags/{name}") for name in _SEEDS[1:]}
    own = {name: value for name, value in given.items() if value not in (None, seed)}
    return ", ".join([str(seed), in_words(own)]) if own else int(seed or 0)


def group(records: Sequence[Record]) -> list[Setting]:
    """Returns the settings of runs, each with its seeds.

    Raises:
        UsageError: two runs have one setting and one seed, so that they are no replicates.
    """
    names = differing(records)
    found: dict[tuple[Scalar, ...], Setting] = {}
    for record in sorted(records, key=lambda record: str(seed_of(record)).zfill(10)):
        values = {name: value_of(record, name) for name in names}
        setting = found.setdefault(tuple(values.values()), Setting(values, {}))
        seed = seed_of(record)
        if seed in setting.runs:
            raise UsageError(
                f"{setting.runs[seed]['run']} and {record['run']} have the same settings and the "
                f"same seed, {seed}: they would count as two replicates. Leave one of them out."
            )
        setting.runs[seed] = record
    order = {record["run"]: number for number, record in enumerate(records)}
    return sorted(
        found.values(), key=lambda setting: min(order[run["run"]] for run in setting.runs.values())
    )


def find_runs(wanted: str, records: Sequence[Record]) -> list[Record]:
    """Returns the runs that `--baseline` means.

    Args:
        wanted: settings, `kl_weight=1` or `kl_weight=1,latent_dim=20`, also with `seed=0`; or the
            name of a run, or its path as in a table.
        records: all runs.

    Raises:
        UsageError: there are none.
    """
    found = [record for record in records if wanted in (record["run"], record["name"])]
    if found:
        return found
    if "=" not in wanted:
        names = [str(record[key]) for key in ("name", "run") for record in records if record[key]]
        raise UsageError(
            f"--baseline={wanted}: there is no run of this name.{did_you_mean(wanted, names)} Give "
            f"a run, or settings such as {_example(records)}."
        )
    found = list(records)
    for part in _parts(wanted):
        name, _, text = part.partition("=")
        key = _key_of(name)
        if key not in records[0]:
            known = [key.removeprefix("flags/") for key in records[0] if key.startswith("flags/")]
            raise UsageError(
                f"--baseline={wanted}: no run has a setting {name!r}.{did_you_mean(name, known)}"
            )
        matching = [record for record in found if _is(record[key], text)]
        if not matching:
            values = dict.fromkeys(shown(record[key]) for record in found)
            raise UsageError(
                f"--baseline={wanted}: no run has {name}={text}; there are {', '.join(values)}."
            )
        found = matching
    return found


def _parts(wanted: str) -> Iterable[str]:
    """Gives `name=value` of a comma-separated list, whose values may be lists themselves."""
    part = ""
    for piece in wanted.split(","):
        if "=" in piece and part:
            yield part
            part = piece
        else:
            part = f"{part},{piece}" if part else piece
    yield part


def _is(value: Scalar, text: str) -> bool:
    """Returns whether a text is a value as on a command line: 1 is 1.0, false is False."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text.lower() == shown(value).lower()


def _example(records: Sequence[Record]) -> str:
    names = differing(records) or ["seed"]
    return in_words({name: value_of(records[0], name) for name in names[:1]})
