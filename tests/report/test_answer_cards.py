"""An answer in words: its title, its verdict, its facts."""

from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.report.answer_cards import (
    against_teacher,
    budget_words,
    card_facts,
    card_settings,
    card_title,
    nothing_fits,
    verdict,
    verdict_state,
    verdict_tag,
)
from stillhouse.report.answers import Answer, answers
from stillhouse.report.configurations import Configuration, configurations, winners
from stillhouse.report.estimates import Estimate
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.size_bound import Budget

Make = Callable[..., TrialRecord]
ERROR = Metric(name="mean_absolute_error", direction="min", label="mean absolute error")


@pytest.fixture
def made(record: Make) -> Callable[..., Configuration]:
    """The one winner of some records."""

    def make(*seeds: float, method: str = "hints", **fields: Any) -> Configuration:
        records = [record(method, "lenet", test=value, seed=seed, **fields) for seed, value in enumerate(seeds)]
        (winner,) = winners(configurations(records))
        return winner

    return make


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget("parameters", 100_000), "100k parameters"),
        (Budget("size_bytes", 1_500_000), "1.5 MB"),
        (Budget("macs", 2e6), "2M multiply-accumulates"),
        (Budget("latency_ms", 0.5), "0.5 ms per sample"),
    ],
)
def test_a_budget_is_written_in_its_unit(budget: Budget, words: str) -> None:
    assert budget_words(budget) == words
    answer = Answer(question="budget", metric=ACCURACY, budget=budget, least=2 * budget.limit)
    assert card_title(answer) == f"Best with at most {words}"
    assert nothing_fits(answer).startswith("The smallest finished student needs ")


@pytest.mark.parametrize(("metric", "title"), [(ACCURACY, "Most accurate of all sizes"), (ERROR, "Best of all sizes")])
def test_the_best_of_all_sizes_is_called_as_the_metric_calls_it(metric: Metric, title: str) -> None:
    assert card_title(Answer(question="best", metric=metric)) == title


def test_a_clear_winner_has_no_rival_that_may_be_as_good(made: Callable[..., Configuration]) -> None:
    answer = Answer(question="best", metric=ACCURACY, best=made(0.90, 0.91, 0.92), worse=2)
    assert (verdict_state(answer), verdict_tag(answer)) == ("clear", "clear winner")
    assert verdict(answer).startswith("It is better than all 2 rivals")


def test_a_rival_that_may_be_as_good_is_named(made: Callable[..., Configuration]) -> None:
    answer = Answer(question="best", metric=ACCURACY, best=made(0.90, 0.91), tied=(made(0.9, 0.92, method="peers"),))
    assert verdict_tag(answer) == "no clear winner"
    assert "cannot be told apart from peers on lenet" in verdict(answer)


def test_one_seed_names_no_winner(made: Callable[..., Configuration]) -> None:
    answer = Answer(question="best", metric=ACCURACY, best=made(0.9), unsure=(made(0.8, method="peers"),))
    assert verdict_tag(answer) == "single seed"
    assert "its one rival" in verdict(answer)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [(0.95, "4.0 points worse"), (0.90, "1.0 points better")],
)
def test_a_student_is_worse_or_better_than_its_teacher(made: Callable[..., Configuration], teacher: float, words: str) -> None:
    known = TeacherFacts(name="large", model="m", key="k", parameters=617_060, size_bytes=1, macs=1, test_accuracy=teacher)
    answer = Answer(question="best", metric=ACCURACY, best=made(0.91), teacher=known)
    compared = against_teacher(answer)
    assert compared[0] == words
    assert compared[1].endswith("fewer parameters")
    term, shown = card_facts(answer, "control")[0]
    assert term == "Against large"
    assert shown.endswith("fewer parameters")


def test_a_gain_has_its_interval_and_its_seeds(made: Callable[..., Configuration]) -> None:
    answer = Answer(question="best", metric=ACCURACY, best=made(0.91), gain=Estimate(0.02, 0.005, 3))
    assert dict(card_facts(answer, "control"))["Gain over control"] == "+2.0 ± 0.5 points (paired, n = 3)"


def test_settings_are_those_that_repeat_the_trial(made: Callable[..., Configuration]) -> None:
    settings = dict(card_settings(made(0.9, 0.92, hyperparameters={"hint_weight": 12.3456789, "layers": None})))
    assert (settings["hint_weight"], settings["layers"], settings["seeds"]) == ("12.35", "none", "0, 1")


def test_without_a_finished_student_nothing_fits(facts: Callable[..., SweepFacts]) -> None:
    (answer,) = answers(facts(), [], [Budget("parameters", 1)])
    assert nothing_fits(answer) == "No student finished."
