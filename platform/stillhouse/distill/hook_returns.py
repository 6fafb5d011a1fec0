"""What a method's hooks return, with its type checked, so that a mistake is one sentence that names the hook and the remedy.

The core calls the hooks through these functions when it plans and sets up a training; `sum_of_terms` checks the loss of a step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from stillhouse.distill.method import Helper, Method, Setup, Stage, WrongReturnError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.architecture import Architecture

Value = TypeVar("Value")


def knowledge_of(method: Method, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
    """`method.knowledge`.

    Raises:
        WrongReturnError: it is not a mapping of names to `Knowledge`.
    """
    remedy = "make it with logits(), feature(layer) or reduced(function, *layers) of stillhouse.knowledge"
    return _mapping(method, "knowledge", method.knowledge(teacher, student), Knowledge, remedy)


def student_layers_of(method: Method, teacher: Architecture | None, student: Architecture) -> list[str]:
    """`method.student_layers`.

    Raises:
        WrongReturnError: it is not a sequence of names.
    """
    returned = method.student_layers(teacher, student)
    if isinstance(returned, str):
        raise _wrong(method, "student_layers", "a sequence of names of layers", "the text of one", f"write [{returned!r}]")
    return _sequence(method, "student_layers", returned, str, "names of layers", "list names of model.named_modules()")


def helpers_of(method: Method, setup: Setup) -> dict[str, Helper]:
    """`method.modules`.

    Raises:
        WrongReturnError: it is not a mapping of names to `Helper`.
    """
    remedy = "write Helper(module=...) of stillhouse.distill.method"
    return _mapping(method, "modules", method.modules(setup), Helper, remedy)


def stages_of(method: Method, setup: Setup) -> list[Stage]:
    """`method.stages`.

    Raises:
        WrongReturnError: it is not a sequence of `Stage`.
    """
    remedy = "write [Stage(name=..., epochs=...)], with epochs that add up to setup.epochs"
    return _sequence(method, "stages", method.stages(setup), Stage, "Stage", remedy)


def classifiers_of(method: Method, student: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """`method.classifiers`.

    Raises:
        WrongReturnError: it is not a mapping of names to modules, or it lacks `student`.
    """
    remedy = 'return {"student": the module that makes the final prediction}'
    found = _mapping(method, "classifiers", method.classifiers(student, modules), nn.Module, remedy)
    if "student" not in found:
        raise _wrong(method, "classifiers", "a mapping with the name 'student'", f"the names {', '.join(found)}", remedy)
    return found


def _mapping(method: Method, hook: str, returned: Any, kind: type[Value], remedy: str) -> dict[str, Value]:
    rule = f"a mapping of names to {kind.__name__}"
    if not isinstance(returned, Mapping):
        raise _wrong(method, hook, rule, _described(returned), remedy)
    for name, value in returned.items():
        if not isinstance(name, str):
            raise _wrong(method, hook, rule, f"the name {name!r}", "use a text as the name")
        if not isinstance(value, kind):
            raise _wrong(method, hook, rule, f"{_described(value)} for '{name}'", remedy)
    return dict(returned)


def _sequence(method: Method, hook: str, returned: Any, kind: type[Value], what: str, remedy: str) -> list[Value]:
    rule = f"a sequence of {what}"
    if not isinstance(returned, Sequence):
        raise _wrong(method, hook, rule, _described(returned), remedy)
    for value in returned:
        if not isinstance(value, kind):
            raise _wrong(method, hook, rule, f"{_described(value)} in it", remedy)
    return list(returned)


def _wrong(method: Method, hook: str, rule: str, got: str, remedy: str) -> WrongReturnError:
    return WrongReturnError(f"{type(method).__name__}.{hook} must return {rule}, got {got}; {remedy}")


def _described(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
