"""What is measured of winners when all trials have ended: their records have it, those of other trials do not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from stillhouse.spec.late_metrics import EXPORTED_LATENCIES
from stillhouse.spec.records import StudentChoice, SweepFacts, TrialRecord
from stillhouse.sweep.execution.robustness import NAMES, degraded_values
from stillhouse.sweep.execution.students import build_student, student_key
from stillhouse.sweep.facts import initial_facts
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.winner_measurements import lacking_robustness, measure_winners

SPEC: dict[str, Any] = {
    "name": "measured",
    "students": ["mlp", "lenet"],
    "methods": {"scratch": {"label_smoothing": {"choice": [0.0, 0.1]}}},
    "search": {"trials_per_method": 2, "max_epochs": 1, "start": "random", "algorithm": "grid"},
}
PLACE = "a processor, 1 thread"


class Measuring:
    """A cluster that finds fixed numbers, and notes what it had to measure."""

    def __init__(self) -> None:
        self.exported: list[list[str]] = []
        self.degraded: list[list[str]] = []
        self.seconds: list[float] = []

    def measure_exported(
        self, models: Mapping[str, StudentChoice], _data: Any, *, place: str, total_s: float
    ) -> tuple[dict[str, dict[str, float]], list[str]]:
        assert place == PLACE
        self.exported.append([choice.name for choice in models.values()])
        self.seconds.append(total_s)
        return {name: dict.fromkeys(EXPORTED_LATENCIES, 0.25) for name in models}, []

    def measure_robustness(self, records: Sequence[TrialRecord], _spec: Any) -> tuple[dict[str, dict[str, float]], list[str]]:
        self.degraded.append([record.trial.key for record in records])
        return {record.trial.key: dict.fromkeys(NAMES, 0.5) for record in records}, []


Made = tuple[RunContext, SweepFacts, dict[str, TrialRecord]]
Maker = Callable[..., Made]


@pytest.fixture
def finished(make_context: Callable[[Mapping[str, Any]], RunContext]) -> Maker:
    """A sweep of two students with two settings each; the second setting of each is its winner."""

    def make(seconds: float = 30.0, **spec: Any) -> Made:
        context = make_context(SPEC | spec)
        records = {}
        for number, trial in enumerate(context.plan.trials):
            metrics = {"validation_accuracy": 0.5 + number / 100, "test_accuracy": 0.5, "parameters": 1000.0}
            metrics |= {"size_bytes": 4000.0, "macs": 1000.0, "train_seconds": seconds}
            record = TrialRecord(trial=trial, status="finished", epochs_run=1, metrics=metrics, weights="students/x")
            records[trial.key] = record
            context.sweep_home.ledger.write(record)
        context.sweep_home.write_latencies({}, PLACE)
        return context, initial_facts(context, None, ""), records

    return make


def winners(records: Mapping[str, TrialRecord]) -> dict[str, str]:
    """The key of the best trial of each student."""
    best: dict[str, TrialRecord] = {}
    for record in records.values():
        name, value = record.trial.student.name, record.metrics["validation_accuracy"]
        if name not in best or value > best[name].metrics["validation_accuracy"]:
            best[name] = record
    return {name: record.trial.key for name, record in best.items()}


def test_winners_have_the_latencies_of_their_exported_forms_and_other_trials_none(finished: Maker) -> None:
    context, facts, records = finished()
    cluster: Any = Measuring()
    changed = measure_winners(cluster, context, facts, records)
    assert set(changed) == set(winners(records).values())
    for key, record in records.items():
        assert context.sweep_home.ledger.read(key) == record
        expected = dict.fromkeys(EXPORTED_LATENCIES, 0.25) if key in changed else {}
        assert {name: value for name, value in record.metrics.items() if name in EXPORTED_LATENCIES} == expected
    assert [sorted(names) for names in cluster.exported] == [["lenet", "mlp"]]
    # A quarter of the four trials' 30 s.
    assert cluster.seconds == [30.0]


def test_what_was_measured_is_not_measured_again(finished: Maker) -> None:
    context, facts, records = finished()
    cluster: Any = Measuring()
    measure_winners(cluster, context, facts, records)
    assert measure_winners(cluster, context, facts, records) == {}
    assert len(cluster.exported) == 1


def test_where_all_latencies_were_measured_elsewhere_those_of_exported_forms_are_too(finished: Maker) -> None:
    context, facts, records = finished()
    measured = context.sweep_home.read_exported_latencies()
    lenet = next(record.trial.student for record in records.values() if record.trial.student.name == "lenet")
    stale = {student_key(lenet): dict.fromkeys(EXPORTED_LATENCIES, 9.0)}
    context.sweep_home.write_exported_latencies(type(measured)(place="before", networks=stale))
    key = winners(records)["lenet"]
    old = {**records[key].metrics, **stale[student_key(lenet)]}
    records[key] = records[key].model_copy(update={"metrics": old})
    cluster: Any = Measuring()
    measure_winners(cluster, context, facts, records)
    assert records[key].metrics["onnx_latency_ms"] == 0.25
    assert context.sweep_home.read_exported_latencies().place == PLACE


def test_a_sweep_that_trained_for_seconds_is_not_measured(finished: Maker) -> None:
    context, facts, records = finished(seconds=4.9)
    cluster: Any = Measuring()
    assert measure_winners(cluster, context, facts, records) == {}
    assert cluster.exported == []


def test_degraded_images_cost_nothing_unless_they_are_requested(finished: Maker) -> None:
    context, facts, records = finished(seconds=0.0)
    cluster: Any = Measuring()
    assert measure_winners(cluster, context, facts, records) == {}
    assert cluster.degraded == []


def test_winners_and_the_control_are_evaluated_on_degraded_images_once(finished: Maker) -> None:
    context, facts, records = finished(seconds=0.0, report={"robustness": True})
    cluster: Any = Measuring()
    assert {record.trial.key for record in lacking_robustness(context, facts, records)} == set(winners(records).values())
    measure_winners(cluster, context, facts, records)
    measure_winners(cluster, context, facts, records)
    assert [set(keys) for keys in cluster.degraded] == [set(winners(records).values())]
    for key, record in records.items():
        assert [record.metrics.get(name) for name in NAMES] == [0.5 if key in cluster.degraded[0] else None] * 3
        assert context.sweep_home.ledger.read(key) == record


def test_the_accuracy_on_degraded_images_is_that_of_the_stored_student(
    make_context: Callable[[Mapping[str, Any]], RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(SPEC)
    (trial, *_) = context.plan.trials
    network = build_student(trial.student, context.data).eval()
    monkeypatch.setattr("stillhouse.sweep.execution.robustness.load_student", lambda *_: network)
    record = TrialRecord(trial=trial, status="finished", weights="students/x")
    found = degraded_values(context.sweep_home, context.spec, record, context.data, "cpu")
    assert list(found) == ["robustness_noise", "robustness_blur", "robustness_jpeg"]
    from stillhouse.data.degradations import blur

    test = context.data.test
    predicted = network(context.data.normalise(blur(test.images))).argmax(1)
    assert found["robustness_blur"] == pytest.approx(float((predicted == test.labels).double().mean()))


def test_a_plan_for_data_without_images_says_that_nothing_can_be_degraded(
    make_context: Callable[[Mapping[str, Any]], RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.sweep.planning.notes.can_degrade", lambda _: False)
    asked = make_context(SPEC | {"report": {"robustness": True}}).plan.notes
    assert "report.robustness has no effect: digits has no images of whole numbers that could be degraded" in asked
    assert not [note for note in make_context(SPEC).plan.notes if "robustness" in note]
