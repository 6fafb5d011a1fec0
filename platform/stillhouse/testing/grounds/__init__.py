"""What the methods of each task are checked on: a small data set, models and a recipe. One file for each task, by its name.

A file of this folder defines `GROUND`. Methods of tasks without a file are checked on the ground of the default task.
"""

import importlib
import pkgutil

from stillhouse import tasks
from stillhouse.distill.method import Method
from stillhouse.testing.grounds._ground import Ground

__all__ = ["Ground", "of_method", "of_task"]


def names() -> list[str]:
    """The tasks that have a ground, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def of_task(name: str) -> Ground:
    """The ground of a task, by its name."""
    found: Ground = importlib.import_module(f"{__name__}.{name}").GROUND
    return found


def of_method(method: Method) -> Ground:
    """The ground of the first task that the method serves, the default one if it serves that."""
    if not method.serves(tasks.default()):
        for name in method.tasks:
            if name in names():
                return of_task(name)
    return of_task(tasks.default())
