"""Every family of shipped models leaves as a program and as ONNX, and answers as before."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from stillhouse.export import onnx, program
from stillhouse.models.registry import build_model

CLASSES, SHAPE = 10, (3, 32, 32)
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"hidden": [16]}),
    ("mlp_800_800", {"width": 0.1}),
    ("lenet", {}),
    ("noisy_lenet", {}),
    ("modified_lenet", {}),
    ("nin", {"width": 0.25}),
    ("resnet8", {"width": 0.5}),
    ("resnet8x4", {"width": 0.25}),
    ("resnet50", {"width": 0.125}),
    ("wrn_16_1", {"width": 0.5}),
    ("vgg8", {"width": 0.125}),
    ("mobilenet_v2", {"width": 0.25}),
    ("shufflenet_v1", {"width": 0.5}),
    ("shufflenet_v2", {"width": 0.5}),
    ("vit", {"width": 0.125, "depth": 2}),
    ("vit", {"width": 0.125, "depth": 2, "distilled": True}),
    ("ghostnet", {"width": 0.25}),
    ("ghost_resnet8", {"width": 0.5}),
    ("ghost_vgg8", {"width": 0.125}),
    ("torchvision:squeezenet1_1", {}),
]
pytestmark = pytest.mark.slow


def trained(name: str, options: dict[str, Any]) -> nn.Module:
    """The model with running statistics that differ from their start, as training leaves them."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=CLASSES, input_shape=SHAPE, **options)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(16, *SHAPE))
    return model.eval()


@pytest.mark.parametrize(("name", "options"), SMALL, ids=[f"{name} {options}" for name, options in SMALL])
def test_program_and_onnx_answer_as_the_model(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = trained(name, options)
    traced = program.make_program(model, SHAPE)
    program.save_program(traced, tmp_path / "student.pt2")
    onnx.save_onnx(traced, tmp_path / "student.onnx", "logits")
    onnx.check_onnx(tmp_path / "student.onnx")
    loaded = torch.export.load(tmp_path / "student.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(5, *SHAPE)
    for batch in (images[:1], images):
        with torch.no_grad():
            expected = model(batch)
            torch.testing.assert_close(loaded(batch), expected, atol=1e-5, rtol=1e-5)
        (logits,) = session.run(None, {"images": batch.numpy()})
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5, rtol=1e-5)
