"""Weights that a user-defined model brings with it: known by their content, whatever the text of its function."""

from pathlib import Path

import pytest
import torch

from stillhouse.models.given_content import given_content

SHAPE = (1, 8, 8)
MODULE = """
import torch
from torch import nn

def plain(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, num_classes))

def loaded(num_classes, input_shape):
    model = plain(num_classes, input_shape)
    model[1].load_state_dict(torch.load({path!r}, weights_only=True))
    return model
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "first_layer.pt"
    (tmp_path / "given_nets.py").write_text(MODULE.format(path=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    save(path, 0)
    return path


def save(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(torch.nn.Linear(64, 16).state_dict(), path)


def test_a_replaced_file_is_noticed_and_a_copy_of_it_is_not(file: Path) -> None:
    first = given_content("given_nets:loaded", {}, 10, SHAPE)
    save(file, 0)
    assert given_content("given_nets:loaded", {}, 10, SHAPE) == first != ""
    save(file, 1)
    assert given_content("given_nets:loaded", {}, 10, SHAPE) != first


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize("model", ["given_nets:plain", "lenet", "torchvision:resnet18"])
def test_random_and_constant_weights_are_not_given(model: str) -> None:
    shape = (3, 32, 32) if model.startswith("torchvision") else SHAPE
    assert given_content(model, {}, 10, shape) == ""


def test_the_global_generator_does_not_move(file: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    given_content("given_nets:loaded", {}, 10, SHAPE)
    assert torch.equal(torch.rand(3), expected)
