"""How much a hyper-parameter decides."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

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


def test_the_p_value_of_four_ordered_trials_is_two_in_twenty_four(record: Make) -> None:
    # Of the 4! = 24 orders of four trials only two, rising and falling, have a correlation of 1 or -1.
    records = [record(hyperparameters={"weight": float(step)}, test=0.8 + step / 100) for step in range(4)]
    (found,) = sensitivities(records, ACCURACY)
    assert found.correlation == pytest.approx(1.0)
    assert found.p_value == pytest.approx(2 / 24)


@pytest.mark.parametrize(
    "tests", [[0.1, 0.3, 0.2, 0.5, 0.4], [0.5, 0.1, 0.1, 0.4, 0.3, 0.3], [0.1, 0.2, 0.4, 0.3, 0.7, 0.5, 0.6]]
)
def test_p_values_of_few_trials_are_those_of_scipys_permutation_test(record: Make, tests: list[float]) -> None:
    steps = np.arange(len(tests))
    records = [record(hyperparameters={"weight": float(step)}, test=test) for step, test in zip(steps, tests, strict=True)]
    (found,) = sensitivities(records, ACCURACY)
    expected = stats.permutation_test(
        (tests,),
        lambda x: abs(stats.spearmanr(x, steps).statistic),
        permutation_type="pairings",
        n_resamples=np.inf,
        alternative="greater",
    )
    assert found.p_value == pytest.approx(expected.pvalue)


def test_the_p_value_of_a_perfect_order_is_never_zero(record: Make) -> None:
    for count in (3, 9, 10, 40):
        records = [record(hyperparameters={"weight": float(step)}, test=step / 100) for step in range(count)]
        (found,) = sensitivities(records, ACCURACY)
        assert found.p_value is not None
        assert found.p_value >= 2 / math.factorial(count) * (1 - 1e-9) > 0
