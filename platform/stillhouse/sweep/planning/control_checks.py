"""Whether a sweep can have the controls that its spec names."""

from collections.abc import Mapping

from stillhouse import methods
from stillhouse.errors import Problem, did_you_mean
from stillhouse.models.given_content import given_content
from stillhouse.models.layers import Shape
from stillhouse.models.registry import build_model
from stillhouse.models.reset import reset_problem
from stillhouse.spec.controls import has_untrained_teachers, resolved_controls
from stillhouse.spec.schema import RANDOM_TEACHER, SweepSpec, TeacherSpec
from stillhouse.user_code import user_code


def with_controls(
    spec: SweepSpec, teachers: Mapping[str, TeacherSpec], num_classes: int | None, input_shape: Shape | None
) -> tuple[SweepSpec, list[Problem]]:
    """The spec with its controls spelled out, the baseline first, and what is wrong with them.

    Args:
        teachers: those of the spec whose models can be built.
        num_classes, input_shape: of the data; None while they are not known.
    """
    try:
        with user_code():
            baseline = methods.baseline()
    except Exception:  # a user-defined method can raise anything; the check of the methods reports it
        return spec, []
    known = (baseline, RANDOM_TEACHER)
    problems = [
        Problem("controls", f"must be among {' and '.join(known)}, got '{name}'{did_you_mean(name, known)}")
        for name in spec.controls or ()
        if name not in known
    ]
    if has_untrained_teachers(spec) and not spec.teachers:
        problems.append(Problem("controls", f"must not have {RANDOM_TEACHER} in a sweep without teachers; remove it"))
    if has_untrained_teachers(spec) and num_classes is not None and input_shape is not None:
        for name, teacher in teachers.items():
            if (reason := untrainable(teacher, num_classes, input_shape)) is not None:
                remedy = f"add the function, or remove {RANDOM_TEACHER} from controls"
                problems.append(
                    Problem(
                        "controls", f"must not have {RANDOM_TEACHER}: teachers.{name} cannot be untrained, {reason}; {remedy}"
                    )
                )
    return spec.model_copy(update={"controls": resolved_controls(spec.controls, baseline)}), problems


def untrainable(teacher: TeacherSpec, num_classes: int, input_shape: Shape) -> str | None:
    """Why the teacher's model has no untrained form: its function brings weights that cannot be drawn again."""
    with user_code():
        if not given_content(teacher.model, teacher.options, num_classes, input_shape):
            return None
        return reset_problem(build_model(teacher.model, num_classes=num_classes, input_shape=input_shape, **teacher.options))
