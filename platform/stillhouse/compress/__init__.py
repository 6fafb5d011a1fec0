"""Finds operators by name: a shipped one by its file's name, one of an installed package, a user-defined one as `module:Class`.

An operator file is a module of this package with one `Operator` subclass. An installed package provides operators through the
entry point group `stillhouse.operators`; the value of an entry point names the class.
"""

import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from stillhouse.compress.operator import Operator
from stillhouse.errors import UnknownNameError, UsageError, describe_error, did_you_mean
from stillhouse.knowledge.code_version import code_version
from stillhouse.spec.hyperparameter import typed
from stillhouse.user_code import import_user_module, user_code

__all__ = ["find", "make_operator", "names", "version_in_key"]

ENTRY_POINTS = "stillhouse.operators"
_MACHINERY = ("chain", "operator", "storage", "students")
"""The files of this package that are no operators."""


def names() -> list[str]:
    """The names of the shipped operators and of those of installed packages, sorted."""
    return sorted({*_files(), *_entry_points()})


@cache
def find(name: str) -> type[Operator]:
    """The class of the operator called `name`.

    Raises:
        UsageError: there is none, or its code raises an error.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        return _imported(name, module, attribute)
    if name in _files():
        return _shipped(name)
    if name in (entry_points := _entry_points()):
        try:
            with user_code():
                loaded = entry_points[name].load()
        except Exception as error:
            raise UsageError(f"entry point {ENTRY_POINTS}:{name} cannot be loaded: {describe_error(error)}") from error
        if not (inspect.isclass(loaded) and issubclass(loaded, Operator)):
            raise UsageError(f"entry point {ENTRY_POINTS}:{name} must name an Operator subclass, it names {loaded!r}")
        return loaded
    raise UnknownNameError(f"no operator '{name}'{did_you_mean(name, names())}; or module:Class for a user-defined one")


def make_operator(name: str, options: Mapping[str, Any]) -> Operator:
    """The operator with the options of a student; lists become the tuples that its fields are typed as.

    Raises:
        UsageError: there is no such operator.
        ValueError: a value has the wrong type or breaks its rule.
    """
    kind = find(name)
    return kind(**{key: typed(kind, key, value) for key, value in options.items()})


def version_in_key(name: str) -> str | None:
    """What the keys of trials contain as the operator's version.

    For a user-defined operator or one of an installed package, the version of its text; for a shipped one its revision, or
    None at revision 1.

    Raises:
        UsageError: there is no such operator.
    """
    kind = find(name)
    if kind.__module__.startswith(f"{__name__}."):
        return f"revision {kind.revision}" if kind.revision > 1 else None
    return code_version(kind)  # type: ignore[arg-type]  # mypy takes the class for one of its objects


def _shipped(name: str) -> type[Operator]:
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [value for value in _operators_in(vars(module)) if value.__module__ == module.__name__]
    assert len(classes) == 1, f"{module.__name__} must define one Operator subclass, it defines {len(classes)}"
    return classes[0]


def _imported(name: str, module_name: str, class_name: str) -> type[Operator]:
    module = import_user_module(module_name, f"operator {name}")
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Operator)):
        known = [kind.__name__ for kind in _operators_in(vars(module))]
        raise UsageError(f"module {module_name} has no Operator subclass '{class_name}'{did_you_mean(class_name, known)}")
    return found


def _operators_in(names_of_module: Mapping[str, Any]) -> list[type[Operator]]:
    return [
        value
        for value in names_of_module.values()
        if inspect.isclass(value) and issubclass(value, Operator) and value is not Operator
    ]


def _files() -> list[str]:
    return [
        module.name
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg and not module.name.startswith("_") and module.name not in _MACHINERY
    ]


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
