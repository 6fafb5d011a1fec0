"""A teacher that ends in softmax cannot teach methods that read its outputs; methods that read its layers can use it."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.errors import UsageError
from stillhouse.knowledge.kinds import Knowledge, feature, input_gradient, logits, reduced
from stillhouse.teachers.given_checks import check_outputs, unfit_outputs

SENTENCE = "its outputs are probabilities, not logits; return the values before the last softmax"


def squared(values: torch.Tensor) -> torch.Tensor:
    return values**2


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", options={"limit": 200}, validation=64)


@pytest.mark.parametrize(
    ("last", "expected"),
    [(nn.Softmax(1), SENTENCE), (nn.LogSoftmax(1), ""), (nn.Identity(), ""), (nn.Sigmoid(), "")],
    ids=lambda each: type(each).__name__,
)
def test_probabilities_are_found_and_log_probabilities_are_logits(digits: ImageData, last: nn.Module, expected: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), last).eval()
    assert unfit_outputs(model, digits, "cpu") == expected


def test_softmax_of_log_probabilities_is_the_distribution_itself() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 10, dtype=torch.float64)
    torch.testing.assert_close(values.log_softmax(1).softmax(1), values.softmax(1))


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ([logits()], "logits"),
        ([feature("layer3"), logits()], "logits"),
        ([input_gradient()], "input_gradient"),
        ([reduced(squared)], "squared(logits)"),
        ([logits(), input_gradient()], "input_gradient, logits"),
    ],
    ids=["outputs", "layer and outputs", "input", "reduced outputs", "outputs and input"],
)
def test_methods_that_read_outputs_are_refused_with_what_they_need(kinds: Sequence[Knowledge], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_outputs("big", SENTENCE, kinds)
    assert str(caught.value) == (
        f"teachers.big cannot teach: its methods need {named}, but {SENTENCE}, or use only methods that read layers"
    )


@pytest.mark.parametrize(
    "kinds", [[], [feature("layer3")], [reduced(squared, "layer1"), feature("layer2")]], ids=["nothing", "layer", "layers"]
)
def test_methods_that_read_layers_are_not_affected(kinds: Sequence[Knowledge]) -> None:
    check_outputs("big", SENTENCE, kinds)


def test_a_teacher_whose_outputs_are_logits_is_not_affected() -> None:
    check_outputs("big", "", [logits()])
