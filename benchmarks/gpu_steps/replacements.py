"""Replacements of packages that a bare GPU machine may lack, as far as the steps without Ray need them.

pydantic's models become plain classes that check nothing, the digits of scikit-learn become fixed random images, and any other
package can be imported, but raises where it is used.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

PACKAGES = ("pydantic", "pydantic_core", "pyarrow", "ray", "safetensors", "sklearn", "yaml", "scipy", "PIL", "rich", "typer")


class Missing(ModuleNotFoundError):
    """A package that is not installed was used."""


def replace_missing(packages: Iterable[str] = PACKAGES) -> list[str]:
    """Makes those of the packages importable that are not installed; returns their names."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        sys.meta_path.append(_Finder(absent))
    return absent


def missing_package(error: BaseException | None, replaced: Iterable[str]) -> str | None:
    """The package whose absence caused the error, directly or further back; None for other errors."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            top = (error.name or "").partition(".")[0]
            if isinstance(error, Missing) or top in replaced:
                return top
        error = error.__cause__ or error.__context__
    return None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the absent packages and all of their submodules."""

    def __init__(self, absent: Iterable[str]) -> None:
        self._absent = frozenset(absent)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self._absent:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Replacement(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        known = {"pydantic": _PYDANTIC, "sklearn.datasets": {"load_digits": _load_digits}}
        for name, value in known.get(module.__name__, {}).items():
            setattr(module, name, value)


class _Replacement(ModuleType):
    """A module whose unknown attributes can be named, subclassed and caught, but not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AbsentType(name, (_Absent,), {"_package": self.__name__.partition(".")[0]})


class _AbsentType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AbsentType(name, (_Absent,), {"_package": cls._package})

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        raise Missing(f"{cls._package} is not installed", name=cls._package)

    def __getitem__(cls, _parameters: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return Any

    __ror__ = __or__


class _Absent(Exception, metaclass=_AbsentType):
    _package = ""


class _Model:
    """A pydantic model without checks: fields from annotations, keyword arguments over defaults, frozen."""

    def __init__(self, **given: Any) -> None:
        fields = [name for cls in reversed(type(self).__mro__) for name in vars(cls).get("__annotations__", {})]
        if unknown := given.keys() - set(fields):
            raise ValueError(f"unknown fields: {sorted(unknown)}")
        for name in fields:
            value = given[name] if name in given else getattr(type(self), name)
            object.__setattr__(self, name, value.default_factory() if isinstance(value, SimpleNamespace) else value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} is read-only")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(sorted((name, repr(value)) for name, value in vars(self).items())))

    def model_dump(self, **_options: Any) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def model_validate(cls, given: dict[str, Any]) -> Any:
        return cls(**given)

    def model_copy(self, *, update: dict[str, Any] | None = None) -> Any:
        return type(self)(**(vars(self) | (update or {})))


def _field(default: Any = ..., *, default_factory: Any = None, **_rules: Any) -> Any:
    return SimpleNamespace(default_factory=default_factory) if default_factory is not None else default


def _decorator(*_arguments: Any, **_options: Any) -> Any:
    return lambda function: function


_PYDANTIC = {
    "BaseModel": _Model,
    "ConfigDict": dict,
    "Field": _field,
    "PlainValidator": lambda function: function,
    "BeforeValidator": lambda function: function,
    "AfterValidator": lambda function: function,
    "field_validator": _decorator,
    "model_validator": _decorator,
    "field_serializer": _decorator,
    "model_serializer": _decorator,
    "ValidationError": types.new_class("ValidationError", (ValueError,)),
    "PydanticUserError": types.new_class("PydanticUserError", (TypeError,)),
}


def _load_digits() -> Any:
    """1797 images of 8 x 8 pixels with values from 0 to 16: ten fixed patterns with noise, so that they can be learnt."""
    import numpy as np

    draw = np.random.default_rng(0)
    labels = np.arange(1797) % 10
    patterns = draw.uniform(0, 16, (10, 8, 8))
    images = np.clip(patterns[labels] + draw.normal(0, 3, (1797, 8, 8)), 0, 16).round()
    return SimpleNamespace(images=images, target=labels)
