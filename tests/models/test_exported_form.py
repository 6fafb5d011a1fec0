import pytest
import torch
from torch import nn

from stillhouse.export import onnx, program
from stillhouse.models.detector import packed
from stillhouse.models.exported_form import exported_form
from stillhouse.models.faster_rcnn import fasterrcnn


def test_a_network_that_returns_one_tensor_is_its_own_form() -> None:
    model = nn.Linear(2, 2).train()
    assert exported_form(model) is model
    assert not model.training


@pytest.mark.slow
def test_a_detector_runs_as_a_program_and_in_onnxruntime_with_the_same_boxes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    shape = (3, 40, 56)
    torch.manual_seed(0)
    detector = fasterrcnn(num_classes=3, input_shape=shape, width=0.25, neck_channels=8, hidden_units=16, proposals=12)
    form = exported_form(detector)
    traced = program.make_program(form, shape)
    onnx.save_onnx(traced, tmp_path / "student.onnx", "detections")
    onnx.check_onnx(tmp_path / "student.onnx")
    answer = onnx.load_answer(tmp_path / "student.onnx")
    for count in (1, 3):
        images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = packed(detector(images))
            assert bool((expected[..., 4] > 0).any())
            torch.testing.assert_close(traced.module()(images), expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(answer(images), expected, rtol=1e-4, atol=1e-3)
