"""The student's forward passes: named outputs, layers that a method reads, the end of a pass, float32 at every precision."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from stillhouse import tasks
from stillhouse.device import free_memory
from stillhouse.distill.forward import ForwardPass
from stillhouse.spec.training import Training

STUDENT = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
IMAGES = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])


def forward(*layers: str, until: str | None = None, **recipe: Any) -> ForwardPass:
    return ForwardPass(STUDENT, tasks.find(), Training(**recipe), layers, until=until, twice=False, device="cpu")


def test_outputs_have_the_names_of_the_task() -> None:
    outputs, features = forward()(IMAGES)
    assert list(outputs) == ["logits"]
    assert torch.equal(outputs["logits"], STUDENT(IMAGES))
    assert features == {}


def test_layers_that_the_method_reads_come_with_them() -> None:
    outputs, features = forward("0")(IMAGES)
    assert torch.equal(features["0"], STUDENT[0](IMAGES))
    assert torch.equal(outputs["logits"], STUDENT(IMAGES))


def test_a_pass_that_ends_early_has_no_outputs() -> None:
    outputs, features = forward("0", until="1")(IMAGES)
    assert outputs == {}
    assert torch.equal(features["0"], STUDENT[0](IMAGES))


@pytest.mark.parametrize("precision", ["off", "bfloat16"])
def test_outputs_and_features_are_float32_at_every_precision(precision: str) -> None:
    outputs, features = forward("0", mixed_precision=precision)(IMAGES)
    assert outputs["logits"].dtype == features["0"].dtype == torch.float32


def test_closing_removes_the_hooks() -> None:
    before = [len(layer._forward_hooks) for layer in STUDENT]
    one = forward("0", until="1")
    assert [len(layer._forward_hooks) for layer in STUDENT] != before
    one.close()
    assert [len(layer._forward_hooks) for layer in STUDENT] == before


class Scaled(nn.Module):
    """Students of one class, as a sweep trains them in many widths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(3, width)
        self.outer = nn.Linear(width, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.outer(self.inner(images))
        return logits


@pytest.mark.parametrize("released", [False, True], ids=["one after another", "with memory freed between trials"])
def test_every_student_of_a_process_is_compiled_however_many_were_before(
    monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    """PyTorch compiles a function at most 8 times, and runs it uncompiled from then on without an error."""
    compiled = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiled))
    torch.compiler.reset()
    for width in range(2, 14):
        counted = compiled.frame_count
        run = ForwardPass(Scaled(width), tasks.find(), Training(compile=True), (), until=None, twice=False, device="cpu")
        for _ in range(2):
            run(IMAGES)
            run(IMAGES[:1])  # the last batch of an epoch
        assert compiled.frame_count > counted, f"the student of width {width} was not compiled"
        if released:
            del run
            free_memory()
