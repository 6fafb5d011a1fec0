"""One option of a method or an operator: its default, its rule, and the prior that a search uses."""

import dataclasses
import json
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from stillhouse.errors import Problem
from stillhouse.spec.display import show
from stillhouse.spec.error_messages import sentence
from stillhouse.spec.priors import Prior


@dataclass(frozen=True, kw_only=True)
class HyperParameter:
    """The rule of one hyper-parameter or option, and the prior that a search uses when the spec names none."""

    prior: Prior | None = None
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    help: str = ""
    added_later: bool = False

    def broken_by(self, value: Any) -> str | None:
        """The rule that `value` breaks, as in "must be > 0"; None when it breaks none."""
        if self.choices is not None:
            return None if value in self.choices else f"must be one of {', '.join(map(str, self.choices))}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                return "must be finite"
            if self.above is not None and not value > self.above:
                return f"must be > {self.above:g}"
            if self.minimum is not None and not value >= self.minimum:
                return f"must be >= {self.minimum:g}"
            if self.below is not None and not value < self.below:
                return f"must be < {self.below:g}"
            if self.maximum is not None and not value <= self.maximum:
                return f"must be <= {self.maximum:g}"
        return None


def hyperparameter(
    default: Any,
    *,
    prior: Prior | None = None,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
    help: str = "",
    added_later: bool = False,
) -> Any:
    """A dataclass field with the paper's default, a rule and a prior; without a prior it is not searched by default.

    Args:
        added_later: of an option that a release added without changing what its default computes: at its default it is no part
            of a trial, so that trials of earlier releases keep their keys.
    """
    rule = HyperParameter(
        prior=prior,
        above=above,
        minimum=minimum,
        below=below,
        maximum=maximum,
        choices=None if choices is None else tuple(choices),
        help=help,
        added_later=added_later,
    )
    return field(default=default, metadata={"hyperparameter": rule})


@dataclass(frozen=True, kw_only=True)
class Configured:
    """Options with rules, which are checked when they are given a value; the base of methods and operators.

    Raises:
        ValueError: an option breaks its rule.
    """

    def __post_init__(self) -> None:
        for name, rule in self.hyperparameters().items():
            value = getattr(self, name)
            broken = rule.broken_by(value)
            if broken:
                raise ValueError(f"{name} {broken}, got {value!r}")

    @classmethod
    def hyperparameters(cls) -> dict[str, HyperParameter]:
        """The rule of every hyper-parameter, by name, in order."""
        return {
            item.name: item.metadata.get("hyperparameter", HyperParameter())
            for item in dataclasses.fields(cls)
            if item.init and not item.name.startswith("_")
        }

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        return {item.name: item.default for item in dataclasses.fields(cls) if item.name in cls.hyperparameters()}


def typed(kind: type[Configured], name: str, value: Any) -> Any:
    """`value` as the field is typed: 1 becomes 1.0 for a float, a list a tuple.

    Raises:
        ValueError: with the rule that the type sets.
    """
    adapter = _adapters(kind).get(name)  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
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


def setting_problem(kind: type[Configured], name: str, setting: Any) -> Problem | None:
    """What is wrong with a value, or a prior, of the hyper-parameter or option `name`, which is the problem's key."""
    rule = kind.hyperparameters()[name]
    values = setting.ends() if isinstance(setting, Prior) else (setting,)
    where = f" in {show(setting.to_json())}" if isinstance(setting, Prior) else ""
    for value in values:
        broken = rule.broken_by(plain(value)) if rule.choices is not None else None
        if broken is None:
            try:
                broken = rule.broken_by(typed(kind, name, value))
            except ValueError as error:
                return Problem(name, f"{error}{where}")
        if broken:
            return Problem(name, broken, f"{show(value)}{where}")
    return None


@cache
def _adapters(kind: type[Configured]) -> dict[str, TypeAdapter[Any]]:
    """A validator for each hyper-parameter whose type pydantic knows."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    try:
        hints = typing.get_type_hints(kind)
    except NameError:
        return adapters
    for name in kind.hyperparameters():
        try:
            adapters[name] = TypeAdapter(hints[name])
        except PydanticUserError:
            continue
    return adapters
