"""What a report shows of the control with untrained teachers: gains over both controls, and controls that are never chosen."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stillhouse.report.control_gains import gains_of_best, gains_to_json
from stillhouse.report.fronts import sweep_winners
from stillhouse.report.page import render_page
from stillhouse.report.png_figure import tradeoff_png
from stillhouse.report.report_data import ReportData
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
MakeFacts = Callable[..., SweepFacts]


@pytest.fixture
def records(record: Make) -> list[TrialRecord]:
    """A method at 0.90 and 0.92, the baseline 2 and 3 points below, and an untrained teacher 1 and 3 points below."""
    settings = {"temperature": 4.0}
    untrained: dict[str, Any] = {"phase": "control", "teacher": "large.untrained", "hyperparameters": settings}
    return [
        record("soft_targets", test=0.95, seed=0, hyperparameters=settings),
        record("soft_targets", test=0.90, seed=1, hyperparameters=settings, phase="confirm"),
        record("soft_targets", test=0.92, seed=2, hyperparameters=settings, phase="confirm"),
        record("control", test=0.80, seed=0),
        record("control", test=0.88, seed=1, phase="confirm"),
        record("control", test=0.89, seed=2, phase="confirm"),
        record("soft_targets", test=0.89, validation=0.999, seed=1, **untrained),
        record("soft_targets", test=0.89, validation=0.999, seed=2, **untrained),
    ]


def test_the_gain_over_each_control_is_the_mean_of_paired_differences(records: list[TrialRecord], facts: MakeFacts) -> None:
    entries = {entry["control"]: entry for entry in gains_to_json(facts(), records)}
    assert entries["control"]["gain"] == pytest.approx((0.02 + 0.03) / 2)
    untrained = entries["random_teacher"]
    assert untrained["gain"] == pytest.approx((0.01 + 0.03) / 2)
    # Student's interval of two differences: 12.706 times their standard deviation over the root of 2.
    half = 12.7062 * (0.02 / math.sqrt(2)) / math.sqrt(2)
    assert untrained["interval"] == pytest.approx([0.02 - half, 0.02 + half], abs=1e-5)
    assert (untrained["method"], untrained["n"], untrained["over"], untrained["kind"]) == ("soft_targets", 2, "seeds", "paired")


def test_a_student_of_an_untrained_teacher_is_no_winner_however_good_it_is(
    records: list[TrialRecord], facts: MakeFacts
) -> None:
    best = sweep_winners(facts(), records)
    assert {each.teacher for each in best} == {"large", None}
    assert max(each.validation.mean for each in best) < 0.99
    assert gains_of_best(facts(), records) == pytest.approx({"gain_over_control": 0.025, "gain_over_random_teacher": 0.02})


def test_the_table_has_the_gain_of_each_trial_over_both_controls(records: list[TrialRecord], facts: MakeFacts) -> None:
    frame = ReportData.of(facts(), records).table.frame
    places = list(zip(frame["phase"], frame["method"], frame["seed"], strict=True))
    rows = [
        places.index(each)
        for each in (("confirm", "soft_targets", 2), ("search", "soft_targets", 0), ("control", "soft_targets", 1))
    ]
    over_untrained, over_baseline = (
        frame[f"gain_over_{control}"].to_numpy(dtype=np.float64)[rows] for control in ("random_teacher", "control")
    )
    np.testing.assert_allclose(over_untrained, [0.03, np.nan, np.nan])
    np.testing.assert_allclose(over_baseline, [0.03, 0.15, np.nan])


def test_without_the_control_table_and_page_are_as_before(records: list[TrialRecord], facts: MakeFacts) -> None:
    data = ReportData.of(facts(), [record for record in records if not record.trial.is_control])
    assert not [name for name in data.table.frame if str(name).startswith("gain_over")]
    page = render_page(data, tradeoff_png(data.tradeoff))
    assert "untrained" not in page
    assert {entry["control"] for entry in gains_to_json(facts(), data.records)} == {"control"}


def test_the_page_shows_the_gain_over_both_controls(records: list[TrialRecord], facts: MakeFacts) -> None:
    data = ReportData.of(facts(), records)
    page = render_page(data, tradeoff_png(data.tradeoff))
    assert "What each method gains over control" in page
    assert "What each method gains over an untrained teacher" in page
    assert "Gain over an untrained teacher" in page
    assert "+2.0 points of test accuracy" in page or "+2.0" in page
    (best, *_) = data.answers
    assert best.to_json()["gain_over_random_teacher"] == pytest.approx(0.02)
    assert best.to_json()["gain_over_random_teacher_seeds"] == 2


def test_the_star_of_the_figure_is_the_trained_teacher_alone(records: list[TrialRecord], facts: MakeFacts) -> None:
    known = facts()
    (teacher,) = known.teachers
    both = known.model_copy(update={"teachers": [teacher, teacher.model_copy(update={"name": f"{teacher.name}.untrained"})]})
    data = ReportData.of(both, records)
    assert [each.name for each in data.tradeoff.teachers] == [teacher.name]
    assert {each.teacher.name for each in data.answers if each.teacher} == {teacher.name}


def test_an_untrained_teacher_that_teaches_nothing_is_no_collapse_of_the_sweep(record: Make, facts: MakeFacts) -> None:
    found = [
        record("soft_targets", test=0.9),
        record("soft_targets", test=0.1, phase="control", teacher="large.untrained"),
    ]
    known = facts()
    known = known.model_copy(update={"dataset": {**known.dataset, "trivial": {"validation": 0.1, "test": 0.1}}})
    data = ReportData.of(known, found)
    assert data.collapsed_trials == frozenset()
    (gain,) = data.untrained_gains
    assert (gain.difference, gain.base_collapsed) == (None, 1)
