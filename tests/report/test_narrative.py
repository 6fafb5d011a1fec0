"""The first sentences of the page, and what it tells about the reliability of its numbers."""

from collections.abc import Callable

from stillhouse.report.narrative import gain_unit, lead, strip, trust
from stillhouse.report.report_data import ReportData
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.size_bound import Budget

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def seeds(record: Make, method: str, mean: float) -> list[TrialRecord]:
    return [record(method, seed=seed, test=mean + seed / 1000 + (method == "a") * seed**2 / 1e5) for seed in range(3)]


def test_a_clear_winner_is_called_the_best(facts: Facts, record: Make) -> None:
    records = [*seeds(record, "a", 0.9), *seeds(record, "control", 0.8)]
    first, second, third = lead(ReportData.of(facts(), records))
    assert first.startswith("Of all sizes, the best student is lenet trained with a: 90.1% on test data")
    assert second == "It is better than its one rival of at most its size: the 95% interval of each difference lies above zero."
    assert third.startswith("Compared with control on the same student, the other methods gained +10.0 to +10.0 points of test")


def test_single_seeds_name_no_winner_and_say_how_to_get_more(facts: Facts, record: Make) -> None:
    first, second, third = lead(ReportData.of(facts(), [record("a", test=0.9), record("control", test=0.8)]))
    assert "lenet trained with a has the best validation accuracy" in first
    assert second.startswith("There is no clear winner: it ran with one seed, so it cannot be compared with its one rival")
    assert "search.confirm_seeds" in second
    assert third.endswith("With one seed each, none of these gains has an interval.")


def test_a_budget_that_nothing_meets_is_the_first_sentence(facts: Facts, record: Make) -> None:
    assert lead(ReportData.of(facts(), [record()], [Budget("parameters", 5)])) == ["No finished student fits 5 parameters."]


def test_a_gain_of_a_metric_where_lower_is_better_names_its_sign() -> None:
    assert gain_unit(ACCURACY) == "points of test accuracy"
    assert gain_unit(Metric(name="mae", direction="min", label="mean error")) == "in test mean error (positive is better)"


def test_the_selection_effect_is_the_difference_between_search_and_fresh_seeds(facts: Facts, record: Make) -> None:
    records = [record("a", validation=0.92, test=0.9)]
    records += [record("a", seed=seed, phase="confirm", validation=0.90, test=0.9) for seed in (1, 2)]
    data = ReportData.of(facts(), records)
    text = " ".join(trust(ACCURACY, "control", data.tradeoff.configurations, data.gains))
    assert "by +2.00 points" in text


def test_the_strip_counts_trials_by_status(facts: Facts, record: Make) -> None:
    records = [record("a"), record("a", status="stopped", test=None), record("a", status="failed", test=None)]
    numbers = {words: number for number, words in strip(ReportData.of(facts(), records))}
    assert (numbers["finished"], numbers["stopped early"], numbers["failed"]) == ("1", "1", "1")
