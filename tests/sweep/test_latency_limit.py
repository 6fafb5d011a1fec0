"""A limit on latency, which is known only when the students have been measured."""

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.data.datasets import load_dataset
from stillhouse.errors import UsageError
from stillhouse.spec.load import validate
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.latency_limit import measure_latencies, slow_student_filter, slow_student_notes
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest

SPEC: dict[str, Any] = {
    "name": "timed",
    "dataset": {"name": "digits"},
    "students": [{"model": "mlp", "hidden": {"choice": [[8], [16]]}}],
    "methods": {"scratch": {"label_smoothing": {"uniform": [0, 0.3]}}},
}


def context_of(home: Path, algorithm: str, limit: float = 1) -> RunContext:
    search = {"algorithm": algorithm, "trials_per_method": 8, "startup_trials": 4, "limits": {"latency_ms": limit}}
    data = load_dataset("digits")
    sweep_home = SweepHome(home, "timed")
    sweep_home.folder.mkdir(parents=True, exist_ok=True)
    return RunContext(
        plan=make_plan(validate({**SPEC, "search": search}), data),
        data=data,
        sweep_home=sweep_home,
        progress=Progress("timed", quiet=True),
        shutdown=ShutdownRequest(sweep_home.stop_request),
    )


def widths(context: RunContext) -> set[tuple[int, ...]]:
    """Of the students that the search would start."""
    phases = Phases(plan=context.plan, read_latencies=context.sweep_home.read_latencies)
    return {tuple(trial.student.options["hidden"]) for trial in phases.searched({}).known.values()}


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_students_that_were_measured_to_be_too_slow_are_not_started(algorithm: str, tmp_path: Path) -> None:
    context = context_of(tmp_path, algorithm)
    plan = context.plan
    assert len(plan.students) == 2
    assert widths(context) == {(8,), (16,)}
    slow = next(planned for planned in plan.students if planned.student.options["hidden"] == [16])
    context.sweep_home.write_latencies(
        {student_key(planned.student): {"latency_ms": 1.5 if planned is slow else 0.5} for planned in plan.students}
    )
    assert widths(context) == {(8,)}
    assert slow_student_notes(plan, context.sweep_home.read_latencies()) == [
        f"search.limits.latency_ms = 1: 1 of 2 students are slower and {slow.trials} planned trials with them were dropped: "
        "mlp(hidden=[16]) 1.5 ms"
    ]


def test_without_measurements_every_student_is_started(tmp_path: Path) -> None:
    context = context_of(tmp_path, "random")
    assert not any(map(slow_student_filter(context.spec, {}), context.plan.trials))
    assert slow_student_notes(context.plan, {}) == []


class MeasuringCluster:
    """Finds every network equally fast, and notes what it had to measure."""

    def __init__(self) -> None:
        self.measured: list[list[str]] = []

    def measure_latency(
        self, models: dict[str, Any], _data: Any, *, known: Collection[str], place: str
    ) -> tuple[dict[str, dict[str, float]], str]:
        names = [name for name in models if place != "here" or name not in known]
        self.measured.append(names)
        return {name: {"latency_ms": 0.25} for name in names}, "here"


def test_what_was_measured_once_is_not_measured_again(tmp_path: Path) -> None:
    cluster: Any = MeasuringCluster()
    context = context_of(tmp_path, "random")
    names = [student_key(planned.student) for planned in context.plan.students]
    assert measure_latencies(cluster, context, {}) == {name: {"latency_ms": 0.25} for name in names}
    context.sweep_home.write_latencies({names[0]: {"latency_ms": 0.5}}, "here")
    for _ in range(2):
        measured = measure_latencies(cluster, context_of(tmp_path, "random"), {})
        assert measured == {names[0]: {"latency_ms": 0.5}, names[1]: {"latency_ms": 0.25}}
    assert cluster.measured == [names, names[1:]]


def test_teachers_are_measured_too_and_may_be_slow(tmp_path: Path) -> None:
    cluster: Any = MeasuringCluster()
    context = context_of(tmp_path, "random")
    teacher = StudentChoice(name="big", model="lenet", options={"width": 2})
    assert student_key(teacher) in measure_latencies(cluster, context, {"big": teacher})


def test_a_limit_below_the_fastest_student_is_refused(tmp_path: Path) -> None:
    cluster: Any = SimpleNamespace(measure_latency=MeasuringCluster().measure_latency)
    message = r"^search.limits.latency_ms must leave a student, the fastest takes 0.25, got 0.1$"
    with pytest.raises(UsageError, match=message):
        measure_latencies(cluster, context_of(tmp_path, "random", limit=0.1), {})
