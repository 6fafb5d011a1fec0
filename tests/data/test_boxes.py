import numpy as np
import pytest
import torch

from stillhouse.data.boxes import BOXES, padded, presence
from stillhouse.data.views import Views
from stillhouse.errors import UsageError

ONE = [[1.0, 2, 5, 8, 0]]


def test_images_with_fewer_boxes_have_rows_without_one() -> None:
    targets = padded([np.array(ONE, np.float32), np.zeros((0, 5), np.float32), np.array([*ONE, *ONE], np.float32)])
    assert targets.shape == (3, 2, 5)
    assert targets[..., 4].tolist() == [[0, -1], [-1, -1], [0, 0]]
    assert padded([np.zeros((0, 5), np.float32)]).shape == (1, 1, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.arange(3),
            "must be boxes [N, M, 5], (x1, y1, x2, y2, class) with the class -1 in rows without a box, got int64 [3]",
        ),
        (np.full((1, 1, 5), np.nan), "must be finite numbers"),
        (np.array([[[3.0, 2, 3, 8, 0]]]), "must be boxes with an area, got [3.0, 2.0, 3.0, 8.0]"),
    ],
)
def test_other_targets_are_refused(given: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError) as error:
        BOXES.convert(given, "labels of train")
    assert message in str(error.value)


def test_classes_must_be_those_of_the_models() -> None:
    targets = padded([np.array([[0, 0, 4, 4, 3]], np.float32)])
    assert BOXES.outputs(targets) == (4, ("0", "1", "2", "3"))
    with pytest.raises(UsageError, match=r"classes of train must be in 0\.\.1, got 3"):
        BOXES.check(targets, 2, ("a", "b"), "train")
    with pytest.raises(UsageError, match="has no box in any image"):
        BOXES.check(padded([np.zeros((0, 5), np.float32)]), 2, ("a", "b"), "train")


def test_the_stratum_of_an_image_is_its_rarest_class() -> None:
    rows = [[[0, 0, 4, 4, 0]], [[0, 0, 4, 4, 0], [0, 0, 4, 4, 1]], [], [[0, 0, 4, 4, 0]]]
    targets = padded([np.array(each, np.float32).reshape(-1, 5) for each in rows])
    assert presence(targets).tolist() == [[True, False], [True, True], [False, False], [True, False]]
    assert BOXES.strata(targets).tolist() == [0, 1, 2, 0]
    assert BOXES.split_problem(targets[:1], ("a", "b")) == "class 'b'"
    assert BOXES.split_problem(targets, ("a", "b")) is None


SHAPE = (3, 32, 48)
BOX = torch.tensor([[[10.0, 4, 22, 16]]])


def _picture() -> torch.Tensor:
    """A white box on black, where `BOX` says."""
    images = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    images[:, :, 4:16, 10:22] = 255
    return images


@pytest.mark.parametrize("policy", ["flip", {"crop": {"padding": 8}}, {"random_resized_crop": {"scale": [0.4, 1.0]}}])
@pytest.mark.parametrize("view", range(6))
def test_boxes_move_as_their_pixels(policy: object, view: int) -> None:
    views = Views((policy,), 6, SHAPE, 1)  # type: ignore[arg-type]
    place = torch.zeros(1, dtype=torch.int64)
    pixels = views.augment(_picture(), place, view)[0, 0] > 127
    boxes, _ = views.move_boxes(BOX, place, view)
    rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # Bilinear stretching blurs an edge by up to one pixel.
    assert boxes[0, 0].tolist() == pytest.approx([float(each) for each in found], abs=1.0 if isinstance(policy, dict) else 0)


def test_a_flip_that_is_applied_twice_gives_the_boxes_back() -> None:
    views = Views(({"flip": {"probability": 1.0}}, {"flip": {"probability": 1.0}}), 1, SHAPE, 1)
    boxes, share = views.move_boxes(BOX, torch.zeros(1, dtype=torch.int64), 0)
    assert torch.equal(boxes, BOX)
    assert share.tolist() == [[1]]


def test_colours_move_no_box() -> None:
    views = Views(("colour_jitter", "cutout"), 1, SHAPE, 1)
    boxes, share = views.move_boxes(BOX, torch.zeros(1, dtype=torch.int64), 0)
    assert torch.equal(boxes, BOX)
    assert share.tolist() == [[1]]


def test_boxes_are_cut_at_the_border_and_their_visible_share_is_known() -> None:
    views = Views(({"crop": {"padding": 8}},), 40, SHAPE, 1)
    place, corner = torch.zeros(1, dtype=torch.int64), torch.tensor([[[0.0, 0, 8, 8]]])
    shares = set()
    for view in range(40):
        boxes, share = views.move_boxes(corner, place, view)
        x1, y1, x2, y2 = boxes[0, 0].tolist()
        assert min(x1, y1) >= 0
        assert share.item() == pytest.approx((x2 - x1) * (y2 - y1) / 64, abs=1e-6)
        shares.add(share.item())
    assert min(shares) < 1 <= max(shares)


def test_a_part_that_left_the_image_does_not_come_back() -> None:
    """After the first crop a black border may be moved in again, but not the pixels of the box."""
    views = Views(({"crop": {"padding": 8}}, {"crop": {"padding": 8}}), 20, SHAPE, 1)
    place, images = torch.zeros(1, dtype=torch.int64), torch.zeros(1, *SHAPE, dtype=torch.uint8)
    images[:, :, :8, :8] = 255
    for view in range(20):
        boxes, _ = views.move_boxes(torch.tensor([[[0.0, 0, 8, 8]]]), place, view)
        sides = boxes[0, 0, 2:] - boxes[0, 0, :2]
        pixels = views.augment(images, place, view)[0, 0] > 127
        assert float(sides.prod()) == pixels.sum().item()


def test_no_boxes_have_the_whole_share() -> None:
    views = Views(("flip",), 1, SHAPE, 1)
    assert views.move_boxes(torch.zeros(1, 2, 4), torch.zeros(1, dtype=torch.int64), 0)[1].tolist() == [[1, 1]]
