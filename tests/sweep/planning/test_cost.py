"""Sizes and multiply-accumulates of a plan, against a count by hand."""

from collections import Counter
from collections.abc import Callable

import pytest

from stillhouse.data.datasets import ImageData
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.plan import make_plan

MakeSpec = Callable[..., SweepSpec]


def test_the_size_of_a_student_is_known_before_training(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with(), data)
    trial = next(trial for trial in plan.trials if trial.student.name == "small")
    size = plan.size_of(trial)
    # 64 pixels, 3 hidden units, 10 classes
    assert size.parameters == 64 * 3 + 3 + 3 * 10 + 10
    assert size.macs == 64 * 3 + 3 * 10


def test_the_cost_is_that_of_a_hand_count(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with("students", [{"model": "mlp", "name": "small", "hidden": [3]}]), data)
    samples, epochs, views = len(data.train.labels), 6, 4
    counts = Counter(trial.method for trial in plan.trials)
    teacher = plan.teachers[0].size.macs
    assert plan.cost.students == 3 * (64 * 3 + 3 * 10) * samples * epochs * sum(counts.values())
    assert plan.cost.teacher_shared == teacher * samples * views
    assert plan.cost.teacher_inside == teacher * samples * epochs * counts["kd"]
    assert plan.cost.teacher_training == 3 * teacher * samples * 5
    assert plan.cost.samples_forwarded == samples * views
    assert plan.cost.ratio_shared == pytest.approx(1 + plan.cost.teacher_shared / plan.cost.students)


def test_sizes_of_all_students_that_may_be_chosen_are_known(data: ImageData, searched: MakeSpec) -> None:
    plan = make_plan(searched(), data)
    assert plan.search is not None
    for study in plan.search.studies:
        sizes = [next(planned.size for planned in plan.students if planned.student == choice) for choice in study.students]
        assert sizes == sorted(sizes, key=lambda size: size.parameters)
