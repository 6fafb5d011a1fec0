"""Values of a spec that several sections share: names, settings, priors."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator
from pydantic_core import PydanticCustomError

from stillhouse.spec.display import show
from stillhouse.spec.priors import Choice, Integers, LogUniform, Prior, Uniform

PRIORS = ("uniform", "loguniform", "integers", "choice")


class Section(BaseModel):
    """A mapping of the spec; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def invalid(message: str, *, below: str | None = None) -> PydanticCustomError:
    """A problem as pydantic carries it; `below` is the key inside the value to which it refers."""
    # Pydantic would read braces in the message itself as a template.
    return PydanticCustomError("stillhouse", "{message}", {"message": message, "below": below})


def _name(pattern: str, rule: str) -> PlainValidator:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise invalid(f"{rule}, got {show(value)}")
        return value

    return PlainValidator(check)


SweepName = Annotated[
    str,
    _name(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}",
        "must be a folder name of letters, digits, '.', '_' and '-', without a leading sign",
    ),
]
TeacherName = Annotated[str, _name(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", "must be a name of letters, digits, '_' and '-'")]
StudentName = Annotated[
    str, _name(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}", "must be a name of letters, digits, '.', '_', ':' and '-'")
]


def parse_setting(value: Any) -> Any:
    """A value of a hyper-parameter or model option: a scalar, a list, null, or a mapping that defines a prior.

    Raises:
        PydanticCustomError: neither.
    """
    if isinstance(value, Prior):
        return value
    if isinstance(value, dict):
        return _parse_prior(value)
    if isinstance(value, list | tuple):
        return [parse_plain(item) for item in value]
    return parse_plain(value)


def parse_plain(value: Any) -> Any:
    """A value that is no prior: a scalar, null, or a list of those."""
    if isinstance(value, list | tuple):
        return [parse_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise invalid(f"must be a plain value, got {show(value)}")


def _parse_prior(value: Mapping[str, Any]) -> Prior:
    if len(value) != 1 or next(iter(value)) not in PRIORS:
        raise invalid(
            f"must be a value or one prior: {{uniform: [low, high]}}, {{loguniform: [low, high]}}, {{integers: [low, high]}} "
            f"or {{choice: [...]}}, got {show(value)}"
        )
    kind, ends = next(iter(value.items()))
    if not isinstance(ends, list | tuple):
        raise invalid(f"must be a list, got {show(ends)}", below=kind)
    if kind == "choice":
        choices = tuple(parse_plain(item) for item in ends)
        if not choices:
            raise invalid("must list at least one value, got []", below=kind)
        return Choice(choices)
    number = int if kind == "integers" else int | float
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, number) for end in ends):
        what = "whole numbers" if kind == "integers" else "numbers"
        raise invalid(f"must be two {what} [low, high], got {show(ends)}", below=kind)
    low, high = ends
    if kind == "integers" or kind == "uniform":
        if not low < high:
            raise invalid(f"must be [low, high] with low < high, got {show(ends)}", below=kind)
        return Integers(low, high) if kind == "integers" else Uniform(float(low), float(high))
    if not 0 < low < high:
        raise invalid(f"must be [low, high] with 0 < low < high, got {show(ends)}", below=kind)
    return LogUniform(float(low), float(high))


Setting = Annotated[Any, PlainValidator(parse_setting)]
