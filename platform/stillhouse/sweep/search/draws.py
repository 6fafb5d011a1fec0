"""Random draws of the search: the student and hyper-parameters of each trial, as functions of seed and counter.

A longer search begins with the trials of a shorter one: no draw depends on the number of trials.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse import methods
from stillhouse.data.hashing import derive_key, permutation, uniform
from stillhouse.spec.priors import Choice, Integers, Prior
from stillhouse.spec.records import TEACHER_JOINT, StudentChoice
from stillhouse.spec.schema import ADAPTIVE, DEFAULTS, StudentSpec, SweepSpec
from stillhouse.sweep.search.prior_values import value_at
from stillhouse.sweep.search.start import first_settings, first_student

MAX_TRIALS = 100_000
_MAX_VARIANTS = 64
_DRAWN_VARIANTS = 16


@dataclass(frozen=True)
class Draw:
    """A trial before its cost and its key are known."""

    method: str
    student: StudentChoice
    teacher: str | None
    hyperparameters: Mapping[str, Any]


def stratified(key: int, count: int) -> NDArray[np.float64]:
    """`count` quantiles in [0, 1): the first 2^n of them are in different strata of width 2^-n, in random order."""
    # 24 bits of each draw, so that stratum + draw is exact and never reaches the next stratum.
    points = np.floor(uniform(key, np.arange(1)) * 2.0**24) / 2.0**24
    while len(points) < count:
        size = len(points)
        empty = np.setdiff1d(np.arange(2 * size), (points * 2 * size).astype(np.int64))
        inside = np.floor(uniform(key, np.arange(size, 2 * size)) * 2.0**24) / 2.0**24
        points = np.concatenate([points, (empty[permutation(key ^ size, size)] + inside) / (2 * size)])
    return points[:count]


def draw_trials(spec: SweepSpec) -> Iterator[Draw]:
    """The trials of a spec whose methods have all their hyper-parameters, method by method.

    Random search gives trial i of every method the same student, student options and teacher, so that methods are compared in
    pairs: student i mod S, teacher (i // S) mod T. An adaptive search chooses its trials later: for it these are the first
    trials and samples of what it may choose. With `search.start = defaults` the first trial of each method and student is not
    drawn (`search.start`), and the draws follow it.
    """
    assert spec.methods is not None, "resolve the spec first"
    if spec.search.algorithm == "grid":
        yield from _grid(spec)
        return
    if spec.search.algorithm in ADAPTIVE:
        yield from _samples(spec)
        return
    count = spec.search.trials_per_method
    students = spec.students
    rounds = -(-count // len(students)) if students else 0
    choices = [_student_column(spec, student, rounds) for student in students]
    for method, settings in spec.methods.items():
        teachers = teachers_in_turn(method, spec)
        columns = [_setting_column(spec, method, student.name, settings, rounds) for student in students]
        for number in range(count if students else 0):
            turn, index = divmod(number, len(students))
            yield Draw(method, choices[index][turn], teachers[turn % len(teachers)], columns[index][turn])


def student_variants(spec: SweepSpec, student: StudentSpec) -> list[StudentChoice]:
    """The students that an adaptive search chooses from, the same for every method.

    All of them if the priors can be listed and give few, else the first draws of a random search. They do not depend on the
    number of trials.
    """
    if all(map(enumerable, student.settings.values())):
        size = math.prod(len(_values(option)) for option in student.settings.values())
        if size <= _MAX_VARIANTS:
            return [student.choose(values) for values in _product(student.settings)]
    drawn = _student_column(spec, student, max(_DRAWN_VARIANTS, spec.search.startup_trials))
    return list({choice.variant: choice for choice in drawn}.values())


def random_draws(spec: SweepSpec, method: str, student: StudentSpec, count: int) -> list[Draw]:
    """The first `count` trials that a random search has for a method and student."""
    settings = (spec.methods or {})[method]
    teachers = teachers_in_turn(method, spec)
    choices = _student_column(spec, student, count)
    column = _setting_column(spec, method, student.name, settings, count)
    return [Draw(method, choices[row], teachers[row % len(teachers)], column[row]) for row in range(count)]


def list_settings(settings: Mapping[str, Any], limit: int) -> list[dict[str, Any]] | None:
    """Every combination of the settings; None when they cannot be listed or there are more than `limit`."""
    if not all(map(enumerable, settings.values())) or math.prod(len(_values(each)) for each in settings.values()) > limit:
        return None
    return list(_product(settings))


def _samples(spec: SweepSpec) -> Iterator[Draw]:
    """The first draws of a random search, every student variant, and every value of each choice, for all methods."""
    variants = {student.name: student_variants(spec, student) for student in spec.students}
    for method, settings in (spec.methods or {}).items():
        teachers = teachers_in_turn(method, spec)
        for student in spec.students:
            pool = variants[student.name]
            drawn = random_draws(spec, method, student, max(spec.search.startup_trials, len(teachers)))
            yield from drawn
            choices = [
                {name: value} for name, setting in settings.items() if isinstance(setting, Choice) for value in setting.values
            ]
            for number in range(max(len(pool) if len(pool) > 1 else 0, len(choices))):
                sample = drawn[number % len(drawn)]
                changed = choices[number % len(choices)] if choices else {}
                yield Draw(method, pool[number % len(pool)], sample.teacher, {**sample.hyperparameters, **changed})


def draws_at_least(spec: SweepSpec) -> int:
    """How many trials the spec has at least, duplicates included, from its text alone: nothing is drawn."""
    named = {name: {} if isinstance(settings, str) else settings for name, settings in (spec.methods or {}).items()}
    if spec.search.algorithm != "grid":
        return spec.search.trials_per_method * max(1, len(named))
    listed = {name: {key: value for key, value in settings.items() if enumerable(value)} for name, settings in named.items()}
    students = tuple(student.only(enumerable) for student in spec.students)
    # Teachers multiply only the trials of the methods that need one.
    return grid_size(spec.model_copy(update={"methods": listed or {"": {}}, "students": students, "teachers": {}}))


def grid_size(spec: SweepSpec) -> int:
    """The number of combinations of a grid, duplicates included."""
    students = sum(math.prod(len(_values(option)) for option in student.settings.values()) for student in spec.students)
    settings = sum(math.prod(len(_values(value)) for value in settings.values()) for settings in (spec.methods or {}).values())
    return students * settings * max(1, len(spec.teachers))


def enumerable(setting: Any) -> bool:
    """Whether a grid can run every value of the setting."""
    return not isinstance(setting, Prior) or isinstance(setting, Choice | Integers)


def teachers_in_turn(method: str, spec: SweepSpec) -> Sequence[str | None]:
    """The teachers that this method's trials use in turn, or all of them joined if the method uses every teacher."""
    if len(spec.teachers) > 1 and methods.find(method).every_teacher:
        return [TEACHER_JOINT.join(spec.teachers)]
    return [*spec.teachers] or [None]


def _grid(spec: SweepSpec) -> Iterator[Draw]:
    assert spec.methods is not None
    for method, settings in spec.methods.items():
        teachers = teachers_in_turn(method, spec)
        for student in spec.students:
            first = None
            if spec.search.start == DEFAULTS:
                yield (first := Draw(method, first_student(student), teachers[0], first_settings(method, settings)))
            for values in _product(student.settings):
                choice = student.choose(values)
                for teacher in teachers:
                    for hyperparameters in _product(settings):
                        if (draw := Draw(method, choice, teacher, hyperparameters)) != first:
                            yield draw


def _product(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(_values(setting) for setting in settings.values())):
        yield dict(zip(settings, values, strict=True))


def _values(setting: Any) -> Sequence[Any]:
    if isinstance(setting, Integers):
        return range(setting.low, setting.high + 1)
    return setting.values if isinstance(setting, Choice) else (setting,)


def _student_column(spec: SweepSpec, student: StudentSpec, count: int) -> list[StudentChoice]:
    first = [first_student(student)] if spec.search.start == DEFAULTS else []
    rows = _rows(student.settings, count - len(first), "student", spec.search.seed, student.name)
    return [*first, *map(student.choose, rows)][:count]


def _setting_column(
    spec: SweepSpec, method: str, student: str, settings: Mapping[str, Any], count: int
) -> list[dict[str, Any]]:
    first = [first_settings(method, settings)] if spec.search.start == DEFAULTS else []
    return [*first, *_rows(settings, count - len(first), "method", spec.search.seed, method, student)][:count]


def _rows(settings: Mapping[str, Any], count: int, *stream: str | int) -> list[dict[str, Any]]:
    columns = {
        name: stratified(derive_key(*stream, name), count) for name, setting in settings.items() if isinstance(setting, Prior)
    }
    return [
        {
            name: value_at(setting, float(columns[name][row])) if isinstance(setting, Prior) else setting
            for name, setting in settings.items()
        }
        for row in range(count)
    ]
