"""Whether the operators of the spec's students can be applied, and their options spelled out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse import compress
from stillhouse.compress.chain import ChainError
from stillhouse.compress.operator import Operator
from stillhouse.compress.students import chain_of, student_blueprint
from stillhouse.data.datasets import ImageData
from stillhouse.errors import Problem, UsageError, describe_error, did_you_mean
from stillhouse.models.layers import Shape
from stillhouse.spec.hyperparameter import plain, setting_problem, typed
from stillhouse.spec.priors import Prior
from stillhouse.spec.schema import StudentSpec, TeacherSpec
from stillhouse.sweep.planning.method_settings import prior_corners
from stillhouse.teachers.own_normalisation import own_normalisation
from stillhouse.user_code import user_code


@dataclass
class CheckedOperators:
    """A student's entry with every option of its operators spelled out.

    Attributes:
        notes: what the operators report about the student, each once.
    """

    student: StudentSpec
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_operators(student: StudentSpec, key: str, facts: tuple[int, Shape] | None, *, fixed: bool) -> CheckedOperators:
    """The entry with the spec's value or prior of each option, else the operator's prior, else its default.

    Args:
        key: of the entry, `students[2]`.
        facts: classes and shape of the images, if they are known; without them nothing is converted.
        fixed: whether options that the spec does not name have their defaults instead of the operator's priors.
    """
    found = CheckedOperators(student)
    entries = []
    for place, entry in enumerate(student.compress):
        for name, given in entry.items():
            try:
                with user_code():
                    kind = compress.find(name)
            except UsageError as error:
                found.problems.append(Problem.caused_by(error, f"{key}.compress[{place}]"))
                continue
            if problems := _option_problems(name, kind, given):
                found.problems += [problem.under(f"{key}.compress[{place}].{name}") for problem in problems]
            else:
                entries.append({name: _spelled_out(kind, given, fixed=fixed)})
    if not found.problems and student.compress:
        found.student = student.model_copy(update={"compress": tuple(entries)})
        _try_corners(found, key, facts)
    return found


def source_problem(student: StudentSpec, key: str, teacher: TeacherSpec, data: ImageData | None) -> Problem | None:
    """Why the student cannot begin with this teacher's weights."""
    if data is None or own_normalisation(teacher, data) is None:
        return None
    return Problem(
        f"{key}.from",
        f"must name a teacher that sees pixels as the students do, got '{student.source}', which has a normalization of its "
        f"own; set teachers.{student.source}.normalization to dataset if its weights allow it",
    )


def _option_problems(name: str, kind: type[Operator], given: Mapping[str, Any]) -> list[Problem]:
    rules = kind.hyperparameters()
    problems = []
    for option, setting in given.items():
        if option not in rules:
            problems.append(Problem(option, f"is not an option of {name}{did_you_mean(option, rules)}"))
        elif (problem := setting_problem(kind, option, setting)) is not None:
            problems.append(problem)
    return problems


def _spelled_out(kind: type[Operator], given: Mapping[str, Any], *, fixed: bool) -> dict[str, Any]:
    """Every option in the operator's own order."""
    defaults = kind.defaults()
    values: dict[str, Any] = {}
    for option, rule in kind.hyperparameters().items():
        if option in given:
            value = given[option]
            values[option] = value if isinstance(value, Prior) else plain(typed(kind, option, value))
        else:
            values[option] = plain(defaults[option]) if fixed or rule.prior is None else rule.prior
    return values


def _try_corners(found: CheckedOperators, key: str, facts: tuple[int, Shape] | None) -> None:
    """Converts the student at every end of the priors, without storage."""
    for values in prior_corners(found.student.settings):
        choice = found.student.choose(values)
        try:
            chain_of(choice).check_order()
            if facts is not None:
                notes = student_blueprint(choice, *facts).notes
                found.notes += [note for note in notes if note not in found.notes]
        except ChainError as error:
            where = f"{key}.compress[{error.place}].{error.operator}" + (f".{error.option}" if error.option else "")
            problem = Problem(where, error.phrase)
        except Exception as error:  # a user-defined operator can raise anything
            problem = Problem(f"{key}.compress", f"cannot be applied: {describe_error(error)}")
        else:
            continue
        if problem not in found.problems:
            found.problems.append(problem)
