"""The version of user-defined code: a hash of its text and of the text of everything that it uses."""

import ast
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_LIBRARIES = ("torch", "torchvision", "timm", "numpy")
"""Packages whose functions are identified by the package's version."""

_Place = tuple[str, str]
"""(module, name of a definition at its top level)."""


def named_version(name: str) -> str | None:
    """The version of the user-defined function `module:function`; None for a function of a library, or if `name` has no module.

    A function without source, such as one of a notebook, is identified by its name only.
    """
    module, _, function = name.partition(":")
    if not function or module.partition(".")[0] in _LIBRARIES:
        return None
    with suppress(ImportError, TypeError, OSError, AttributeError):
        return code_version(getattr(importlib.import_module(module), function))
    return None


@lru_cache(maxsize=4096)
def code_version(function: Callable[..., Any], within: str | None = None) -> str:
    """A hash of the text of `function` and of every function, class and constant of its package that it uses, also indirectly.

    It is the same in every process with the same files. Other packages and annotations do not count. The version of a
    library's function is that of the library, such as torch.

    Args:
        within: a subpackage such as `stillhouse.methods`; definitions outside of it do not count.

    Raises:
        TypeError, OSError: the function has no source.
    """
    module = inspect.unwrap(function).__module__
    package = str(module).partition(".")[0]
    if package in _LIBRARIES:
        version = importlib.import_module(package).__version__
        return _hash(f"{package} {version} {function.__qualname__}")
    package = within or package
    own = inspect.getsource(function)
    texts: dict[_Place, str] = {}
    seen: set[_Place] = set()
    # Not cached between calls: a long-lived process may import a changed file again.
    modules: dict[str, _Contents] = {}
    pending: list[_Place] = [(module, inspect.unwrap(function).__qualname__.partition(".")[0])]
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        contents = modules[place[0]] = modules.get(place[0]) or _contents(place[0])
        if (there := contents.imported.get(place[1])) is not None:
            pending.append(there)
        elif (definition := contents.defined.get(place[1])) is not None:
            texts[place] = definition.text
            pending += [found for used in definition.used for found in contents.places_of(used, place[0], package)]
    return _hash("\n".join([own, *(f"{module}:{name}\n{text}" for (module, name), text in sorted(texts.items()))]))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class _Definition:
    """The text of a statement, and the names that it uses, each with the attribute that is read."""

    text: str
    used: frozenset[tuple[str, str | None]]


@dataclass(frozen=True)
class _Contents:
    """The definitions and imports at a module's top level; an import of a whole module has an empty name."""

    defined: dict[str, _Definition]
    imported: dict[str, _Place]

    def places_of(self, used: tuple[str, str | None], module: str, package: str) -> Iterator[_Place]:
        """Where a used name is defined, if in `package`."""
        name, attribute = used
        if name in self.defined:
            yield module, name
        elif (there := self.imported.get(name)) is not None and f"{there[0]}.".startswith(f"{package}."):
            whole = there[0] if not there[1] else f"{there[0]}.{there[1]}"
            if there[1] and not _is_module(whole):
                yield there
            elif attribute is not None:
                yield whole, attribute


def _contents(module: str) -> _Contents:
    try:
        found = importlib.import_module(module)
        text = inspect.getsource(found)
    except (ImportError, OSError, TypeError):
        return _Contents({}, {})
    lines = text.splitlines()
    is_package = hasattr(found, "__path__")
    defined: dict[str, _Definition] = {}
    imported: dict[str, _Place] = {}
    for statement in ast.parse(text).body:
        for node in ast.walk(statement) if isinstance(statement, ast.If | ast.Try) else [statement]:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= _imports(node, module, is_package)
        first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", ()))])
        own = "\n".join(lines[first - 1 : statement.end_lineno])
        used = frozenset(_used(statement))
        for name in _bound(statement):
            # All definitions of one name count, such as those in the branches of a condition.
            before = defined.get(name)
            both = _Definition(own, used) if before is None else _Definition(f"{before.text}\n{own}", before.used | used)
            defined[name] = both
    return _Contents(defined, imported)


def _imports(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> dict[str, _Place]:
    if isinstance(statement, ast.Import):
        # `import a.b` binds a.
        return {
            alias.asname or alias.name.partition(".")[0]: (alias.name if alias.asname else alias.name.partition(".")[0], "")
            for alias in statement.names
        }
    source = statement.module or ""
    if statement.level:
        parents = module.split(".")
        above = parents[: len(parents) - statement.level + is_package]
        source = ".".join([*above, *([source] if source else [])])
    return {alias.asname or alias.name: (source, alias.name) for alias in statement.names}


def _bound(statement: ast.stmt | ast.excepthandler) -> Iterator[str]:
    """The names that the statement binds at the top level of its module."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.iter_child_nodes(statement):
        if isinstance(node, ast.stmt | ast.excepthandler):
            yield from _bound(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Tuple | ast.List):
            yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))


def _used(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(name, attribute) of everything that is read, except in annotations."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield node.value.id, node.attr
        return
    if isinstance(node, ast.Name):
        yield node.id, None
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _used(child)


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
