"""Results: the document that scripts rely on, and what is read back from disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import UsageError
from stillhouse.spec.records import StudentChoice, SweepFacts, TeacherFacts, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results

MakeRecord = Callable[..., TrialRecord]


@pytest.fixture
def facts() -> SweepFacts:
    teacher = TeacherFacts(name="big", model="lenet", key="t", parameters=10, size_bytes=40, macs=9, test_accuracy=0.875)
    return SweepFacts(
        name="s",
        spec={},
        dataset={"name": "digits"},
        baseline="scratch",
        planned=3,
        teachers=[teacher],
        objectives={"validation_accuracy": "max", "parameters": "min"},
        tracking={"uri": "sqlite:///x", "experiment": "s", "run_id": "r"},
    )


def finished(make_record: MakeRecord, key: str, accuracy: float, parameters: float, **trial: Any) -> TrialRecord:
    metrics = {"validation_accuracy": accuracy, "test_accuracy": accuracy, "parameters": parameters}
    sizes = {"size_bytes": 4 * parameters, "macs": 2.0, "latency_ms": 0.5}
    settings = {"hyperparameters": {"width": parameters, "weight": accuracy}}
    return make_record(key, (accuracy,), trial=settings | trial, metrics=metrics | sizes)


def results(facts: SweepFacts, records: list[TrialRecord], home: Path, reused: int = 0) -> Results:
    sweep_home = SweepHome(home, "s")
    return Results(
        facts=facts, records=records, sweep_home=sweep_home, planned=len(records), reused=reused, tracking=facts.tracking
    )


def test_the_document_counts_every_end_and_is_plain_json(tmp_path: Path, facts: SweepFacts, make_record: MakeRecord) -> None:
    records = [
        finished(make_record, "a", 0.5, 100),
        finished(make_record, "b", 0.25, 100),
        make_record("c", (0.3,), status="stopped"),
        make_record("d", (), status="failed", reason="diverged"),
    ]
    document = results(facts, records, tmp_path, reused=1).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["status"] == "failures"
    assert document["trials"] == {"planned": 4, "finished": 3, "failed": 1, "reused": 1}
    assert [row["trial"] for row in document["pareto"]] == ["a"]
    assert document["pareto"][0]["latency_ms"] == 0.5
    assert document["report"] is None
    assert document["teachers"] == [
        {
            "name": "big",
            "accuracy": 0.875,
            "test_split_interval": None,
            "way": "cached",
            "samples_forwarded": 0,
            "samples_reused": 0,
        }
    ]


def test_a_sweep_without_failures_is_finished(tmp_path: Path, facts: SweepFacts, make_record: MakeRecord) -> None:
    assert results(facts, [finished(make_record, "a", 0.5, 100)], tmp_path).to_json()["status"] == "finished"


def test_a_sweep_of_which_nothing_finished_has_a_document_too(
    tmp_path: Path, facts: SweepFacts, make_record: MakeRecord
) -> None:
    document = results(facts, [make_record("d", (), status="failed", reason="diverged")], tmp_path).to_json()
    assert document["pareto"] == []
    assert document["trials"]["failed"] == 1


def test_the_front_is_of_what_no_other_student_beats(tmp_path: Path, facts: SweepFacts, make_record: MakeRecord) -> None:
    records = [
        finished(make_record, key, accuracy, parameters, student=StudentChoice(name=key, model="mlp"))
        for key, accuracy, parameters in [("a", 0.5, 100), ("b", 0.6, 200), ("c", 0.55, 300), ("d", 0.4, 50)]
    ]
    found = results(facts, records, tmp_path)
    assert sorted(found.pareto()["trial"]) == ["a", "b", "d"]
    assert sorted(found.pareto({"test_accuracy": "max"})["trial"]) == ["b"]


def test_results_are_read_back_from_disk(tmp_path: Path, facts: SweepFacts, make_record: MakeRecord) -> None:
    sweep_home = SweepHome(tmp_path, "s")
    sweep_home.write_spec({})
    with pytest.raises(UsageError, match=r"sweep 's' has no results yet; continue with: stillhouse resume s"):
        Results.read(tmp_path, "s")
    sweep_home.write_facts(facts)
    for key in ("a", "b"):
        sweep_home.ledger.write(finished(make_record, key, 0.5, 100))
    found = Results.read(tmp_path, "s")
    assert found.to_json()["trials"] == {"planned": 2, "finished": 2, "failed": 0, "reused": 2}
    assert found.facts == facts
