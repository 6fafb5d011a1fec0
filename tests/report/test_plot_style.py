from collections.abc import Callable
from itertools import pairwise

import pytest

from stillhouse.report.axes import Spread, axis_value, devices_held, without_outliers
from stillhouse.report.configurations import configurations
from stillhouse.report.plot_style import PlotStyle
from stillhouse.spec.metric import ACCURACY
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def test_each_of_many_methods_looks_different_from_every_other(facts: Facts, record: Make) -> None:
    records = [record(f"m{number:02d}") for number in range(40)] + [record("control")]
    looks = PlotStyle.of(facts(), records)
    assert len({(looks.colours[name], looks.fills[name]) for name in looks.colours}) == 41
    assert len({(looks.colours[name], looks.symbol(name, "lenet")) for name in looks.colours}) == 41
    assert len({(looks.colours[name], looks.dash(name)) for name in looks.colours}) == 41


def test_colours_of_many_methods_never_fade_into_a_white_page(facts: Facts, record: Make) -> None:
    looks = PlotStyle.of(facts(), [record(f"m{number:02d}") for number in range(40)])
    for colour in looks.colours.values():
        assert min(int(colour[start : start + 2], 16) for start in (1, 3, 5)) < 190


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
