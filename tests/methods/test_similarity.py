from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from stillhouse.distill.method import MethodError, Unsuitable
from stillhouse.methods.similarity import Similarity, similarity_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

CONVOLUTIONAL = Architecture(
    name="cnn",
    num_classes=10,
    input_shape=(3, 8, 8),
    shapes={"stage1": (4, 8, 8), "stage2": (8, 4, 4), "pool": (8,)},
    stages=("stage1", "stage2"),
    pooled="pool",
)
PERCEPTRON = Architecture(name="mlp", num_classes=10, input_shape=(3, 8, 8), shapes={"hidden": (5,)}, pooled="hidden")
BARE = Architecture(name="linear", num_classes=10, input_shape=(3, 8, 8), shapes={"out": (10,)})


def test_the_loss_equals_a_published_implementation(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("sp-repdistiller")
    loss = similarity_loss(case["in.s_feat"].flatten(1), case["in.t_feat"].flatten(1)).reshape(1)
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_the_loss_by_hand() -> None:
    # orthogonal samples against equal ones: rows (1, 0), (0, 1) and (1, 1) / sqrt(2) twice
    student, teacher = torch.eye(2), torch.tensor([[3.0], [3.0]])
    expected = (2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) / 4
    assert float(similarity_loss(student, teacher)) == pytest.approx(expected)


def test_rotated_and_scaled_outputs_of_another_width_have_no_loss() -> None:
    teacher = torch.randn(6, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q[:4]
    assert float(similarity_loss(3 * teacher @ turn, teacher)) == pytest.approx(0, abs=1e-12)


def test_a_batch_of_one_has_no_loss() -> None:
    assert float(similarity_loss(torch.randn(1, 4), torch.randn(1, 7))) == pytest.approx(0, abs=1e-12)


def test_a_sample_with_outputs_of_0_has_no_gradient_and_affects_no_other() -> None:
    student = torch.randn(3, 4)
    student[1] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(similarity_loss(student, torch.randn(3, 4)), student)
    assert float(gradient.abs().max()) < 10


def test_the_term_is_weighted_and_maps_are_flattened() -> None:
    student, teacher = torch.randn(3, 2, 4, 4), torch.randn(3, 5, 2, 2)
    step = make_step(student_logits=torch.randn(3, 10), student_features={"a": student}, teacher={"embedding": teacher})
    terms = Similarity().loss(step)
    torch.testing.assert_close(terms["similarity"], 3000 * similarity_loss(student.flatten(1), teacher.flatten(1)))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(step.logits, step.labels))


def test_the_last_maps_are_read_or_the_embedding_if_there_are_none() -> None:
    method = Similarity()
    assert method.knowledge(CONVOLUTIONAL, PERCEPTRON)["embedding"].layers == ("stage2",)
    assert method.student_layers(CONVOLUTIONAL, PERCEPTRON) == ["hidden"]


def test_named_layers_are_read() -> None:
    method = Similarity(student_layer="stage1", teacher_layer="pool")
    assert method.knowledge(CONVOLUTIONAL, CONVOLUTIONAL)["embedding"].layers == ("pool",)
    assert method.student_layers(CONVOLUTIONAL, CONVOLUTIONAL) == ["stage1"]


def test_an_unknown_layer_is_rejected_by_name() -> None:
    with pytest.raises(MethodError, match="teacher_layer: cnn has no layer 'stage3'; did you mean 'stage2'"):
        Similarity(teacher_layer="stage3").knowledge(CONVOLUTIONAL, CONVOLUTIONAL)
    with pytest.raises(MethodError, match="student_layer: cnn has no layer 'x'"):
        Similarity(student_layer="x").knowledge(CONVOLUTIONAL, CONVOLUTIONAL)


def test_a_network_without_a_layer_before_its_classifier_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="student linear has none; set student_layer"):
        Similarity().knowledge(CONVOLUTIONAL, BARE)
    with pytest.raises(MethodError, match="teacher linear has none; set teacher_layer"):
        Similarity().knowledge(BARE, CONVOLUTIONAL)


def test_with_weight_0_nothing_is_needed_or_computed() -> None:
    method = Similarity(similarity_weight=0.0)
    assert method.knowledge(CONVOLUTIONAL, BARE) == {}
    assert method.student_layers(CONVOLUTIONAL, BARE) == []
    assert list(method.loss(make_step(student_logits=torch.randn(2, 10)))) == ["cross_entropy"]


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    assert bool(similarity_loss(torch.randn(3, 4), torch.full((3, 4), torch.nan)).isnan())
