"""Every operator on every family of models: it converts the network or refuses it with a reason, before any training."""

import re
from typing import Any

import pytest
import torch

from stillhouse import compress
from stillhouse.compress.chain import ChainError
from stillhouse.compress.students import finalised_student, fresh_student, student_blueprint
from stillhouse.models import registry
from stillhouse.models.blueprint import Blueprint
from stillhouse.spec.records import StudentChoice

FACTS = (5, (3, 32, 32))
FAMILIES = [next(iter(family.MODELS)) for family in registry._FAMILIES]
"""The first model of each shipped family."""
LARGE = 200_000
"""Parameters beyond which a network is only planned here, to save time."""


def planned(student: StudentChoice) -> Blueprint | str:
    """What the plan knows of the student, or why an operator refuses it."""
    try:
        return student_blueprint(student, *FACTS)
    except ChainError as refusal:
        return str(refusal)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("name", compress.names())
def test_a_network_is_converted_or_refused_with_a_reason(name: str, model: str) -> None:
    student = StudentChoice(name="x", model=model, compress=[{name: dict(compress.find(name).examples[0])}])
    found = planned(student)
    if isinstance(found, str):
        assert re.match(rf"{name} [a-z].{{10,}}", found), found
        assert "cannot change this network:" not in found, "an error of its code is no reason"
        return
    assert found.size.size_bytes > 0
    if found.size.parameters > LARGE:
        return
    torch.manual_seed(0)
    images = torch.randn(2, *FACTS[1])
    trained = fresh_student(student, *FACTS)
    trained(images).sum().backward()
    assert any(weight.grad is not None for weight in trained.parameters())
    finalised = finalised_student(student, *FACTS).eval()
    assert finalised(images).shape == (2, FACTS[0])
    if not found.estimated:
        assert found.size.parameters == sum(weight.numel() for weight in finalised.parameters())


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("share_weights", {}, "share_weights(k=16)"),
        ("share_weights", {"k": 4, "start": "density"}, "share_weights(k=4, start=density)"),
        ("compact", {}, "compact(kind=ghost, ratio=2)"),
        ("compact", {"dw_size": 5}, "compact(kind=ghost, ratio=2, dw_size=5)"),
        ("compact", {"kind": "depthwise_separable"}, "compact(kind=depthwise_separable)"),
        ("low_rank", {}, "low_rank(energy=0.9)"),
        ("low_rank", {"ratio": 0.25, "form": "spatial"}, "low_rank(ratio=0.25, form=spatial)"),
        ("prune", {}, "prune(ratio=0.5)"),
        ("quantize", {}, "quantize(8/8)"),
        ("quantize", {"weight_bits": 2, "ranges": "learnt"}, "quantize(2/8, ranges=learnt)"),
    ],
)
def test_a_table_shows_what_decides_the_size_and_what_tells_students_apart(
    name: str, options: dict[str, Any], shown: str
) -> None:
    assert compress.make_operator(name, options).readable == shown
