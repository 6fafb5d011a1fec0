"""The losses of GAN compression by hand, and what each weight of zero leaves out."""

import pytest
import torch

from stillhouse.distill.method import MethodError
from stillhouse.knowledge import output
from stillhouse.methods import find
from stillhouse.methods.gan_compression import GanCompression, image_loss
from stillhouse.models.architecture import describe
from stillhouse.models.gan import dcgan
from stillhouse.testing import MethodTrial

ARCHITECTURE = describe(dcgan(num_classes=10, input_shape=(1, 8, 8), width=0.125), name="dcgan", input_shape=(1, 8, 8))


def test_the_image_loss_is_a_mean_over_samples_and_pixels() -> None:
    """(1 + 4 + 0 + 0) / 4 for one sample of four pixels, halved by a second sample that agrees."""
    student, teacher = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    student[0, 0, 0] = torch.tensor([1.0, -2.0])
    assert image_loss(student, teacher).item() == pytest.approx(5 / 8)
    assert image_loss(teacher, teacher).item() == 0


def test_the_gradient_points_from_the_teachers_image_to_the_students() -> None:
    student = torch.tensor([[[[0.5, 0.0]]]], requires_grad=True)
    image_loss(student, torch.tensor([[[[0.0, 1.0]]]])).backward()
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([0.5, -1.0])


def test_without_the_critics_weight_no_critic_is_needed() -> None:
    assert not GanCompression(adversarial_weight=0.0).uses_supervised_loss
    assert GanCompression(adversarial_weight=0.1).uses_supervised_loss


def test_without_the_image_weight_no_teacher_is_needed() -> None:
    assert GanCompression(image_weight=0.0).knowledge(ARCHITECTURE, ARCHITECTURE) == {}
    assert GanCompression().knowledge(ARCHITECTURE, ARCHITECTURE) == {"image": output("image")}


def test_both_weights_cannot_be_zero() -> None:
    with pytest.raises(MethodError, match="needs image_weight or adversarial_weight above 0"):
        GanCompression(image_weight=0.0, adversarial_weight=0.0).knowledge(ARCHITECTURE, ARCHITECTURE)


def test_it_serves_generators_only() -> None:
    method = find("gan_compression")()
    assert method.serves("generation")
    assert method.serves("conditional_generation")
    assert not method.serves("classification")


def test_the_joint_loss_adds_the_critics_term_times_its_weight() -> None:
    """The same step with the weights (1, 0), (0, 1) and (2, 3): its terms are linear in the weights."""

    def terms(image: float, adversarial: float) -> dict[str, float]:
        trial = MethodTrial(GanCompression(image_weight=image, adversarial_weight=adversarial), epochs=1)
        entry = trial.trainer().run_epoch()
        return {name: entry[name] for name in ("image", "adversarial") if name in entry}

    assert terms(1.0, 0.0).keys() == {"image"}
    assert terms(0.0, 1.0).keys() == {"adversarial"}
    assert terms(2.0, 3.0).keys() == {"image", "adversarial"}
