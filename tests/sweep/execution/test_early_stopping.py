"""Early stopping within size brackets, in both directions of a metric."""

import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from stillhouse.models.size_brackets import bracket_name, size_bracket
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SearchSpec
from stillhouse.sweep.execution.early_stopping import BracketedScheduler, FifoScheduler, MedianRule, make_stopping_rule
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


MakeTrial = Callable[..., Trial]


def scheduler(
    brackets: dict[str, int],
    *,
    history: Iterable[TrialRecord] = (),
    kind: str = "asha",
    metric: Metric = ACCURACY,
    **options: Any,
) -> BracketedScheduler:
    search = SearchSpec.model_validate(
        {"scheduler": kind, "max_epochs": 9, "grace_epochs": 1, "reduction_factor": 3, **options}
    )
    return BracketedScheduler(lambda: make_stopping_rule(search), metric=metric, brackets=brackets, history=history)


@pytest.fixture
def report(make_trial: MakeTrial) -> Callable[..., str]:
    """The scheduler's decision about a trial's result."""
    known: dict[tuple[BracketedScheduler, str], Any] = {}

    def say(asha: BracketedScheduler, key: str, epoch: int, value: float, *, comparable: bool = True) -> str:
        trial = known.get((asha, key))
        if trial is None:
            trial = SimpleNamespace(trial_id=key, config={TRIAL_CONFIG: make_trial(key).model_dump_json()})
            known[asha, key] = trial
            asha.on_trial_add(None, trial)
        result = {"epoch": epoch, "validation_accuracy": value, "validation_error": value, "comparable": comparable}
        return asha.on_trial_result(None, trial, result)

    return say


def test_brackets_hold_students_within_a_factor_of_four() -> None:
    assert [size_bracket(4**power) for power in range(12)] == list(range(12))
    assert [bracket_name(power) for power in (0, 1, 5, 10)] == ["up to 2", "2 to 8", "512 to 2.05k", "524k to 2.1M"]
    assert size_bracket(0) == size_bracket(1) == 0
    for parameters in (10, 1_000, 61_706, 1_000_000):
        assert size_bracket(4 * parameters) == size_bracket(parameters) + 1
        assert abs(4 ** size_bracket(parameters) / parameters) <= 2 + 1e-9
        assert math.log(4 ** size_bracket(parameters) / parameters, 2) >= -1 - 1e-9


def test_a_trial_worse_than_two_thirds_of_its_size_stops(report: Callable[..., str]) -> None:
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


def test_a_stage_that_does_not_predict_the_result_is_not_compared(report: Callable[..., str]) -> None:
    asha = scheduler(dict.fromkeys("ab", 5))
    assert report(asha, "a", 1, 0.9) == CONTINUE
    assert report(asha, "b", 1, 0.1, comparable=False) == CONTINUE


def test_a_trial_that_reaches_its_last_epoch_is_finished_and_not_stopped(report: Callable[..., str]) -> None:
    asha = scheduler({"a": 5}, max_epochs=3)
    assert [report(asha, "a", epoch, 0.5) for epoch in (1, 2, 3)] == [CONTINUE] * 3


def test_trials_of_an_earlier_run_are_compared_too(report: Callable[..., str], make_record: Callable[..., TrialRecord]) -> None:
    earlier = make_record("earlier", (0.9, 0.95))
    assert report(scheduler({"a": 5, "earlier": 5}, history=[earlier]), "a", 1, 0.5) == STOP
    assert report(scheduler({"a": 5, "earlier": 6}, history=[earlier]), "a", 1, 0.5) == CONTINUE
    failed = make_record("earlier", (0.9,), status="failed")
    assert report(scheduler({"a": 5, "earlier": 5}, history=[failed]), "a", 1, 0.5) == CONTINUE


def test_epochs_of_a_stage_that_does_not_predict_the_result_are_not_replayed(
    report: Callable[..., str], make_record: Callable[..., TrialRecord]
) -> None:
    hints = [{"epoch": 1, "stage": "hint", "validation_accuracy": 0.9, "comparable": False}]
    earlier = make_record("earlier", (), curve=[*hints, {"epoch": 2, "stage": "main", "validation_accuracy": 0.2}])
    for kind in ("asha", "median"):
        asha = scheduler({"a": 5, "earlier": 5}, history=[earlier], kind=kind)
        assert report(asha, "a", 1, 0.5) == CONTINUE


def test_the_median_rule_stops_what_is_below_the_median_of_the_means(report: Callable[..., str]) -> None:
    rule = scheduler(dict.fromkeys("abcde", 5), kind="median", grace_epochs=2)
    for epoch in (1, 2):
        for key, accuracy in (("a", 0.2), ("b", 0.4), ("c", 0.6)):
            assert report(rule, key, epoch, accuracy * epoch) == CONTINUE, "fewer than three others, or within the grace"
    # The means of the others up to epoch 2 are 0.3, 0.6 and 0.9.
    assert report(rule, "d", 1, 0.1) == CONTINUE
    assert report(rule, "d", 2, 0.59) == STOP
    assert report(rule, "e", 1, 0.7) == CONTINUE
    assert report(rule, "e", 2, 0.1) == CONTINUE, "its best epoch counts"


def test_the_median_rule_also_compares_within_a_size(report: Callable[..., str]) -> None:
    rule = scheduler({**dict.fromkeys("abc", 9), "small": 5}, kind="median")
    for key in "abc":
        report(rule, key, 1, 0.9)
    assert report(rule, "small", 1, 0.1) == CONTINUE


def test_the_median_of_an_even_number_lies_between_the_middle_two() -> None:
    rule = MedianRule(grace_epochs=1)
    for key, accuracy in zip("abcd", (0.1, 0.2, 0.4, 0.9), strict=True):
        rule.stops(key, 1, accuracy)
    assert rule.stops("low", 1, 0.29)
    fresh = MedianRule(grace_epochs=1)
    for key, accuracy in zip("abcd", (0.1, 0.2, 0.4, 0.9), strict=True):
        fresh.stops(key, 1, accuracy)
    assert not fresh.stops("high", 1, 0.31)


@pytest.mark.parametrize("kind", [FifoScheduler(), scheduler({})])
def test_naming_the_next_trial_does_not_take_longer_the_more_trials_there_were(kind: FifoScheduler) -> None:
    def walk() -> list[Any]:
        raise AssertionError("all trials were looked at")

    assert kind.choose_trial_to_run(SimpleNamespace(get_trials=walk, get_live_trials=walk)) is None


ERROR = Metric(name="error", direction="min", label="error")


CURVES = {
    "a": (0.5, 0.55, 0.7, 0.72),
    "b": (0.2, 0.6, 0.65, 0.8),
    "c": (0.3, 0.31, 0.3, 0.33),
    "d": (0.55, 0.5, 0.45, 0.4),
    "e": (0.1, 0.1, 0.9, 0.9),
    "f": (0.6, 0.62, 0.64, 0.9),
}


def stopped(report: Callable[..., str], rule: BracketedScheduler, sign: int) -> list[tuple[str, int]]:
    """The (trial, epoch) pairs after which the rule stops a trial; a stopped trial reports no more."""
    found: list[tuple[str, int]] = []
    for epoch in range(1, 5):
        for key, values in CURVES.items():
            if key not in dict(found) and report(rule, key, epoch, sign * values[epoch - 1]) == STOP:
                found.append((key, epoch))
    return found


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_curves_of_a_metric_of_which_less_is_better_stop_the_trials_that_their_mirror_image_stops(
    report: Callable[..., str], make_record: Callable[..., TrialRecord], kind: str
) -> None:
    brackets = dict.fromkeys([*CURVES, "earlier"], 5)
    higher, lower = (
        [make_record("earlier", (), curve=[{"epoch": 1, column: sign * 0.45}, {"epoch": 2, column: sign * 0.5}])]
        for column, sign in (("validation_accuracy", 1), ("validation_error", -1))
    )
    expected = stopped(report, scheduler(brackets, history=higher, kind=kind, reduction_factor=2), 1)
    mirrored = stopped(report, scheduler(brackets, history=lower, kind=kind, reduction_factor=2, metric=ERROR), -1)
    assert expected
    assert mirrored == expected


def test_the_largest_error_of_its_size_stops(report: Callable[..., str]) -> None:
    asha = scheduler(dict.fromkeys("abc", 5), metric=ERROR)
    assert report(asha, "a", 1, 0.1) == CONTINUE
    assert report(asha, "b", 1, 0.2) == STOP
    assert report(asha, "c", 1, 0.05) == CONTINUE
