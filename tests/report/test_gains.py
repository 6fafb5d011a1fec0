"""Gains over the baseline on the same student."""

from collections.abc import Callable

import pytest

from stillhouse.report.configurations import configurations, winners
from stillhouse.report.gains import gains
from stillhouse.spec.records import TrialRecord

Make = Callable[..., TrialRecord]


def test_a_gain_is_only_taken_on_the_same_concrete_student(record: Make) -> None:
    records = [
        record("kd", options={"width": 2.0}, test=0.95),
        record("control", options={"width": 1.0}, test=0.85),
        record("kd", options={"width": 1.0}, test=0.86),
    ]
    by_column = {gain.column: gain.difference for gain in gains(winners(configurations(records)), "control")}
    assert by_column["lenet width=2"] is None
    same = by_column["lenet width=1"]
    assert same is not None
    assert same.mean == pytest.approx(0.01)


def test_many_widths_of_one_student_are_pooled_under_its_label(record: Make) -> None:
    records = [
        record(method, options={"width": float(width)}, test=0.8 + width / 100 + bonus)
        for width in range(14)
        for method, bonus in (("kd", 0.02), ("control", 0.0))
    ]
    (gain,) = gains(winners(configurations(records)), "control")
    assert (gain.column, gain.over) == ("lenet", "students")
    assert gain.difference is not None
    assert gain.difference.n == 14
    assert gain.difference.mean == pytest.approx(0.02)
