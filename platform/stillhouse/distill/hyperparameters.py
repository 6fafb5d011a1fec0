"""Hyper-parameters between the spec, where they are plain data, and a method, which has types and rules for them."""

import json
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from stillhouse import methods
from stillhouse.distill.method import Method
from stillhouse.errors import Problem
from stillhouse.spec.display import show
from stillhouse.spec.error_messages import sentence
from stillhouse.spec.priors import Prior


def make_method(name: str, hyperparameters: Mapping[str, Any]) -> Method:
    """The method with the hyper-parameters of a trial; lists become the tuples that its fields are typed as.

    Raises:
        UsageError: there is no such method.
        ValueError: a value has the wrong type or breaks its rule.
    """
    kind = methods.find(name)
    return kind(**{key: typed(kind, key, value) for key, value in hyperparameters.items()})


def typed(method: type[Method], name: str, value: Any) -> Any:
    """`value` as the method's field is typed: 1 becomes 1.0 for a float, a list a tuple.

    Raises:
        ValueError: with the rule that the type sets.
    """
    adapter = _adapters(method).get(name)  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
    if adapter is None:
        return value
    try:
        # JSON is where lists may stand for tuples and integers for floats while "1" and true still may not.
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(sentence(error.errors(include_url=False)[0])) from error


def plain(value: Any) -> Any:
    """`value` as JSON has it."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def setting_problem(method: type[Method], name: str, setting: Any) -> Problem | None:
    """What is wrong with a value, or a prior, of the method's hyper-parameter `name`, which is the problem's key."""
    rule = method.hyperparameters()[name]
    values = setting.ends() if isinstance(setting, Prior) else (setting,)
    where = f" in {show(setting.to_json())}" if isinstance(setting, Prior) else ""
    for value in values:
        broken = rule.broken_by(plain(value)) if rule.choices is not None else None
        if broken is None:
            try:
                broken = rule.broken_by(typed(method, name, value))
            except ValueError as error:
                return Problem(name, f"{error}{where}")
        if broken:
            return Problem(name, broken, f"{show(value)}{where}")
    return None


@cache
def _adapters(method: type[Method]) -> dict[str, TypeAdapter[Any]]:
    """A validator for each hyper-parameter whose type pydantic knows."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    try:
        hints = typing.get_type_hints(method)
    except NameError:
        return adapters
    for name in method.hyperparameters():
        try:
            adapters[name] = TypeAdapter(hints[name])
        except PydanticUserError:
            continue
    return adapters
