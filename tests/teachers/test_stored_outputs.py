"""A teacher's outputs on the validation and test splits: its own bits, computed once, found again by their content."""

import dataclasses
from pathlib import Path

import pytest
import torch

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.images import Split
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.node_home import NodeHome
from stillhouse.models.registry import build_model
from stillhouse.teachers.stored_outputs import compute_outputs, outputs_file, outputs_here


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits", options={"limit": 200, "limit_test": 50}, validation=40)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return build_model("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=[8])


class Refusing(torch.nn.Module):
    def forward(self, _images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was called")


def name_of(folder: Path, data: ImageData, weights: str = "w", normalization: str = "") -> str:
    return outputs_file(folder, data, weights_hash=weights, normalization=normalization).name


def test_the_stored_outputs_are_those_of_the_model_and_are_computed_once(
    tmp_path: Path, data: ImageData, model: torch.nn.Module
) -> None:
    home = NodeHome(HomeAddress(path=str(tmp_path)))
    path = outputs_file(tmp_path, data, weights_hash="w", normalization="")
    compute_outputs(model, data, path, "cpu", home)
    again = compute_outputs(Refusing(), data, path, "cpu", home)
    with torch.no_grad():
        for name, split in (("validation", data.validation), ("test", data.test)):
            expected = model.eval()(data.normalise(split.images[: len(split.labels)]))
            found = outputs_here(str(path), home, name)
            assert torch.equal(found.outputs["logits"], expected)
            assert torch.equal(again[name].outputs["logits"], expected)
            assert torch.equal(found.targets, split.labels)


def test_a_damaged_file_is_made_again_by_the_teacher_and_named_to_a_trial(
    tmp_path: Path, data: ImageData, model: torch.nn.Module
) -> None:
    home = NodeHome(HomeAddress(path=str(tmp_path)))
    path = outputs_file(tmp_path, data, weights_hash="w", normalization="")
    whole = compute_outputs(model, data, path, "cpu", home)["test"].outputs["logits"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InfrastructureError, match=r"outputs in .* cannot be read"):
        outputs_here(str(path), home, "test")
    compute_outputs(model, data, path, "cpu", home)
    assert torch.equal(outputs_here(str(path), home, "test").outputs["logits"], whole)
    with pytest.raises(InfrastructureError, match="cannot be read"):
        outputs_here(str(tmp_path / "outputs-0"), home, "test")


def test_whatever_decides_the_outputs_decides_the_name(tmp_path: Path, data: ImageData) -> None:
    test = Split(images=data.test.images, labels=(data.test.labels + 1) % 10)
    names = [
        name_of(tmp_path, data),
        name_of(tmp_path, data, weights="v"),
        name_of(tmp_path, data, normalization="none"),
        name_of(tmp_path, dataclasses.replace(data, mean=(0.9,))),
        name_of(tmp_path, dataclasses.replace(data, read_test=lambda: test, _test=None)),
    ]
    assert len(set(names)) == len(names)
    assert name_of(tmp_path, data) == names[0]
