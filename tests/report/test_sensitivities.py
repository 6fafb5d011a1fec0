"""How much a hyper-parameter decides."""

from collections.abc import Callable

import pytest

from stillhouse.report.sensitivities import sensitivities
from stillhouse.spec.metric import ACCURACY
from stillhouse.spec.records import TrialRecord

Make = Callable[..., TrialRecord]


def test_a_monotone_setting_has_rank_correlation_one_whatever_the_student_sizes(record: Make) -> None:
    records = [
        record(student=student, hyperparameters={"weight": 10.0**step}, test=base + step / 100)
        for student, base in (("small", 0.5), ("large", 0.9))
        for step in range(4)
    ]
    (found,) = sensitivities(records, ACCURACY)
    assert found.correlation == pytest.approx(1.0)
    assert found.best == 1000.0


def test_a_word_setting_that_decides_everything_explains_all_variance(record: Make) -> None:
    records = [
        record(hyperparameters={"loss": loss, "n": number}, test=accuracy)
        for loss, accuracy in (("l1", 0.8), ("l2", 0.9))
        for number in range(2)
    ]
    by_name = {each.hyperparameter: each for each in sensitivities(records, ACCURACY)}
    assert by_name["loss"].explained == pytest.approx(1.0)
    assert by_name["n"].correlation == pytest.approx(0.0)


def test_a_setting_with_one_value_has_no_sensitivity(record: Make) -> None:
    assert sensitivities([record(hyperparameters={"t": 4.0}, seed=seed) for seed in range(3)], ACCURACY) == []


def test_a_setting_that_differs_between_students_only_has_no_sensitivity(record: Make) -> None:
    records = [
        record("a", student="small", validation=0.5, hyperparameters={"weight": 1.0}),
        record("a", student="large", validation=0.9, hyperparameters={"weight": 2.0}),
    ]
    assert sensitivities(records, ACCURACY) == []
