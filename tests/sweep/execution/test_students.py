"""A trial's student: its network, its identity, its size."""

import pytest
from torch import nn

from stillhouse.data.datasets import load_dataset
from stillhouse.models.size import ModelSize
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.execution.students import build_student, size_metrics, student_key


def test_a_student_has_its_options_and_the_classes_and_pixels_of_the_data() -> None:
    student = build_student(StudentChoice(name="s", model="mlp", options={"hidden": [3]}), load_dataset("digits"))
    sizes = [(module.in_features, module.out_features) for module in student.modules() if isinstance(module, nn.Linear)]
    assert sizes == [(64, 3), (3, 10)]


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (StudentChoice(name="renamed", model="mlp", options={"width": 0.5, "hidden": [3]}), True),
        (StudentChoice(name="s", model="mlp", options={"hidden": [4], "width": 0.5}), False),
        (StudentChoice(name="s", model="lenet", options={"hidden": [3], "width": 0.5}), False),
    ],
)
def test_the_identity_is_that_of_model_and_options(other: StudentChoice, equal: bool) -> None:
    student = StudentChoice(name="s", model="mlp", options={"hidden": [3], "width": 0.5})
    assert (student_key(student) == student_key(other)) is equal


def test_sizes_are_recorded_under_the_names_of_the_ledger() -> None:
    size = ModelSize(parameters=4, trainable_parameters=3, size_bytes=16, macs=2)
    assert size_metrics(size) == {"parameters": 4, "trainable_parameters": 3, "size_bytes": 16, "macs": 2}
