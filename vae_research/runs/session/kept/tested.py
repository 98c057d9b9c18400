"""Whether TensorFlow and Keras are versions that the package was tested with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from vae_research.version import TESTED, __version__


def installed() -> dict[str, str]:
    """Returns the installed versions of what `TESTED` lists, read without importing anything."""
    found = {}
    for name in TESTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # built from source, or under another name
            continue
    return found


def warnings_of(versions: Mapping[str, str], tested: Mapping[str, str] = TESTED) -> list[str]:
    """Returns a sentence for each package whose minor version is newer than the tested one.

    Args:
        versions: what is installed, by name.
        tested: the newest minor version that was tested, by name.

    >>> warnings_of({"tensorflow": "2.21.3", "keras": "3.15.1"}, {"tensorflow": "2.21"})
    []
    >>> print(*warnings_of({"tensorflow": "2.30.0rc1"}, {"tensorflow": "2.21"}))
    tensorflow 2.30.0rc1 is newer than 2.21, the newest ... tested ... 'tensorflow==2.21.*'...
    """
    return [
        f"{name} {version} is newer than {tested[name]}, the newest version that vae_research "
        f"{__version__} was tested with. Run scripts/check, or install '{name}=={tested[name]}.*'."
        for name, version in versions.items()
        if name in tested and _minor(version) > _minor(tested[name])
    ]


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
