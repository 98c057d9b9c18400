"""Packages that only some functions need: the extras of setup.cfg."""

from __future__ import annotations

import importlib.util


def require(what: str, extra: str, packages: dict[str, str]) -> None:
    """Raises ImportError, with the command that installs them, if packages are missing.

    Nothing is imported.

    Args:
        what: the part that needs them, for the message.
        extra: of setup.cfg.
        packages: names on the package index, by name of the module.

    >>> require("a plot", "figures", {"no_such_module": "no-such-package"})
    Traceback (most recent call last):
    ImportError: a plot needs no-such-package: pip install 'vae_research[figures]'.
    """
    missing = [name for module, name in packages.items() if not importlib.util.find_spec(module)]
    if missing:
        raise ImportError(
            f"{what} needs {' and '.join(missing)}: pip install 'vae_research[{extra}]'."
        )
