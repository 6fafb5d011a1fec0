import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.kd import KD, hard_label_loss, kd_loss, teachers_shares
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


@pytest.mark.parametrize("name", ["kd-repdistiller", "kd-mgd-T1.5", "kd-dafl"])
def test_the_soft_loss_equals_published_implementations(open_case: Open, name: str) -> None:
    case = open_case(name)
    loss = kd_loss(case["in.s_logits"], case["in.t_logits"], case.number("T"))
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_an_implementation_without_the_squared_temperature_is_the_same_up_to_that_factor(open_case: Open) -> None:
    case = open_case("kd-sseung-tf")
    temperature = case.number("T")
    loss = kd_loss(case["in.s_logits"], case["in.t_logits"], temperature) / temperature**2
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_an_implementation_that_sums_over_the_batch_has_that_many_times_the_gradient(open_case: Open) -> None:
    case = open_case("kd-tusimple-nst-kd")
    student = case["in.s_logits"]
    assert case.number("weight_lambda") == case.number("T") ** 2
    case.check_gradients(len(student) * kd_loss(student, case["in.t_logits"], case.number("T")), "s_logits")


def test_pixels_count_as_samples(open_case: Open) -> None:
    case = open_case("kd-pixelwise-distseg")
    student, teacher = (case[f"in.{who}_logits"].movedim(1, -1).flatten(0, 2) for who in "st")
    loss = kd_loss(student, teacher, case.number("T"))
    case.check(loss)
    case.check_gradients(loss, "s_logits")


@pytest.mark.parametrize(("name", "weight"), [("kd-zagoruyko", "alpha"), ("kd-torchdistill", "beta")])
def test_the_weighted_loss_equals_published_implementations(open_case: Open, name: str, weight: str) -> None:
    case = open_case(name)
    method = KD(temperature=case.number("T"), kd_weight=case.number(weight))
    step = make_step(
        student_logits=case["in.s_logits"], labels=case["in.labels"], teacher={"logits": case["in.t_logits"]}, progress=0.5
    )
    loss = torch.stack(list(method.loss(step).values())).sum()
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_an_implementation_that_averages_over_classes_is_the_same_up_to_that_factor(open_case: Open) -> None:
    case = open_case("kd-peterliht")
    soft = kd_loss(case["in.s_logits"], case["in.t_logits"], case.number("T"))
    hard = F.cross_entropy(case["in.s_logits"], case["in.labels"])
    weight = case.number("alpha")
    case.check(weight * soft + (1 - weight) * hard, "aux.corrected_loss_batchmean")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_equal_outputs_have_no_loss(temperature: float) -> None:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(kd_loss(logits, logits, temperature)) == pytest.approx(0.0, abs=1e-12)


def test_two_classes_by_hand() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2) at T = 2: KL = 3/4 log(3/2) + 1/4 log(1/2)
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(kd_loss(student, teacher, 2.0)) == pytest.approx(expected)


def test_at_high_temperature_the_gradient_tends_to_the_difference_of_logits_over_the_number_of_classes() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(3, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, 1e4), student)
    torch.testing.assert_close(gradient * 3, (student.detach() - teacher) / 10, rtol=1e-3, atol=1e-5)


def test_the_mean_is_over_samples_not_over_classes() -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    singles = torch.stack([kd_loss(student[i : i + 1], teacher[i : i + 1], 3.0) for i in range(4)])
    torch.testing.assert_close(kd_loss(student, teacher, 3.0), singles.mean())


def test_a_shift_of_all_logits_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(kd_loss(student + 5, teacher - 7, 3.0), kd_loss(student, teacher, 3.0))


def test_hard_labels_are_the_teachers_argmax() -> None:
    student = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    teacher = torch.tensor([[0.0, 9.0, 1.0], [4.0, 2.0, 1.0]])
    log_q = student.log_softmax(1)
    assert float(hard_label_loss(student, teacher)) == pytest.approx(float(-(log_q[0, 1] + log_q[1, 0]) / 2))


def test_with_weight_0_only_the_labels_are_used() -> None:
    step = make_step(student_logits=torch.randn(4, 10), teacher={"logits": torch.randn(4, 10)})
    terms = KD(kd_weight=0.0).loss(step)
    assert list(terms) == ["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(step.logits, step.labels))


def test_a_decaying_weight_moves_from_the_teacher_to_the_labels() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    method = KD(kd_weight=0.8, weight_schedule="linear_decay")
    soft, hard = kd_loss(student, teacher, 4.0), F.cross_entropy(student, torch.zeros(4, dtype=torch.int64))
    for progress, weight in ((0.0, 0.8), (0.5, 0.4), (0.75, 0.2)):
        terms = method.loss(make_step(student_logits=student, teacher={"logits": teacher}, progress=progress))
        torch.testing.assert_close(terms["kd"], weight * soft)
        torch.testing.assert_close(terms["cross_entropy"], (1 - weight) * hard)


def test_the_soft_only_variant_uses_no_labels() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    terms = KD(variant="soft_only").loss(make_step(student_logits=student, teacher={"logits": teacher}))
    assert list(terms) == ["kd"]
    torch.testing.assert_close(terms["kd"], kd_loss(student, teacher, 4.0))


def test_the_hard_label_variant_weights_the_teachers_class_and_the_label() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    terms = KD(variant="hard_label", kd_weight=0.25).loss(make_step(student_logits=student, teacher={"logits": teacher}))
    torch.testing.assert_close(terms["hard_label"], 0.25 * hard_label_loss(student, teacher))
    torch.testing.assert_close(terms["cross_entropy"], 0.75 * F.cross_entropy(student, torch.zeros(4, dtype=torch.int64)))


@pytest.mark.parametrize("variant", ["weighted", "hard_label"])
def test_with_teacher_right_a_sample_with_a_wrong_teacher_learns_only_its_label(
    variant: Literal["weighted", "hard_label"],
) -> None:
    student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    teacher = torch.tensor([[0.0, 5.0, 1.0], [4.0, 2.0, 1.0]])
    labels = torch.tensor([1, 2])
    method = KD(variant=variant, kd_weight=0.75, samples="teacher_right")
    terms = method.loss(make_step(student_logits=student, labels=labels, teacher={"logits": teacher}))
    soft = hard_label_loss(student[:1], teacher[:1]) if variant == "hard_label" else kd_loss(student[:1], teacher[:1], 4.0)
    hard = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(terms[{"weighted": "kd"}.get(variant, variant)], 0.75 * soft / 2)
    torch.testing.assert_close(terms["cross_entropy"], (0.25 * hard[0] + hard[1]) / 2)


def test_a_teachers_confidence_in_the_label_is_its_probability() -> None:
    # (3/4, 1/4) for class 1, (1/2, 1/2) for a sample that is 3/10 of class 0
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    torch.testing.assert_close(
        teachers_shares(teacher[:1], torch.tensor([1]), "teacher_confidence"), torch.tensor([0.25]), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        teachers_shares(teacher[1:], torch.tensor([[0.3, 0.7]]), "teacher_confidence"), torch.tensor([0.5])
    )


def test_if_the_teacher_is_always_right_teacher_right_equals_alike() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    step = make_step(student_logits=student, labels=teacher.argmax(1), teacher={"logits": teacher})
    alike, right = KD().loss(step), KD(samples="teacher_right").loss(step)
    for name, term in alike.items():
        torch.testing.assert_close(right[name], term)


def test_a_setting_without_effect_warns() -> None:
    with pytest.warns(UserWarning, match="temperature has no effect with variant='hard_label'"):
        KD(variant="hard_label", temperature=2.0)
    with pytest.warns(UserWarning, match="kd_weight has no effect with variant='soft_only'"):
        KD(variant="soft_only", kd_weight=0.5)
    with pytest.warns(UserWarning, match="samples has no effect with variant='soft_only'"):
        KD(variant="soft_only", samples="teacher_right")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [("temperature", 0, "> 0"), ("kd_weight", 1.5, "<= 1"), ("variant", "soft", "one of weighted, soft_only, hard_label")],
)
def test_a_hyper_parameter_outside_its_range_is_rejected(name: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {rule}"):
        KD(**{name: value})
