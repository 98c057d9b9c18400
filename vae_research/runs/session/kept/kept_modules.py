"""Imports the kept source of a run under names of its own.

Two runs may have modules of one name and different content, and the process may have imported a
third. Each source therefore gets a package of its own, `run_HASH`, and whatever one of its files
imports by name, at its top or in a function, is looked up there first. Only files whose checksums
have been verified are executed.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from vae_research.runs.cli.functions import bound
from vae_research.runs.session.kept import sources

flags.disclaim_key_flags()


class KeptSource:
    """The functions of a source that a run keeps. Equal sources have one module of each name.

    Args:
        run_dir: the run directory.
        name: of the folder of the source.

    Raises:
        CheckpointError: it is damaged.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self._folder, self._source = run_dir / name, sources.read(run_dir, name)

    def build(self) -> Callable[..., Any]:
        """Returns the function that makes the model.

        Raises:
            LookupError: there is none; the message says why.
        """
        if not self._source.build:
            raise LookupError("its build function was not at the top level of a file")
        build = self._function(self._source.main, self._source.build)
        return bound(build, self._source.arguments)

    def data(self) -> Callable[..., Any]:
        """Returns the function that makes the data.

        Raises:
            LookupError: there is none; the message says why.
        """
        if self._source.data is None:
            raise LookupError(f"{self._folder} has no function that makes the data")
        return self._function(*self._source.data)

    def _function(self, file: str, name: str) -> Callable[..., Any]:
        finder = _Finder(self._folder, self._source.files)
        if finder.package not in sys.modules:
            sys.modules[finder.package] = package = ModuleType(finder.package)
            package.__path__ = []
            sys.meta_path.append(finder)
        try:
            with _flags_may_be_defined_again():
                module = importlib.import_module(f"{finder.package}.{sources.dotted(file)}")
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise LookupError(f"{self._folder / file} cannot be executed ({what})") from error
        if not hasattr(module, name):
            raise LookupError(f"{self._folder / file} has no function {name!r}")
        return getattr(module, name)


@contextmanager
def _flags_may_be_defined_again() -> Iterator[None]:
    """Lets an experiment define flags of absl that another version of it has defined."""
    known = [flags.FLAGS[name] for name in flags.FLAGS]
    before = [flag.allow_override for flag in known]
    for flag in known:
        flag.allow_override = True
    try:
        yield
    finally:
        for flag, may_override in zip(known, before, strict=True):
            flag.allow_override = may_override


class _Finder(MetaPathFinder):
    """Finds the modules of one kept source.

    Attributes:
        package: the name of the package around them.
    """

    def __init__(self, folder: Path, files: Mapping[str, bytes]) -> None:
        digest = hashlib.sha256(repr(sorted(files.items())).encode())
        self.package = f"run_{digest.hexdigest()[:16]}"
        self._files = {sources.dotted(name): (folder / name, files[name]) for name in files}
        self._tops = {name.partition(".")[0] for name in self._files}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns where a module of the package is, and how it is executed."""
        inner = name.removeprefix(f"{self.package}.")
        if inner == name:
            return None
        if inner in self._files:
            file, content = self._files[inner]
            loader = _Loader(content, {"__import__": self.import_name})
            is_package = file.name == "__init__.py"
            spec = ModuleSpec(name, loader, origin=str(file), is_package=is_package)
            spec.has_location = True
            return spec
        if any(known.startswith(f"{inner}.") for known in self._files):
            return ModuleSpec(name, None, is_package=True)  # a folder without __init__.py
        return None

    def import_name(
        self,
        name: str,
        names: Mapping[str, object] | None = None,
        local_names: Mapping[str, object] | None = None,
        wanted: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What the statement `import` calls in the modules of the package."""
        top = name.partition(".")[0]
        if level or top not in self._tops:
            return builtins.__import__(name, names, local_names, wanted or (), level)
        module = builtins.__import__(f"{self.package}.{name}", names, local_names, wanted or ())
        return module if wanted else sys.modules[f"{self.package}.{top}"]


class _Loader(Loader):
    """Executes a module with built-in functions that differ from Python's in a few.

    Args:
        content: of the file.
        functions: those that differ, by name.
    """

    def __init__(self, content: bytes, functions: Mapping[str, Any]) -> None:
        self._content, self._functions = content, functions

    def exec_module(self, module: ModuleType) -> None:
        names = vars(module)
        names["__builtins__"] = {**vars(builtins), **self._functions}
        exec(compile(self._content, str(module.__file__), "exec", dont_inherit=True), names)
