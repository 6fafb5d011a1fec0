"""Defaults by release: the recipe of a spec decides what its missing keys for the training and the start of the search mean.

A spec that a user writes gets the newest recipe, and the stored spec of a sweep names its recipe with all values. A stored spec
without a recipe is of the first release, and keeps the defaults, and with them the trial keys, of that release.
"""

import copy
from collections.abc import Mapping
from typing import Any

RECIPE = "recipe"
FIRST, NEWEST = 1, 2

_DEFAULTS: Mapping[int, Mapping[str, Any]] = {
    FIRST: {"gradient_clip": None},
    # Half of the students on photographs of hand signs were reported to collapse without a bound;
    # docs/decisions/0030-training-defaults-by-recipe.md.
    NEWEST: {"gradient_clip": 5.0},
}
"""The training keys whose defaults depend on the recipe, the same keys in every recipe."""

_SEARCH: Mapping[int, Mapping[str, Any]] = {
    FIRST: {"start": "random"},
    # A draw may miss what a paper suggests; docs/decisions/0040-where-a-search-starts.md.
    NEWEST: {"start": "defaults"},
}
"""The same of `search`."""


def recipe_defaults(recipe: int = NEWEST) -> dict[str, Any]:
    """The training defaults of a recipe, by field of `Training`."""
    return dict(_DEFAULTS[recipe])


def with_recipe(raw: Mapping[str, Any], recipe: int) -> tuple[dict[str, Any], frozenset[str]]:
    """A spec as plain data whose missing keys have the values of a recipe, and the dotted keys that were added.

    A recipe that the spec names itself comes first. Teachers with given weights are not trained, and stay as they are.
    """
    filled: dict[str, Any] = copy.deepcopy(dict(raw))
    named = filled.get(RECIPE)
    added = set()
    if named is None:
        filled[RECIPE] = recipe
        added.add(RECIPE)
    elif named not in _DEFAULTS or isinstance(named, bool):
        return filled, frozenset()  # the schema reports it
    for section, settings, defaults in _sections(filled, filled[RECIPE]):
        for key, value in defaults.items():
            if key not in settings:
                settings[key] = value
                added.add(f"{section}.{key}")
    return filled, frozenset(added)


def recipe_of(stored: Mapping[str, Any]) -> int:
    """The recipe of a stored spec."""
    return int(stored.get(RECIPE, FIRST))


def without(raw: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """`raw` without what `with_recipe` added."""
    stripped: dict[str, Any] = copy.deepcopy(dict(raw))
    for section, settings, _ in _sections(stripped, NEWEST):
        for key in [key for key in settings if f"{section}.{key}" in keys]:
            del settings[key]
    if RECIPE in keys:
        stripped.pop(RECIPE, None)
    return stripped


def _sections(spec: dict[str, Any], recipe: int) -> list[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """The sections that a recipe completes, made where they are missing: dotted key, content, defaults."""
    for section in ("training", "search"):
        if spec.get(section) is None:
            spec[section] = {}
    found = [("training", spec["training"], _DEFAULTS[recipe]), ("search", spec["search"], _SEARCH[recipe])]
    teachers = spec.get("teachers")
    for name, teacher in teachers.items() if isinstance(teachers, dict) else ():
        if isinstance(teacher, dict) and not teacher.get("weights"):
            if teacher.get("train") is None:
                teacher["train"] = {}
            found.append((f"teachers.{name}.train", teacher["train"], _DEFAULTS[recipe]))
    return [(key, section, defaults) for key, section, defaults in found if isinstance(section, dict)]
