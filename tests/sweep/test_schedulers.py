"""Early stopping within size brackets."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.schedulers import BracketedAsha, key_of, size_bracket
from stillhouse.sweep.trainable import TRIAL_KEY

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
MakeTrial = Callable[..., Trial]


def scheduler(brackets: dict[str, int], **options: Any) -> BracketedAsha:
    return BracketedAsha(**{"brackets": brackets, "max_epochs": 9, "grace_epochs": 1, "reduction_factor": 3, **options})


@pytest.fixture
def report(make_trial: MakeTrial) -> Callable[..., str]:
    """What the scheduler says to a trial's result."""
    known: dict[tuple[BracketedAsha, str], Any] = {}

    def say(asha: BracketedAsha, key: str, epoch: int, accuracy: float, *, comparable: bool = True) -> str:
        trial = known.get((asha, key))
        if trial is None:
            trial = SimpleNamespace(trial_id=key, config={TRIAL_KEY: make_trial(key).model_dump_json()})
            known[asha, key] = trial
            asha.on_trial_add(None, trial)
        result = {"epoch": epoch, "validation_accuracy": accuracy, "comparable": comparable}
        return asha.on_trial_result(None, trial, result)

    return say


def test_brackets_hold_students_within_a_factor_of_four() -> None:
    assert [size_bracket(4**power) for power in range(12)] == list(range(12))
    assert size_bracket(0) == size_bracket(1) == 0
    for parameters in (10, 1_000, 61_706, 1_000_000):
        assert size_bracket(4 * parameters) == size_bracket(parameters) + 1
        assert abs(4 ** size_bracket(parameters) / parameters) <= 2 + 1e-9
        assert math.log(4 ** size_bracket(parameters) / parameters, 2) >= -1 - 1e-9


def test_a_trial_behind_two_thirds_of_its_size_stops(report: Callable[..., str]) -> None:
    asha = scheduler(dict.fromkeys("abcd", 5))
    assert report(asha, "a", 1, 0.9) == CONTINUE
    assert report(asha, "b", 1, 0.8) == STOP
    assert report(asha, "c", 1, 0.95) == CONTINUE


def test_a_small_student_is_not_compared_with_large_ones(report: Callable[..., str]) -> None:
    asha = scheduler({"large": 10, "small": 6, "tiny": 6})
    assert report(asha, "large", 1, 0.9) == CONTINUE
    assert report(asha, "small", 1, 0.3) == CONTINUE
    assert report(asha, "tiny", 1, 0.2) == STOP


def test_no_trial_stops_within_its_grace(report: Callable[..., str]) -> None:
    asha = scheduler(dict.fromkeys("ab", 5), grace_epochs=3)
    for epoch in (1, 2):
        assert report(asha, "a", epoch, 0.9) == CONTINUE
        assert report(asha, "b", epoch, 0.1) == CONTINUE
    assert report(asha, "a", 3, 0.9) == CONTINUE
    assert report(asha, "b", 3, 0.1) == STOP


def test_a_stage_that_says_nothing_of_the_end_is_not_compared(report: Callable[..., str]) -> None:
    asha = scheduler(dict.fromkeys("ab", 5))
    assert report(asha, "a", 1, 0.9) == CONTINUE
    assert report(asha, "b", 1, 0.1, comparable=False) == CONTINUE


def test_the_last_epoch_is_an_end_and_no_stop(report: Callable[..., str]) -> None:
    asha = scheduler({"a": 5}, max_epochs=3)
    assert [report(asha, "a", epoch, 0.5) for epoch in (1, 2, 3)] == [CONTINUE] * 3


def test_trials_of_an_earlier_run_stand_on_the_ladder(
    report: Callable[..., str], make_record: Callable[..., TrialRecord]
) -> None:
    earlier = make_record("earlier", (0.9, 0.95))
    assert report(scheduler({"a": 5, "earlier": 5}, history=[earlier]), "a", 1, 0.5) == STOP
    assert report(scheduler({"a": 5, "earlier": 6}, history=[earlier]), "a", 1, 0.5) == CONTINUE
    failed = make_record("earlier", (0.9,), status="failed")
    assert report(scheduler({"a": 5, "earlier": 5}, history=[failed]), "a", 1, 0.5) == CONTINUE


def test_the_key_is_read_off_a_trials_json(make_trial: MakeTrial) -> None:
    assert key_of(make_trial("abc").model_dump_json()) == "abc"
