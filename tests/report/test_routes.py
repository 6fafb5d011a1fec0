"""Which route is best at equal size: the bound that all routes meet, what can be concluded, and what the page shows."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stillhouse.report.page import render_page
from stillhouse.report.report_data import ReportData
from stillhouse.report.routes import PLAIN, compare_routes, route_of, route_verdict
from stillhouse.report.tradeoff_figure import tradeoff_figure
from stillhouse.spec.records import StudentChoice, SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]
CUT = [{"cut": {"ratio": 0.5}}]


def student(record: TrialRecord, compress: list[dict[str, Any]], source: str | None) -> TrialRecord:
    changed = record.trial.student.model_copy(update={"compress": compress, "derived_from": source})
    return record.model_copy(update={"trial": record.trial.model_copy(update={"student": changed})})


def sweep_of(record: Make, small: Sequence[float], cut: Sequence[float], size: int = 20_000) -> list[TrialRecord]:
    """A small network and a cut teacher, each with one value on the test split for each seed."""
    plain = [record("soft_targets", "small", test=value, seed=seed, parameters=10_000) for seed, value in enumerate(small)]
    derived = [record("soft_targets", "cut", test=value, seed=seed, parameters=size) for seed, value in enumerate(cut)]
    return [*plain, *(student(each, CUT, "large") for each in derived)]


@pytest.mark.parametrize(
    ("compress", "source", "route"),
    [
        ([], None, PLAIN),
        ([], "big", "weights of big"),
        (CUT, None, "cut"),
        ([*CUT, {"my:Round": {}}], "big", "cut + Round of big"),
    ],
)
def test_a_route_is_the_operators_and_the_origin(compress: list[Any], source: str | None, route: str) -> None:
    assert route_of(StudentChoice(name="x", model="m", compress=compress, derived_from=source)) == route


def test_routes_are_compared_within_the_size_that_all_of_them_can_meet(facts: Facts, record: Make) -> None:
    records = [*sweep_of(record, [0.80, 0.81, 0.82], [0.90, 0.91, 0.92])]
    large = [record("soft_targets", "wide", test=0.99, seed=seed, parameters=90_000) for seed in range(3)]
    winners = ReportData.of(facts(), [*records, *large]).tradeoff.winners
    by_bytes, by_latency = compare_routes(winners)
    # 4 x 20000 + 2000 bytes of the cut network; the wide network without operators is beyond it.
    assert (by_bytes.bound.metric, by_bytes.bound.limit) == ("size_bytes", 82_000)
    assert by_latency.bound.metric == "latency_ms"
    assert by_latency.bound.limit == pytest.approx(0.12)
    assert [(each.route, each.best.student) for each in by_bytes.results] == [("cut of large", "cut"), (PLAIN, "small")]
    behind = by_bytes.results[1].behind
    assert behind is not None
    assert behind.mean == pytest.approx(0.1)
    assert by_bytes.results[0].behind is None


@pytest.mark.parametrize(
    ("small", "cut", "state", "words"),
    [
        ([0.80, 0.81, 0.82], [0.900, 0.912, 0.921], "clear", "The best route at this size is cut of large"),
        ([0.80, 0.90, 0.85], [0.90, 0.81, 0.87], "tied", "cut of large cannot be told apart from a network without operators"),
        ([0.80], [0.90], "single", "Nothing can be concluded"),
    ],
)
def test_the_verdict_says_what_can_be_concluded(
    small: list[float], cut: list[float], state: str, words: str, facts: Facts, record: Make
) -> None:
    comparison = compare_routes(ReportData.of(facts(), sweep_of(record, small, cut)).tradeoff.winners)[0]
    assert comparison.state == state
    assert words.lower() in route_verdict(comparison).lower()


def test_the_scatter_can_be_coloured_by_route(facts: Facts, record: Make) -> None:
    data = ReportData.of(facts(), sweep_of(record, [0.80, 0.81, 0.82], [0.90, 0.912, 0.921]))
    figure = tradeoff_figure(data.tradeoff)
    assert figure is not None
    switch, traces = figure.figure["switch"], figure.figure["figure"]["data"]
    by_route: dict[str | None, set[str | None]] = {}
    for route, colour in zip(switch["kinds"]["route"], switch["colours"]["route"], strict=True):
        by_route.setdefault(route, set()).add(colour)
    assert by_route.keys() == {PLAIN, "cut of large", None}, "None: the fronts and the teacher"
    assert by_route.pop(None) == {None}
    assert len(set.union(*by_route.values())) == 2 == sum(map(len, by_route.values())), "one colour for each route"
    drawn = [trace["marker"]["color"] for trace, route in zip(traces, switch["kinds"]["route"], strict=True) if route]
    assert [colour for colour in switch["colours"]["style"] if colour] == drawn, "at first, the colours of methods"
    page = render_page(data, b"")
    assert page.count('type="radio" name="colours"') == 2
    assert '<input type="checkbox" data-kind="route" value="cut of large" checked>' in page


def test_a_sweep_of_one_route_has_no_comparison(facts: Facts, sweep: Callable[..., list[TrialRecord]]) -> None:
    data = ReportData.of(facts(), sweep())
    assert compare_routes(data.tradeoff.winners) == []
    page = render_page(data, b"")
    assert "Which route?" not in page
    assert 'type="radio" name="colours"' not in page
    assert '<input type="checkbox" data-kind="route"' not in page


def test_the_page_has_a_row_for_each_route(facts: Facts, record: Make) -> None:
    data = ReportData.of(facts(), sweep_of(record, [0.80, 0.81, 0.82], [0.90, 0.912, 0.921]))
    page = render_page(data, b"")
    assert page.count('<th scope="row">cut of large</th>') == 2, "by stored bytes and by latency"
    assert "With at most 82 kB" in page
