"""A limit on latency, which is known only once the students were timed."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.spec.load import validate
from stillhouse.sweep.runner import student_key
from stillhouse.sweep.sweep import Sweep

SPEC: dict[str, Any] = {
    "name": "timed",
    "dataset": {"name": "digits"},
    "students": [{"model": "mlp", "hidden": {"choice": [[8], [16]]}}],
    "methods": {"scratch": {"label_smoothing": {"uniform": [0, 0.3]}}},
}


def sweep_of(home: Path, algorithm: str) -> Sweep:
    search = {"algorithm": algorithm, "trials_per_method": 8, "startup_trials": 4, "limits": {"latency_ms": 1}}
    return Sweep(validate({**SPEC, "search": search}), home=home)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_students_that_were_measured_to_be_too_slow_are_not_started(algorithm: str, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, algorithm)
    plan = sweep.plan()
    assert len(plan.students) == 2
    assert {tuple(trial.student.options["hidden"]) for trial in sweep._searched(plan, {}).known.values()} == {(8,), (16,)}
    slow = next(planned for planned in plan.students if planned.student.options["hidden"] == [16])
    sweep.place.write_latencies(
        {student_key(planned.student): {"latency_ms": 1.5 if planned is slow else 0.5} for planned in plan.students}
    )
    known = sweep._searched(plan, {}).known.values()
    assert known
    assert {tuple(trial.student.options["hidden"]) for trial in known} == {(8,)}
    (note,) = sweep._slow_students(plan)
    assert note == (
        f"search.limits.latency_ms = 1: 1 of 2 students are slower and {slow.trials} planned trials with them were dropped: "
        "mlp(hidden=[16]) 1.5 ms"
    )


def test_without_measurements_nothing_is_refused(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "random")
    plan = sweep.plan()
    assert len(sweep._searched(plan, {}).known) == len(plan.trials)
    assert sweep._slow_students(plan) == []
