"""Students that learned nothing: the mark, what it is computed from, and which setting to change."""

from typing import Any

import pytest

from stillhouse.spec.collapse import collapse_remedy, collapse_words, is_collapsed, no_better, trivial_value
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord

ERROR = Metric(name="error", direction="min", label="error in degrees")


def facts(metric: Metric = ACCURACY, **dataset: Any) -> SweepFacts:
    return SweepFacts(name="s", spec={}, dataset=dataset, baseline="scratch", planned=1, metric=metric)


def record(value: float, status: str = "finished", **fields: Any) -> TrialRecord:
    trial = Trial(key="k", student=StudentChoice(name="mlp", model="mlp"), method="scratch", epochs=1)
    values = {"trial": trial, "status": status, "metrics": {"validation_accuracy": value, "validation_error": value}}
    return TrialRecord.model_validate(values | fields)


@pytest.mark.parametrize(("value", "collapsed"), [(0.1, True), (0.125, True), (0.126, False), (float("nan"), True)])
def test_an_accuracy_up_to_that_of_the_most_common_class_is_a_collapse(value: float, collapsed: bool) -> None:
    assert no_better(value, 0.125, ACCURACY) is collapsed


@pytest.mark.parametrize(("value", "collapsed"), [(30.0, True), (29.9, False), (31.0, True)])
def test_an_error_collapses_in_the_other_direction(value: float, collapsed: bool) -> None:
    assert is_collapsed(record(value), ERROR, 30.0) is collapsed


def test_a_task_without_a_trivial_value_marks_nothing() -> None:
    assert is_collapsed(record(0.0), ERROR, trivial_value(facts(ERROR, trivial={"validation": None}), "validation")) is None


def test_the_mark_of_the_record_counts_before_the_facts() -> None:
    assert is_collapsed(record(0.9, collapsed=True), ACCURACY, 0.1) is True
    assert is_collapsed(record(0.0, collapsed=False), ACCURACY, 0.1) is False


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_a_trial_that_did_not_finish_did_not_collapse(status: str) -> None:
    assert is_collapsed(record(0.0, status), ACCURACY, 0.1) is False


def test_facts_of_the_first_release_give_a_lower_bound_from_the_number_of_classes() -> None:
    old = facts(num_classes=4)
    assert trivial_value(old, "validation") == 0.25
    assert is_collapsed(record(0.25), ACCURACY, trivial_value(old, "validation")) is True
    assert is_collapsed(record(0.26), ACCURACY, trivial_value(old, "validation")) is False


def test_the_recorded_value_counts_before_the_majority_and_the_majority_before_the_number_of_classes() -> None:
    majority = {split: {"class": "a", "share": share} for split, share in (("validation", 0.5), ("test", 0.75))}
    assert trivial_value(facts(num_classes=4, majority=majority), "test") == 0.75
    known = facts(num_classes=4, majority=majority, trivial={"validation": 0.375, "test": 0.625})
    assert (trivial_value(known, "validation"), trivial_value(known, "test")) == (0.375, 0.625)


def test_the_number_of_classes_says_nothing_about_another_metric() -> None:
    assert trivial_value(facts(ERROR, num_classes=4), "validation") is None


def test_the_remedy_names_what_is_not_yet_set() -> None:
    assert collapse_remedy({"learning_rate": None, "gradient_clip": None, "warmup_epochs": 0.0}) == (
        "train for more epochs, set training.batchnorm_statistics to recomputed, set training.gradient_clip to 5, "
        "lower training.learning_rate, or set training.warmup_epochs to 1"
    )
    set_already = {"learning_rate": 0.2, "gradient_clip": 1.0, "batchnorm_statistics": "recomputed"}
    expected = "train for more epochs, or lower training.learning_rate (it is 0.2)"
    assert collapse_remedy({**set_already, "warmup_epochs": 1.0}) == expected
    assert collapse_remedy({**set_already, "schedule": "one_cycle"}) == expected


# 100 images of ten equal classes: Wilson's interval of 17 right ones begins at 0.1089, that of 16 at 0.1010, of 15 at 0.0931
# (tables of the score interval).
@pytest.mark.parametrize(("right", "collapsed"), [(10, True), (15, True), (16, False), (17, False)])
def test_an_accuracy_that_is_better_by_chance_is_a_collapse(right: int, collapsed: bool) -> None:
    assert no_better(right / 100, 0.1, ACCURACY, 100) is collapsed


def test_more_images_make_the_same_difference_certain() -> None:
    assert [no_better(0.12, 0.1, ACCURACY, samples) for samples in (100, 10_000)] == [True, False]


@pytest.mark.parametrize(("right", "collapsed"), [(39, True), (40, False)])
def test_a_perfect_student_of_a_very_uneven_data_set_did_not_collapse(right: int, collapsed: bool) -> None:
    """Of 40 images, 39 have one class: the interval of 40 right ones begins at 0.912."""
    assert no_better(right / 40, 39 / 40, ACCURACY, 40) is collapsed


def test_another_metric_has_no_margin() -> None:
    assert no_better(29.9, 30.0, ERROR, 10) is False


def test_the_words_name_the_value_if_it_is_known() -> None:
    assert (
        collapse_words(ACCURACY, 0.125)
        == "no better than a model that ignores the image (accuracy 0.1250), or better by chance alone"
    )
    assert collapse_words(ACCURACY, None) == "no better than a model that ignores the image, or better by chance alone"
