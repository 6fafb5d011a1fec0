"""The teacher that a student is compared with, and the two numbers of the comparison, in both directions."""

import math

import pytest

from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import TeacherFacts
from stillhouse.spec.teacher_comparison import against_teacher, reference_teacher

ERROR = Metric(name="error", direction="min", label="mean error")


def teacher(name: str, **values: float) -> TeacherFacts:
    return TeacherFacts(name=name, model="m", key=name, parameters=10, size_bytes=40, macs=9, metrics=values)


@pytest.mark.parametrize(("metric", "best"), [(ACCURACY, "b"), (ERROR, "a")])
def test_the_reference_is_the_best_teacher_by_the_metrics_direction(metric: Metric, best: str) -> None:
    column = metric.column("test")
    found = reference_teacher([teacher("a", **{column: 0.25}), teacher("b", **{column: 0.75})], (), metric)
    assert found is not None
    assert found.name == best


def test_a_student_is_compared_with_its_own_teachers_before_better_ones() -> None:
    teachers = [teacher("a", test_error=5.0), teacher("b", test_error=4.0), teacher("c", test_error=1.0)]
    found = reference_teacher(teachers, ("a", "b"), ERROR)
    assert found is not None
    assert found.name == "b"


def test_a_teacher_without_a_test_score_counts_by_validation_and_one_without_any_last() -> None:
    teachers = [teacher("a"), teacher("b", validation_error=4.0), teacher("c", validation_error=3.0)]
    assert [each.name for each in teachers if each == reference_teacher(teachers, (), ERROR)] == ["c"]
    assert reference_teacher([], ("a",), ERROR) is None


@pytest.mark.parametrize(("metric", "drop"), [(ACCURACY, 0.25), (ERROR, -0.25)])
def test_the_drop_is_positive_where_the_student_is_worse(metric: Metric, drop: float) -> None:
    student = {"parameters": 100.0, metric.column("test"): 0.5}
    found = against_teacher(student, metric, parameters=1000, score=0.75)
    assert found == {"compression_ratio": 10.0, f"{metric.name}_drop": drop}


def test_what_is_not_known_or_not_finite_is_left_out() -> None:
    assert against_teacher({"parameters": 100.0}, ACCURACY, parameters=1000, score=0.75) == {"compression_ratio": 10.0}
    assert against_teacher({"test_accuracy": 0.5}, ACCURACY, parameters=1000, score=None) == {}
    assert against_teacher({"parameters": 0.0, "test_accuracy": math.nan}, ACCURACY, parameters=1000, score=0.75) == {}
