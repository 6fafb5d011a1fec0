"""The controls of a sweep: what a method's students are compared with.

One control is the baseline, a method that learns without a teacher. The other one, `random_teacher`, is the same method taught
by an untrained network of the teacher's architecture: a part of what distillation gains is regularisation.
"""

from collections.abc import Sequence

from stillhouse.spec.records import is_untrained, trained_name, untrained_name
from stillhouse.spec.schema import RANDOM_TEACHER, SweepSpec, TeacherSpec


def has_untrained_teachers(spec: SweepSpec) -> bool:
    """Whether the sweep has the control `random_teacher`."""
    return RANDOM_TEACHER in (spec.controls or ())


def all_teachers(spec: SweepSpec) -> dict[str, TeacherSpec]:
    """The teachers that the sweep may start, by name: those of the spec, and an untrained one of each if a control needs it."""
    if not has_untrained_teachers(spec):
        return dict(spec.teachers)
    return {**spec.teachers, **{untrained_name(name): teacher for name, teacher in spec.teachers.items()}}


def teacher_spec(spec: SweepSpec, name: str) -> TeacherSpec:
    """The spec's entry of a teacher; an untrained one has that of its trained counterpart."""
    return spec.teachers[trained_name(name) if is_untrained(name) else name]


def resolved_controls(controls: Sequence[str] | None, baseline: str) -> tuple[str, ...]:
    """The controls with the baseline, which every sweep has, first."""
    return tuple(dict.fromkeys((baseline, *(controls or ()))))
