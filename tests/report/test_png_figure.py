"""The figure as a PNG."""

import io
from collections.abc import Callable

import pytest
from matplotlib.image import imread

from stillhouse.report.png_figure import tradeoff_png
from stillhouse.report.report_data import ReportData
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]
ERROR = Metric(name="error", direction="min", label="mean error")


def shape(facts: SweepFacts, records: list[TrialRecord]) -> tuple[int, ...]:
    image = imread(io.BytesIO(tradeoff_png(ReportData.of(facts, records).tradeoff)), format="png")
    assert image.std() > 0
    return tuple(image.shape)


def test_a_sweep_with_every_size_has_four_panels_in_two_rows(facts: Facts, record: Make) -> None:
    four = shape(facts(), [record(), record("control")])
    one = shape(facts(), [])
    assert four[0] > 1.5 * one[0]
    assert four[1] > 1.5 * one[1]


@pytest.mark.parametrize("sizes", [{}, {"latency_ms": 0.0, "macs": 0.0}])
def test_a_metric_where_lower_is_better_is_drawn_too(facts: Facts, record: Make, sizes: dict[str, float]) -> None:
    scores = {"test_error": 3.0, "validation_error": 3.5}
    made = facts(metric=ERROR, objectives={})
    assert shape(made, [record(test=None, metrics={**scores, **sizes})])
