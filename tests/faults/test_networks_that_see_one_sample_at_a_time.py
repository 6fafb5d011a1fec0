"""BatchNorm over one value per channel cannot train on one sample: refused before anything starts, with the key to change."""

from typing import Any

import pytest

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.errors import SpecError
from stillhouse.spec.load import validate
from stillhouse.sweep.planning.spec_check import check

DATASET: dict[str, Any] = {"name": "digits", "validation": 20, "options": {"limit": 60}}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    """40 training images of 8 x 8 pixels, on which the last maps of `vgg8` are 1 x 1 and those of `resnet8` 2 x 2."""
    return load_dataset("digits", validation=20, options={"limit": 60})


def spec(student: str, **sections: Any) -> dict[str, Any]:
    return {"name": "s", "dataset": DATASET, "students": [student], "methods": {"scratch": {}}, **sections}


TEACHER_OF_ONE = {"t": {"model": "lenet", "train": {"batch_size": 1}}}


@pytest.mark.parametrize("section", [{"training": {"batch_size": 1}}, {"teachers": TEACHER_OF_ONE}])
def test_a_batch_of_one_sample_is_no_batch(section: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"batch_size must be >= 2, got 1"):
        validate(spec("lenet", **section))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"training": {"batch_size": 8, "micro_batch": 1}}, r"^training.micro_batch must leave at least two samples"),
        ({"training": {"batch_size": 3, "micro_batch": 2}}, r"^training.micro_batch must leave at least two samples"),
        ({"training": {"batch_size": 4}, "trial_resources": {"workers": 4}}, r"^training.batch_size must .* for 4 workers"),
        ({"training": {"batch_size": 37}, "trial_resources": {"workers": 2}}, r"^training.batch_size must .* with 40 training"),
    ],
)
def test_a_part_of_one_sample_is_refused_for_a_network_whose_batchnorm_cannot_train_on_it(
    digits: ImageData, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check(spec("vgg8", **section), digits)


def test_a_teacher_that_is_trained_is_held_to_the_same(digits: ImageData) -> None:
    teachers = {"big": {"model": "vgg8", "train": {"batch_size": 8, "micro_batch": 1}}}
    with pytest.raises(SpecError, match=r"^teachers.big.train.micro_batch must leave at least two samples"):
        check(spec("lenet", teachers=teachers), digits)


@pytest.mark.parametrize("student", ["lenet", "mlp", "resnet8"])
def test_networks_without_such_a_batchnorm_may_see_one_sample(digits: ImageData, student: str) -> None:
    check(spec(student, training={"batch_size": 8, "micro_batch": 1}), digits)


def test_parts_of_two_samples_are_accepted(digits: ImageData) -> None:
    check(spec("vgg8", training={"batch_size": 8, "micro_batch": 2}), digits)
