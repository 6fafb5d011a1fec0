"""Finds tasks by name: a shipped one by its file's name, a user-defined one as `module:Class`.

A task file is a module of this package with one `Task` subclass; a file whose name begins with `_` helps one. The task that
data sets mean which declare none is the one whose class says so (`Task.default`).
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import ModuleType

from stillhouse.data.images import ImageData
from stillhouse.errors import UnknownNameError, UsageError, describe_error, did_you_mean
from stillhouse.knowledge.code_version import named_version
from stillhouse.tasks.task import (
    SHIPPED,
    Evaluator,
    Evidence,
    Judge,
    OutputProblem,
    Reduction,
    SplitOutputs,
    SupervisedStep,
    Task,
)
from stillhouse.user_code import import_user_module, user_code

__all__ = [
    "Evaluator",
    "Evidence",
    "Judge",
    "OutputProblem",
    "Reduction",
    "SplitOutputs",
    "SupervisedStep",
    "Task",
    "default",
    "find",
    "name_of",
    "names",
    "of",
    "own_version",
]

_PROTOCOL = "task"


def names() -> list[str]:
    """The names of the shipped tasks, sorted."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if module.name != _PROTOCOL and not module.name.startswith("_")
    )


@cache
def default() -> str:
    """The name of the task that a data set means which declares none."""
    found = [name for name in names() if find(name).default]
    assert len(found) == 1, f"exactly one shipped task must be the default, found {', '.join(found) or 'none'}"
    return found[0]


@cache
def find(name: str | None = None) -> Task:
    """The task called `name`; the default one for None.

    Raises:
        UsageError: there is none, its module cannot be imported, or it is not a complete task.
    """
    if name is None:
        return find(default())
    module, colon, attribute = name.partition(":")
    kind = _imported(name, module, attribute) if colon else _shipped(name)
    if missing := _missing(kind):
        raise UsageError(f"task {name} must define {', '.join(missing)}; see docs/your-own-task.md")
    try:
        with user_code():
            return kind()
    except Exception as error:
        raise UsageError(f"task {name} cannot be made: {describe_error(error)}; correct its file") from error


def of(data: ImageData) -> Task:
    """The task of a data set."""
    return find(data.task)


def name_of(name: str | None) -> str | None:
    """None for the default task, however it is named; other names as they are. What keys and stored facts hold."""
    return None if name is None or find(name).default else name


def own_version(name: str | None) -> str | None:
    """The version of the code of a user-defined task; None for a shipped one."""
    return None if name is None else named_version(name)


def _shipped(name: str) -> type[Task]:
    if name not in names():
        raise UnknownNameError(f"no task '{name}'{did_you_mean(name, names())}; or module:Class for a user-defined one")
    module = importlib.import_module(f"{SHIPPED}.{name}")
    classes = [value for value in _classes(module) if value.__module__ == module.__name__]
    assert len(classes) == 1, f"{module.__name__} must define one Task subclass, it defines {len(classes)}"
    return classes[0]


def _imported(name: str, module_name: str, class_name: str) -> type[Task]:
    module = import_user_module(module_name, f"task {name}")
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Task)):
        known = [kind.__name__ for kind in _classes(module)]
        raise UsageError(f"module {module_name} has no Task subclass '{class_name}'{did_you_mean(class_name, known)}")
    return found


def _classes(module: ModuleType) -> Iterable[type[Task]]:
    return [
        value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Task) and value is not Task
    ]


def _missing(kind: type[Task]) -> list[str]:
    """What a task class leaves out."""
    attributes = [name for name in ("metric", "targets") if not hasattr(kind, name)]
    return [*attributes, *sorted(kind.__abstractmethods__)]
