import pytest
import torch

from stillhouse.distill.method import MethodError
from stillhouse.methods.feature_mimic import FeatureMimic, mimic_losses
from stillhouse.models.architecture import describe
from stillhouse.models.registry import build_model
from stillhouse.testing import suiting_trial


def test_the_loss_and_its_gradient_by_hand() -> None:
    # Two elements per box: mean squares (1 + 9) / 2 and (4 + 0) / 2, halved; the third box is none.
    student = torch.tensor([[[1.0, 3.0], [2.0, 0.0], [9.0, 9.0]]]).view(1, 3, 2, 1, 1).requires_grad_()
    loss = mimic_losses(student, torch.zeros(1, 3, 2, 1, 1), torch.tensor([[True, True, False]]))
    assert loss.tolist() == [(2.5 + 1) / 2]
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    # x / (elements * boxes)
    assert gradient.flatten().tolist() == [0.25, 0.75, 0.5, 0, 0, 0]


def test_an_image_without_boxes_has_no_loss() -> None:
    assert mimic_losses(torch.ones(1, 2, 2, 1, 1), torch.zeros(1, 2, 2, 1, 1), torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_without_its_weight_it_asks_for_nothing() -> None:
    assert suiting_trial(FeatureMimic(mimic_weight=0)).knowledge() == {}


def test_maps_of_other_sizes_are_named_with_the_remedy() -> None:
    trial = suiting_trial(FeatureMimic())
    model = build_model("fasterrcnn", num_classes=2, input_shape=(3, 32, 48), stride=8, neck_channels=8)
    other = describe(model, name="coarse", input_shape=(3, 32, 48))
    with pytest.raises(MethodError, match="differ in size; give both the same stride"):
        trial.method.knowledge(other, trial.student_architecture)
