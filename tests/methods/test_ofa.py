import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.method import Setup, Unsuitable
from stillhouse.methods.ofa import OFA, Branch, Halving, enhanced_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, make_step

NET = Architecture(
    name="net",
    num_classes=7,
    input_shape=(1, 16, 16),
    shapes={"a": (2, 16, 16), "b": (3, 8, 8), "c": (5, 4, 4), "pool": (5,)},
    stages=("a", "b", "c"),
    pooled="pool",
)


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_enhanced_loss_by_hand() -> None:
    # The teacher has 1/2, 1/4, 1/4 with class 0 as the label; gamma = 2: (3/2)^2 - 1 = 5/4 and 1/16 each.
    student, teacher, labels = logs([1 / 4, 1 / 4, 1 / 2]), logs([1 / 2, 1 / 4, 1 / 4]), torch.tensor([0])
    expected = 5 / 4 * math.log(4) + 1 / 16 * math.log(4) + 1 / 16 * math.log(2)
    assert float(enhanced_loss(student, teacher, labels, power=2.0, temperature=1.0)) == pytest.approx(expected)
    alone = 5 / 4 * math.log(4) + 1 / 4 * math.log(4) + 1 / 4 * math.log(2)
    made = enhanced_loss(student, teacher, labels, power=2.0, temperature=1.0, raised="target")
    assert float(made) == pytest.approx(alone)


@pytest.mark.parametrize("raised", ["all", "target"])
def test_without_enhancement_it_is_the_cross_entropy_with_the_teacher(raised: str) -> None:
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    made = enhanced_loss(student, teacher, torch.arange(6), power=1.0, temperature=3.0, raised=raised)
    torch.testing.assert_close(made, F.cross_entropy(student / 3, (teacher / 3).softmax(1)))


def test_the_target_weighs_more_the_surer_the_teacher_is() -> None:
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    weights = []
    for share in (0.25, 0.5, 0.75):
        loss = enhanced_loss(student, logs([share, 1 - share]), torch.tensor([0]), power=1.5, temperature=1.0, raised="target")
        # log s is -log 2 for both classes: the loss is log 2 times the sum of the weights.
        weights.append(float(loss.detach()) / math.log(2) - (1 - share))
    assert weights == pytest.approx([1.25**1.5 - 1, 1.5**1.5 - 1, 1.75**1.5 - 1])


def test_a_certain_student_has_a_finite_loss() -> None:
    student = torch.tensor([[800.0, 0.0, -800.0]], requires_grad=True)
    loss = enhanced_loss(student, torch.zeros(1, 3), torch.tensor([2]), power=1.5, temperature=1.0)
    loss.backward()
    assert bool(loss.isfinite())
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_branches_have_the_layers_of_the_authors_for_each_stage() -> None:
    setup = Setup(teacher=NET, student=NET, new_student=nn.Identity, num_samples=8, epochs=1)
    (helper,) = OFA().modules(setup).values()
    branches = helper.module
    assert isinstance(branches, nn.ModuleList)
    halvings = [[layer for layer in branch.children() if isinstance(layer, Halving)] for branch in branches]
    assert [len(each) for each in halvings] == [2, 1, 0]
    # Channels double from stage to stage and end at the wider embedding; the last stage has a 1x1 convolution.
    assert [[layer[1].out_channels for layer in each] for each in halvings] == [[2, 4], [3], []]
    assert [[layer[5].out_channels for layer in each] for each in halvings] == [[4, 5], [5], []]
    for branch, stage in zip(branches, NET.stages, strict=True):
        assert branch(torch.randn(4, *NET.shape(stage))).shape == (4, 7)


def test_a_halving_halves_the_map() -> None:
    assert Halving(3, 6)(torch.randn(2, 3, 9, 8)).shape == (2, 6, 5, 4)
    assert Branch(3, 1, 4, 10)(torch.randn(2, 3, 1, 1)).shape == (2, 10)


def test_every_branch_and_the_logits_add_their_terms() -> None:
    teacher, student = torch.randn(4, 7), torch.randn(4, 7)
    outputs = [torch.randn(4, 7) for _ in range(3)]
    step = make_step(
        student_logits=student,
        targets=F.one_hot(torch.tensor([1, 2, 3, 4]), 7) * 0.6 + F.one_hot(torch.tensor([0, 0, 0, 0]), 7) * 0.4,
        student_features=dict(zip("abc", outputs, strict=True)),
        teacher={"logits": teacher},
        modules={"branches": nn.ModuleList([nn.Identity() for _ in outputs])},
    )
    terms = OFA(logit_weight=2.0, branch_weight=3.0, power=1.2, temperature=2.0).loss(step)
    labels = torch.tensor([1, 2, 3, 4])
    single = [enhanced_loss(each, teacher, labels, power=1.2, temperature=2.0) for each in (student, *outputs)]
    torch.testing.assert_close(terms["logits"], 2 * single[0])
    torch.testing.assert_close(terms["branches"], 3 * torch.stack(single[1:]).sum())


def test_a_student_without_maps_needs_branch_weight_0() -> None:
    flat = Architecture(name="mlp", num_classes=7, input_shape=(1, 8, 8), shapes={})
    with pytest.raises(Unsuitable, match="needs feature maps, student mlp has none; set branch_weight to 0"):
        OFA().student_layers(NET, flat)
    (entry,) = MethodTrial(OFA(branch_weight=0), student="mlp", epochs=1).trainer().fit()
    assert entry["logits"] > 0
