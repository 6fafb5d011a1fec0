"""Any operator on any family of models, trained by one method of each family: planned, or passed over with a reason."""

import re

import pytest

from stillhouse import compress, methods
from stillhouse.compress.chain import ChainError
from stillhouse.compress.students import student_architecture
from stillhouse.errors import Problem
from stillhouse.models import registry
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint
from stillhouse.spec.combinations import Soundness
from stillhouse.spec.load import validate
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.planning.method_fit import DrawChecker, PassedOver
from stillhouse.sweep.search.draws import Draw
from stillhouse.tasks import default, find

FACTS = (5, (3, 32, 32))
MODELS = [next(iter(family.MODELS)) for family in registry._FAMILIES]
"""The first model of each shipped family."""
METHODS = {methods.find(name).card.family: name for name in methods.names() if default() in methods.find(name).tasks}
"""One method of each family."""


def checker(teacher: str, **sections: object) -> DrawChecker:
    spec = validate(
        {
            "name": "routes",
            "dataset": {"name": "digits"},
            "training": {"optimizer": "sgd"},
            "teachers": {"big": {"model": teacher}},
            "students": [{"name": "x", "from": "big"}],
            "search": {"max_epochs": 20},
            **sections,
        }
    )
    return DrawChecker(spec, Soundness(()), find(default()), num_classes=5, num_samples=1_000)


def converted(student: StudentChoice) -> Architecture | str:
    """The student's layers, or why an operator refuses its network."""
    try:
        return student_architecture(student, ["big"], *FACTS)
    except ChainError as refusal:
        return str(refusal)


PAIRS = [
    (operator, model)
    for place, operator in enumerate(compress.names())
    for turn, model in enumerate(MODELS)
    # Networks of many layers take a second each: one operator in three, while test_every_operator.py tries them all.
    if model not in ("ghostnet", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2") or (place + turn) % 3 == 0
]


@pytest.mark.parametrize(("operator", "model"), PAIRS)
def test_a_student_is_planned_with_a_method_or_passed_over_with_a_reason(operator: str, model: str) -> None:
    options = dict(compress.find(operator).examples[0])
    student = StudentChoice(name="x", model=model, compress=[{operator: options}], derived_from="big")
    ours = converted(student)
    if isinstance(ours, str):
        assert re.match(rf"{operator} [a-z].{{10,}}", ours)
        return
    assert ours.kept_channels is not None
    teacher = blueprint(model, {}, *FACTS).architecture
    check = checker(model)
    planned = []
    # Half of them, in turn: each family meets every operator and every model, in a part of the time.
    first = MODELS.index(model) + compress.names().index(operator)
    for name in list(METHODS.values())[first % 2 :: 2]:
        outcome, _warnings = check.check(Draw(name, student, "big", {}), ours, [teacher])
        assert not isinstance(outcome, Problem), outcome
        if isinstance(outcome, PassedOver):
            assert len(outcome.reason) > 10, outcome
        else:
            planned.append(name)
    assert planned, "logits are enough for several families"


def test_a_student_that_notes_something_of_each_batch_is_not_divided() -> None:
    student = StudentChoice(name="x", model="resnet8", compress=[{"quantize": {"weight_bits": 4}}])
    ours, teacher = student_architecture(student, [], *FACTS), blueprint("resnet8", {}, *FACTS).architecture
    whole, divided = checker("resnet8"), checker("resnet8", trial_resources={"workers": 2})
    in_parts = checker("resnet8", training={"optimizer": "sgd", "micro_batch": 8})
    draw = Draw("kd", student, "big", {})
    assert isinstance(whole.check(draw, ours, [teacher])[0], Draw)
    for check, where in ((divided, "among 2 workers"), (in_parts, "micro_batch = 8 divides it")):
        outcome = check.check(draw, ours, [teacher])[0]
        assert isinstance(outcome, PassedOver)
        assert outcome.reason.startswith("trains a student with quantize, which must see each batch whole, and ")
        assert where in outcome.reason
    weights_only = student.model_copy(update={"compress": [{"quantize": {"weight_bits": 4, "activation_bits": 32}}]})
    assert isinstance(divided.check(Draw("kd", weights_only, "big", {}), ours, [teacher])[0], Draw)
