"""The points of a sweep: which flags have which values, and what each point is called."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence

from vae_research.arguments import LARGEST_SEED
from vae_research.runs.cli.errors import UsageError

# Flags that a sweep sets itself, and what does their work.
OWN_FLAGS = {
    "run_dir": "every point has its own run directory below --into",
    "dry_run": "--check examines all points and trains none",
    "threads": "all points have those of --threads of the sweep, by default their share of cores",
}
_FLAG = re.compile(r"[A-Za-z]\w*")
# Characters of a value that are not put into a folder's name.
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclasses.dataclass(frozen=True)
class Point:
    """A run of a sweep.

    Attributes:
        name: of its run directory, such as `kl_weight=0.5,seed=0`.
        flags: the values, as text, of the flags that differ between points.
        trial: its number in a search, None in a grid.
    """

    name: str
    flags: Mapping[str, str]
    trial: int | None = None

    @property
    def arguments(self) -> list[str]:
        """Its flags as a command line has them."""
        return [f"--{name}={value}" for name, value in self.flags.items()]


def parse_assignment(option: str, text: str) -> tuple[str, str]:
    """Returns flag and value of `flag=value`.

    Raises:
        UsageError: it is something else.
    """
    name, equals, value = text.partition("=")
    if not equals or not _FLAG.fullmatch(name) or not value:
        raise UsageError(
            f"{option} {text!r}: write the name of a flag, without dashes, an equals sign and what "
            f"it is to be, for example {option} 'latent_dim=10'."
        )
    return name, value


def parse_over(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns flag and values of `flag=value,value`, or of `flag=value|value`.

    Raises:
        UsageError: it is something else, or a value is empty or stands there twice.

    >>> parse_over("hidden_units=500|500,500")
    ('hidden_units', ('500', '500,500'))
    """
    name, rest = parse_assignment("--over", text)
    values = tuple(value.strip() for value in rest.split("|" if "|" in rest else ","))
    if "" in values:
        raise UsageError(f"--over {text!r}: a value is empty.")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise UsageError(f"--over {text!r}: {twice} stands there twice.")
    return name, values


def parse_point(text: str) -> dict[str, str]:
    """Returns the flags of `flag=value flag=value`.

    Raises:
        UsageError: it is something else, or a flag stands there twice.

    >>> parse_point("kl_weight=0.5 latent_dim=10")
    {'kl_weight': '0.5', 'latent_dim': '10'}
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--point {text!r}: {error}.") from error
    if not words:
        raise UsageError("--point '': write flags, for example --point 'kl_weight=0.5 epochs=20'.")
    pairs = [parse_assignment("--point", word) for word in words]
    _refuse_twice([name for name, _ in pairs], f"--point {text!r}")
    return dict(pairs)


def grid(
    over: Sequence[tuple[str, Sequence[str]]],
    listed: Sequence[Mapping[str, str]],
    seeds: int | None,
    first_seed: int,
) -> list[Point]:
    """Returns the points of a grid or a list, each with every seed; the seeds vary fastest.

    Args:
        over: flags and their values: every combination is a point.
        listed: settings of `--point`, each of which is combined with `over`.
        seeds: how many; None if a flag or a point has them.
        first_seed: of these.

    Raises:
        UsageError: a flag is in two places, or two points have one name.

    >>> [point.name for point in grid([("kl_weight", ["0.5", "1"])], [], 2, 0)]
    ['kl_weight=0.5,seed=0', 'kl_weight=0.5,seed=1', 'kl_weight=1,seed=0', 'kl_weight=1,seed=1']
    """
    axes = [*over]
    if seeds is not None:
        if first_seed + seeds - 1 > LARGEST_SEED:
            raise UsageError(f"--seed={first_seed} leaves no room for {seeds} seeds.")
        axes.append(("seed", [str(first_seed + number) for number in range(seeds)]))
    names = [name for name, _ in axes]
    _refuse_twice(names, "--over")
    for each in listed:
        _refuse_twice([*each, *names], "--point and --over")
    for name in {*names, *itertools.chain.from_iterable(listed)}:
        if name in OWN_FLAGS:
            raise UsageError(f"{name} cannot be a setting of a sweep: {OWN_FLAGS[name]}.")
    found = []
    for base in listed or [{}]:
        for values in itertools.product(*(values for _, values in axes)):
            flags = {**base, **dict(zip(names, values, strict=True))}
            found.append(Point(name_of(flags), flags))
    _refuse_twice([point.name for point in found], "the points", "has two points")
    return found


def fixed_flags(arguments: Sequence[str], may_change: Collection[str]) -> dict[str, str]:
    """Returns the flags of a command that must be the same when it is repeated, sorted by name.

    >>> fixed_flags(["--ema=0.9", "--notensorboard", "--dataset", "mnist"], ["tensorboard"])
    {'dataset': '--dataset=mnist', 'ema': '--ema=0.9'}
    """
    found: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            found[name] = f"--{name}{equals}{value}"
        else:
            found[name] = f"--{name}={argument}"
    changing = {*may_change, *(f"no{each}" for each in may_change)}
    return {name: found[name] for name in sorted(found) if name not in changing}


def name_of(flags: Mapping[str, str]) -> str:
    """Returns the name of a point with these flags.

    >>> name_of({"dataset": "/data/digits.npz", "seed": "0"})
    'dataset=data-digits.npz,seed=0'
    """
    return ",".join(
        f"{name}={_UNSAFE.sub('-', value.strip('/ ')) or 'empty'}" for name, value in flags.items()
    )


def _refuse_twice(names: Iterable[str], where: str, what: str = "has values in two places") -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{where}: {name} {what}.")
        seen.add(name)
