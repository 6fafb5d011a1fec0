import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou

from stillhouse.models.boxes import areas, best, clipped, decode, encode, is_large, overlaps, rows


def _boxes(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=draw) * 60
    return torch.cat((corner, corner + torch.rand(*shape, 2, generator=draw) * 30 + 2), -1)


def test_areas_and_overlaps_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2], [2, 0, 6, 2], [5, 5, 5, 9]])
    assert areas(boxes).tolist() == [8, 8, 0]
    # Two boxes of 8 share 2 x 2 = 4: 4 / (8 + 8 - 4). The third has no area.
    torch.testing.assert_close(overlaps(boxes, boxes), torch.tensor([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]))


def test_overlaps_are_those_of_torchvision_for_every_image() -> None:
    first, second = _boxes(3, 7), _boxes(3, 5, seed=1)
    for image in range(3):
        torch.testing.assert_close(overlaps(first, second)[image], box_iou(first[image], second[image]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_are_those_of_torchvision_and_lead_back(weights: tuple[float, float, float, float]) -> None:
    references, boxes = _boxes(9), _boxes(9, seed=1)
    deltas = encode(boxes, references, weights)
    coder = BoxCoder(weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, references))
    torch.testing.assert_close(decode(deltas, references, weights), coder.decode_single(deltas, references))
    torch.testing.assert_close(decode(deltas, references, weights), boxes, rtol=1e-4, atol=1e-4)


def test_a_row_without_a_box_gives_finite_numbers() -> None:
    nothing = torch.zeros(1, 4)
    assert bool(encode(nothing, nothing, (1, 1, 1, 1)).isfinite().all())
    assert bool(decode(torch.full((1, 4), 90.0), nothing, (1, 1, 1, 1)).isfinite().all())
    assert not bool(is_large(nothing).any())


def test_boxes_are_cut_at_the_border() -> None:
    assert clipped(torch.tensor([[-3.0, 2, 90, 80]]), 60, 70).tolist() == [[0, 2, 70, 60]]


@pytest.mark.parametrize("count", [4, 40])
def test_the_best_boxes_are_those_of_torchvision(count: int) -> None:
    boxes, draw = _boxes(2, 30), torch.Generator().manual_seed(5)
    scores, groups = torch.rand(2, 30, generator=draw), torch.randint(3, (2, 30), generator=draw)
    places, found = best(boxes, scores, groups, threshold=0.4, count=count)
    assert places.shape == found.shape == (2, count)
    for image in range(2):
        expected = batched_nms(boxes[image], scores[image], groups[image], 0.4)[:count]
        assert places[image][found[image]].tolist() == expected.tolist()


def test_a_box_without_a_score_is_never_chosen() -> None:
    scores = torch.tensor([[0.5, 0.0, 0.2]])
    places, found = best(_boxes(1, 3), scores, torch.arange(3).view(1, 3), threshold=0.5, count=3)
    assert places[0][found[0]].tolist() == [0, 2]


def test_rows_are_taken_from_each_image() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    assert rows(values, torch.tensor([[2, 0], [1, 1]])).tolist() == [
        [[8, 9, 10, 11], [0, 1, 2, 3]],
        [[16, 17, 18, 19], [16, 17, 18, 19]],
    ]
