"""The base of loss terms, schedules and controllers: immutable, defined by their settings.

They compare and print by their settings, and are saved with a model as plain data. They have no
variables: what learns or keeps a state is a Keras layer.

Nothing here imports TensorFlow or Keras, so that an experiment file may subclass a loss term or a
schedule and still have its flags checked before TensorFlow is loaded. This is also why saving does
not use Keras' own serialisation; that would import the module that a saved file names, which runs
code, and would replace a setting that is a string by a class of that name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import numbers
import re
import typing
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Self


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """Base of terms, schedules and controllers; a subclass is a frozen dataclass of its settings.

    Annotated class attributes are settings, given by keyword. Their values are numbers, strings,
    booleans, `None`, functions, other `Settings`, or tuples and dictionaries of these.

    Raises:
        TypeError: a setting is a variable, a layer, a tensor or an array.
        ValueError: a number is not finite.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            raise TypeError(
                f"{cls.__name__} has an __init__, which its settings replace: write each as an "
                "annotated attribute, `strength: float = 2.0`, and a check in __post_init__."
            )
        # `weight = None` in a subclass means the inherited setting; a dataclass would ignore the
        # line and keep the inherited default.
        own = inspect.get_annotations(cls)
        inherited = {field.name: field.type for field in dataclasses.fields(cls)}
        overridden = (inherited.keys() & vars(cls).keys()) - own.keys()
        if overridden:
            cls.__annotations__ = own | {name: inherited[name] for name in overridden}
        # Applied here and not by the author of the subclass: without the decorator, fields would
        # silently become class attributes.
        dataclasses.dataclass(frozen=True, kw_only=True, repr=False)(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _immutable(getattr(self, field.name))
            _check_setting(type(self).__name__, field.name, value)
            object.__setattr__(self, field.name, value)

    def __repr__(self) -> str:
        """Returns the call that creates an equal object; settings at their default are left out."""
        settings = [
            f"{field.name}={_printed(value)}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{type(self).__name__}({', '.join(settings)})"

    def in_steps(self, steps_per_epoch: int, ahead: float = 0.0) -> Self:
        """Returns a copy with every length in epochs converted to steps.

        Args:
            steps_per_epoch: batches in an epoch.
            ahead: steps by which training is further, in epochs of this length, than its step says.
        """
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changes = {
            name: _in_steps(value, steps_per_epoch, ahead) for name, value in settings.items()
        }
        return self if changes == settings else dataclasses.replace(self, **changes)

    def to_config(self) -> dict[str, Any]:
        """Returns plain data from which `from_config` creates an equal object."""
        settings = {
            field.name: _to_plain(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        return {
            "class": type(self).__qualname__,
            "module": type(self).__module__,
            "settings": settings,
        }


def from_config(config: Mapping[str, Any]) -> Settings:
    """Returns the object that `Settings.to_config` described.

    Its class is looked up in this package and among the classes defined so far. Nothing else is
    imported, so that loading a file runs no code that has not been imported already.

    Raises:
        ValueError: the class is not defined, or a setting was a plain function.
    """
    name, module = config["class"], config["module"]
    import_own_modules(config)
    candidates = [cls for cls in _subclasses(Settings) if cls.__qualname__ == name]
    matching = [cls for cls in candidates if cls.__module__ == module]
    if not matching:
        # The module of a class in a script may be `__main__` when it is saved and `NAME` or
        # `experiments.NAME` when it is loaded.
        matching = [cls for cls in candidates if _is_same_file(cls.__module__, module)]
    if not matching:
        raise ValueError(
            f"The saved model uses {name}, which is not defined here. Import the module that "
            f"defines it (it was {module!r} when the model was saved), then load again."
        )
    settings = {key: _from_plain(name, key, value) for key, value in config["settings"].items()}
    return matching[-1](**settings)  # if a notebook cell ran twice, the later class


def declared_names(
    function: Callable[..., Any], written: Container[str] | None = None
) -> list[str]:
    """Returns the names of the tensors that a method reads: its parameters.

    Args:
        function: the method.
        written: names of tensors that there are. Of a layer's method, an optional parameter, such
            as `labels=None`, is read if it is among them; by default none is allowed.

    Raises:
        TypeError: a parameter has a default value, or is `*args` or `**kwargs`.
    """
    names = []
    for parameter in inspect.signature(function).parameters.values():
        if written is not None and parameter.default is None:
            names += [parameter.name] if parameter.name in written else []
            continue
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or parameter.default is not parameter.empty:
            raise TypeError(
                f"{function.__qualname__} has the parameter '{parameter}'. Its parameters name "
                "the tensors that it reads, all of them needed; settings are annotated fields of "
                "the class."
            )
        names.append(parameter.name)
    return names


def reads(names: Callable[[Any], Iterable[str]]) -> Callable[[Callable[..., Any]], Any]:
    """Declares which tensors a method reads as `**tensors`, if that differs between objects.

    Args:
        names: returns the names, given the object.

    >>> class Sum:
    ...     def __init__(self, *terms):
    ...         self.terms = terms
    ...
    ...     @reads(lambda self: self.terms)
    ...     def call(self, seed, **terms):
    ...         return seed + sum(terms.values())
    >>> declared_names(Sum("a", "b").call), Sum("a", "b").call(seed=1, a=2, b=3)
    (['seed', 'a', 'b'], 6)
    """
    return lambda method: _Reading(method, names)


class _Reading:
    """A method with `**tensors`, whose signature names them once it is bound to an object."""

    def __init__(self, method: Callable[..., Any], names: Callable[[Any], Iterable[str]]) -> None:
        self._method, self._names = method, names
        self.__doc__ = method.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        if owner is None:
            return self
        bound = functools.partial(self._method, owner)
        functools.update_wrapper(bound, self._method)
        _, *fixed, _ = inspect.signature(self._method).parameters
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(name, keyword) for name in (*fixed, *self._names(owner))]
        bound.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return bound


def _is_same_file(module: str, saved: str) -> bool:
    if "__main__" in (module, saved):
        return not {module.partition(".")[0], saved.partition(".")[0]} & {__package__}
    return module.rpartition(".")[2] == saved.rpartition(".")[2]


def import_own_modules(config: Any) -> None:
    """Imports the modules of this package that a saved configuration names, at any depth.

    The package loads its modules on first use; a class that was not used yet would not be found.
    """
    if isinstance(config, Mapping):
        module = config.get("module")
        if isinstance(module, str) and module.startswith(f"{__package__}."):
            importlib.import_module(module)
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return
    for value in config:
        import_own_modules(value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` if a known name is similar, otherwise an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def snake_case(name: str) -> str:
    """Returns a class name as words with underscores, for example `capacity_kl`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _subclasses(cls: type[Settings]) -> Iterable[type[Settings]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _printed(value: Any) -> str:
    is_function = callable(value) and not isinstance(value, Settings)
    return getattr(value, "__qualname__", repr(value)) if is_function else repr(value)


def _immutable(value: Any) -> Any:
    """Returns lists as tuples, and numbers of NumPy as those of Python, which print as such."""
    if isinstance(value, (list, tuple)):
        return tuple(_immutable(item) for item in value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return value


def _in_steps(value: Any, *lengths: Any) -> Any:
    if isinstance(value, Settings):
        return value.in_steps(*lengths)
    if isinstance(value, tuple):
        return tuple(_in_steps(item, *lengths) for item in value)
    if isinstance(value, Mapping):
        return {key: _in_steps(item, *lengths) for key, item in value.items()}
    return value


def _check_setting(owner: str, name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{owner}.{name} is {value}; it must be a finite number.")
    if isinstance(value, (tuple, list)):
        for item in value:
            _check_setting(owner, name, item)
    elif isinstance(value, Mapping):
        for item in value.values():
            _check_setting(owner, name, item)
    elif not isinstance(value, (bool, int, float, str, type(None), Settings)) and (
        not callable(value) or _belongs_to_keras(value)
    ):
        raise TypeError(
            f"{owner}.{name} is a {type(value).__name__}. The settings of a loss term, a schedule "
            "or a controller are plain values: numbers, strings, schedules. Variables and layers "
            "live in a module of the model; tensors are read by naming them as parameters."
        )


def _belongs_to_keras(value: Any) -> bool:
    packages = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
    return bool(packages & {"keras", "tensorflow"})


def _to_plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_config()
    if isinstance(value, (tuple, list)):
        return {"tuple": [_to_plain(item) for item in value]}
    if isinstance(value, Mapping):
        return {"mapping": {key: _to_plain(item) for key, item in value.items()}}
    if callable(value):
        return {"function": value.__qualname__ if hasattr(value, "__qualname__") else repr(value)}
    return value


def _from_plain(owner: str, name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "class" in value:
        return from_config(value)
    if "tuple" in value:
        return tuple(_from_plain(owner, name, item) for item in value["tuple"])
    if "mapping" in value:
        return {key: _from_plain(owner, name, item) for key, item in value["mapping"].items()}
    raise ValueError(
        f"{owner}.{name} was the function {value['function']!r} when the model was saved, and a "
        "function is not data. Write it as a subclass of Schedule, or load the weights into a "
        "model that you build in code."
    )
