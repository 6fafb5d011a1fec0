"""The interactive trade-off figure: which points it draws, what its tooltips and switches contain."""

from collections.abc import Callable

from stillhouse.report.report_data import ReportData
from stillhouse.report.tradeoff_figure import TradeoffFigure, tradeoff_figure
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def drawn(facts: SweepFacts, records: list[TrialRecord]) -> TradeoffFigure:
    figure = tradeoff_figure(ReportData.of(facts, records).tradeoff)
    assert figure is not None
    return figure


def test_nothing_finished_gives_no_figure(facts: Facts, record: Make) -> None:
    assert tradeoff_figure(ReportData.of(facts(), [record(status="failed", test=None)]).tradeoff) is None


def test_a_tooltip_has_metric_sizes_settings_and_trial(facts: Facts, record: Make) -> None:
    records = [record("a", hyperparameters={"temperature": 4.0}, test=0.9123, validation=0.9)]
    (text,) = drawn(facts(), records).figure["figure"]["data"][0]["customdata"]
    assert "<b>a</b> on lenet" in text
    assert "accuracy: test 91.23%, validation 90.00%, n = 1 seed" in text
    assert "61,706 parameters" in text
    assert "temperature: 4" in text


def test_the_teacher_has_a_line_on_both_splits(facts: Facts, record: Make) -> None:
    scores = drawn(facts(), [record("a")]).figure["switch"]["scores"]
    assert {split: switch["lines"] for split, switch in scores.items()} == {"test": [0.941], "validation": [0.946]}


def test_of_very_many_configurations_the_front_and_an_even_choice_are_drawn(facts: Facts, record: Make) -> None:
    records = [record("a", hyperparameters={"t": number}, test=0.5 + number / 1e5) for number in range(2_000)]
    figure = drawn(facts(), records)
    assert (figure.shown, figure.total) == (1_501, 2_000)
