"""What a sweep may spend: trials, epochs and hours of all its runs."""

from collections.abc import Callable

import pytest

from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SearchBudget
from stillhouse.sweep.search.budget import BudgetTracker, covered_seconds
from stillhouse.sweep.search.trial_queue import ListQueue, start_queue

MakeTrial = Callable[..., Trial]
MakeRecord = Callable[..., TrialRecord]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("limits", "started"), [({"trials": 3}, 2), ({"epochs": 9}, 2), ({"epochs": 5}, 0), ({}, 5)])
def test_no_trial_starts_beyond_the_trials_and_epochs_of_all_runs(
    limits: dict[str, int], started: int, make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    earlier = make_record("earlier", (0.5, 0.6, 0.7), trial={"epochs": 3})
    budget = BudgetTracker(SearchBudget(**limits), [earlier])
    queue = ListQueue([make_trial(str(number), epochs=3) for number in range(5)], {}, budget)
    assert len(start_queue(queue)) == started
    assert (budget.reason is None) == (not limits)
    assert queue.finished


def test_epochs_that_an_early_stop_saved_are_there_for_other_trials(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    budget = BudgetTracker(SearchBudget(epochs=10))
    first, second = (make_trial(key, epochs=10) for key in "ab")
    assert not budget.over(first)
    budget.start(first)
    assert budget.over(make_trial("c", epochs=1))
    budget.end(make_record("a", (0.1, 0.1), trial={"epochs": 10}, status="stopped"))
    assert not budget.over(make_trial("c", epochs=8))
    assert budget.over(second)
    assert budget.reason == "the budget search.budget.epochs = 10 is spent"


def test_hours_pass_with_the_clock_and_with_what_earlier_runs_took(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    clock = Clock()
    hour = {"started": "2026-01-05T10:00:00+00:00", "finished": "2026-01-05T11:00:00+00:00"}
    budget = BudgetTracker(SearchBudget(hours=2), [make_record("earlier", **hour)], started=clock.now, clock=clock)
    assert not budget.over(make_trial())
    clock.now += 3599
    assert not budget.over(make_trial())
    clock.now += 1
    assert budget.over(make_trial())


def test_trial_hours_count_every_trial_under_way_and_gpu_hours_its_share(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    clock = Clock()
    budgets = SearchBudget(trial_hours=2), SearchBudget(gpu_hours=1)
    spent = [BudgetTracker(budget, gpus=0.5, clock=clock) for budget in budgets]
    for budget in spent:
        budget.start(make_trial("a"))
        budget.start(make_trial("b"))
    clock.now += 3599
    assert not any(budget.over(make_trial("c")) for budget in spent)
    clock.now += 1
    assert all(budget.over(make_trial("c")) for budget in spent)
    for budget in spent:
        # The record knows better: both took a minute.
        for key in "ab":
            budget.end(make_record(key, metrics={"train_seconds": 60.0}))
    assert not any(budget.over(make_trial("c")) for budget in spent)


def test_trials_that_share_a_process_spend_its_hours_once(make_trial: MakeTrial) -> None:
    clock = Clock()
    budget = BudgetTracker(SearchBudget(gpu_hours=1), gpus=0.5, packed=4, clock=clock)
    for key in "abcd":
        budget.start(make_trial(key))
    clock.now += 2 * 3600 - 1
    assert not budget.over(make_trial("e"))
    clock.now += 1
    assert budget.over(make_trial("e"))


def test_time_in_which_several_trials_ran_counts_once(make_record: MakeRecord) -> None:
    def span(begin: int, end: int) -> dict[str, str]:
        return {"started": f"2026-01-05T10:{begin:02}:00+00:00", "finished": f"2026-01-05T10:{end:02}:00+00:00"}

    records = [make_record(str(pair), **span(*pair)) for pair in [(0, 10), (5, 12), (6, 7), (30, 31)]]
    assert covered_seconds(records) == 13 * 60
    assert covered_seconds([make_record("no times")]) == 0
