"""A teacher whose normalisation was not said, or whose outputs are no logits: one sentence each, with the line to write."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.normalisation import Normalisation, named
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.given_checks import doubts
from stillhouse.teachers.own_normalisation import OwnNormalisation


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation=500)


@pytest.fixture(scope="module")
def trained(digits: ImageData) -> dict[str, nn.Module]:
    """A network by the range of the pixels that it was trained on, with plain PyTorch."""
    found: dict[str, nn.Module] = {}
    for name, scaled in {"0..1": lambda x: x / 255, "0..255": lambda x: x, "dataset": digits.normalise}.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.Adam(model.parameters(), 1e-2 if name != "0..255" else 1e-3)
        images, labels = scaled(digits.train.images.float()), digits.train.labels
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
        found[name] = model.eval()
    return found


def definition(**fields: Any) -> TeacherDefinition:
    base = TeacherDefinition(name="big", model="lenet", weights="given.pt", num_classes=10, input_shape=(1, 8, 8))
    return dataclasses.replace(base, **fields)


@pytest.mark.parametrize("name", ["0..255", "dataset"])
def test_the_normalisation_that_fits_is_named_if_it_is_another(
    trained: dict[str, nn.Module], digits: ImageData, name: str
) -> None:
    found = doubts(definition(), trained[name], digits, "cpu")
    assert len(found) == (name != "dataset")
    assert all(each.endswith(f"write teachers.big.normalization: {name}") for each in found)


@pytest.mark.parametrize("said", [{"normalisation_is_stated": True}, {"weights": None}], ids=["stated", "trained by the sweep"])
def test_what_was_said_is_not_doubted(trained: dict[str, nn.Module], digits: ImageData, said: dict[str, Any]) -> None:
    assert not doubts(definition(**said), trained["0..255"], digits, "cpu")


def test_with_its_own_normalisation_the_network_has_its_own_accuracy(trained: dict[str, nn.Module], digits: ImageData) -> None:
    model = trained["0..255"]
    with torch.no_grad():
        expected = model(digits.validation.images.float()).argmax(1)
        handle = OwnNormalisation(named("0..255", digits), Normalisation.of(digits)).attach(model)
        seen = model(digits.normalise(digits.validation.images)).argmax(1)
        handle.remove()
    assert torch.equal(seen, expected)


@pytest.mark.parametrize(
    ("last", "what"), [(nn.Softmax(1), "probabilities"), (nn.LogSoftmax(1), "log-probabilities"), (nn.Identity(), None)]
)
def test_outputs_that_are_no_logits_are_named(
    trained: dict[str, nn.Module], digits: ImageData, last: nn.Module, what: str | None
) -> None:
    model = nn.Sequential(trained["dataset"], last).eval()
    found = doubts(definition(normalisation_is_stated=True), model, digits, "cpu")
    remedy = "return the values before the last softmax"
    assert found == ([] if what is None else [f"teacher big: its outputs are {what}, not logits; {remedy}"])


def test_the_model_is_left_as_it_was(trained: dict[str, nn.Module], digits: ImageData, tmp_path: Path) -> None:
    model = trained["0..1"]
    before = model(digits.normalise(digits.validation.images))
    doubts(definition(), model, digits, "cpu")
    assert torch.equal(model(digits.normalise(digits.validation.images)), before)
