import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.methods.conditional_adversarial import (
    ConditionalAdversarial,
    Discriminator,
    class_likelihood,
    logit_distance,
    origin_likelihood,
)
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

NET = Architecture(name="net", num_classes=4, input_shape=(1, 8, 8), shapes={})


class CaseDiscriminator(nn.Module):
    """The discriminator of the case: one hidden layer; the scores of the classes come first, then real and fake."""

    def __init__(self, case: ReferenceCase) -> None:
        super().__init__()
        self.d1, self.d2 = (nn.Linear(1, 1, dtype=case["in.s_logits"].dtype) for _ in range(2))
        for layer, name in ((self.d1, "d1"), (self.d2, "d2")):
            layer.weight, layer.bias = (nn.Parameter(case[f"w.{name}.{part}"]) for part in ("weight", "bias"))

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.d2(F.relu(self.d1(logits)))
        return scores[:, :-2], scores[:, -2:]


class Losses:
    """Notes the losses instead of minimising them."""

    def __init__(self) -> None:
        self.noted: dict[str, Tensor] = {}

    def minimise(self, loss: Tensor, *groups: str) -> None:
        (group,) = groups
        self.noted[group] = loss


def losses(method: ConditionalAdversarial, **fields: object) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    update = Losses()
    terms = method.step(make_step(**fields), update)  # type: ignore[arg-type]
    return update.noted, terms


def test_all_losses_and_the_students_gradient_are_those_of_the_formula(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("cgan-kd-formula")
    student, teacher, labels = case["in.s_logits"], case["in.t_logits"], case["in.labels"]
    noted, terms = losses(
        ConditionalAdversarial(scale="none"),
        student_logits=student,
        labels=labels,
        teacher={"logits": teacher},
        modules={"discriminator": CaseDiscriminator(case)},
    )
    case.check(terms["cross_entropy"], "out.L_S")
    case.check(terms["l1"], "out.L_L1")
    case.check(terms["adversarial"], "out.L_GAN")
    case.check(-noted["discriminator"], "out.L_discriminator_max")
    case.check(noted["student"])
    case.check_gradients(noted["student"], "s_logits")


def test_the_likelihoods_are_those_of_the_formula(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("cgan-kd-formula")
    judge = CaseDiscriminator(case)
    (classes, origin), (teacher_classes, teacher_origin) = judge(case["in.s_logits"]), judge(case["in.t_logits"])
    case.check(origin_likelihood(origin, teacher_origin), "out.L_A")
    case.check(class_likelihood(classes, teacher_classes, case["in.labels"]), "out.L_DS")


def test_a_discriminator_that_cannot_tell_has_likelihoods_of_chance() -> None:
    assert float(origin_likelihood(torch.zeros(3, 2), torch.zeros(3, 2))) == pytest.approx(2 * math.log(1 / 2))
    uniform = class_likelihood(torch.zeros(3, 5), torch.zeros(3, 5), torch.arange(3))
    assert float(uniform) == pytest.approx(2 * math.log(1 / 5))


def test_the_distance_is_a_sum_over_classes_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert float(logit_distance(student, torch.tensor([[0.0, 4.0], [-1.0, 0.0]]))) == (3 + 1) / 2
    assert float(logit_distance(student, student)) == 0.0


def test_no_gradient_of_the_discriminators_loss_reaches_the_student_and_none_of_the_teachers_part_is_needed() -> None:
    torch.manual_seed(0)
    student = torch.randn(6, 4, requires_grad=True)
    judge = Discriminator(4, 8)
    noted, _ = losses(
        ConditionalAdversarial(),
        student_logits=student,
        teacher={"logits": torch.randn(6, 4)},
        modules={"discriminator": judge},
    )
    weights = list(judge.parameters())
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        noted["discriminator"], student, allow_unused=True, retain_graph=True
    )
    assert gradients[0] is None
    assert all(bool(gradient.any()) for gradient in torch.autograd.grad(noted["discriminator"], weights))


def test_the_discriminator_sees_logits_in_units_of_the_teachers() -> None:
    torch.manual_seed(0)
    student, teacher, judge = torch.randn(6, 4), torch.randn(6, 4), Discriminator(4, 8)
    found = [
        losses(
            ConditionalAdversarial(l1_weight=0),
            student_logits=size * student,
            teacher={"logits": size * teacher},
            modules={"discriminator": judge},
        )[1]["adversarial"]
        for size in (1.0, 1000.0)
    ]
    torch.testing.assert_close(found[0], found[1])
    size = teacher.square().mean().sqrt()
    (classes, origin), (teacher_classes, teacher_origin) = judge(student / size), judge(teacher / size)
    likelihood = origin_likelihood(origin, teacher_origin)
    expected = (likelihood - class_likelihood(classes, teacher_classes, torch.zeros(6, dtype=torch.int64))) / 2
    torch.testing.assert_close(found[0], expected)


def test_a_teacher_whose_logits_are_all_0_gives_finite_losses() -> None:
    noted, _ = losses(
        ConditionalAdversarial(),
        student_logits=torch.randn(3, 4),
        teacher={"logits": torch.zeros(3, 4)},
        modules={"discriminator": Discriminator(4, 8)},
    )
    assert all(bool(loss.isfinite()) for loss in noted.values())


def test_weights_of_0_need_no_teacher_and_no_discriminator() -> None:
    method = ConditionalAdversarial(l1_weight=0, adversarial_weight=0)
    assert method.knowledge(NET, NET) == {}
    noted, terms = losses(method, student_logits=torch.randn(3, 4))
    assert list(terms) == ["cross_entropy"]
    assert list(noted) == ["student"]
