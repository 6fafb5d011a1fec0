"""Size and layers of a model without storage for its weights."""

import pytest

from stillhouse.errors import UsageError
from stillhouse.models.blueprint import blueprint, build_problems, sketch


def test_the_size_is_that_of_the_layers() -> None:
    # 64 pixels, 10 hidden units and 3 classes: 64*10 + 10 and 10*3 + 3 parameters; a MAC for each weight.
    found = blueprint("mlp", {"hidden": [10]}, 3, (1, 8, 8))
    assert found.size.parameters == 650 + 33
    assert found.size.macs == 640 + 30
    assert found.architecture.num_classes == 3
    assert found.architecture.input_shape == (1, 8, 8)


def test_equal_models_are_described_once() -> None:
    first = blueprint("mlp", {"hidden": [11], "width": 1.0}, 3, (1, 8, 8))
    assert blueprint("mlp", {"width": 1.0, "hidden": [11]}, 3, (1, 8, 8)) is first
    assert blueprint("mlp", {"hidden": [12]}, 3, (1, 8, 8)) is not first


def test_a_sketch_has_no_storage() -> None:
    assert {parameter.device.type for parameter in sketch("resnet110", {}, 10, (3, 32, 32)).parameters()} == {"meta"}


def test_a_model_that_cannot_be_built_is_an_error_and_its_problems_are_values() -> None:
    with pytest.raises(UsageError, match="width must be a number > 0, got 0"):
        blueprint("mlp", {"width": 0}, 3, (1, 8, 8))
    (problem,) = build_problems("mlp", {"width": 0}, 3, (1, 8, 8))
    assert (problem.key, problem.rule, problem.value) == ("width", "must be a number > 0", "0")
    assert build_problems("mlp", {}, 3, (1, 8, 8)) == ()
