import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision as Reference

from stillhouse.models.detector import packed
from stillhouse.tasks._detection_metric import MeanAveragePrecision, average_precision, interval

NO_BOX = [0.0, 0, 0, 0, -1]


def _random(images: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Detections [N, 100, 6] near true boxes [N, 4, 5] of three classes, and others; some images have no box."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, 4, 2, generator=draw) * 60
    true = torch.cat((corner, corner + torch.rand(images, 4, 2, generator=draw) * 40 + 5), 2)
    true = torch.cat((true, torch.randint(3, (images, 4, 1), generator=draw).float()), 2)
    true[::5] = torch.tensor(NO_BOX)
    found = torch.zeros(images, 100, 6)
    found[..., 5] = -1
    found[:, :4, :4] = true[..., :4] + torch.randn(images, 4, 4, generator=draw) * 3
    found[:, :4, 2:4] = found[:, :4, 2:4].maximum(found[:, :4, :2] + 1)
    found[:, :4, 5] = true[..., 4].clamp(min=0)
    found[:, 4:9, :2] = torch.rand(images, 5, 2, generator=draw) * 60
    found[:, 4:9, 2:4] = found[:, 4:9, :2] + 20
    found[:, 4:9, 5] = torch.randint(3, (images, 5), generator=draw).float()
    found[:, :9, 4] = torch.rand(images, 9, generator=draw)
    return found, true


def _reference(found: Tensor, true: Tensor) -> dict[str, Tensor]:
    # Its own thresholds are rounded to float32, which decides on recalls such as 1/4.
    overlaps, recalls = (np.linspace(*each).tolist() for each in ((0.5, 0.95, 10), (0.0, 1.0, 101)))
    metric = Reference(backend="faster_coco_eval", class_metrics=True, iou_thresholds=overlaps, rec_thresholds=recalls)
    rows = [each[each[:, 5] >= 0] for each in found]
    boxes = [each[each[:, 4] >= 0] for each in true]
    metric.update(
        [{"boxes": each[:, :4], "scores": each[:, 4], "labels": each[:, 5].long()} for each in rows],
        [{"boxes": each[:, :4], "labels": each[:, 4].long()} for each in boxes],
    )
    values: dict[str, Tensor] = metric.compute()
    return values


def test_precision_is_that_of_torchmetrics() -> None:
    found, true = _random()
    ours, theirs = average_precision(found, true), _reference(found, true)
    assert ours.mean == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert ours.at_50 == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert ours.by_class == pytest.approx(theirs["map_per_class"].tolist(), abs=1e-6)


def test_precision_by_hand() -> None:
    # Two true boxes. The best detection is the first box; the next one covers nothing; the second box is found at the overlap
    # 80 / 100, which counts at 0.50 to 0.80, 7 of the 10 overlaps. Precision over recall is 1 up to recall 1/2, where
    # 51 of the 101 points lie, and 2/3 at the other 50, or 0 where the third does not count.
    true = torch.tensor([[[0.0, 0, 10, 10, 0], [20, 20, 30, 30, 0]]])
    found = torch.tensor([[[0.0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 30, 28, 0.7, 0]]])
    precision = average_precision(found, true)
    assert precision.at_50 == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)
    assert precision.mean == pytest.approx((7 * (51 + 50 * 2 / 3) + 3 * 51) / 1010, abs=1e-6)


def test_a_class_without_a_true_box_has_no_precision_and_no_part_in_the_mean() -> None:
    true = torch.tensor([[[0.0, 0, 10, 10, 0], NO_BOX]])
    found = torch.tensor([[[0.0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 1]]])
    precision = average_precision(found, true)
    assert precision.mean == pytest.approx(1)
    assert precision.by_class[0] == pytest.approx(1)
    assert math.isnan(precision.by_class[1])


def test_the_precision_of_images_without_any_box_is_not_a_number() -> None:
    assert math.isnan(average_precision(torch.zeros(2, 3, 6), torch.tensor([[NO_BOX], [NO_BOX]])).mean)


def test_parts_that_are_merged_in_any_order_are_the_whole() -> None:
    found, true = _random()
    outputs = {"detections": found}
    whole = MeanAveragePrecision()
    whole.update(outputs, true)
    for cuts in (((0, 5), (5, 12)), ((5, 12), (0, 5))):
        merged = MeanAveragePrecision()
        for start, end in cuts:
            part = MeanAveragePrecision()
            part.update({name: value[start:end] for name, value in outputs.items()}, true[start:end])
            merged.merge(part.state())
        assert merged.result() == whole.result()


def test_equal_scores_are_ranked_the_same_in_every_order_of_the_images() -> None:
    found, true = _random()
    found[..., 4] = torch.where(found[..., 5] >= 0, 0.5, 0.0)
    order = torch.randperm(len(true), generator=torch.Generator().manual_seed(1))
    assert average_precision(found, true) == average_precision(found[order], true[order])


def test_the_interval_surrounds_the_value_and_is_a_function_of_its_arguments() -> None:
    found, true = _random()
    low, high = interval(found, true, draws=20)
    assert low <= average_precision(found, true).mean <= high
    assert low < high
    assert interval(found, true, draws=20) == (low, high)


def test_detections_are_packed() -> None:
    outputs = {"boxes": torch.ones(1, 2, 4), "scores": torch.tensor([[0.5, 0.0]]), "labels": torch.tensor([[2, -1]])}
    assert packed(outputs).tolist() == [[[1, 1, 1, 1, 0.5, 2], [1, 1, 1, 1, 0, -1]]]
