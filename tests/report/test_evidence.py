"""The examination of the student chosen: means over seeds, differences to the control, classes, mistakes, by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.report.evidence import examination, largest_loss, shown
from stillhouse.report.evidence_words import examined
from stillhouse.report.report_data import ReportData
from stillhouse.spec.measure import Measure
from stillhouse.spec.records import SweepFacts, TrialRecord

MEASURES = [
    Measure(name="nll", label="Likelihood", direction="min", description=""),
    Measure(name="ece", label="Calibration", direction="min", percent=True, digits=1, description=""),
    Measure(name="other", label="Not measured", direction="max", description=""),
]


def details(right: list[int], samples: list[int], confusions: list[list[int]]) -> dict[str, Any]:
    bins = [[0.0, 0.0, 0.0], [float(sum(samples)), 0.75 * sum(samples), float(sum(right))]]
    return {"calibration": bins, "class_samples": samples, "class_right": right, "confusions": confusions}


@pytest.fixture
def data(record: Callable[..., TrialRecord]) -> ReportData:
    """Two seeds of a method and of the control on one student, on ten test samples of three classes, of which one is empty."""
    records = []
    for seed, (mine, theirs) in enumerate([(0.20, 0.50), (0.40, 0.72)]):
        for method, value, test in (("soft_targets", mine, 0.9), ("control", theirs, 0.6)):
            plain = record(method, seed=seed, test=test)
            metrics = plain.metrics | {"nll": value, "ece": value / 10}
            found = details([5 - seed, 4], [5, 5], [[1, 0, 1], *([[0, 1, 1]] if seed else [])])
            if method == "control":
                found = details([5, 1], [5, 5], [[1, 0, 4]])
            records.append(plain.model_copy(update={"metrics": metrics, "details": found}))
    facts = SweepFacts(
        name="s",
        spec={},
        dataset={"name": "d", "class_names": ["cat", "dog"]},
        baseline="control",
        planned=4,
        measures=MEASURES,
    )
    return ReportData.of(facts, records)


def test_measures_are_means_over_seeds_and_differences_are_paired(data: ReportData) -> None:
    found = examination(data)
    assert found is not None
    assert [row.measure.name for row in found.rows] == ["nll", "ece"]
    row = found.rows[0]
    assert row.control is not None
    assert row.difference is not None
    assert (row.best.mean, row.control.mean) == pytest.approx((0.3, 0.61))
    # The differences of the seeds are -0.30 and -0.32: mean -0.31, 12.706 standard errors of 0.01.
    assert (row.difference.mean, row.difference.half_width) == pytest.approx((-0.31, 0.12706), rel=1e-4)
    assert row.verdict == "better"
    assert shown(row, "difference") == {"number": "-0.310", "spread": "± 0.127", "look": "gain sure"}
    assert shown(found.rows[1], "best")["number"] == "3.0 %"


def test_classes_are_pooled_over_seeds_worst_first(data: ReportData) -> None:
    found = examination(data)
    assert found is not None
    # cat: 9 of 10 right; dog: 8 of 10, and 2 of 10 by the control.
    assert [(row.name, row.samples, row.best, row.control) for row in found.classes] == [
        ("dog", 5, 0.8, 0.2),
        ("cat", 5, 0.9, 1.0),
    ]
    lost = largest_loss(found.classes)
    assert lost is not None
    assert lost.name == "cat"
    assert lost.difference == pytest.approx(-0.1)
    assert [(each.actual, each.predicted, each.share) for each in found.mistakes] == [("dog", "cat", 0.2), ("cat", "dog", 0.1)]
    assert found.matrix == (("cat", (0.9, 0.1)), ("dog", (0.2, 0.8)))


def test_bins_are_pooled_over_seeds(data: ReportData) -> None:
    found = examination(data)
    assert found is not None
    (one,) = found.bins
    assert (one.low, one.high, one.samples, one.confidence, one.accuracy) == (0.5, 1.0, 20, 0.75, 0.85)


def test_the_words_say_what_the_numbers_say(data: ReportData) -> None:
    words = examined(data)
    assert words is not None
    assert words["class_words"] == "The worst class is dog with 80.0 %. Against the control it loses most on cat, 10.0 points."
    assert "75.0 % sure and 85.0 % right, so it is less sure than it could be" in words["reliability_words"]
    assert words["mistake_words"].startswith("Most often dog is taken for cat: 20.0 % of the class.")


def test_records_of_earlier_releases_have_no_examination(record: Callable[..., TrialRecord]) -> None:
    facts = SweepFacts(name="s", spec={}, dataset={"name": "d"}, baseline="control", planned=1)
    records = [record("soft_targets"), record("control")]
    assert examination(ReportData.of(facts, records)) is None
    assert examined(ReportData.of(facts.model_copy(update={"measures": MEASURES}), records)) is None
    assert examined(ReportData.of(facts, [])) is None


def test_many_classes_are_a_list_and_no_matrix(data: ReportData) -> None:
    facts = data.facts.model_copy(update={"dataset": {"name": "d"}})
    many = details([1] * 20, [2] * 20, [[place, 0, 1] for place in range(1, 20)] + [[0, 1, 1]])
    records = [each.model_copy(update={"details": many}) for each in data.records]
    words = examined(ReportData.of(facts, records))
    assert words is not None
    assert words["matrix"] == ()
    assert len(words["classes"]) == len(words["mistakes"]) == 15
    assert words["classes"][0].name == "0"


# On degraded images


def degraded(data: ReportData) -> ReportData:
    """The same sweep with the accuracy on noisy and blurred images: 0.8 and 0.5 of the student, 0.5 and 0.4 of the control."""
    values = {"soft_targets": (0.8, 0.5), "control": (0.5, 0.4)}
    records = []
    for record in data.records:
        noise, blur = values[record.trial.method]
        metrics = record.metrics | {"robustness_noise": noise + record.trial.seed / 50, "robustness_blur": blur}
        records.append(record.model_copy(update={"metrics": metrics}))
    return ReportData.of(data.facts, records)


def test_the_metric_on_degraded_images_is_shown_beside_the_one_on_clean_images_and_the_control(data: ReportData) -> None:
    found = examination(degraded(data))
    assert found is not None
    assert [row.measure.label for row in found.robustness] == ["as they are", "noise", "blur"]
    clean, noise, _ = found.robustness
    assert noise.control is not None
    assert noise.difference is not None
    assert (clean.best.mean, noise.best.mean, noise.control.mean) == pytest.approx((0.9, 0.81, 0.51))
    assert noise.difference.mean == pytest.approx(0.3)


def test_the_largest_loss_on_degraded_images_is_named(data: ReportData) -> None:
    words = examined(degraded(data))
    assert words is not None
    # 0.9 - 0.5 of the student, 0.6 - 0.4 of the control.
    assert words["robustness_words"].endswith("It loses most by blur: 40.0 points, the control 20.0 points.")


def test_without_degraded_images_nothing_is_said_of_them(data: ReportData) -> None:
    words = examined(data)
    assert words is not None
    assert (words["robustness"], words["robustness_words"]) == ([], "")


def test_pictures_of_teacher_student_and_control_are_shown_in_that_order(data: ReportData) -> None:
    made = {"soft_targets": [["teacher", "dGVhY2hlcg=="], ["student", "bWluZQ=="]], "control": [["student", "dGhlaXJz"]]}
    records = [each.model_copy(update={"details": {"pictures": made[each.trial.method]}}) for each in data.records]
    shown_now = examined(ReportData.of(data.facts, records))
    assert shown_now is not None
    assert [(maker, file) for maker, file, _ in shown_now["pictures"]] == [
        ("the teacher", "dGVhY2hlcg=="),
        ("soft_targets", "bWluZQ=="),
        ("control", "dGhlaXJz"),
    ]
    assert all("makes of the inputs shown" in words for _, _, words in shown_now["pictures"])


def test_the_precision_of_classes_of_boxes_is_the_mean_over_seeds_and_one_without_a_box_is_left_out(data: ReportData) -> None:
    precisions = {"soft_targets": ([0.4, None], [0.2, None]), "control": ([0.1, None], [0.3, None])}
    records = [
        each.model_copy(
            update={"details": {"class_boxes": [7, 0], "class_precision": precisions[each.trial.method][each.trial.seed]}}
        )
        for each in data.records
    ]
    changed = ReportData.of(data.facts, records)
    found = examination(changed)
    assert found is not None
    assert [(row.name, row.samples) for row in found.classes] == [("cat", 7)]
    assert (found.classes[0].best, found.classes[0].control) == pytest.approx((0.3, 0.2))
    now = examined(changed)
    assert now is not None
    assert now["class_columns"] == ("Boxes", "AP")


def test_pictures_begin_with_the_truth_and_have_the_words_that_the_task_gives(data: ReportData) -> None:
    made = [["truth", "dHJ1ZQ==", "4 test images with the true boxes: 3 cat"], ["student", "b3du", "4 test images: none"]]
    records = [each.model_copy(update={"details": {"pictures": made}}) for each in data.records]
    now = examined(ReportData.of(data.facts, records))
    assert now is not None
    assert [(maker, words) for maker, _, words in now["pictures"]] == [
        ("the data", "4 test images with the true boxes: 3 cat"),
        ("soft_targets", "4 test images: none"),
        ("control", "4 test images: none"),
    ]
