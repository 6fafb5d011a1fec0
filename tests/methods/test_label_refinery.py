from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.method import MethodError, Setup, Stage
from stillhouse.methods.born_again import soft_cross_entropy
from stillhouse.methods.label_refinery import LabelRefinery, adversarial_images, refinery_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, ReferenceCase, check_method, make_step

Open = Callable[[str], ReferenceCase]
NET = Architecture(name="net", num_classes=3, input_shape=(1, 2, 2), shapes={})


def setup(epochs: int) -> Setup:
    return Setup(teacher=NET, student=NET, new_student=lambda: nn.Linear(4, 3), num_samples=10, epochs=epochs)


def test_value_and_gradient_equal_the_formula_of_the_authors_code(open_case: Open) -> None:
    case = open_case("label-refinery-formula")
    loss = refinery_loss(case["in.s_logits"], case["in.t_logits"])
    case.check(loss, "aux.kl_mean")
    case.check_gradients(loss, "s_logits")
    case.check(soft_cross_entropy(case["in.s_logits"], case["in.t_logits"]))


def test_equal_outputs_have_no_loss() -> None:
    logits = torch.randn(4, 10, dtype=torch.float64)
    assert float(refinery_loss(logits, logits)) == pytest.approx(0.0, abs=1e-12)


def test_each_generation_learns_from_the_previous_one_on_the_same_crop() -> None:
    refinery = nn.Linear(4, 3)
    images, teacher, student = torch.randn(5, 4), torch.randn(5, 3), torch.randn(5, 3)
    for number, refined in ((1, teacher), (2, refinery(images).detach())):
        step = make_step(
            student_logits=student,
            images=images,
            teacher={"logits": teacher},
            modules={"refinery": refinery},
            stage=Stage(name=f"generation_{number}", epochs=1),
        )
        terms = LabelRefinery().loss(step)
        assert list(terms) == ["refined_labels"]
        torch.testing.assert_close(terms["refined_labels"], refinery_loss(student, refined))


def test_with_first_labels_generation_1_learns_the_labels_and_needs_no_teacher() -> None:
    method = LabelRefinery(first="labels")
    assert method.knowledge(NET, NET) == {}
    step = make_step(student_logits=torch.randn(5, 3), stage=Stage(name="generation_1", epochs=1))
    terms = method.loss(step)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(step.logits, step.labels))


def test_generations_share_the_epochs_and_only_the_last_is_compared() -> None:
    stages = LabelRefinery(generations=3).stages(setup(7))
    assert [(stage.epochs, stage.comparable) for stage in stages] == [(2, False), (2, False), (3, True)]
    with pytest.raises(MethodError, match="each of its 3 generations, has 2"):
        LabelRefinery(generations=3).stages(setup(2))


def test_an_adversarial_image_is_one_gradient_step_uphill_on_its_own_loss() -> None:
    # Of s = W x + b and a constant p the gradient of KL(p || softmax(s)) is W^T (softmax(s) - p).
    student = nn.Linear(4, 3).double()
    images = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    refined, logits = torch.randn(5, 3, dtype=torch.float64), student(images)
    moved = adversarial_images(images, logits, refined, 0.5)
    expected = images + 0.5 * (logits.softmax(1) - refined.softmax(1)) @ student.weight
    torch.testing.assert_close(moved, expected)
    assert not moved.requires_grad


def test_half_of_the_loss_is_on_adversarial_images() -> None:
    student, refinery = nn.Linear(4, 3), nn.Linear(4, 3)
    images = torch.randn(5, 4, requires_grad=True)
    step = make_step(
        student=student,
        student_logits=student(images),
        images=images,
        modules={"refinery": refinery},
        stage=Stage(name="generation_2", epochs=1),
    )
    method = LabelRefinery(adversarial_step=0.5)
    assert method.differentiates_images
    terms = method.loss(step)
    moved = adversarial_images(images, step.logits, refinery(images), 0.5)
    torch.testing.assert_close(terms["refined_labels"], refinery_loss(step.logits, refinery(images)) / 2)
    torch.testing.assert_close(terms["adversarial"], refinery_loss(student(moved), refinery(moved)) / 2)


@pytest.mark.parametrize("first", ["teacher", "labels"])
def test_the_adversarial_variant_passes_every_check(first: Literal["teacher", "labels"]) -> None:
    check_method(LabelRefinery(adversarial_step=0.5, first=first))


def test_one_generation_has_no_previous_one_to_disagree_with() -> None:
    with pytest.warns(UserWarning, match="adversarial_step has no effect with generations=1"):
        method = LabelRefinery(generations=1, adversarial_step=0.5)
    assert not method.differentiates_images


def test_one_generation_stores_no_copy() -> None:
    assert LabelRefinery(generations=1).modules(setup(2)) == {}


def test_the_refinery_has_the_final_weights_of_the_previous_generation() -> None:
    trainer = MethodTrial(LabelRefinery(), epochs=2).trainer()
    trainer.run_epoch()
    taught = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    trainer.run_epoch()
    kept = trainer._modules["refinery"].state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in taught.items())
    assert not all(torch.equal(tensor, taught[name]) for name, tensor in trainer.student.state_dict().items())
