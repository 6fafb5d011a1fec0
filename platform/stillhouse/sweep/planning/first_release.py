"""What sweeps that an earlier release began keep, so that their trials keep their results."""

from collections.abc import Collection, Mapping
from typing import Any

from stillhouse.data.normalisation import DATASET
from stillhouse.spec.schema import SweepSpec

_KEY = "normalization"


def teachers_as_begun(spec: SweepSpec, stored: Mapping[str, Any] | None) -> frozenset[str]:
    """The teachers that saw the data set's normalisation since the release that began the sweep knew no other.

    Args:
        stored: the spec that the sweep was begun with; None if it was not.
    """
    begun = (stored or {}).get("teachers") or {}
    return frozenset(
        name
        for name, teacher in spec.teachers.items()
        if teacher.weights is not None
        and teacher.normalization is None
        and isinstance(begun.get(name), Mapping)
        and _KEY not in begun[name]
    )


def with_teachers_as_begun(spec: SweepSpec, names: Collection[str]) -> SweepSpec:
    """The spec with the data set's normalisation for these teachers."""
    changed = {name: spec.teachers[name].model_copy(update={_KEY: DATASET}) for name in names}
    return spec.model_copy(update={"teachers": {**spec.teachers, **changed}}) if changed else spec


def without_key(spec: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The spec as plain data as the earlier release would have stored it, for these teachers."""
    teachers = {
        name: {key: value for key, value in teacher.items() if key != _KEY} if name in names else teacher
        for name, teacher in (spec.get("teachers") or {}).items()
    }
    return {**spec, "teachers": teachers}
