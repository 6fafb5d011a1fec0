"""What is recorded of a sweep: facts of the first release read as they were meant, other metrics beside them."""

from typing import Any

from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts

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
