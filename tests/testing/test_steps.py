import torch
from torch import nn

from stillhouse.testing import make_step


def test_fields_that_a_test_does_not_give_have_defaults() -> None:
    step = make_step(student_logits=torch.zeros(3, 10), progress=0.5)
    assert step.labels.tolist() == [0, 0, 0]
    assert step.progress == 0.5
    assert make_step(student_logits=None, labels=torch.tensor([1])).student_logits is None


def test_the_defaults_are_on_the_device_of_the_given_tensors() -> None:
    step = make_step(student_logits=torch.zeros(3, 10, device="meta"))
    assert {step.images.device.type, step.labels.device.type, step.targets.device.type, step.indices.device.type} == {"meta"}


def test_a_step_is_moved_to_the_device_with_its_networks_and_still_passes_gradients_on() -> None:
    logits = torch.zeros(3, 10, requires_grad=True)
    step = make_step(
        student_logits=logits, teacher={"logits": torch.zeros(3, 10)}, modules={"helper": nn.Linear(2, 2)}, device="meta"
    )
    assert step.teacher["logits"].device.type == step.images.device.type == "meta"
    assert {weight.device.type for weight in step.modules["helper"].parameters()} == {"meta"}
    assert step.student_logits is not None
    assert step.student_logits.device.type == "meta"
    assert step.student_logits.requires_grad
