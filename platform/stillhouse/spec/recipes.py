"""Training defaults by release: the recipe of a spec decides what its missing training keys mean.

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


def recipe_defaults(recipe: int = NEWEST) -> dict[str, Any]:
    """The defaults of a recipe, by field of `Training`."""
    return dict(_DEFAULTS[recipe])


def with_recipe(raw: Mapping[str, Any], recipe: int) -> tuple[dict[str, Any], frozenset[str]]:
    """A spec as plain data whose missing training keys have the values of a recipe, and the dotted keys that were added.

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
    defaults = _DEFAULTS[filled[RECIPE]]
    for section, training in _sections(filled):
        for key, value in defaults.items():
            if key not in training:
                training[key] = value
                added.add(f"{section}.{key}")
    return filled, frozenset(added)


def recipe_of(stored: Mapping[str, Any]) -> int:
    """The recipe of a stored spec."""
    return int(stored.get(RECIPE, FIRST))


def without(raw: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """`raw` without what `with_recipe` added."""
    stripped: dict[str, Any] = copy.deepcopy(dict(raw))
    for section, training in _sections(stripped):
        for key in [key for key in training if f"{section}.{key}" in keys]:
            del training[key]
    if RECIPE in keys:
        stripped.pop(RECIPE, None)
    return stripped


def _sections(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The training sections of a spec with their dotted keys, made where they are missing."""
    if spec.get("training") is None:
        spec["training"] = {}
    found = [("training", spec["training"])]
    teachers = spec.get("teachers")
    for name, teacher in teachers.items() if isinstance(teachers, dict) else ():
        if isinstance(teacher, dict) and not teacher.get("weights"):
            if teacher.get("train") is None:
                teacher["train"] = {}
            found.append((f"teachers.{name}.train", teacher["train"]))
    return [(key, section) for key, section in found if isinstance(section, dict)]
