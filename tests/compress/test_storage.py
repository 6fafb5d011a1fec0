"""The stored tensors of a classifier: packed where they are the student's, as they are where they are a helper's."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import History, Operator, State
from stillhouse.compress.storage import nonzero_parameters, packed_state, unpacked_state


@dataclass(frozen=True, kw_only=True)
class Named(Operator):
    """Stores the student's weights under other names, in 16 bits."""

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        return {f"{name}.half": value.half() for name, value in state.items()}

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        return {name.removesuffix(".half"): value.float() for name, value in packed.items()}


CHAIN = Chain(("named",), (Named(),))


class Classifier(nn.Module):
    """The first layer of a student, followed by a helper."""

    def __init__(self, student: nn.Sequential, helper: nn.Module) -> None:
        super().__init__()
        self.body = student[0]
        self.head = helper


def networks() -> tuple[nn.Sequential, nn.Module]:
    torch.manual_seed(0)
    student, helper = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), nn.Linear(3, 5)
    with torch.no_grad():
        for weight in student.parameters():
            weight.copy_(weight.half())
    return student, helper


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_student_is_packed_and_unpacked() -> None:
    student, _helper = networks()
    packed = packed_state(CHAIN, {}, student, student)
    assert {value.dtype for value in packed.values()} == {torch.float16}
    assert equal(unpacked_state(CHAIN, {}, student, student, packed), student.state_dict())


def test_helpers_of_a_classifier_are_stored_as_they_are_beside_the_layers_of_the_student() -> None:
    student, helper = networks()
    classifier = Classifier(student, helper)
    packed = packed_state(CHAIN, {}, student, classifier)
    assert set(packed) == {"0.weight.half", "0.bias.half", "helpers/head.weight", "helpers/head.bias"}
    assert packed["helpers/head.weight"].dtype == torch.float32
    assert equal(unpacked_state(CHAIN, {}, student, classifier, packed), classifier.state_dict())


def test_weights_that_are_not_zero_are_counted() -> None:
    student, _helper = networks()
    with torch.no_grad():
        student.get_parameter("0.weight").fill_(0.0)
    assert nonzero_parameters(student) == 3 + 3 * 4 + 4
