"""Public names of a package that are imported on first use."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Iterable[str]], submodules: Iterable[str] = ()
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__all__`, `__getattr__` and `__dir__` of a package that imports on first use.

    Type checkers do not see these names: the package lists them again under `TYPE_CHECKING`.

    Args:
        package: its `__name__`.
        modules: public names by the module that defines them, relative to the package.
        submodules: modules of the package that are public names themselves.
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    public = sorted({*module_of, *submodules})

    def get(name: str) -> Any:
        if name in module_of:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        near = difflib.get_close_matches(name, public, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return public, get, names
