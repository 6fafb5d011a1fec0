"""The example script of an exported generator, run by a Python of its own: the images are those that the network makes."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from stillhouse.data.datasets import ImageData
from stillhouse.export import drawn_example, onnx, program
from stillhouse.export.agreement import agreement
from stillhouse.export.export import preprocessing
from stillhouse.models.gan import dcgan
from stillhouse.tasks import of
from stillhouse.testing.grounds.generation import data as digits


@pytest.fixture(scope="module", params=["generation", "conditional_generation"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ImageData, Path]:
    """A generator, its data set, and the folder with its exported forms."""
    data = dataclasses.replace(digits(), task=request.param)
    torch.manual_seed(0)
    conditional = request.param != "generation"
    model = dcgan(num_classes=10, input_shape=data.input_shape, width=0.125, conditional=conditional).eval()
    folder = tmp_path_factory.mktemp("exported")
    traced = program.make_program(model, data.input_shape)
    program.save_program(traced, folder / "student.pt2")
    onnx.save_onnx(traced, folder / "student.onnx", of(data).output, of(data).input_name)
    (folder / "preprocessing.json").write_text(json.dumps(preprocessing(data, resized=False)))
    shutil.copy(str(drawn_example.__file__), folder / "example.py")
    return model, data, folder


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "preprocessing.json").read_text())
    return facts


@pytest.mark.parametrize("form", [[], ["--onnx"]], ids=["program", "onnx"])
def test_the_script_writes_what_the_network_makes_of_its_noise(
    exported: tuple[nn.Module, ImageData, Path], form: list[str], tmp_path: Path
) -> None:
    model, _, folder = exported
    command = [sys.executable, str(folder / "example.py"), *form, "--count", "3", "--seed", "7", str(tmp_path / "made.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    inputs = drawn_example.draw(3, 7, facts_of(folder))
    with torch.no_grad():
        images = model(torch.from_numpy(inputs)).numpy()
    expected = np.concatenate(list(np.round((images + 1) * 127.5)), axis=2)[0]
    assert np.abs(np.asarray(Image.open(tmp_path / "made.png"), np.float32) - expected).max() <= 1


def test_the_onnx_file_reads_noise_and_returns_images(exported: tuple[nn.Module, ImageData, Path]) -> None:
    model, data, folder = exported
    onnx.check_onnx(folder / "student.onnx")
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    ends = [(end.name, end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
    width = 100 if data.task == "generation" else 110
    assert ends == [("noise", ["batch", width]), ("image", ["batch", 1, 8, 8])]
    inputs = of(data).first_inputs(data, data.validation, 20)
    found = agreement(model, onnx.load_answer(folder / "student.onnx"), inputs, what="ONNX")
    assert found.images == found.same_class == 20


def test_classes_are_drawn_in_turn_after_the_noise(exported: tuple[nn.Module, ImageData, Path]) -> None:
    _, data, folder = exported
    facts = facts_of(folder)
    inputs = drawn_example.draw(12, 0, facts)
    assert facts["input"]["drawn"]["noise"] == 100
    if data.task == "generation":
        assert inputs.shape == (12, 100)
    else:
        assert inputs[:, 100:].argmax(1).tolist() == [*range(10), 0, 1]
        assert np.array_equal(inputs[:, 100:].sum(1), np.ones(12))
