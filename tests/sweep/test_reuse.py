"""Records that need not be produced again: those of earlier runs, and those of a sweep that was forked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.reuse import reusable_records, take_over_trials
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest

SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "students": ["mlp"],
    "methods": {"label_smoothing": {}},
    "search": {"trials_per_method": 3, "max_epochs": 2},
}
MakeContext = Callable[..., RunContext]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits", validation=80, options={"limit": 240})


@pytest.fixture
def make_context(data: ImageData, tmp_path: Path) -> MakeContext:
    def make(name: str = "s", **search: Any) -> RunContext:
        sweep_home = SweepHome(tmp_path, name)
        sweep_home.ledger.folder.mkdir(parents=True, exist_ok=True)
        spec = check({**SPEC, "name": name, "search": {**SPEC["search"], **search}})
        return RunContext(
            plan=make_plan(spec, data),
            data=data,
            sweep_home=sweep_home,
            progress=Progress(name, quiet=True),
            shutdown=ShutdownRequest(sweep_home.stop_request),
        )

    return make


def write(context: RunContext, statuses: str) -> list[str]:
    """Records of the plan's first trials with these statuses, by their first letter. Returns the keys."""
    names = {"f": "finished", "s": "stopped", "x": "failed"}
    records = [
        TrialRecord.model_validate({"trial": trial, "status": names[letter], "metrics": {"validation_accuracy": 0.5}})
        for letter, trial in zip(statuses, context.plan.trials, strict=False)
    ]
    for record in records:
        context.sweep_home.ledger.write(record)
    return [record.trial.key for record in records]


def test_finished_and_failed_trials_do_not_run_again(make_context: MakeContext) -> None:
    context = make_context()
    keys = write(context, "fx")
    assert list(reusable_records(context)) == sorted(keys)


def test_failed_trials_run_again_when_requested_and_their_records_are_moved_aside(make_context: MakeContext) -> None:
    context = make_context()
    finished, failed = write(context, "fx")
    assert list(reusable_records(context, again=["failed"])) == [finished]
    assert [path.name for path in (context.sweep_home.ledger.folder / "aside").iterdir()] == [f"{failed}.1.record"]


@pytest.mark.parametrize(("scheduler", "count"), [("asha", 2), ("none", 1)])
def test_stopped_trials_run_to_their_end_in_a_sweep_that_stops_none(
    make_context: MakeContext, scheduler: str, count: int
) -> None:
    context = make_context(scheduler=scheduler)
    write(context, "fs")
    assert len(reusable_records(context)) == count


def test_a_damaged_record_is_removed_and_its_trial_runs_again(make_context: MakeContext) -> None:
    context = make_context()
    first, second = write(context, "ff")
    path = context.sweep_home.ledger.path(first)
    path.write_bytes(path.read_bytes()[:-5])
    assert list(reusable_records(context)) == [second]
    assert not path.exists()


def test_trials_of_changed_user_code_run_again(make_context: MakeContext) -> None:
    context = make_context()
    key, _ = write(context, "ff")
    record = context.sweep_home.ledger.read(key)
    assert record is not None
    older = record.trial.model_copy(update={"own_code": "another version"})
    context.sweep_home.ledger.write(record.model_copy(update={"trial": older}))
    assert key not in reusable_records(context)


@pytest.mark.parametrize(("statuses", "taken"), [("fff", 3), ("fxf", 2), ("fsf", 2), ("", 0)])
def test_a_fork_takes_over_the_trials_that_are_usable(make_context: MakeContext, statuses: str, taken: int) -> None:
    origin, fork = make_context("origin"), make_context("fork")
    write(origin, statuses)
    records: dict[str, TrialRecord] = {}
    take_over_trials(origin.sweep_home, fork, Phases(plan=fork.plan, read_latencies=dict), records)
    assert len(records) == len(list(fork.sweep_home.ledger.keys())) == taken
    assert {record.status for record in records.values()} <= {"finished"}


def test_a_fork_with_other_settings_takes_over_nothing(make_context: MakeContext) -> None:
    origin, fork = make_context("origin"), make_context("fork", max_epochs=3)
    write(origin, "fff")
    records: dict[str, TrialRecord] = {}
    take_over_trials(origin.sweep_home, fork, Phases(plan=fork.plan, read_latencies=dict), records)
    assert records == {}
