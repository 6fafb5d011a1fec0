import math

import pytest
from scipy import stats

from stillhouse.spec.metric import ACCURACY, Metric

ERROR = Metric(name="mae", direction="min", label="mean absolute error", digits=3)


def test_columns_take_their_names_from_the_metric() -> None:
    assert (ACCURACY.column("validation"), ACCURACY.column("test")) == ("validation_accuracy", "test_accuracy")
    assert ERROR.column("test") == "test_mae"


@pytest.mark.parametrize(("metric", "better", "worse"), [(ACCURACY, 0.9, 0.8), (ERROR, 2.0, 3.0)])
def test_the_direction_decides_what_is_better(metric: Metric, better: float, worse: float) -> None:
    assert metric.better(better, worse)
    assert not metric.better(worse, better)
    assert not metric.better(better, better)
    assert metric.gain(better, worse) > 0 > metric.gain(worse, better)
    assert metric.best([worse, better, worse]) == better
    assert metric.better(worse, metric.worst)


@pytest.mark.parametrize("metric", [ACCURACY, ERROR])
def test_what_is_not_a_number_is_never_better(metric: Metric) -> None:
    assert not metric.better(math.nan, metric.worst)
    assert not metric.better(math.nan, 0.5)


def test_there_is_no_best_of_nothing() -> None:
    assert ACCURACY.best([]) == ACCURACY.worst == -math.inf
    assert ERROR.best([]) == ERROR.worst == math.inf


def test_values_are_written_as_people_read_them() -> None:
    assert (ACCURACY.format(0.93852), ACCURACY.format_difference(-0.0123)) == ("93.85 %", "-1.23")
    assert (ERROR.format(3.21449), ERROR.format_difference(0.5)) == ("3.214", "+0.500")


def test_a_heading_begins_with_a_capital_unless_the_label_is_an_abbreviation() -> None:
    assert (ACCURACY.heading, ERROR.heading) == ("Accuracy", "Mean absolute error")
    assert Metric(name="map", direction="max", label="mAP").heading == "mAP"


def test_how_much_worse_a_student_is_has_a_column_of_the_metric() -> None:
    assert (ACCURACY.drop_column, ERROR.drop_column) == ("accuracy_drop", "mae_drop")


@pytest.mark.parametrize(("right", "samples"), [(8, 10), (0, 10), (10, 10), (318, 360), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(right: int, samples: int) -> None:
    expected = stats.binomtest(right, samples).proportion_ci(method="wilson")
    assert ACCURACY.sampling_interval(right / samples, samples) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_eight_in_ten_is_the_textbooks() -> None:
    # Centre (0.8 + 3.8415 / 20) / 1.38415 = 0.71674; half 0.22658.
    assert ACCURACY.sampling_interval(0.8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)


def test_only_a_share_of_known_samples_has_an_interval() -> None:
    assert ERROR.sampling_interval(0.5, 100) is None
    assert Metric(name="map", direction="max", label="mAP", percent=True).sampling_interval(0.5, 100) is None
    assert ACCURACY.sampling_interval(0.5, None) is None
    assert ACCURACY.sampling_interval(None, 100) is None
    assert ACCURACY.sampling_interval(math.nan, 100) is None
