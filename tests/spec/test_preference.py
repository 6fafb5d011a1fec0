"""Equal results: the control before other methods, then the smaller student, then the cheaper one."""

import math

import pytest

from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.preference import Preference, comparable, preference, record_preference
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord

ERROR = Metric(name="error", direction="min", label="mean error")
SIZES = {"parameters": 100.0, "size_bytes": 400.0, "macs": 50.0}


def key(
    value: float = 0.9, metric: Metric = ACCURACY, *, control: bool = False, teachers: int = 1, **sizes: float
) -> Preference:
    return preference(value, metric, control=control, sizes=SIZES | sizes, teachers=teachers)


def test_a_better_value_comes_first_whatever_its_size() -> None:
    assert key(0.91, parameters=1e9) < key(0.9, control=True)
    assert key(0.1, ERROR) < key(0.2, ERROR, control=True)


def test_of_equal_values_the_control_then_the_smaller_then_the_cheaper_comes_first() -> None:
    order = [
        key(control=True, parameters=200),
        key(parameters=90, macs=1e9),
        key(size_bytes=300),
        key(macs=40),
        key(teachers=0),
        key(teachers=1),
        key(teachers=2),
        key(macs=60),
    ]
    assert sorted(order) == order


def test_an_unknown_size_comes_last() -> None:
    assert key(parameters=1e9) < key(parameters=math.nan)
    assert key() < preference(0.9, ACCURACY, control=False, sizes={}, teachers=0)


@pytest.mark.parametrize(("left", "right"), [(0.1 + 0.2, 0.3), (318 / 360 + 1e-16, 318 / 360)])
def test_values_that_differ_by_rounding_only_are_equal(left: float, right: float) -> None:
    assert comparable(left) == comparable(right)
    assert key(left) == key(right)
    assert comparable(318 / 360) != comparable(319 / 360)


def test_a_record_is_ordered_by_what_it_recorded() -> None:
    def record(method: str, teacher: str | None) -> TrialRecord:
        trial = Trial(key=method, student=StudentChoice(name="mlp", model="mlp"), method=method, teacher=teacher, epochs=1)
        return TrialRecord(trial=trial, status="finished", metrics={**SIZES, "validation_accuracy": 0.5})

    control, taught = record("scratch", None), record("kd", "a+b")
    assert record_preference(control, ACCURACY, "scratch") == key(0.5, control=True, teachers=0)
    assert record_preference(taught, ACCURACY, "scratch") == key(0.5, teachers=2)
