"""Sizes on the axes of the trade-off figures, and the range of the metric's axis."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from stillhouse.report.axes import Spread, axis_value, devices_held, without_outliers
from stillhouse.report.configurations import configurations
from stillhouse.report.plot_style import PlotStyle
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
ERROR = Metric(name="error", direction="min", label="mean error")
Facts = Callable[..., SweepFacts]


def test_methods_of_one_size_stand_apart_in_their_order_and_near_it(facts: Facts, record: Make) -> None:
    records = [record(f"m{number:02d}", parameters=5_000) for number in range(35)]
    found = configurations(records)
    spread = Spread(found, "parameters", PlotStyle.of(facts(), records))
    places = [place for each in found if (place := spread(each)) is not None]
    assert all(before < after for before, after in pairwise(places))
    assert [places[0], places[-1]] == pytest.approx([5_000, 5_000], rel=0.11)


def test_a_fan_never_reaches_the_next_size(facts: Facts, record: Make) -> None:
    records = [record(f"m{number}", parameters=size) for size in (1_000, 1_100, 9_000) for number in range(20)]
    found = configurations([each.model_copy(update={"trial": student_of(each)}) for each in records])
    spread = Spread(found, "parameters", PlotStyle.of(facts(), [each.records[0] for each in found]))
    by_size = [[spread(each) or 0.0 for each in found if each.median("parameters") == size] for size in (1_000, 1_100, 9_000)]
    assert max(by_size[0]) < min(by_size[1])
    assert max(by_size[1]) < min(by_size[2])


def student_of(record: TrialRecord) -> object:
    """The trial with a student of its own for each size."""
    name = f"s{record.metrics['parameters']:.0f}"
    return record.trial.model_copy(update={"student": record.trial.student.model_copy(update={"name": name})})


def test_a_method_alone_at_its_size_is_drawn_there(facts: Facts, record: Make) -> None:
    records = [record(f"m{number}", parameters=5_000) for number in range(9)] + [record("z", parameters=18_000)]
    found = configurations(records)
    spread = Spread(found, "parameters", PlotStyle.of(facts(), records))
    assert spread(found[-1]) == 18_000


def test_an_axis_begins_above_what_lies_far_below_the_rest() -> None:
    span = without_outliers([0.1, *(0.7 + number / 100 for number in range(10))], ACCURACY)
    assert span is not None
    assert 0.1 < span[0] < 0.7
    assert span[1] > 0.79


def test_values_near_each_other_leave_the_axis_alone() -> None:
    assert without_outliers([0.7, 0.71, 0.72, None], ACCURACY) is None
    assert without_outliers([None], ACCURACY) is None


def test_training_time_counts_the_share_of_a_gpu_that_a_trial_held(facts: Facts, record: Make) -> None:
    made = record(metrics={"train_seconds": 7_200.0})
    hours = []
    for resources in ({"cpu": 1, "gpu": 0.25}, {"cpu": 8, "gpu": 4}, {"cpu": 2, "gpu": 0}, None):
        spec = {} if resources is None else {"trial_resources": resources}
        (found,) = configurations([made], devices=devices_held(facts(spec=spec)))
        hours.append(axis_value(found, "train_hours"))
    assert hours == [0.5, 8.0, 2.0, 2.0]


def test_of_a_metric_where_lower_is_better_the_axis_ends_below_what_lies_far_above() -> None:
    span = without_outliers([9.0, *(3 + number / 100 for number in range(10))], ERROR)
    assert span is not None
    assert span[0] < 3.0
    assert 3.09 < span[1] < 9.0
