from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.calls import InlineTeacher, ServedTeacher
from stillhouse.methods.boundary_samples import BoundarySamples, base_samples, cross_boundary, draw_targets, soft_losses
from stillhouse.testing import ReferenceCase, make_step
from stillhouse.testing.method_trial import RemoteModel


class CaseTeacher(nn.Module):
    """The network of the case: convolution, softplus, mean over positions, linear."""

    def __init__(self, case: ReferenceCase) -> None:
        super().__init__()
        self._case = case

    def forward(self, images: Tensor) -> Tensor:
        maps = F.conv2d(images, self._case["w.conv.weight"], self._case["w.conv.bias"], padding=1)
        return F.linear(F.softplus(maps).mean(dim=(2, 3)), self._case["w.fc.weight"], self._case["w.fc.bias"])


def test_the_attack_is_that_of_the_authors(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("bss-attack")
    teacher = CaseTeacher(case)
    attacked, logits = InlineTeacher(teacher).run(
        cross_boundary,
        case["in.x"],
        case["out.attack_target"],
        num_steps=int(case.number("num_steps")),
        # The authors' code rounds it to float32.
        step_size=float(torch.tensor(case.number("step_alpha"), dtype=torch.float32)),
        limit=case.number("clamp"),
    )
    if attacked.dtype == torch.float64:
        case.check(attacked, "out.x_adv")
        case.check(logits, "aux.logits_adv")
    else:  # ten steps accumulate the rounding of each
        torch.testing.assert_close(attacked, case["out.x_adv.f32"], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        case.check(teacher(case["in.x"]), "aux.logits")


def test_base_samples_and_target_classes_are_those_of_the_formula(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("bss-selection-formula")
    student, teacher, labels = case["in.s_logits"], case["in.t_logits"], case["in.labels"]
    places, used = base_samples(student, teacher, labels, int(case.number("attack_size")))
    targets = draw_targets(teacher, labels, case["rnd.u"])[places]
    found = dict(zip(places[used].tolist(), targets[used].tolist(), strict=True))
    expected = dict(zip(case["out.selected"].tolist(), case["out.attack_target"].tolist(), strict=True))
    assert found == expected


def test_the_gradients_of_both_soft_losses_are_those_of_the_authors(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("bss-losses")
    temperature = case.number("T")
    soft = soft_losses(case["in.s_logits"], case["in.t_logits"], temperature).mean()
    attacked = soft_losses(case["in.s_adv_logits"], case["in.t_adv_logits"], temperature).mean()
    loss = F.cross_entropy(case["in.s_logits"], case["in.labels"])
    loss = loss + case.number("ratio") * soft + case.number("ratio_attack") * attacked
    case.check_gradients(loss, "s_logits", "s_adv_logits")


def test_a_step_ends_on_the_boundary_of_a_linear_teacher_in_closed_form() -> None:
    # z = (x1, x2): the gap to class 1 is x1 - x2, its gradient's length is sqrt(2), so a step of eta (gap + e) shrinks the gap
    # by the factor 1 - sqrt(2) eta.
    images = torch.tensor([[0.9, 0.1], [0.2, 1.0]], dtype=torch.float64).view(2, 2, 1, 1)
    attacked, logits = cross_boundary(nn.Flatten(), images, torch.tensor([1, 0]), num_steps=2, step_size=0.3, limit=2.5)
    gaps = (logits[:, 0] - logits[:, 1]).abs()
    factor = 1 - 2**0.5 * 0.3
    torch.testing.assert_close(gaps, factor**2 * torch.tensor([0.8, 0.8], dtype=torch.float64), atol=2e-4, rtol=0)
    torch.testing.assert_close(attacked.flatten(1).sum(dim=1), images.flatten(1).sum(dim=1))


def test_a_sample_that_crossed_stays_where_it_is() -> None:
    images = torch.tensor([[1.0, 0.9], [3.0, 0.0]]).view(2, 2, 1, 1)
    # 1/sqrt(2) reaches a linear boundary in one step; a little more crosses it.
    once, several = (
        cross_boundary(nn.Flatten(), images, torch.tensor([1, 1]), num_steps=steps, step_size=0.75, limit=2.5)[0]
        for steps in (1, 7)
    )
    assert torch.equal(once[0], several[0])
    assert bool((several.flatten(1)[:, 1] > several.flatten(1)[:, 0]).all())
    assert float(several.max()) <= 2.5


def test_a_teacher_that_is_flat_moves_no_sample() -> None:
    def flat(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.0])

    images = torch.rand(2, 3, 1, 1)
    attacked, _ = cross_boundary(flat, images, torch.tensor([1, 2]), num_steps=3, step_size=0.3, limit=2.5)
    assert torch.equal(attacked, images)


def test_no_target_is_the_label_and_the_most_probable_class_is_drawn_first() -> None:
    # Softmax of the other classes: 0.1 / 0.4, 0.3 / 0.4.
    teacher = torch.tensor([[0.6, 0.1, 0.3]]).log().expand(4, 3)
    draws = torch.tensor([0.0, 0.74, 0.76, 0.999999])
    assert draw_targets(teacher, torch.zeros(4, dtype=torch.int64), draws).tolist() == [2, 2, 1, 1]
    many = draw_targets(torch.randn(500, 7), torch.arange(500) % 7, torch.rand(500))
    assert not bool((many == torch.arange(500) % 7).any())


class Far(nn.Module):
    """Disagrees with the teacher by a constant, so that every used sample has a loss."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) + torch.tensor([0.0, 1.0, 2.0])


def batch(
    student_logits: Tensor, progress: float = 0.0, *, student_model: nn.Module, **settings: Any
) -> tuple[dict[str, Tensor], InlineTeacher]:
    """The terms of a step of six samples, on which the teacher, the images' own values, is right."""
    labels = torch.arange(6) % 3
    logits = 3.0 * F.one_hot(labels, 3).float()
    teacher = InlineTeacher(nn.Flatten())
    step = make_step(
        student_logits=student_logits,
        labels=labels,
        images=logits.view(-1, 3, 1, 1),
        teacher={"logits": logits},
        student=student_model,
        callable_teacher=teacher,
        progress=progress,
    )
    return BoundarySamples(**{"num_samples": 4, "pixel_limit": 3.0} | settings).loss(step), teacher


RIGHT = 2.0 * F.one_hot(torch.arange(6) % 3, 3).float()


def test_a_batch_without_a_base_sample_has_a_boundary_loss_of_0() -> None:
    terms, teacher = batch(-RIGHT, student_model=Far())
    assert float(terms["boundary"]) == 0.0
    assert teacher.samples_called == 4


def test_of_one_base_sample_the_boundary_loss_is_its_own() -> None:
    student = -RIGHT
    student[4, 1] = 2.0
    agreeing, _ = batch(student, student_model=nn.Flatten())
    assert float(agreeing["boundary"]) == pytest.approx(0.0, abs=1e-6)
    # The one sample does not move, so the teacher's outputs are (0, 3, 0) and the student's (0, 4, 2), at T = 3.
    terms, _ = batch(student, student_model=Far(), step_size=1e-12)
    teacher, other = (torch.tensor(values).softmax(0) for values in ([0.0, 1.0, 0.0], [0.0, 4 / 3, 2 / 3]))
    assert float(terms["boundary"]) == pytest.approx(2 * float((teacher * (teacher / other).log()).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("progress", "kd", "boundary"), [(0.0, 4.0, 2.0), (0.375, 2.875, 1.0), (0.75, 1.75, 0.0), (0.9, 1.3, 0.0)]
)
def test_the_weights_are_those_of_the_authors_schedules(progress: float, kd: float, boundary: float) -> None:
    terms, teacher = batch(RIGHT, progress, student_model=Far())
    first, _ = batch(RIGHT, student_model=Far())
    assert float(terms["kd"]) == pytest.approx(float(first["kd"]) * kd / 4)
    assert float(terms.get("boundary", torch.zeros(()))) == pytest.approx(float(first["boundary"]) * boundary / 2)
    assert teacher.samples_called == (4 if boundary else 0), "no attack where its weight is 0"


def test_only_samples_in_their_target_class_count_if_so_requested() -> None:
    def term(**settings: Any) -> float:
        return float(batch(RIGHT, student_model=Far(), **settings)[0]["boundary"])

    # One step of 0.3 shortens a gap of 3, but crosses nothing.
    assert term(num_steps=1) > 0
    assert term(num_steps=1, outcome="target") == 0.0
    assert term(num_steps=40, outcome="target") > 0


def test_all_steps_of_the_attack_are_one_call_of_a_served_teacher() -> None:
    calls: list[str] = []

    class Counting(RemoteModel):
        def forward(self, *arguments: object, **options: object) -> tuple[None, list[Tensor]]:
            calls.append("forward")
            raise AssertionError

        def run(self, *arguments: object) -> list[Tensor]:
            calls.append("run")
            return list(super().run(*arguments))  # type: ignore[arg-type]

    labels = torch.arange(6) % 3
    logits = 3.0 * F.one_hot(labels, 3).float()
    step = make_step(
        student_logits=logits.clone(),
        labels=labels,
        images=logits.view(-1, 3, 1, 1),
        teacher={"logits": logits},
        student=nn.Flatten(),
        callable_teacher=ServedTeacher(Counting(nn.Flatten())),
    )
    BoundarySamples().loss(step)
    assert calls == ["run"]
