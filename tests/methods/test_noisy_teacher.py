from collections.abc import Callable

import pytest
import torch

from stillhouse.methods.noisy_teacher import NoisyTeacher, logit_regression_loss, noisy_logits
from stillhouse.testing import ReferenceCase, make_step


def test_the_loss_equals_the_papers_formula_on_recorded_draws(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("noisy-teacher-formula")
    noisy = noisy_logits(case["in.t_logits"], case["rnd.xi"], case["rnd.u"] < case.number("alpha"))
    case.check(noisy, "aux.noisy_logits")
    loss = logit_regression_loss(case["in.s_logits"], noisy)
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_loss_by_hand() -> None:
    # 1/2 (1 + 4 + 0) and 1/2 (0 + 0 + 9), mean 3.5
    student, target = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0]])
    assert float(logit_regression_loss(student, target)) == 3.5


@pytest.mark.parametrize("quiet", [{"sigma": 0.0}, {"alpha": 0.0}])
def test_without_noise_equal_logits_have_no_loss(quiet: dict[str, float]) -> None:
    logits = torch.randn(8, 10)
    step = make_step(student_logits=logits, teacher={"logits": logits})
    assert float(NoisyTeacher(**quiet).loss(step)["logit_regression"]) == 0.0


def test_noise_scales_all_logits_of_chosen_samples_only() -> None:
    teacher = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    noisy = noisy_logits(teacher, torch.tensor([[0.5], [0.5]]), torch.tensor([[True], [False]]))
    assert noisy.tolist() == [[1.5, -3.0], [3.0, 4.0]]


def test_the_expected_loss_of_a_perfect_student_grows_with_alpha_and_the_square_of_sigma() -> None:
    # E 1/2 |xi z|^2 = alpha sigma^2 |z|^2 / 2 with |z|^2 = 4 here
    logits = torch.ones(200_000, 4)
    for sigma, alpha in ((0.5, 0.5), (1.0, 0.25)):
        step = make_step(student_logits=logits, teacher={"logits": logits}, seed=7)
        loss = float(NoisyTeacher(sigma=sigma, alpha=alpha, logit_weight=1.0).loss(step)["logit_regression"])
        assert loss == pytest.approx(alpha * sigma**2 * 2, rel=0.02)


def test_equal_seeds_draw_equal_noise_and_others_do_not() -> None:
    student, teacher = torch.zeros(8, 10), torch.randn(8, 10)
    losses = [
        float(
            NoisyTeacher().loss(make_step(student_logits=student, teacher={"logits": teacher}, seed=seed))["logit_regression"]
        )
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_weight_scales_the_loss() -> None:
    step = make_step(student_logits=torch.zeros(1, 2), teacher={"logits": torch.tensor([[3.0, 4.0]])})
    terms = NoisyTeacher(logit_weight=0.3, sigma=0.0).loss(step)
    assert float(terms["logit_regression"]) == pytest.approx(0.3 * 12.5)
