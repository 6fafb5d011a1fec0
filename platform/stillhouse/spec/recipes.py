"""Defaults by release: the recipe of a spec decides what its missing keys for the training and the start of the search mean.

A spec that a user writes gets the newest recipe, and the stored spec of a sweep names its recipe with all values. A stored spec
without a recipe is of the first release, and keeps the defaults, and with them the trial keys, of that release.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

RECIPE = "recipe"
FIRST, NEWEST = 1, 2
_OF_SGD = ("learning_rate", "momentum", "nesterov")

_DEFAULTS: Mapping[int, Mapping[str, Any]] = {
    FIRST: {
        "batch_size": 128,
        "schedule": "cosine",
        "gradient_clip": None,
        "batchnorm_statistics": "running",
        "mixed_passes": "student",
    },
    NEWEST: {
        "batch_size": 64,
        "schedule": "one_cycle",
        "gradient_clip": 5.0,
        "batchnorm_statistics": "recomputed",
        "mixed_passes": "all",
    },
}
"""The training keys whose defaults depend on the recipe, the same keys in every recipe; docs/decisions/0030 has the reasons."""

_RATES: Mapping[int, Mapping[str, float | None]] = {
    FIRST: {"sgd": None, "adam": None, "adamw": None},
    NEWEST: {"adamw": 0.003, "adam": 0.003, "sgd": 0.05},
}
"""The learning rate by optimizer; the first optimizer is the recipe's own. The first release resolved its rates when a trial
ran, so that its trial keys hold null."""

_SEARCH: Mapping[int, Mapping[str, Any]] = {
    FIRST: {"start": "random"},
    # A draw may miss what a paper suggests; docs/decisions/0040-where-a-search-starts.md.
    NEWEST: {"start": "defaults"},
}
"""The same of `search`."""

_Section = dict[str, Any]


HEADS = ("kept", "new")
"""Values of `teachers.NAME.head`, each of which trains given weights further."""


def recipe_defaults(recipe: int = NEWEST, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The defaults of a recipe that a training section needs, by field of `Training`.

    Defaults that depend on each other fit what is given: a rate or a momentum without an optimizer is that of SGD, as in the
    first release, and a warm-up needs another schedule than `one_cycle`, which includes one.

    Args:
        given: the section's own keys.
    """
    given = given or {}
    rates = _RATES[recipe]
    defaults = dict(_DEFAULTS[recipe])
    defaults["optimizer"] = "sgd" if any(given.get(key) is not None for key in _OF_SGD) else next(iter(rates))
    optimizer = given.get("optimizer", defaults["optimizer"])
    defaults["learning_rate"] = rates.get(optimizer) if isinstance(optimizer, str) else None
    if given.get("warmup_epochs") and defaults["schedule"] == "one_cycle":
        defaults["schedule"] = "cosine"
    return {key: value for key, value in defaults.items() if key not in given}


def with_recipe(raw: Mapping[str, Any], recipe: int) -> tuple[dict[str, Any], frozenset[str]]:
    """A spec as plain data whose missing keys have the values of a recipe, and the dotted keys that were added.

    A recipe that the spec names itself comes first. Teachers that are not trained, since they have given weights and no `head`,
    stay as they are.
    """
    filled: dict[str, Any] = copy.deepcopy(dict(raw))
    named = filled.get(RECIPE)
    added = set()
    if named is None:
        filled[RECIPE] = recipe
        added.add(RECIPE)
    elif type(named) is not int or named not in _DEFAULTS:
        return filled, frozenset()  # the schema reports it
    for section, settings, missing in _sections(filled):
        defaults = missing(filled[RECIPE], settings)
        settings.update(defaults)
        added.update(f"{section}.{key}" for key in defaults)
    return filled, frozenset(added)


def recipe_of(stored: Mapping[str, Any]) -> int:
    """The recipe of a stored spec."""
    return int(stored.get(RECIPE, FIRST))


def without(raw: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """`raw` without what `with_recipe` added."""
    stripped: dict[str, Any] = copy.deepcopy(dict(raw))
    for section, settings, _ in _sections(stripped):
        for key in [key for key in settings if f"{section}.{key}" in keys]:
            del settings[key]
    if RECIPE in keys:
        stripped.pop(RECIPE, None)
    return stripped


def _search_defaults(recipe: int, given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _SEARCH[recipe].items() if key not in given}


def _sections(spec: dict[str, Any]) -> list[tuple[str, _Section, Callable[[int, _Section], dict[str, Any]]]]:
    """The sections that a recipe completes, made where they are missing: dotted key, content, defaults that it lacks."""
    for section in ("training", "search"):
        if spec.get(section) is None:
            spec[section] = {}
    found = [("training", spec["training"], recipe_defaults), ("search", spec["search"], _search_defaults)]
    teachers = spec.get("teachers")
    for name, teacher in teachers.items() if isinstance(teachers, dict) else ():
        if isinstance(teacher, dict) and (not teacher.get("weights") or teacher.get("head") in HEADS):
            if teacher.get("train") is None:
                teacher["train"] = {}
            found.append((f"teachers.{name}.train", teacher["train"], recipe_defaults))
    return [(key, section, defaults) for key, section, defaults in found if isinstance(section, dict)]
