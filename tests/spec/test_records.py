"""What is recorded of a sweep: facts of the first release read as they were meant, other metrics beside them."""

from typing import Any

from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import Basis, StudentChoice, SweepFacts, TeacherFacts, Trial, TrialRecord

FACTS: dict[str, Any] = {"name": "s", "spec": {}, "dataset": {}, "baseline": "b", "planned": 1}
TEACHER: dict[str, Any] = {"name": "big", "model": "m", "key": "k", "parameters": 1, "size_bytes": 4, "macs": 1}


def test_facts_that_name_no_metric_mean_accuracy() -> None:
    assert SweepFacts.model_validate(FACTS).metric == ACCURACY


def test_the_metric_of_another_task_survives_json() -> None:
    metric = Metric(name="mae", direction="min", label="mean absolute error")
    facts = SweepFacts.model_validate(FACTS | {"metric": metric})
    assert SweepFacts.model_validate_json(facts.model_dump_json()).metric == metric


def test_a_teachers_accuracy_is_read_by_its_column() -> None:
    teacher = TeacherFacts(**TEACHER, validation_accuracy=0.5, test_accuracy=0.25)
    assert (teacher.value("validation_accuracy"), teacher.value("test_accuracy")) == (0.5, 0.25)


def test_a_teachers_value_of_another_metric_is_read_by_its_column() -> None:
    teacher = TeacherFacts(**TEACHER, metrics={"test_mae": 3.5})
    assert teacher.value("test_mae") == 3.5
    assert teacher.value("test_accuracy") is None
    assert teacher.value("validation_mae") is None


def test_facts_of_earlier_releases_name_the_data_set_without_its_folder() -> None:
    old = SweepFacts(name="s", spec={}, dataset={"name": "image_folder"}, baseline="scratch", planned=1)
    assert old.dataset_label == "image_folder"
    assert (
        old.model_copy(update={"dataset": {"name": "image_folder", "folder": "signs"}}).dataset_label == "signs (image_folder)"
    )


def test_a_record_of_a_student_without_operators_is_written_as_by_earlier_releases() -> None:
    student = StudentChoice(name="a", model="mlp")
    assert student.model_dump() == {"name": "a", "model": "mlp", "options": {}}
    trial = Trial(key="k", student=student, method="scratch", epochs=1)
    written = TrialRecord(trial=trial, status="finished").model_dump(mode="json")
    assert not {"conversion", "compression"} & written.keys()
    assert "source" not in written["basis"]
    assert written["trial"]["student"] == {"name": "a", "model": "mlp", "options": {}}


def test_a_record_of_a_student_with_operators_is_read_back() -> None:
    student = StudentChoice(name="a", model="mlp", compress=[{"cut": {"ratio": 0.5}}], derived_from="big")
    trial = Trial(key="k", student=student, method="scratch", epochs=1)
    record = TrialRecord(
        trial=trial,
        status="finished",
        conversion={"operators": [{"kept": [0, 2]}]},
        compression="cut(ratio=0.5)",
        basis=Basis(source="that network"),
    )
    assert TrialRecord.model_validate_json(record.model_dump_json()) == record
    assert trial.loaded_teachers == ("big",)
    assert student.settings == {"compress[0].cut.ratio": 0.5}
