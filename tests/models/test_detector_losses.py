"""The expected numbers are worked out below each test's figures, or are torchvision's own."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from stillhouse.models.detector import box_moves, make_anchors
from stillhouse.models.detector_losses import (
    Assignment,
    Drawing,
    assign_anchors,
    assign_proposals,
    box_losses,
    proposal_losses,
    smooth_l1,
    with_true_boxes,
)

EVERYTHING = Drawing(samples=100_000, on_objects=1.0)
NO_BOX = [0.0, 0, 0, 0, -1]

# Two true boxes and three proposals: the first covers three quarters of the first box, the second is the second box, and the
# third touches neither.
TARGETS = torch.tensor([[[0.0, 0, 8, 8, 1], [20, 20, 30, 30, 0], NO_BOX]])
PROPOSALS = torch.tensor([[[0.0, 0, 8, 6], [20, 20, 30, 30], [50, 50, 60, 60]]])
MEANT = torch.ones(1, 3, dtype=torch.bool)


def test_proposals_belong_to_the_box_that_they_cover() -> None:
    assigned = assign_proposals(PROPOSALS, MEANT, TARGETS)
    assert assigned.classes.tolist() == [[2, 1, 0]]
    assert assigned.boxes[0, :2].tolist() == [[0, 0, 8, 8], [20, 20, 30, 30]]
    # At most a quarter of 512 may be on objects, which is more than the two: all three are drawn.
    torch.testing.assert_close(assigned.weights, torch.full((1, 3), 1 / 3))


def test_a_drawing_that_is_too_small_for_all_weighs_by_the_probability_of_being_drawn() -> None:
    assigned = assign_proposals(PROPOSALS, MEANT, TARGETS, Drawing(samples=2, on_objects=0.5))
    # One of the two on an object is drawn, and the one of the background: each of the two draws has half of the loss.
    torch.testing.assert_close(assigned.weights, torch.tensor([[0.25, 0.25, 0.5]]))


def test_the_losses_of_the_box_head_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0, 0], [0, math.log(2), 0], [math.log(6), 0, 0]]], requires_grad=True)
    deltas = torch.zeros(1, 3, 3, 4, requires_grad=True)
    classes, positions = box_losses(logits, deltas, PROPOSALS, assign_proposals(PROPOSALS, MEANT, TARGETS))
    # Classes 2, 1 and 0 have the probabilities 1/3, 2/4 and 6/8.
    torch.testing.assert_close(classes, torch.tensor([(math.log(3) + math.log(2) + math.log(8 / 6)) / 3]))
    # Only the first proposal is not its box: the centre is 1 of 6 pixels lower, the height 8/6; times 10 and 5.
    dy, dh = 10 / 6, 5 * math.log(8 / 6)
    torch.testing.assert_close(positions, torch.tensor([((dy - 1 / 18) + (dh - 1 / 18)) / 3]))
    (of_logits, of_deltas) = torch.autograd.grad(classes.sum() + positions.sum(), (logits, deltas))
    torch.testing.assert_close(of_logits[0, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3 - 1]) / 3)
    # The gradient of the smooth L1 loss beyond 1/9 is the sign; only the true class is moved.
    expected = torch.zeros(3, 3, 4)
    expected[0, 2, 1] = expected[0, 2, 3] = -1 / 3
    torch.testing.assert_close(of_deltas[0], expected)


def test_the_losses_of_the_proposal_stage_by_hand() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 6], [50, 50, 58, 58]])
    targets = torch.tensor([[[0.0, 0, 8, 8, 1]]])
    assigned = assign_anchors(anchors, targets)
    # The overlap of the second anchor is 48 / 64 = 0.75, which is on the object too.
    assert assigned.classes.tolist() == [[1, 1, 0]]
    output = torch.zeros(1, 3, 5)
    output[0, 2, 0] = math.log(3)
    scores, boxes = proposal_losses(output, anchors, assigned)
    torch.testing.assert_close(scores, torch.tensor([(2 * math.log(2) + math.log(4)) / 3]))
    # (0 - 1/6)^2 * 9 / 2 would be below 1/9; 1/6 is beyond it: 1/6 - 1/18. And log(8/6) - 1/18.
    torch.testing.assert_close(boxes, torch.tensor([(1 / 6 - 1 / 18 + math.log(8 / 6) - 1 / 18) / 3]))


def test_an_anchor_between_the_thresholds_is_not_learned_unless_it_is_the_best_of_a_box() -> None:
    targets = torch.tensor([[[0.0, 0, 10, 10, 0]]])
    half = torch.tensor([[0.0, 0, 10, 5]])
    better = torch.tensor([[0.0, 0, 10, 6]])
    assert assign_anchors(half, targets).classes.tolist() == [[1]]
    assert assign_anchors(torch.cat((half, better)), targets).classes.tolist() == [[-1, 1]]


def test_an_image_without_a_box_is_background_and_its_loss_is_finite() -> None:
    nothing = torch.tensor([[NO_BOX, NO_BOX]])
    assigned = assign_proposals(PROPOSALS, MEANT, nothing)
    assert assigned.classes.tolist() == [[0, 0, 0]]
    losses = box_losses(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3, 4), PROPOSALS, assigned)
    assert losses[0].item() == pytest.approx(math.log(3), rel=1e-6)
    assert losses[1].item() == 0


def test_rows_that_are_no_proposals_have_no_part_in_the_loss() -> None:
    meant = torch.tensor([[True, False, True]])
    assigned = assign_proposals(PROPOSALS, meant, TARGETS)
    assert assigned.classes.tolist() == [[2, -1, 0]]
    assert assigned.weights.tolist() == [[0.5, 0, 0.5]]


def test_true_boxes_are_proposals_too() -> None:
    boxes, meant = with_true_boxes(PROPOSALS, MEANT, TARGETS)
    assert boxes.shape == (1, 6, 4)
    assert meant.tolist() == [[True, True, True, True, True, False]]


def _random_targets() -> Tensor:
    return torch.tensor([[[3, 5, 20, 22, 0], [10, 10, 40, 30, 2], NO_BOX], [[1.0, 2, 18, 12, 1], NO_BOX, NO_BOX]])


@pytest.mark.parametrize("image", [0, 1])
def test_the_proposal_stage_has_the_loss_of_torchvision_where_everything_is_drawn(image: int) -> None:
    anchors, _ = make_anchors([[16.0], [32.0]], [0.5, 1, 2], [4, 8], [(10, 12), (5, 6)])
    targets = _random_targets()[image : image + 1]
    output = torch.randn(1, len(anchors), 5, generator=torch.Generator().manual_seed(image))
    tops = {"training": 1, "testing": 1}
    theirs = RegionProposalNetwork(AnchorGenerator(), RPNHead(4, 3), 0.7, 0.3, 100_000, 1.0, tops, tops, 0.7)
    real = targets[0][targets[0, :, 4] >= 0, :4]
    labels, matched = theirs.assign_targets_to_anchors([anchors], [{"boxes": real}])
    moves = theirs.box_coder.encode(matched, [anchors])
    expected = theirs.compute_loss(output[0, :, :1], output[0, :, 1:], labels, list(moves))
    assigned = assign_anchors(anchors, targets, EVERYTHING)
    assert torch.equal(assigned.classes[0].float(), labels[0])
    for ours, reference in zip(proposal_losses(output, anchors, assigned), expected, strict=True):
        torch.testing.assert_close(ours[0], reference)


def test_the_box_head_has_the_loss_of_torchvision_where_everything_is_drawn() -> None:
    draw = torch.Generator().manual_seed(3)
    targets = _random_targets()[:1]
    proposals = torch.cat((targets[:, :2, :4] + torch.randn(1, 2, 4, generator=draw), PROPOSALS), 1)
    logits, deltas = torch.randn(1, 5, 4, generator=draw), torch.randn(1, 5, 4, 4, generator=draw)
    pool = MultiScaleRoIAlign(["0"], 7, 2)
    theirs = RoIHeads(pool, torch.nn.Identity(), torch.nn.Identity(), 0.5, 0.5, 100_000, 1.0, None, 0.05, 0.5, 100)
    real = targets[0][targets[0, :, 4] >= 0]
    matched, labels = theirs.assign_targets_to_proposals([proposals[0]], [real[:, :4]], [real[:, 4].long() + 1])
    moves = theirs.box_coder.encode([real[matched[0], :4]], [proposals[0]])
    expected = fastrcnn_loss(logits[0], deltas[0].flatten(1), labels, list(moves))
    assigned = assign_proposals(proposals, torch.ones(1, 5, dtype=torch.bool), targets, EVERYTHING)
    for ours, reference in zip(box_losses(logits, deltas, proposals, assigned), expected, strict=True):
        torch.testing.assert_close(ours[0], reference)


def test_a_target_that_cannot_be_reached_does_not_spoil_the_rows_that_are_not_learned() -> None:
    boxes = torch.tensor([[[0.0, 0, 0, 0], [0, 0, 8, 8]]])
    assigned = Assignment(torch.tensor([[0, 1]]), torch.full((1, 2, 4), float("inf")), torch.tensor([[1.0, 0.0]]))
    assert not bool(box_moves(assigned.boxes, boxes).isfinite().all())
    deltas = torch.zeros(1, 2, 2, 4, requires_grad=True)
    assigned.boxes[0, 1] = boxes[0, 1]
    loss = box_losses(torch.zeros(1, 2, 2), deltas, boxes, assigned)[1].sum()
    (gradient,) = torch.autograd.grad(loss, deltas)
    assert bool(gradient.isfinite().all())


def test_smooth_l1_by_hand() -> None:
    # Up to 1/9 quadratic, 9/2 x^2, then |x| - 1/18; summed over the four numbers.
    found = torch.tensor([[1 / 18, -1.0, 0, 0]])
    torch.testing.assert_close(smooth_l1(found, torch.zeros(1, 4)), torch.tensor([4.5 / 18**2 + 1 - 1 / 18]))
