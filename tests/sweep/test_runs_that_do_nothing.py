"""A run that finds nothing to do changes nothing that is recorded of the sweep; one that takes over all trials loses nothing.

Every trial of these sweeps is in the ledger, so no run starts a cluster.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stillhouse.report import write_report
from stillhouse.spec.load import spec_to_dict
from stillhouse.spec.records import RunFacts, SweepFacts, TeacherFacts, TrialRecord
from stillhouse.sweep.facts import initial_facts, with_seconds
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.sweep import Sweep
from stillhouse.tracking.entries import sweep_tags

SPEC: dict[str, Any] = {
    "name": "first",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}}},
    "students": ["mlp"],
    "methods": ["scratch", "kd"],
    "search": {"trials_per_method": 1, "max_epochs": 1},
}
TEACHER = TeacherFacts(
    name="big",
    model="lenet",
    key="of its weights",
    parameters=50_000,
    size_bytes=200_000,
    macs=100_000,
    latency_ms=0.4,
    validation_accuracy=0.9,
    test_accuracy=0.875,
    samples_forwarded=480,
    samples_filled=480,
    bytes_written=1_000,
    fill_seconds=2.0,
    train_seconds=30.0,
    trained_now=True,
)
COMMAND = "stillhouse sweep first.yaml"


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("stillhouse.sweep.cluster.cluster.Cluster", refuse)


@pytest.fixture
def finished(make_context: Callable[[Mapping[str, Any]], RunContext]) -> SweepHome:
    """A sweep of which every trial finished."""
    context = make_context({key: value for key, value in SPEC.items() if key != "dataset"})
    sweep_home = context.sweep_home
    for trial in context.plan.trials:
        metrics = {"validation_accuracy": 0.75, "test_accuracy": 0.5, "parameters": 2_000.0, "size_bytes": 8_000.0, "macs": 2e3}
        teaching = {"way": "cached", "samples_gathered": 160} if trial.teacher else {}
        sweep_home.ledger.write(TrialRecord(trial=trial, status="finished", epochs_run=1, metrics=metrics, teaching=teaching))
    sweep_home.write_spec(spec_to_dict(context.spec, secrets=True))
    facts = initial_facts(context, None, COMMAND)
    recorded = {"teachers": [TEACHER], "seconds": 98.0, "environment": {"commit": "of that day"}}
    sweep_home.write_facts(facts.model_copy(update=recorded))
    return sweep_home


def known(sweep_home: SweepHome) -> SweepFacts:
    facts = sweep_home.read_facts()
    assert facts is not None
    return facts


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("again", [[], ["failed", "stopped"]])
def test_a_run_without_work_keeps_command_duration_and_environment(finished: SweepHome, again: list[str]) -> None:
    sweep = Sweep.named("first", home=finished.home, command="stillhouse retry first")
    results = sweep.run(again=again)
    facts = known(finished)
    assert (facts.command, facts.later_runs, facts.seconds) == (COMMAND, [], 98.0)
    assert facts.environment == {"commit": "of that day"}
    assert results.files is not None
    page = results.files.page.read_text(encoding="utf-8")
    assert COMMAND in page
    assert "stillhouse retry" not in page


@pytest.mark.usefixtures("no_cluster")
def test_a_fork_of_all_trials_keeps_their_teacher(finished: SweepHome) -> None:
    spec = Sweep.named("first", home=finished.home).spec
    results = Sweep.forked(spec, "second", home=finished.home, command="stillhouse sweep --fork second").run()
    assert results.reused == results.planned == 2
    (teacher,) = known(results.sweep_home).teachers
    spent = {"samples_filled", "samples_forwarded", "bytes_written", "fill_seconds", "train_seconds", "trained_now"}
    assert teacher.model_dump(exclude=spent | {"samples_reused"}) == TEACHER.model_dump(exclude=spent | {"samples_reused"})
    # The other sweep paid for it; this one reads what was stored.
    assert not any(getattr(teacher, name) for name in spent)
    assert teacher.samples_reused == 160
    assert [each["accuracy"] for each in results.to_json()["teachers"]] == [0.875]
    drops = results.table().set_index("method")
    assert drops["accuracy_drop"].to_dict() == {"scratch": 0.375, "kd": 0.375}
    assert drops["compression_ratio"].to_dict() == {"scratch": 25.0, "kd": 25.0}
    # And again without the other sweep's help.
    Sweep.named("second", home=finished.home, command="stillhouse resume second").run()
    assert [each.name for each in known(results.sweep_home).teachers] == ["big"]
    assert known(results.sweep_home).command == "stillhouse sweep --fork second"


@pytest.mark.usefixtures("no_cluster")
def test_where_the_facts_are_lost_the_teacher_is_loaded_to_know_it_again(finished: SweepHome) -> None:
    (finished.folder / "facts").write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="a cluster was started"):
        Sweep.named("first", home=finished.home).run()


def test_a_run_with_work_is_listed_after_the_command_that_began_the_sweep(
    make_context: Callable[[Mapping[str, Any]], RunContext], finished: SweepHome
) -> None:
    context = make_context({key: value for key, value in SPEC.items() if key != "dataset"})
    facts = with_seconds(initial_facts(context, known(finished), "stillhouse retry first"), 12.0)
    (run,) = facts.later_runs
    assert (facts.command, run.command, run.seconds, facts.seconds) == (COMMAND, "stillhouse retry first", 12.0, 110.0)
    assert run.environment["commit"] != "of that day"
    assert facts.environment == {"commit": "of that day"}
    later = with_seconds(initial_facts(context, facts, "stillhouse extend first"), 5.0)
    assert [each.command for each in later.later_runs] == ["stillhouse retry first", "stillhouse extend first"]
    assert later.seconds == 115.0


def test_page_and_mlflow_list_the_later_commands(finished: SweepHome, tmp_path: Path) -> None:
    run = RunFacts(command="stillhouse extend first --trials 2", started="2026-01-06T10:00:00+00:00", seconds=61.0)
    facts = known(finished).model_copy(update={"later_runs": [run]})
    files = write_report(facts, finished.read_records(), tmp_path / "out")
    page = files.page.read_text(encoding="utf-8")
    assert "<dt>Command</dt><dd>stillhouse sweep first.yaml</dd>" in page
    assert "<dt>Continued 2026-01-06 10:00 UTC</dt><dd>stillhouse extend first --trials 2 (1 min 1 s)</dd>" in page
    tags = sweep_tags(facts, home_id="h")
    assert (tags["command"], tags["later_commands"]) == (COMMAND, "stillhouse extend first --trials 2")


def test_facts_without_later_runs_are_read(finished: SweepHome) -> None:
    document = json.loads(known(finished).model_dump_json())
    del document["later_runs"]
    assert SweepFacts.model_validate(document).later_runs == []
