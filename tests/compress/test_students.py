"""Students before their training: sizes, layers and new networks, with operators and without."""

import torch

from stillhouse.compress.operator import Context
from stillhouse.compress.students import (
    chain_of,
    finalised_student,
    fresh_student,
    rebuilt_student,
    sketch_student,
    student_blueprint,
)
from stillhouse.models.blueprint import blueprint
from stillhouse.models.size import measure_size
from stillhouse.spec.records import StudentChoice

FACTS = (10, (3, 16, 16))
CONTEXT = Context(num_classes=10, input_shape=(3, 16, 16))
PLAIN = StudentChoice(name="a", model="resnet8", options={"width": 0.5})
PRUNED = PLAIN.model_copy(update={"compress": [{"prune": {"ratio": 0.5}}]})
SPARSE = PLAIN.model_copy(update={"compress": [{"prune": {"ratio": 0.5, "pattern": "unstructured"}}]})


def test_a_student_without_operators_has_the_blueprint_of_its_model() -> None:
    assert student_blueprint(PLAIN, *FACTS) is blueprint("resnet8", {"width": 0.5}, *FACTS)


def test_the_blueprint_has_the_sizes_of_the_network_that_is_trained() -> None:
    planned, real = student_blueprint(PRUNED, *FACTS), finalised_student(PRUNED, *FACTS)
    assert planned.size == measure_size(real, FACTS[1])
    assert planned.architecture.shapes["layer1"] == (4, 16, 16)
    assert not planned.estimated


def test_sizes_that_weights_decide_are_estimates() -> None:
    estimated = PLAIN.model_copy(update={"compress": [{"prune": {"ratio": 0.5, "scope": "global"}}]})
    assert student_blueprint(estimated, *FACTS).estimated


def test_the_stored_bytes_of_a_plan_are_those_of_the_packed_file() -> None:
    planned, plain = student_blueprint(SPARSE, *FACTS).size, student_blueprint(PLAIN, *FACTS).size
    assert planned.parameters == plain.parameters
    assert 0.5 < planned.size_bytes / plain.size_bytes < 0.6


def test_a_sketch_has_no_storage_and_is_a_new_one_each_time() -> None:
    first, second = sketch_student(PRUNED, *FACTS), sketch_student(PRUNED, *FACTS)
    assert all(weight.is_meta for weight in first.parameters())
    assert first is not second
    assert {weight.shape for weight in first.parameters()} == {weight.shape for weight in second.parameters()}


def test_what_only_training_needs_is_in_a_new_student_and_not_in_a_finalised_or_rebuilt_one() -> None:
    torch.manual_seed(0)
    history = chain_of(SPARSE).convert(fresh_student(PLAIN, *FACTS), CONTEXT).history
    masked = {name for name in fresh_student(SPARSE, *FACTS).state_dict() if "mask" in name}
    assert masked
    for model in (finalised_student(SPARSE, *FACTS), rebuilt_student(SPARSE, history, *FACTS)):
        assert set(model.state_dict()) == set(fresh_student(PLAIN, *FACTS).state_dict())
