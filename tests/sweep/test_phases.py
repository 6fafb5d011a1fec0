"""Which trials the phases of a sweep have, by the records that exist."""

from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.data.datasets import load_dataset
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check

MakeRecord = Callable[..., TrialRecord]
SPEC: dict[str, Any] = {
    "name": "confirmed",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "students": [{"model": "mlp", "hidden": {"choice": [[8], [16]]}}],
    "methods": ["scratch"],
    "search": {"trials_per_method": 2, "max_epochs": 1, "confirm_seeds": 3},
}


@pytest.fixture(scope="module")
def phases() -> Phases:
    data = load_dataset("digits", validation=80, options={"limit": 240})
    return Phases(plan=make_plan(check(SPEC), data), read_latencies=dict)


@pytest.fixture
def records(phases: Phases, make_record: MakeRecord) -> dict[str, TrialRecord]:
    """A finished record of every trial of the search."""
    trials = phases.searched({}).known
    return {
        key: make_record(key, (0.5 + 0.1 * place,)).model_copy(update={"trial": trial})
        for place, (key, trial) in enumerate(trials.items())
    }


def test_without_a_record_only_the_search_has_trials(phases: Phases) -> None:
    assert phases.confirming({}) == []
    assert phases.wanted({}) == set(phases.searched({}).known)


def test_each_winner_is_confirmed_once_for_each_fresh_seed(phases: Phases, records: dict[str, TrialRecord]) -> None:
    confirming = phases.confirming(records)
    searched_seeds = {record.trial.seed for record in records.values()}
    by_student: dict[str, list[Trial]] = {}
    for trial in confirming:
        by_student.setdefault(str(trial.student.options), []).append(trial)
    assert {len({trial.seed for trial in trials}) for trials in by_student.values()} == {3}
    assert not searched_seeds & {trial.seed for trial in confirming}
    assert {trial.phase for trial in confirming} == {"confirm"}


def test_the_trials_of_both_phases_are_wanted(phases: Phases, records: dict[str, TrialRecord]) -> None:
    assert phases.wanted(records) == {*records, *(trial.key for trial in phases.confirming(records))}
