"""Tune gets one trial at a time from the queue."""

import pickle
from collections.abc import Callable

from ray.tune.search import Searcher

from stillhouse.spec.records import Trial
from stillhouse.spec.schema import SearchBudget
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG
from stillhouse.sweep.execution.tune_searcher import QueueSearcher
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.trial_queue import ListQueue

MakeTrial = Callable[..., Trial]


def test_trials_are_suggested_in_the_order_of_the_queue_and_then_it_is_finished(make_trial: MakeTrial) -> None:
    started: list[str] = []
    queue = ListQueue([make_trial("a"), make_trial("b")], {}, BudgetTracker(SearchBudget()))
    searcher = QueueSearcher(queue, lambda trial: started.append(trial.key))
    suggested = [searcher.suggest(f"id-{number}") for number in range(2)]
    assert [Trial.model_validate_json(config[TRIAL_CONFIG]).key for config in suggested] == started == ["a", "b"]
    assert searcher.suggest("id-2") == Searcher.FINISHED


def test_tune_can_pickle_it_without_its_queue() -> None:
    searcher = QueueSearcher(ListQueue([], {}, BudgetTracker(SearchBudget())), lambda trial: None)
    assert type(pickle.loads(pickle.dumps(searcher))) is Searcher
