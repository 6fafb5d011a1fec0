"""A queue of trials that are known from the start."""

from collections import Counter
from collections.abc import Callable

from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SearchBudget
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.trial_queue import ListQueue, start_queue, undone_note

MakeTrial = Callable[..., Trial]
MakeRecord = Callable[..., TrialRecord]


def test_trials_are_handed_out_in_their_order_without_those_that_are_done(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    trials = [make_trial(key) for key in "abcd"]
    queue = ListQueue(trials, {"b": make_record("b")}, BudgetTracker(SearchBudget()))
    assert queue.has_next()
    assert [trial.key for trial in start_queue(queue)] == ["a", "c", "d"]
    assert list(queue.known) == list("abcd")
    assert queue.finished
    assert not queue.has_next()


def test_what_is_refused_is_no_trial_of_the_phase_unless_it_is_done(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    trials = [make_trial(key) for key in "abc"]
    queue = ListQueue(trials, {"b": make_record("b")}, BudgetTracker(SearchBudget()), refuse=lambda trial: trial.key in "bc")
    assert [trial.key for trial in start_queue(queue)] == ["a"]
    assert list(queue.known) == ["a", "b"]


def test_looking_for_a_next_trial_does_not_hand_it_out(make_trial: MakeTrial) -> None:
    queue = ListQueue([make_trial("a")], {}, BudgetTracker(SearchBudget()))
    assert queue.has_next()
    assert queue.has_next()
    assert queue.next() is not None
    assert not queue.has_next()


def test_what_was_left_undone_is_said_by_method(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    trials = [make_trial(f"{method}{number}", method=method) for number in range(3) for method in ("kd", "scratch")]
    records: dict[str, TrialRecord] = {}
    budget = BudgetTracker(SearchBudget(trials=3))
    queue = ListQueue(trials, records, budget)
    for trial in start_queue(queue):
        queue.add(make_record(trial.key))
    assert queue.undone() == Counter(kd=1, scratch=2)
    assert budget.reason is not None
    assert undone_note(queue.undone(), budget.reason) == (
        "the budget search.budget.trials = 3 is spent; 3 trials were not started: kd 1, scratch 2"
    )
