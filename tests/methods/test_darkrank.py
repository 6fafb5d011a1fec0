import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.methods.darkrank import (
    DarkRank,
    darkrank_loss,
    hard_loss,
    nearest,
    order_log_probabilities,
    similarity_scores,
    soft_loss,
)
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
NET = Architecture(name="net", num_classes=10, input_shape=(3, 8, 8), shapes={"pool": (8,)}, pooled="pool")
VARIANTS = pytest.mark.parametrize("variant", ["soft", "hard"])


@pytest.fixture
def open_formula() -> Open:
    """Opens a case in float64: it has the formula's numbers in float64 only, the implementation's in both precisions."""
    return lambda name: ReferenceCase(Path(__file__).parents[1] / "reference" / "cases" / f"{name}.npz", torch.float64)


def official_scores(case: ReferenceCase, *, through_the_query: bool = True) -> tuple[Tensor, Tensor]:
    """The authors' d^(2 power) of features scaled by sqrt(scale); the first half of the batch are the queries."""
    power = case.number("power")
    alpha, beta = case.number("scale") ** power, 2 * power
    student, teacher = case["in.s_feat"], case["in.t_feat"]
    queries = len(student) // 2
    ours = student[:queries] if through_the_query else student[:queries].detach()
    return similarity_scores(ours, student, alpha, beta), similarity_scores(teacher[:queries], teacher, alpha, beta)


def test_the_soft_form_equals_the_authors_implementation_up_to_the_teachers_entropy(open_case: Open) -> None:
    case = open_case("darkrank-official-listnet-soft")
    student, teacher = official_scores(case, through_the_query=False)
    length = int(case.number("list_length"))
    orders = torch.tensor([*itertools.permutations(range(length))])
    log_teacher = order_log_probabilities(teacher.gather(1, nearest(teacher, length))[:, orders])
    entropy = -(log_teacher.exp() * log_teacher).sum(1).mean()
    loss = soft_loss(student, teacher, length)
    case.check(loss + entropy)
    case.check_gradients(loss, "s_feat")


def test_the_soft_gradient_through_the_query_equals_the_authors_formula(open_formula: Open) -> None:
    case = open_formula("darkrank-official-listnet-soft")
    (gradient,) = torch.autograd.grad(soft_loss(*official_scores(case), 4), case["in.s_feat"])
    case.check(gradient, "aux.true_grad_unscaled")


@pytest.mark.parametrize("suffix", ["", "-saturated"])
def test_the_hard_form_equals_the_authors_formula_without_its_guard(open_formula: Open, suffix: str) -> None:
    case = open_formula(f"darkrank-official-listmle-hard{suffix}")
    case.check(hard_loss(*official_scores(case), 0), "aux.formula_loss")
    loss = hard_loss(*official_scores(case, through_the_query=False), 0)
    (gradient,) = torch.autograd.grad(loss, case["in.s_feat"])
    case.check(gradient, "aux.formula_grad_query_detached")


def test_the_hard_form_on_short_lists_equals_another_published_implementation(open_case: Open) -> None:
    case = open_case("darkrank-rkdrepo-hard")
    alpha, beta = case.number("alpha"), case.number("beta")
    student, teacher = (similarity_scores(case[f"in.{who}_feat"], case[f"in.{who}_feat"], alpha, beta) for who in "st")
    loss = hard_loss(student, teacher, int(case.number("permute_len")))
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_the_probability_of_an_order_by_hand() -> None:
    # weights 1, 2 and 3 in this order: 1/6 of all, then 2/5 of the rest
    scores = torch.tensor([1.0, 2.0, 3.0]).log()
    assert float(order_log_probabilities(scores).exp()) == pytest.approx(1 / 6 * 2 / 5)


def test_the_probabilities_of_all_orders_add_up_to_one() -> None:
    orders = torch.tensor([*itertools.permutations(range(5))])
    probabilities = order_log_probabilities(torch.randn(5, dtype=torch.float64)[orders]).exp()
    assert float(probabilities.sum()) == pytest.approx(1)


def test_a_query_is_not_in_its_own_list_even_where_others_are_equal_to_it() -> None:
    places = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    listed = nearest(similarity_scores(places, places, 1.0, 2.0), 2)
    assert listed.tolist() == [[1, 2], [0, 2], [0, 1], [2, 0]]


def test_the_soft_loss_is_0_for_equal_embeddings_and_the_hard_loss_smallest_for_the_same_order() -> None:
    teacher = torch.randn(8, 5, dtype=torch.float64)
    assert float(darkrank_loss(2 * teacher, teacher, "soft", 3.0, 3.0, 4)) == pytest.approx(0, abs=1e-12)
    same, other = (
        float(darkrank_loss(student, teacher, "hard", 3.0, 3.0, 4)) for student in (teacher, torch.randn_like(teacher))
    )
    assert same < other


@VARIANTS
def test_a_student_with_equal_embeddings_has_the_loss_of_chance(variant: str) -> None:
    student, teacher = torch.ones(6, 3), torch.eye(6)
    # the teacher's samples have equal distances, too: for both, every order of four has the same probability
    expected = 0.0 if variant == "soft" else math.log(math.factorial(4))
    assert float(darkrank_loss(student, teacher, variant, 3.0, 3.0, 4)) == pytest.approx(expected, abs=1e-6)


@VARIANTS
@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_too_small_to_rank_has_no_loss(variant: str, batch: int) -> None:
    student = torch.randn(batch, 4, requires_grad=True)
    loss = darkrank_loss(student, torch.randn(batch, 7), variant, 3.0, 3.0, 4)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0.0
    assert float(gradient.abs().max()) == 0.0


@VARIANTS
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_equal_samples_and_outputs_of_0_leave_the_gradient_finite(variant: str, beta: float) -> None:
    student = torch.randn(5, 4)
    student[1], student[2] = student[0], 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(darkrank_loss(student, torch.randn(5, 4), variant, 3.0, beta, 4), student)
    assert float(gradient.abs().max()) < 100


@VARIANTS
def test_nan_outputs_of_the_teacher_make_the_loss_nan(variant: str) -> None:
    assert bool(darkrank_loss(torch.randn(5, 4), torch.full((5, 4), torch.nan), variant, 3.0, 3.0, 4).isnan())


def test_the_term_is_weighted_and_absent_with_weight_0() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 7)
    step = make_step(student_logits=torch.randn(6, 10), student_features={"a": student}, teacher={"embedding": teacher})
    term = DarkRank(variant="hard", rank_weight=0.5).loss(step)["rank"]
    torch.testing.assert_close(term, 0.5 * darkrank_loss(student, teacher, "hard", 3.0, 3.0, 4))
    assert list(DarkRank(rank_weight=0.0).loss(step)) == ["cross_entropy"]
    assert DarkRank(rank_weight=0.0).knowledge(NET, NET) == {}


@pytest.mark.parametrize("length", [0, 7])
def test_soft_lists_have_a_maximum_length_and_hard_ones_do_not(length: int) -> None:
    with pytest.raises(ValueError, match=f"list_length must be 2 to 6 with variant='soft'.*got {length}"):
        DarkRank(list_length=length)
    DarkRank(variant="hard", list_length=length)
