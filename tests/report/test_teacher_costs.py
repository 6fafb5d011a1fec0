"""What each teacher cost, and what sharing it saved, by hand."""

from collections.abc import Callable

import pytest

from stillhouse.report.teacher_costs import teacher_costs
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def test_a_teacher_inside_every_trial_costs_its_time_per_sample_times_all_samples(facts: Facts, record: Make) -> None:
    records = [record("a", teaching={"samples_gathered": 1_000}), record("b"), record("control")]
    (cost,) = teacher_costs(facts(), records)
    # The second trial counted nothing itself: 10 epochs of 55,000 samples; the control has no teacher.
    assert cost.samples_used == 1_000 + 550_000
    assert cost.trials == 2
    assert cost.inside_seconds == pytest.approx(551_000 * 0.00138)
    assert cost.saved_seconds == pytest.approx(551_000 * 0.00138 - 610.0)


def taught_by(record: TrialRecord, teacher: str) -> TrialRecord:
    return record.model_copy(update={"trial": record.trial.model_copy(update={"teacher": teacher})})


def test_of_teachers_that_teach_together_each_computes_every_sample_once(facts: Facts, record: Make) -> None:
    large = facts().teachers[0]
    other = large.model_copy(update={"name": "other"})
    # The trial counts what it took of both: 500 samples of each.
    together = taught_by(record("a", teaching={"samples_gathered": 1_000}), "large+other")
    costs = teacher_costs(facts(teachers=[large, other]), [together])
    assert [(cost.trials, cost.samples_used) for cost in costs] == [(1, 500), (1, 500)]


def test_a_teacher_inside_the_trials_is_used_and_costs_its_time_but_saves_nothing(facts: Facts, record: Make) -> None:
    teaching = {"way": "inline", "samples_gathered": 0, "samples_forwarded": 10_000}
    teacher = facts().teachers[0].model_copy(update={"fill_seconds": 0.0})
    (cost,) = teacher_costs(facts(teachers=[teacher]), [record("a", teaching=teaching)])
    assert (cost.trials, cost.samples_used) == (1, 10_000)
    assert cost.forward_seconds == pytest.approx(10_000 * 0.00138)
    assert cost.saved_seconds == pytest.approx(0.0)


def test_a_sample_that_is_half_read_and_half_computed_is_used_once(facts: Facts, record: Make) -> None:
    (cost,) = teacher_costs(facts(), [record("a", teaching={"samples_gathered": 1_000, "samples_forwarded": 1_000})])
    assert cost.samples_used == 1_000
