"""Pydantic's errors about a spec as problems with key, rule, value and remedy."""

import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from stillhouse.errors import Problem, did_you_mean
from stillhouse.spec.display import show
from stillhouse.spec.schema import SweepSpec

_REQUIRED = {
    "name": "name the sweep, such as name: my-sweep",
    "dataset": "name the data set, such as dataset: {name: digits}",
    "dataset.name": "name the data set, such as name: digits",
    "students": "list the students, such as students: [mlp, lenet]",
    "model": "name the model, such as model: mlp",
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "mapping_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


def to_problems(errors: Iterable[ErrorDetails]) -> list[Problem]:
    """One problem for each of pydantic's errors about a `SweepSpec`."""
    return [_problem(error) for error in errors]


def key_of(place: Sequence[str | int]) -> str:
    """The dotted key of a position in the spec, as the user writes it: `students[2].width`."""
    key = ""
    for number, part in enumerate(place):
        if isinstance(part, int):
            key += f"[{part}]"
        elif part == "[key]" or (number == 2 and part == "options" and place[0] in ("students", "teachers")):
            continue
        else:
            key += f".{part}" if key else part
    return key


def _problem(error: ErrorDetails) -> Problem:
    place, kind = error["loc"], error["type"]
    context = error.get("ctx", {})
    key = key_of(place)
    if kind == "stillhouse":
        below = context["below"]
        return Problem(f"{key}.{below}" if below else key, context["message"])
    if kind == "missing":
        remedy = _REQUIRED.get(key) or _REQUIRED.get(str(place[-1]))
        return Problem(key, f"is required; {remedy}" if remedy else "is required")
    if kind == "extra_forbidden":
        section = key_of(place[:-1])
        known = _keys_at(place[:-1])
        where = f"a key of {section}" if section else "a key of a spec"
        return Problem(key, f"is not {where}{did_you_mean(str(place[-1]), known)}")
    return Problem(key, sentence(error))


def sentence(error: ErrorDetails) -> str:
    """Rule and value of one of pydantic's errors about a value: `must be > 0, got 0`."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"must be one of {', '.join(allowed)}, got {show(value)}{hint}"
    if kind in _BOUNDS:
        sign, name = _BOUNDS[kind]
        return f"must be {sign} {context[name]:g}, got {show(value)}"
    if kind == "too_short":
        return f"must list at least {context['min_length']}, got {show(value)}"
    if kind == "too_long":
        return f"must list at most {context['max_length']:,}, got {len(value):,}"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {show(value)}"
    return f"is not valid: {error['msg'][:1].lower()}{error['msg'][1:]}, got {show(value)}"


def _keys_at(place: Sequence[str | int]) -> list[str]:
    """The keys that the section at `place` may have."""
    kind: Any = SweepSpec
    for part in place:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = typing.get_args(kind)[0 if isinstance(part, int) else 1]
    return list(kind.model_fields)
