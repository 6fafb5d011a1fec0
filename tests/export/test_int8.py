"""Students of 8 bits as int8 ONNX: integer kernels, the agreement with the simulation, and what has no such file."""

import collections
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx as library
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from stillhouse.compress.parts.quantized_layers import quantized_layers
from stillhouse.compress.quantize import Quantize
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import UsageError
from stillhouse.export import int8, onnx
from stillhouse.spec.records import StudentChoice, Trial
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.export import export_trial
from stillhouse.testing import OperatorTrial


@functools.cache
def digits() -> ImageData:
    return load_dataset("digits", validation=300)


def trained(operator: Quantize, model: str = "resnet8", epochs: int = 2) -> nn.Module:
    data, trial = digits(), OperatorTrial(operator, model)
    trainer = Trainer(
        new_student=lambda: trial.convert().model,
        method=Method(),
        data=data,
        views=Views((), 1, data.input_shape, len(data.train)),
        training=Training(batch_size=64, learning_rate=0.05),
        epochs=epochs,
        operators=trial.chain,
    )
    trainer.fit()
    trainer.finalise()
    return trainer.student.eval()


def save(model: nn.Module, path: Path) -> None:
    data = digits()
    int8.save_int8(model, data.input_shape, data.normalise(data.train.images[:256]), path, "logits")


def kernels(path: Path, folder: Path) -> collections.Counter[str]:
    """The operations of the graph that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in library.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize(
    ("options", "model", "integer"),
    [
        ({}, "resnet8", {"QLinearConv": 8}),
        ({"weight_bits": 4, "exempt": "none"}, "resnet8", {"QLinearConv": 9, "QGemm": 1}),
        ({"exempt": "none", "train": False}, "mlp", {"QGemm": 3}),
    ],
    ids=["first and last float", "4-bit weights", "linear, after training"],
)
def test_rounded_layers_run_on_integer_kernels_and_agree_with_the_simulation(
    options: dict[str, Any], model: str, integer: dict[str, int], tmp_path: Path
) -> None:
    data, student = digits(), trained(Quantize(**options), model)
    save(student, tmp_path / "student.onnx")
    operations = kernels(tmp_path / "student.onnx", tmp_path)
    assert {kernel: operations[kernel] for kernel in integer} == integer
    answer = onnx.load_answer(tmp_path / "student.onnx")
    images = data.normalise(data.test.images)
    with torch.no_grad():
        simulated = student(images)
    same = (answer(images).argmax(1) == simulated.argmax(1)).float().mean()
    assert float(same) > 0.97
    found = int8.compare(student, answer, data)
    assert abs(found["simulated"] - found["onnxruntime"]) <= found["tolerance"] == 0.02


def test_the_file_has_the_weights_as_int8_numbers(tmp_path: Path) -> None:
    student = trained(Quantize(weight_bits=4), epochs=1)
    save(student, tmp_path / "student.onnx")
    stored = {
        each.name: library.numpy_helper.to_array(each) for each in library.load(tmp_path / "student.onnx").graph.initializer
    }
    for name, layer in quantized_layers(student):
        numbers, scale = stored[f"{name}.weight.numbers"], stored[f"{name}.weight.scale"]
        assert numbers.dtype == np.int8
        assert np.abs(numbers).max() <= 7
        np.testing.assert_allclose(numbers * scale.reshape(-1, 1, 1, 1), layer.weight.detach().numpy(), rtol=1e-6, atol=1e-9)
        assert f"{name}.weight" not in stored


def test_a_file_that_computes_something_else_is_refused() -> None:
    student = trained(Quantize(), epochs=1)
    with pytest.raises(UsageError, match="does not do what the student does"):
        int8.compare(student, lambda images: -student(images), digits())


@pytest.mark.parametrize("options", [{"activation_bits": 4}, {"activation_bits": 32}, {"weight_bits": 32}], ids=str)
def test_other_bits_have_no_int8_form(options: dict[str, Any]) -> None:
    trial = OperatorTrial(Quantize(**options))
    model = trial.convert().model
    trial.chain.finalise(model)
    assert not int8.computes_in_int8(model)


def test_a_layer_without_an_integer_kernel_is_named(tmp_path: Path) -> None:
    class PerPixel(nn.Module):
        """A linear layer on every pixel, which ONNX computes as MatMul."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.fc(self.first(images).permute(0, 2, 3, 1)).mean((1, 2))
            logits: torch.Tensor = self.last(maps)
            return logits

    trial = OperatorTrial(Quantize())
    model = trial.operator.convert(PerPixel(), trial.context).model
    model(torch.randn(4, 1, 8, 8))
    trial.operator.finalise(model)
    with pytest.raises(int8.NotInt8Error, match="layer fc cannot be written as int8"):
        save(model.eval(), tmp_path / "student.onnx")


def test_an_exported_student_of_8_bits_has_its_int8_file_and_both_metrics(first_home: Path, tmp_path: Path) -> None:
    home, key = tmp_path / "home", "ae00000000000005"
    shutil.copytree(first_home, home)
    folder, data = SweepHome(home, "tiny").folder, load_dataset("digits", validation=100, options={"limit": 300})
    student = StudentChoice(name="low-bit", model="lenet", compress=[{"quantize": {"weight_bits": 8, "activation_bits": 8}}])
    views = Views((), 1, data.input_shape, len(data.train))
    environment = TrialEnvironment(folder=str(folder), views=views, training=Training(batch_size=32))
    record = run_to_end(Trial(key=key, student=student, method="scratch", seed=3, epochs=1), environment, data)
    assert record.status == "finished", record.reason
    document = export_trial(home, "tiny", key, tmp_path / "student")
    assert (tmp_path / "student" / "student.int8.onnx").is_file()
    assert set(document["int8"]) == {"simulated", "onnxruntime", "tolerance"}
    assert document["int8"]["simulated"] == pytest.approx(record.metrics["validation_accuracy"], abs=0.011)
    assert document["latency_ms"]["int8"]["1"]["p50"] > 0
    assert document["files"]["student.int8.onnx"]["bytes"] < document["files"]["student.onnx"]["bytes"]
    card = (tmp_path / "student" / "README.md").read_text()
    assert "int8 ONNX, by onnxruntime" in card
    assert "quantize(8/8)" in card
    _check_a_raw_image(tmp_path / "student", data)


def _check_a_raw_image(folder: Path, data: ImageData) -> None:
    """The script of the folder gives an image file the class that onnxruntime gives the prepared image."""
    Image.fromarray(data.test.images[0, 0].numpy()).save(folder / "image.png")
    session = onnxruntime.InferenceSession(folder / "student.int8.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: data.normalise(data.test.images[:1]).numpy()})
    command = [sys.executable, "example.py", "--int8", "image.png"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    name = json.loads((folder / "preprocessing.json").read_text())["class_names"][int(logits.argmax())]
    assert ran.stdout.startswith(f"image.png: {name} (")
