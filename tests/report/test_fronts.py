"""The front of configurations by the mean on validation data and a size, in both directions of the metric."""

from collections.abc import Callable

import pytest

from stillhouse.report.configurations import configurations
from stillhouse.report.fronts import configuration_front
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import TrialRecord

Make = Callable[..., TrialRecord]
ERROR = Metric(name="error", direction="min", label="mean error")


@pytest.mark.parametrize(("metric", "front"), [(ACCURACY, ["small", "large"]), (ERROR, ["small", "middle"])])
def test_the_front_has_what_no_smaller_student_reaches(record: Make, metric: Metric, front: list[str]) -> None:
    values = {"small": (10, 0.5), "middle": (100, 0.4), "large": (1_000, 0.9)}
    scores = (metric.column("validation"), metric.column("test"))
    records = [
        record(student=name, parameters=size, test=None, metrics=dict.fromkeys(scores, value))
        for name, (size, value) in values.items()
    ]
    found = configuration_front(configurations(records, metric), "parameters")
    assert [each.student for each in found] == front


def test_a_student_without_the_size_is_not_on_its_front(record: Make) -> None:
    records = [record(student="timed"), record(student="untimed", metrics={"latency_ms": 0.0})]
    assert [each.student for each in configuration_front(configurations(records), "latency_ms")] == ["timed"]
