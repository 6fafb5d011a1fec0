"""Learning curves: the mean of the winner's seeds bold, other trials faint, epochs counted through all stages."""

from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.report.learning_curves import curve_figures
from stillhouse.report.report_data import ReportData
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def curve(*values: float, epochs: list[int] | None = None) -> list[dict[str, Any]]:
    numbers = epochs or list(range(1, len(values) + 1))
    return [{"epoch": epoch, "validation_accuracy": value} for epoch, value in zip(numbers, values, strict=True)]


def traces(facts: SweepFacts, records: list[TrialRecord]) -> list[dict[str, Any]]:
    ((figure,),) = curve_figures(ReportData.of(facts, records)).values()
    return list(figure["data"])


def test_stages_that_count_from_one_again_are_counted_through(facts: Facts, record: Make) -> None:
    (bold,) = traces(facts(), [record("a", curve=curve(0.1, 0.2, 0.3, 0.4, epochs=[1, 2, 1, 2]))])
    assert bold["x"] == [1, 2, 3, 4]


def test_the_mean_ends_where_the_shortest_seed_ends(facts: Facts, record: Make) -> None:
    records = [record("a", seed=0, curve=curve(0.2, 0.4, 0.6)), record("a", seed=1, curve=curve(0.4, 0.6))]
    (bold,) = traces(facts(), records)
    assert bold["y"] == pytest.approx([0.3, 0.5])


def test_a_stopped_trial_is_faint_beside_the_winner(facts: Facts, record: Make) -> None:
    records = [
        record("a", hyperparameters={"t": 1}, curve=curve(0.2, 0.4)),
        record("a", hyperparameters={"t": 2}, status="stopped", test=None, curve=curve(0.1)),
    ]
    faint, bold = traces(facts(), records)
    assert (faint["y"], faint["opacity"]) == ([0.1], 0.3)
    assert bold["y"] == [0.2, 0.4]


def test_the_baseline_comes_first(facts: Facts, record: Make) -> None:
    records = [record("a", curve=curve(0.2)), record("control", curve=curve(0.1))]
    assert [trace["name"] for trace in traces(facts(), records)] == ["control", "a"]
