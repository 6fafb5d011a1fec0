"""Data sets with a file of their own in this folder, by the file's name; each defines one `ShippedData` subclass.

A file whose name begins with `_` helps one.
"""

import importlib
import inspect
import pkgutil
from functools import cache

from stillhouse.data.shipped import ShippedData


@cache
def names() -> tuple[str, ...]:
    """The names of the data sets, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


@cache
def find(name: str) -> ShippedData | None:
    """The data set called `name`; None if no file here has that name."""
    if name not in names():
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, ShippedData) and value.__module__ == module.__name__
    ]
    assert len(kinds) == 1, f"{module.__name__} must define one ShippedData subclass, it defines {len(kinds)}"
    return kinds[0]()
