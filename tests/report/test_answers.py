"""Answers: the best student within a size, and how sure that is."""

from collections.abc import Callable, Sequence

import pytest

from stillhouse.report.answer_cards import verdict_state
from stillhouse.report.answers import answers
from stillhouse.report.configurations import Configuration, configurations, winners
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.size_bound import Budget

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def best(records: Sequence[TrialRecord]) -> list[Configuration]:
    """The winner of every method and student."""
    return winners(configurations(records))


def test_a_budget_picks_the_best_validation_accuracy_that_fits(facts: Facts, record: Make) -> None:
    records = [
        record(student="tiny", parameters=10, validation=0.70, test=0.99),
        record(student="small", parameters=90, validation=0.80, test=0.80),
        record(student="big", parameters=200, validation=0.95, test=0.95),
    ]
    (answer,) = answers(facts(), best(records), [Budget("parameters", 100)])
    assert answer.best is not None
    assert answer.best.student == "small"


def test_a_budget_that_nothing_meets_has_no_trial(facts: Facts, record: Make) -> None:
    (answer,) = answers(facts(), best([record()]), [Budget("parameters", 5)])
    assert answer.to_json() == {"question": "budget", "budget": {"parameters": 5}, "trial": None}


def test_a_winner_ahead_of_every_rival_in_every_pair_is_clear(facts: Facts, record: Make) -> None:
    records = [record("a", seed=seed, test=0.90 + seed / 1000) for seed in range(3)]
    records += [record("b", seed=seed, test=0.80 + seed / 1000 + seed**2 / 5000) for seed in range(3)]
    (answer,) = answers(facts(), best(records))
    assert verdict_state(answer) == "clear"
    assert answer.worse == 1


def test_no_winner_is_named_when_the_interval_of_the_difference_holds_zero(facts: Facts, record: Make) -> None:
    records = [record("a", seed=seed, test=0.90 + sign * 0.01) for seed, sign in enumerate((-1, 0, 1.1))]
    records += [record("b", seed=seed, test=0.90) for seed in range(3)]
    (answer,) = answers(facts(), best(records))
    assert verdict_state(answer) == "tied"
    assert [each.method for each in answer.tied] == ["b"]


def test_single_seeds_name_no_winner(facts: Facts, record: Make) -> None:
    (answer,) = answers(facts(), best([record("a", test=0.95), record("b", test=0.80)]))
    assert verdict_state(answer) == "single"


def test_a_rival_that_is_better_on_test_data_is_said_to_be_ahead(facts: Facts, record: Make) -> None:
    records = [record("a", seed=seed, validation=0.95, test=0.80 + seed / 1000) for seed in range(3)]
    records += [record("b", seed=seed, validation=0.94, test=0.90 + seed**2 / 1000) for seed in range(3)]
    (answer,) = answers(facts(), best(records))
    assert answer.best is not None
    assert answer.best.method == "a"
    assert [each.method for each in answer.better] == ["b"]


def test_the_knee_is_the_corner_of_an_angled_front(facts: Facts, record: Make) -> None:
    corner = {1: 0.5, 10: 0.7, 100: 0.9, 1_000: 0.91, 10_000: 0.92}
    records = [record(student=f"s{size}", parameters=size, test=accuracy) for size, accuracy in corner.items()]
    found = {answer.title: answer.best.student for answer in answers(facts(), best(records)) if answer.best}
    assert found == {"most accurate": "s10000", "knee": "s100", "smallest": "s1"}


def test_a_straight_front_has_no_knee(facts: Facts, record: Make) -> None:
    records = [record(student=f"s{step}", parameters=10**step, test=0.5 + step / 10) for step in range(4)]
    assert [answer.title for answer in answers(facts(), best(records))] == ["most accurate", "smallest"]


def test_nothing_finished_gives_no_answers(facts: Facts) -> None:
    assert answers(facts(), []) == []


def taught_by(record: TrialRecord, teacher: str) -> TrialRecord:
    return record.model_copy(update={"trial": record.trial.model_copy(update={"teacher": teacher})})


def test_a_student_of_several_teachers_is_held_against_the_best_of_them_not_of_the_sweep(facts: Facts, record: Make) -> None:
    large = facts().teachers[0]
    sweep = facts(
        teachers=[
            large.model_copy(update={"name": name, "test_accuracy": accuracy, "parameters": parameters})
            for name, accuracy, parameters in (("a", 0.7, 100), ("b", 0.8, 200), ("c", 0.9, 400))
        ]
    )
    (answer,) = answers(sweep, best([taught_by(record(test=0.75, parameters=10), "a+b")]))
    assert answer.drop is not None
    assert answer.drop.mean == pytest.approx(0.05)
    assert answer.compression == 20
