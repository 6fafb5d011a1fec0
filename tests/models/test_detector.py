import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from stillhouse.models.detector import BOX_OUTPUT, PROPOSAL_OUTPUT, BoxStage, make_anchors, maps_of, unpacked
from stillhouse.models.faster_rcnn import fasterrcnn
from stillhouse.models.features import FeatureReader


def _detector(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return fasterrcnn(
        num_classes=3, input_shape=(3, 40, 56), backbone="resnet8", width=0.25, neck_channels=8, hidden_units=16, proposals=12
    )


def _images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def test_outputs_have_fixed_shapes_in_training() -> None:
    outputs = _detector().train()(_images())
    assert [tuple(each.shape) for each in maps_of(outputs)] == [(3, 8, 10, 14), (3, 8, 5, 7), (3, 8, 3, 4), (3, 8, 2, 2)]
    assert outputs["anchors"].shape == (3, 3 * (140 + 35 + 12 + 4), 5)
    assert outputs["proposals"].shape == (3, 12, 4)
    assert outputs["meant"].shape == (3, 12)


def test_detections_have_fixed_shapes_and_fall_in_score_and_missing_ones_have_no_label() -> None:
    found = _detector().eval()(_images())
    assert found["boxes"].shape == (3, 100, 4)
    assert bool((found["scores"].diff(dim=1) <= 0).all())
    missing = found["scores"] == 0
    assert bool(missing.any())
    assert bool((found["labels"][missing] == -1).all())
    assert bool((found["labels"][~missing] >= 0).all())
    assert bool((found["boxes"][missing] == 0).all())


def test_boxes_lie_inside_the_image() -> None:
    boxes = _detector().eval()(_images())["boxes"].detach()
    assert float(boxes.min()) >= 0
    assert float(boxes[..., 0::2].max()) <= 56
    assert float(boxes[..., 1::2].max()) <= 40


def test_an_image_is_detected_alone_as_in_a_batch() -> None:
    model, images = _detector().eval(), _images()
    whole = model(images)
    for image in range(3):
        for name, value in model(images[image : image + 1]).items():
            torch.testing.assert_close(value[0], whole[name][image], rtol=1e-4, atol=1e-4)


def test_the_layers_that_methods_read_return_what_the_detector_uses() -> None:
    model = _detector().eval()
    with FeatureReader(model, [*model.stage_layers, PROPOSAL_OUTPUT, BOX_OUTPUT]) as reader:  # type: ignore[misc]
        _, features = reader(_images())
    boxes, logits, deltas = unpacked(features[BOX_OUTPUT])
    assert (boxes.shape, logits.shape, deltas.shape) == ((3, 12, 4), (3, 12, 4), (3, 12, 4, 4))
    maps = list(model.backbone(_images()).values())  # type: ignore[operator]
    again = model.look_at(maps, boxes)  # type: ignore[operator]
    torch.testing.assert_close(again[0], logits)
    torch.testing.assert_close(again[1], deltas)
    assert features[PROPOSAL_OUTPUT].shape[1:] == (len(model.anchors), 5)  # type: ignore[arg-type]


def test_a_detector_judges_boxes_of_others() -> None:
    model, images = _detector().eval(), _images()
    boxes = torch.tensor([[2.0, 3, 20, 30], [10, 10, 50, 39]]).expand(3, 2, 4)
    judged = model(images, boxes)["judged"]
    given, logits, _ = unpacked(judged)
    assert torch.equal(given, boxes)
    torch.testing.assert_close(logits, model.look_at(list(model.backbone(images).values()), boxes)[0])  # type: ignore[operator]


@pytest.mark.parametrize("sampling", [1, 2])
def test_regions_are_pooled_as_by_torchvision(sampling: int) -> None:
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 6, *size, generator=draw) for size in ((30, 40), (15, 20), (8, 10))]
    corner = torch.rand(2, 50, 2, generator=draw) * torch.tensor([140.0, 100])
    end = torch.minimum(corner + torch.rand(2, 50, 2, generator=draw) * 110 + 2, torch.tensor([160.0, 120]))
    boxes = torch.cat((corner, end), 2)
    theirs = MultiScaleRoIAlign(["0", "1", "2"], 7, sampling, canonical_scale=64, canonical_level=4)
    expected = theirs({str(place): each for place, each in enumerate(maps)}, list(boxes), [(120, 160)] * 2)
    stage = BoxStage(nn.Identity(), nn.Identity(), [1 / 4, 1 / 8, 1 / 16], 16.0, sampling)
    torch.testing.assert_close(stage.pooled(maps, boxes).flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_anchors_are_those_of_torchvision() -> None:
    sizes, ratios = ((16,), (32,)), (0.5, 1.0, 2.0)
    theirs = AnchorGenerator(sizes, (ratios,) * 2)
    maps = [torch.zeros(1, 1, 10, 12), torch.zeros(1, 1, 5, 6)]
    (expected,) = theirs(ImageList(torch.zeros(1, 3, 40, 48), [(40, 48)]), maps)
    anchors, per_level = make_anchors(sizes, ratios, [4, 8], [(10, 12), (5, 6)])
    assert torch.equal(anchors, expected)
    assert per_level == [360, 90]


def test_the_outputs_of_a_detector_are_known_without_storage() -> None:
    with torch.device("meta"):
        model = fasterrcnn(num_classes=3, input_shape=(3, 40, 56), width=0.25, neck_channels=8)
    assert model.eval()(torch.zeros(2, 3, 40, 56, device="meta"))["boxes"].shape == (2, 100, 4)
