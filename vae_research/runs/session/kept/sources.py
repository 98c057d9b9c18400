"""The source of a run: the experiment's file, the modules that it imports, and this package.

    RUN/source/
      source.json        which file is the experiment's, where each file was, and its checksum
      vae_mnist.py       the experiment; its modules are placed as they are imported (lab/nets.py)
      vae_research.zip   this package
      git.diff           what the checkout of the experiment has changed since its last commit

Two sources are the same if their syntax trees are: comments, docstrings and layout do not count. A
folder is never changed. A session whose source differs keeps it in a folder of its own, `source-2`,
and every checkpoint names the folder of the source that made it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import io
import json
import linecache
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from vae_research import files
from vae_research.checkpoints import CheckpointError
from vae_research.runs.cli.errors import UsageError
from vae_research.runs.cli.functions import arguments_of, experiment_file, is_users
from vae_research.runs.session.kept.provenance import git
from vae_research.runs.session.kept.syntax import changed_lines, same

FOLDER, RECORD, PACKAGE = "source", "source.json", "vae_research.zip"
_DIFF = "git.diff"
_LARGEST_DIFF = 2**20  # characters
_NAME = re.compile(rf"{FOLDER}(?:-(\d+))?")
_OUR_FOLDER = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a run's source.

    Attributes:
        main: the name of the experiment's file; `cell-1.py` in a notebook.
        build: the name of the function in it that makes the model; empty if it has none at the top
            level of the file.
        files: contents by name, a path relative to the folder of the run's source.
        origins: the path from which each file was taken, by name.
        package: contents of the files of this package, by path.
        arguments: values that the function has beside its text; see `functions.arguments_of`.
        data: the name of the file of the function that makes the data, and of the function; None if
            the flags name the data, or they were given.
    """

    main: str
    build: str
    files: Mapping[str, bytes]
    origins: Mapping[str, str]
    package: Mapping[str, bytes]
    arguments: Mapping[str, Any] | None = None
    data: tuple[str, str] | None = None

    @property
    def is_of_notebook(self) -> bool:
        """Whether it is the text of notebook cells; what they use of other cells is not kept."""
        return Path(self.origins[self.main]).name != Path(self.main).name


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between the source of a run and that of the command.

    Attributes:
        what: in words.
        lines: the first lines of the unified difference of a file, without comments.
    """

    what: str
    lines: Sequence[str] = ()


def collect(build: Callable[..., Any], *more: Path, data: tuple[str, str] | None = None) -> Source:
    """Returns the source that the run of an experiment executes, as it is on disk now.

    Imports are read from the syntax trees, wherever they stand, and followed through modules that
    belong neither to Python, nor to an installed package, nor to this one. Nothing is imported.

    Args:
        build: the experiment's `build`, or a study's `run_study`. In a notebook it is defined in a
            cell, which is no file; then there is only the text of the cell.
        more: other files that are executed.
        data: the file of the function that makes the data, and its name.

    Raises:
        UsageError: `build` has arguments that a run cannot keep, two files have one name, or a file
            cannot be placed in its package.
    """
    experiment = experiment_file(build)
    given = [experiment, *([] if data is None else [Path(data[0])]), *more]
    names = _names(dict.fromkeys(given))
    root = _root(names[experiment], experiment)
    waiting = [(name, path) for path, name in names.items()]
    waiting += [each for name, path in waiting for each in _packages_around(name, path)]
    found: dict[str, Path] = {}
    while waiting:
        name, path = waiting.pop(0)
        if name not in found:
            found[name] = path
            imported = _imported(name, _content(path), root)
            waiting += [(each, where) for each, where in imported if where != experiment]
        elif found[name].resolve() != path.resolve():
            raise UsageError(
                f"{found[name]} and {path} are both imported as {dotted(name)}, and a run keeps "
                "one file of each name. Rename one of them."
            )
    return Source(
        main=names[experiment],
        build=_name_of(build) if experiment.is_file() else "",
        files={name: _content(path) for name, path in found.items()},
        origins={name: str(path) for name, path in found.items()},
        package=_package(),
        arguments=arguments_of(build),
        data=None if data is None else (names[Path(data[0])], data[1]),
    )


def now_of(kept: Source, experiment: Path) -> Source:
    """Returns the files of a kept source as they are now at the places they were taken from.

    Args:
        kept: the source.
        experiment: where the experiment's file is now; others may have been moved with it.
    """
    before = _root(kept.main, Path(kept.origins[kept.main]))
    now = _root(kept.main, experiment)
    origins = {name: Path(path) for name, path in kept.origins.items()}
    contents = {
        name: _content(now / path.relative_to(before) if path.is_relative_to(before) else path)
        for name, path in origins.items()
    }
    return dataclasses.replace(kept, files=contents, package=_package())


def differences(before: Source, now: Source) -> list[Difference]:
    """Returns the files whose syntax trees differ, the experiment first, this package last."""
    experiments = before.files[before.main], now.files[now.main]
    pairs = [] if same(*experiments) else [(now.main, *experiments)]
    for prefix, left, right in (
        ("", _without(before.files, before.main), _without(now.files, now.main)),
        (f"{_OUR_FOLDER.name}/", before.package, now.package),
    ):
        for name in sorted(left.keys() | right.keys()):
            contents = left.get(name, b""), right.get(name, b"")
            if not same(*contents):
                pairs.append((prefix + name, *contents))
    found = [Difference(f"{n} has changed", changed_lines(*contents)) for n, *contents in pairs]
    if before.build != now.build:
        found.append(Difference(f"the model was made by {before.build!r}, now by {now.build!r}"))
    if before.arguments != now.arguments:
        words = [_given(each.arguments) for each in (before, now)]
        found.append(Difference(f"{now.build or 'build'} was given {words[0]}, now {words[1]}"))
    return found


def _given(arguments: Mapping[str, Any] | None) -> str:
    """Returns values that a function has beside its text, in words."""
    found = arguments or {}
    named = {**found.get("keywords", {}), **found.get("enclosed", {})}
    words = [repr(value) for value in found.get("positional", ())]
    return ", ".join([*words, *(f"{name}={value!r}" for name, value in named.items())]) or "nothing"


def changes_since(run_dir: Path, folder: str | None, now: Source) -> list[Difference]:
    """Returns what differs from the source that a run keeps, or why that cannot be known.

    Args:
        run_dir: the run directory.
        folder: the name of the folder of that source; None if the run is of a version of this
            package that kept none.
        now: the source of the command.
    """
    if folder is None:
        return [Difference("its source was not kept by the vae_research that made it")]
    try:
        return differences(read(run_dir, folder), now)
    except CheckpointError as error:
        return [Difference(str(error))]


def in_words(found: Sequence[Difference]) -> str:
    """Returns what differs, at most three of it."""
    words = [each.what for each in found[:3]]
    return "; ".join(words) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def keep(run_dir: Path, source: Source) -> str:
    """Keeps a source in a run directory, unless it is there; returns the name of its folder."""
    folders = _folders(run_dir)
    for folder in reversed(folders):
        try:
            kept = read(run_dir, folder.name)
            if not differences(kept, source) and _placed_as(kept, source):
                return folder.name
        except CheckpointError:  # a damaged one is left as it is
            continue
    last = _number(folders[-1]) if folders else 0
    target = run_dir / (f"{FOLDER}-{last + 1}" if last else FOLDER)
    aside = run_dir / f".writing-{FOLDER}"
    if aside.exists():
        files.remove(aside)
    aside.mkdir()
    contents = {**source.files, PACKAGE: _zipped(source.package)}
    difference = git(Path(source.origins[source.main]).parent, "diff", "HEAD") or ""
    left_out = len(difference) > _LARGEST_DIFF
    if difference and not left_out:
        contents[_DIFF] = f"{difference}\n".encode("utf-8", "surrogateescape")
    sums = {}
    for name, content in contents.items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        written = files.write(aside / name, functools.partial(_write, content))
        sums[name] = written.sha256
    record = {
        "main": source.main,
        "build": source.build,
        "arguments": source.arguments,
        "data": source.data,
        "git_diff": f"left out: {len(difference)} characters" if left_out else "kept",
        "origins": dict(source.origins),
    }
    text = json.dumps({**record, "sha256": sums}, indent=2).encode() + b"\n"
    files.write(aside / RECORD, functools.partial(_write, text))
    files.rename(aside, target)
    return target.name


def _placed_as(kept: Source, source: Source) -> bool:
    """Returns whether two sources have the same names for everything that a run looks up."""
    names = (kept.main, kept.data, kept.files.keys())
    return names == (source.main, source.data, source.files.keys())


def read(run_dir: Path, name: str) -> Source:
    """Returns the source in a folder of a run, after comparing every file with its checksum.

    Raises:
        CheckpointError: it is missing, has changed, or lies elsewhere.
    """
    folder = run_dir / str(name)
    try:
        if not _NAME.fullmatch(folder.name) or folder.resolve() != run_dir.resolve() / name:
            raise ValueError("it is not a folder in the run directory")
        record = json.loads(_regular(folder, RECORD))
        contents = {name: _regular(folder, name) for name in record["sha256"]}
        changed = [
            name
            for name, content in contents.items()
            if hashlib.sha256(content).hexdigest() != record["sha256"][name]
        ]
        if changed:
            raise ValueError(f"{changed[0]} has changed since it was written (checksum)")
        main, build, origins = record["main"], record["build"], record["origins"]
        kept = {name: contents[name] for name in origins}
        if main not in kept or not isinstance(build, str):
            raise ValueError(f"{RECORD} names no experiment")
        data = None if record["data"] is None else (record["data"][0], record["data"][1])
        if data is not None and data[0] not in kept:
            raise ValueError(f"{RECORD} names {data[0]}, which is not there")
        package = _unzipped(contents[PACKAGE])
        return Source(main, build, kept, origins, package, record["arguments"], data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder} is damaged ({type(error).__name__}: {error})") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{folder / PACKAGE} is damaged ({error})") from error


def _folders(run_dir: Path) -> list[Path]:
    """Returns the folders of sources in a run directory, in the order of their making."""
    found = [path for path in run_dir.glob(f"{FOLDER}*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.partition("-")[2] or 1)


def _regular(folder: Path, name: str) -> bytes:
    """Returns the content of a file; what lies elsewhere, behind a link, is not the kept source."""
    path = folder / name
    if not path.is_file() or path.resolve() != folder.resolve() / name:
        raise ValueError(f"{name} is missing or is not a regular file of this folder")
    return path.read_bytes()


def _write(content: bytes, stream: Any) -> None:
    stream.write(content)


def _without(contents: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    return {each: content for each, content in contents.items() if each != name}


# What a source consists of.


def _names(paths: Iterable[Path]) -> dict[Path, str]:
    """Returns the name of each file in a source: that by which it is imported.

    Cells of a notebook are numbered: their own names change with every edit.

    Raises:
        UsageError: a file is a part of a package in which it does not lie.
    """
    modules: dict[str, list[ModuleType]] = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str):
            modules.setdefault(os.path.abspath(file), []).append(module)
    found: dict[Path, str] = {}
    for path in paths:
        if path.is_file():
            found[path] = _name_in_package(path, modules.get(os.path.abspath(path), []))
        else:
            number = sum(not other.is_file() for other in found)
            found[path] = f"cell-{number + 1}.py"
    return found


def _name_in_package(path: Path, modules: Sequence[ModuleType]) -> str:
    """Returns the path of a file relative to the folder from which its outermost package is.

    Args:
        path: of the file.
        modules: those that were made from it.
    """
    executed = [module for module in modules if module.__name__ == "__main__"] or modules
    package = max((module.__package__ or "" for module in executed), key=len, default="")
    parts = [*(package.split(".") if package else []), path.name]
    if list(path.parts[-len(parts) :]) != parts:
        raise UsageError(
            f"{path} is imported as a part of the package {package}, and does not lie in a folder "
            "of that name, so that a run cannot keep it. Move it there."
        )
    return "/".join(parts)


def _root(name: str, path: Path) -> Path:
    """Returns the folder to which the name of a file is relative."""
    return path.parents[name.count("/")]


def _packages_around(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """Yields name and path of the packages in which a file lies, which are imported before it."""
    parts = name.split("/")[:-1]
    for depth in range(len(parts), 0, -1):
        inner = "/".join([*parts[:depth], "__init__.py"])
        file = _root(name, path) / inner
        if file.is_file():
            yield inner, file


def dotted(name: str) -> str:
    """Returns the name by which a file of a source is imported."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _name_of(function: Callable[..., Any]) -> str:
    """Returns the name of a function at the top level of its file; empty if it has none."""
    while isinstance(function, functools.partial):  # the source has what it gives
        function = function.func
    module = sys.modules.get(function.__module__)
    names = vars(module) if module is not None else {}
    return next((name for name, value in names.items() if value is function), "")


def _content(path: Path) -> bytes:
    """Returns the content of a file, or the text of a cell of a notebook."""
    return path.read_bytes() if path.is_file() else "".join(linecache.getlines(str(path))).encode()


@functools.cache
def _package() -> dict[str, bytes]:
    """Returns the files of this package by path."""
    found = sorted(_OUR_FOLDER.rglob("*.py"))
    return {path.relative_to(_OUR_FOLDER).as_posix(): path.read_bytes() for path in found}


def _imported(name: str, content: bytes, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields name and path of every file that a file of the source imports.

    Args:
        name: of the importing file.
        content: of that file.
        folder: the experiment's, from which a script imports first.
    """
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return
    package = name.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = len(package) - node.level + 1 if node.level else 0
            if above < 0:
                continue  # beyond its outermost package, which Python refuses as well
            parts = [*package[:above], *(node.module or "").split(".")]
            base = ".".join(filter(None, parts))
            modules = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        for module in modules:
            yield from _files_of(module, folder)


def _files_of(module: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields name and path of a module and of the packages around it, if they are the user's."""
    parts, places = module.split("."), None
    for depth in range(1, len(parts) + 1):
        dotted = ".".join(parts[:depth])
        spec = _spec_of(dotted, places, folder)
        if spec is None:
            return
        places = spec.submodule_search_locations
        if spec.origin is not None and spec.has_location:
            path = Path(spec.origin)
            if path.suffix != ".py" or not is_users(path):
                return
            inner = "/__init__.py" if places is not None else ".py"
            yield "/".join(parts[:depth]) + inner, path.absolute()
        if places is None:
            return  # no package: what follows is a name in the module


def _spec_of(module: str, places: Sequence[str] | None, folder: Path) -> ModuleSpec | None:
    """Returns where a module is, without importing it; None if it is nowhere or Python's own.

    Args:
        module: the dotted name.
        places: where the package around it looks; None at the top.
        folder: the experiment's.
    """
    if places is not None:
        return PathFinder.find_spec(module, places)
    if module in sys.stdlib_module_names:
        return None
    try:
        beside = PathFinder.find_spec(module, [str(folder)])
        return beside or importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None


def _zipped(contents: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(f"{_OUR_FOLDER.name}/{name}")  # without the time
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {
            name.removeprefix(f"{_OUR_FOLDER.name}/"): archive.read(name)
            for name in archive.namelist()
        }
