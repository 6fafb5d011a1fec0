import pytest
import torch
from torchvision.models import detection

from stillhouse.models.blueprint import blueprint
from stillhouse.models.detector import BOX_OUTPUT, PROPOSAL_OUTPUT, unpacked
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model, model_problems
from stillhouse.models.torchvision_detectors import NAMES

IMAGES = (3, 128, 192)


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_the_names_and_shapes_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=4).state_dict()
        ours = build_model(f"torchvision:{name}", num_classes=3, input_shape=IMAGES).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_the_published_number_of_parameters() -> None:
    """41,755,286 with the 91 classes of COCO, as torchvision documents it for its weights; BatchNorm trains 53,120 more."""
    size = blueprint("torchvision:fasterrcnn_resnet50_fpn", {}, 90, IMAGES).size
    frozen = sum(
        each.numel()
        for name, each in build_model("torchvision:resnet50", num_classes=2, input_shape=IMAGES).named_parameters()
        if "bn" in name or "downsample.1" in name
    )
    assert size.parameters - frozen == 41_755_286


def test_detections_are_those_of_torchvision() -> None:
    """Of the same weights on an image whose size torchvision leaves as it is."""
    torch.manual_seed(0)
    shape = (3, 128, 192)
    ours = build_model("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=2, input_shape=shape, proposals=100)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), FeatureReader(ours.eval(), [PROPOSAL_OUTPUT, BOX_OUTPUT]) as reader:
        features = reader(image.unsqueeze(0))[1]
        # Untrained scores are all alike, and the order of equal ones means nothing: they are spread.
        ours.rpn.head.cls_logits.weight.div_(features[PROPOSAL_OUTPUT][..., 0].std())  # type: ignore[union-attr,operator]
        ours.roi_heads.box_predictor.cls_score.weight.div_(unpacked(features[BOX_OUTPUT])[1].std())  # type: ignore[union-attr,operator]
    theirs = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=128,
        max_size=192,
        image_mean=[0, 0, 0],
        image_std=[1, 1, 1],
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100,
        rpn_score_thresh=0.0,
        box_score_thresh=0.01,
    )
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        found = ours.eval()(image.unsqueeze(0))
        (expected,) = theirs.eval()([image])
    number = len(expected["scores"])
    assert number > 0
    torch.testing.assert_close(found["scores"][0, :number], expected["scores"], rtol=1e-3, atol=1e-4)
    # In any order, since some scores are equal, and suppression may choose either of two such boxes.
    ours_of, theirs_of = (
        torch.cat((boxes, 1000.0 * labels.unsqueeze(1)), 1)
        for boxes, labels in (
            (found["boxes"][0, :number], found["labels"][0, :number]),
            (expected["boxes"], expected["labels"] - 1),
        )
    )
    assert float((torch.cdist(theirs_of, ours_of).amin(1) < 0.5).float().mean()) > 0.8


def test_images_that_are_too_small_are_named() -> None:
    (problem,) = model_problems("torchvision:fasterrcnn_resnet50_fpn", {}, 3, (3, 48, 64))
    assert "images of 48x64 are smaller than the largest stride" in str(problem)
