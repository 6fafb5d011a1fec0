"""Overrides of a spec on the command line: `--set search.max_epochs=4`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.errors import Problem, SpecError
from stillhouse.spec.display import show
from stillhouse.spec.error_messages import key_of
from stillhouse.spec.yaml_text import Place, parse_text

_LONGEST_KEY, _MOST_PARTS = 1_000, 20
"""No key of a spec comes near; deeper data would exceed Python's stack."""


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`raw` with `KEY=VALUE` overrides such as `search.max_epochs=4` or `students[0].width=0.5`; values are YAML.

    A key that does not exist is set as well, so that validation reports it like any other.

    Raises:
        SpecError: with every override whose key cannot exist.
    """
    changed: dict[str, Any] = copy_data(raw)
    problems: list[Problem] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip()
        place = parse_key(key)
        if not separator or place is None:
            problems.append(Problem("--set", f"must be KEY=VALUE such as search.max_epochs=4, got {show(override)}"))
            continue
        try:
            value = _parse_value(text, key)
            _put(changed, place, value)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return changed


def parse_key(key: str) -> Place | None:
    """`students[0].width` as its parts; None when it is not a key."""
    if len(key) > _LONGEST_KEY or key.count(".") + key.count("[") >= _MOST_PARTS:
        return None
    if not re.fullmatch(r"[^.\[\]\s]+(?:\[\d{1,6}\]|\.[^.\[\]\s]+)*", key):
        return None
    return tuple(int(index) if index else word for index, word in re.findall(r"\[(\d+)\]|([^.\[\]]+)", key))


def copy_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: copy_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [copy_data(item) for item in value]
    return value


def _parse_value(text: str, key: str) -> Any:
    """The YAML value of an override."""
    value, problems = parse_text(text, f"the value of {key}")
    if problems:
        raise SpecError(problem.under(key) for problem in problems)
    return value


def _put(raw: dict[str, Any], place: Place, value: Any) -> None:
    """Sets the value at `place`, and writes shorthands above it in full (`students: [mlp]`, `methods: [kd]`)."""
    container: Any = raw
    for number, part in enumerate(place):
        here = key_of(place[:number])
        last = number == len(place) - 1
        if isinstance(part, int):
            if not isinstance(container, list):
                raise SpecError([Problem(key_of(place), f"cannot be set: {here} is not a list")])
            if part >= len(container):
                raise SpecError([Problem(key_of(place), f"cannot be set: {here} has {len(container)} entries, counted from 0")])
        elif not isinstance(container, dict):
            raise SpecError([Problem(key_of(place), f"cannot be set: {here} is {show(container)}, not a mapping")])
        if last:
            container[part] = value
            return
        inner = container[part] if isinstance(part, int) else container.get(part)
        if inner is None:
            inner = {}
        elif place[0] == "students" and number == 1 and isinstance(inner, str):
            inner = {"model": inner}
        elif place[0] == "methods" and number == 0 and isinstance(inner, list) and all(isinstance(name, str) for name in inner):
            inner = {name: {} for name in inner}
        container[part] = container = inner
