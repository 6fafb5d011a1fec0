"""Finds methods: in the checkout's `methods/`, the installed wheel, users' folders and entry points.

A method file is a module with one `Method` subclass; the file's name is the method's name. Files of all folders are imported as
`stillhouse.methods.<name>`, so that workers import them by the same path. An installed package provides methods through the
entry point group `stillhouse.methods`; the value of an entry point names the class.
"""

import importlib
import importlib.metadata
import inspect
import os
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from stillhouse.distill.method import Method
from stillhouse.errors import UnknownNameError, UsageError, describe_error, did_you_mean
from stillhouse.knowledge.code_version import code_version
from stillhouse.user_code import user_code
from stillhouse.user_paths import resolve_path

_CHECKOUT = Path(__file__).resolve().parents[3] / "methods"
if _CHECKOUT.is_dir() and (_CHECKOUT.parent / "platform" / "stillhouse").is_dir():
    __path__.append(str(_CHECKOUT))

ENTRY_POINTS = "stillhouse.methods"
_SHIPPED = (Path(__file__).resolve().parent, _CHECKOUT)
FOLDERS_VARIABLE = "STILLHOUSE_METHODS"


def add_folder(folder: str | Path) -> None:
    """Adds the method files of `folder` to the known methods.

    Raises:
        UsageError: there is no such folder, or a file in it has the name of a known method.
    """
    path = resolve_path(folder, "method folder")
    if not path.is_dir():
        raise UsageError(f"method folder {path} does not exist; name a folder that holds method files")
    if str(path) in __path__:
        return
    known = {*_files(), *_entry_points()}
    for name in _files([str(path)]):
        if name in known:
            raise UsageError(f"{path / name}.py has the name of a method that exists already; rename the file")
    __path__.append(str(path))
    importlib.invalidate_caches()
    find.cache_clear()


def names() -> list[str]:
    """The names of all known methods, sorted."""
    return sorted({*_files(), *_entry_points()})


@cache
def find(name: str) -> type[Method]:
    """The class of the method called `name`.

    Raises:
        UsageError: there is none, its file raises an error, or it does not define exactly one method.
    """
    if name in _files():
        module = _load(f"method file {name}.py", lambda: importlib.import_module(f"{__name__}.{name}"))
        classes = [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
        ]
        if len(classes) != 1:
            raise UsageError(f"{module.__file__} must define one Method subclass, it defines {len(classes)}")
        return classes[0]
    if name in (entry_points := _entry_points()):
        loaded = _load(f"entry point {ENTRY_POINTS}:{name}", entry_points[name].load)
        if not (inspect.isclass(loaded) and issubclass(loaded, Method)):
            raise UsageError(f"entry point {ENTRY_POINTS}:{name} must name a Method subclass, it names {loaded!r}")
        return loaded
    raise UnknownNameError(f"no method '{name}'{did_you_mean(name, names())}")


def _load(what: str, load: Callable[[], Any]) -> Any:
    """What `load` returns.

    Raises:
        UsageError: the code raised something when it was imported.
    """
    try:
        with user_code():
            return load()
    except Exception as error:
        place = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UsageError(f"{what} cannot be loaded: {describe_error(error)}{place}; correct it") from error


def version_in_key(name: str) -> str | None:
    """What the keys of the method's trials contain as its version.

    For a user-defined method, the version of its text, including helpers in method files; for a shipped one its revision, or
    None at revision 1, whose keys are those of the first release.

    Raises:
        UsageError: there is no such method.
    """
    method = find(name)
    if Path(inspect.getfile(method)).resolve().parent in _SHIPPED:
        return f"revision {method.revision}" if method.revision > 1 else None
    within = __name__ if method.__module__.startswith(f"{__name__}.") else None
    return code_version(method, within)  # type: ignore[arg-type]  # mypy takes the class for one of its objects


def baseline() -> str:
    """The name of the control that gains are measured against.

    Raises:
        UsageError: `baseline` is true in the card of no method, or of several.
    """
    found = [name for name in names() if find(name).card.baseline]
    if len(found) != 1:
        raise UsageError(f"exactly one method's card must have baseline=True, found {', '.join(found) or 'none'}")
    return found[0]


def _files(paths: list[str] | None = None) -> list[str]:
    searched = list(__path__) if paths is None else paths
    return [module.name for module in pkgutil.iter_modules(searched) if not module.name.startswith("_")]


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


for _folder in filter(None, os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)):
    add_folder(_folder)
