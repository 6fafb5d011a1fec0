"""The stored weights of a finalised student: the tensors of its file, and the way back into a network.

The classifier of a trial is the student, or the student's layers together with helpers of its method. Operators pack the
student's own tensors; helpers are stored as they are.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import History, State

_HELPERS = "helpers/"
"""Begins the names of tensors that are not the student's."""


def packed_state(chain: Chain, history: History, student: nn.Module, classifier: nn.Module) -> dict[str, Tensor]:
    """The tensors of the stored file.

    Args:
        student: finalised.
        classifier: what is stored: the student, or a module that contains it or some of its layers.
    """
    own = _own_names(student, classifier)
    state = classifier.state_dict()
    packed = dict(chain.pack(student, {own[name]: value for name, value in state.items() if name in own}, history))
    return packed | {f"{_HELPERS}{name}": value for name, value in state.items() if name not in own}


def unpacked_state(
    chain: Chain, history: History, student: nn.Module, classifier: nn.Module, stored: Mapping[str, Tensor]
) -> State:
    """The state dictionary of the classifier from the tensors of its file; names that it lacks are passed on."""
    helpers = {name.removeprefix(_HELPERS): value for name, value in stored.items() if name.startswith(_HELPERS)}
    packed = {name: value for name, value in stored.items() if not name.startswith(_HELPERS)}
    places = {there: name for name, there in _own_names(student, classifier).items()}
    own = chain.unpack(student, packed, history)
    return helpers | {places.get(name, name): value for name, value in own.items()}


def nonzero_parameters(model: nn.Module) -> int:
    """How many parameters of the network are not zero."""
    return sum(int(weight.count_nonzero()) for weight in model.parameters())


def _own_names(student: nn.Module, classifier: nn.Module) -> dict[str, str]:
    """The student's name of each tensor of the classifier that is the student's."""
    if classifier is student:
        return {name: name for name in student.state_dict()}
    own = {id(value): name for name, value in student.state_dict(keep_vars=True).items()}
    return {name: own[id(value)] for name, value in classifier.state_dict(keep_vars=True).items() if id(value) in own}
