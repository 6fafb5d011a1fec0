"""What is known of a sweep before it starts anything."""

from pathlib import Path

import pytest

from stillhouse.data.datasets import load_dataset
from stillhouse.spec.metric import ACCURACY
from stillhouse.spec.records import TeacherFacts
from stillhouse.sweep.facts import initial_facts
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest

SPEC = {
    "name": "s",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "students": ["mlp"],
    "methods": ["scratch"],
    "search": {"trials_per_method": 1, "max_epochs": 2},
}


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    data = load_dataset("digits", validation=80, options={"limit": 240})
    sweep_home = SweepHome(tmp_path / "my home", "s")
    shutdown = ShutdownRequest(sweep_home.stop_request)
    plan = make_plan(check(SPEC), data)
    return RunContext(plan=plan, data=data, sweep_home=sweep_home, progress=Progress("s", quiet=True), shutdown=shutdown)


def test_data_metric_and_plan_are_known_from_the_start(context: RunContext) -> None:
    facts = initial_facts(context, None, "stillhouse sweep s.yaml")
    assert (facts.name, facts.planned, facts.metric, facts.baseline) == ("s", 1, ACCURACY, "scratch")
    assert (facts.dataset["train_samples"], facts.dataset["validation_samples"]) == (160, 80)
    assert facts.dataset["fingerprint"] == context.data.fingerprint
    assert facts.command == "stillhouse sweep s.yaml"


def test_a_later_run_begins_with_the_start_and_the_teachers_of_the_first(context: RunContext) -> None:
    first = initial_facts(context, None, "first")
    teacher = TeacherFacts(name="big", model="mlp", key="k", parameters=1, size_bytes=1, macs=1)
    earlier = first.model_copy(update={"started": "2026-01-05T10:00:00+00:00", "teachers": [teacher]})
    second = initial_facts(context, earlier, "second")
    assert (second.started, second.teachers, second.command) == (earlier.started, [teacher], "first")
    assert [run.command for run in second.later_runs] == ["second"]
