"""Smallest, median and largest planned students, and bounds that none of them meets."""

import pytest

from stillhouse.models.size import ModelSize
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.planning.cost import PlannedStudent
from stillhouse.sweep.planning.size_ranges import SizeRange, size_ranges, unmet_bounds


def planned(name: str, parameters: int, macs: int = 10, *, estimated: bool = False) -> PlannedStudent:
    size = ModelSize(parameters=parameters, trainable_parameters=parameters, size_bytes=4 * parameters, macs=macs)
    student = StudentChoice(name=name, model="m", options={"width": parameters})
    return PlannedStudent(student=student, size=size, trials=1, estimated=estimated)


def test_an_entry_with_several_students_has_their_range() -> None:
    students = [planned("a", 30, 5), planned("b", 7), planned("a", 10, 9), planned("a", 20, 7)]
    assert size_ranges(students) == [
        SizeRange(
            student="a",
            students=3,
            smallest={"parameters": 10, "size_bytes": 40, "macs": 5},
            median={"parameters": 20, "size_bytes": 80, "macs": 7},
            largest={"parameters": 30, "size_bytes": 120, "macs": 9},
        )
    ]


def test_a_range_with_an_estimate_is_one() -> None:
    (found,) = size_ranges([planned("a", 1), planned("a", 2, estimated=True)])
    assert found.estimated


@pytest.mark.parametrize(
    ("bound", "notes"),
    [
        ("parameters=10", []),
        ("latency_ms=0.1", []),
        ("parameters=9", ["report.budgets: no planned student has parameters <= 9; the smallest, a, has 10"]),
        ("size_bytes=39", ["report.budgets: no planned student has size_bytes <= 39; the smallest, a, has 40"]),
    ],
)
def test_a_bound_that_no_planned_student_meets_is_named_with_the_smallest_one(bound: str, notes: list[str]) -> None:
    assert unmet_bounds([bound], [planned("b", 20), planned("a", 10)]) == notes


def test_an_estimated_size_is_called_one() -> None:
    (note,) = unmet_bounds(["parameters=9"], [planned("a", 10, estimated=True)])
    assert note.endswith("has about 10")
