"""TinyBERT's losses with padding, its layer mapping and its two stages, worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse import methods
from stillhouse.distill.method import MethodError, Setup, Stage, Unsuitable
from stillhouse.methods.hidden_states import (
    HiddenStates,
    attention_loss,
    for_all_pairs,
    for_all_places,
    hidden_loss,
    layer_pairs,
)
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.registry import sketch_model
from stillhouse.testing import make_step
from stillhouse.testing.grounds.text_classification import texts

MASK = torch.tensor([[True, True, False], [True, False, False]])


def described(model: str, **options: Any) -> Architecture:
    sketched = sketch_model(model, num_classes=2, input_shape=(12,), vocabulary=30, **options)
    return describe(sketched, name=model, input_shape=(12,))


def test_the_error_of_vectors_is_a_mean_over_tokens_and_then_over_texts() -> None:
    student = torch.zeros(2, 3, 2)
    teacher = torch.tensor([[[1.0, 3.0], [2.0, 0.0], [9.0, 9.0]], [[0.0, 4.0], [9.0, 9.0], [9.0, 9.0]]])
    # First text: ((1 + 9) / 2 + (4 + 0) / 2) / 2 = 3.5; second: (0 + 16) / 2 = 8.
    assert float(hidden_loss(student, teacher, MASK)) == pytest.approx((3.5 + 8) / 2)
    assert float(hidden_loss(teacher, teacher, MASK)) == 0
    assert float(hidden_loss(student, teacher, torch.zeros_like(MASK))) == 0


def test_the_error_of_attentions_is_a_mean_over_pairs_of_tokens_and_heads() -> None:
    student, teacher = torch.zeros(2, 2, 3, 3), torch.full((2, 2, 3, 3), 50.0)
    teacher[0, 0, :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    teacher[0, 1, :2, :2] = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    teacher[1, 0, 0, 0], teacher[1, 1, 0, 0] = 1.0, 3.0
    # First text: (1 + 4 + 9 + 16 + 4) / 8 = 4.25; second: (1 + 9) / 2 = 5.
    assert float(attention_loss(student, teacher, MASK)) == pytest.approx((4.25 + 5) / 2)


def test_places_without_a_token_have_no_gradient() -> None:
    vectors = torch.randn(2, 3, 2, requires_grad=True)
    scores = torch.randn(2, 2, 3, 3, requires_grad=True)
    (hidden_loss(vectors, torch.zeros(2, 3, 2), MASK) + attention_loss(scores, torch.zeros(2, 2, 3, 3), MASK)).backward()
    assert vectors.grad is not None
    assert scores.grad is not None
    assert not vectors.grad[~MASK].any()
    assert not scores.grad[1, :, 1:].any()
    assert not scores.grad[0, :, 2].any()


def test_rows_of_all_batches_have_one_shape() -> None:
    vectors, scores = torch.ones(2, 3, 4), torch.arange(2 * 2 * 9, dtype=torch.float32).view(2, 2, 3, 3)
    padded = for_all_places(vectors, length=5)
    assert padded.shape == (2, 5, 4)
    assert not padded[:, 3:].any()
    whole = for_all_pairs(scores, length=5, average=False)
    assert whole.shape == (2, 2, 5, 5)
    assert torch.equal(whole[..., :3, :3], scores)
    assert not whole[..., 3:].any()
    averaged = for_all_pairs(scores, length=3, average=True)
    assert torch.equal(averaged, (scores[:, :1] + scores[:, 1:]) / 2)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (4, 12, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT-4 of BERT-base, g(m) = 3 m
        (6, 12, [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        (2, 3, [(0, 0), (1, 2), (2, 3)]),
        (2, 1, [(0, 0), (1, 1), (2, 1)]),
    ],
)
def test_layers_are_mapped_uniformly(student: int, teacher: int, expected: list[tuple[int, int]]) -> None:
    small, large = (described("text_transformer", depth=depth, width=0.1) for depth in (student, teacher))
    assert layer_pairs(small, large) == expected


def test_knowledge_is_that_of_the_mapped_layers() -> None:
    student, teacher = described("text_transformer", depth=1, width=0.25), described("text_transformer", depth=2)
    needed = HiddenStates().knowledge(teacher, student)
    assert {name: kind.layers for name, kind in needed.items()} == {
        "logits": (),
        "hidden0": ("places",),
        "hidden1": ("blocks.1",),
        "attention1": ("blocks.1.attn.scores",),
    }
    assert dict(needed["attention1"].options) == {"length": 12, "average": False}
    other = described("text_transformer", depth=1, heads=2, width=0.25)
    assert dict(HiddenStates().knowledge(teacher, other)["attention1"].options)["average"]
    assert set(HiddenStates(attention_weight=0, kd_weight=0).knowledge(teacher, student)) == {"hidden0", "hidden1"}
    assert set(HiddenStates(hidden_weight=0).knowledge(teacher, student)) == {"logits", "attention1"}


def test_a_network_without_attention_learns_vectors_alone() -> None:
    student, teacher = described("bilstm", width=0.25), described("text_transformer")
    assert set(HiddenStates().knowledge(teacher, student)) == {"logits", "hidden0", "hidden1"}
    assert set(HiddenStates().knowledge(student, teacher)) == {"logits", "hidden0", "hidden1", "hidden2"}


def test_networks_without_vectors_of_tokens_do_not_fit() -> None:
    plain, teacher = described("text_cnn"), described("text_transformer")
    with pytest.raises(Unsuitable, match="needs layers that return a vector for each token, student text_cnn has none"):
        HiddenStates().knowledge(teacher, plain)
    with pytest.raises(MethodError, match="teacher text_cnn has none"):
        HiddenStates().knowledge(plain, teacher)


def test_layers_come_first_and_then_the_outputs() -> None:
    student, teacher = described("text_transformer", depth=1), described("text_transformer", depth=2)
    setup = Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=10, epochs=10)
    first, second = HiddenStates(layer_fraction=0.7).stages(setup)
    assert (first.epochs, first.until, first.comparable) == (7, "blocks.0", False)
    assert first.knowledge == ("hidden0", "hidden1", "attention1")
    assert (second.epochs, second.until, second.knowledge) == (3, None, ("logits",))
    (only,) = HiddenStates(hidden_weight=0, attention_weight=0).stages(setup)
    assert (only.name, only.epochs) == ("prediction", 10)


def test_the_first_stage_adds_the_weighted_errors_of_all_layers() -> None:
    """One layer with one head: vectors of zeros, mapped to zeros; the teacher's rows are longer than the batch."""
    step = make_step(
        images=torch.tensor([[4, 5, 0], [6, 0, 0]]),
        labels=torch.tensor([0, 1]),
        stage=Stage(name="layers", epochs=1),
        student_features={
            "places": torch.zeros(2, 3, 2),
            "blocks.0.attn.scores": torch.zeros(2, 1, 3, 3),
            "blocks.0": torch.zeros(2, 3, 2),
        },
        teacher={
            "hidden0": torch.full((2, 5, 2), 2.0),
            "hidden1": torch.full((2, 5, 2), 3.0),
            "attention1": torch.full((2, 1, 5, 5), 4.0),
        },
        modules={"embedding": nn.Identity(), "hidden": nn.Identity()},
    )
    terms = HiddenStates(hidden_weight=10, attention_weight=0.5).loss(step)
    assert {name: float(term) for name, term in terms.items()} == {"embedding": 40.0, "hidden": 90.0, "attention": 8.0}


def test_the_second_stage_is_the_cross_entropy_with_the_softened_teacher() -> None:
    step = make_step(
        student_logits=torch.tensor([[0.0, 2.0]]),
        labels=torch.tensor([1]),
        teacher={"logits": torch.tensor([[2.0, 0.0]])},
        stage=Stage(name="prediction", epochs=1),
    )
    # At T = 2 the teacher's probabilities are (e, 1) / (e + 1), the student's logarithms -log(1 + e) and 1 - log(1 + e).
    share, log_sum = math.e / (math.e + 1), math.log1p(math.e)
    expected = share * log_sum + (1 - share) * (log_sum - 1)
    assert float(HiddenStates(temperature=2).loss(step)["soft_cross_entropy"]) == pytest.approx(expected, rel=1e-6)
    both = HiddenStates(temperature=2, kd_weight=0.25).loss(step)
    assert float(both["soft_cross_entropy"]) == pytest.approx(0.25 * expected, rel=1e-6)
    assert float(both["cross_entropy"]) == pytest.approx(0.75 * math.log1p(math.exp(-2)), rel=1e-6)


def test_the_helpers_map_to_the_teachers_width() -> None:
    student, teacher = described("text_transformer", width=0.25), described("text_transformer", width=0.5)
    setup = Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=10, epochs=10)
    shapes = {name: tuple(helper.module.weight.shape) for name, helper in HiddenStates().modules(setup).items()}
    assert shapes == {"embedding": (64, 32), "hidden": (64, 32)}
    assert HiddenStates(hidden_weight=0).modules(setup) == {}


def test_it_serves_the_task_of_texts_alone() -> None:
    assert methods.find("hidden_states").tasks == (texts().task,)
