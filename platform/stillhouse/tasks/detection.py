"""Object detection: boxes with classes for each image, judged by COCO's mean average precision.

Models are Faster R-CNNs of fixed shape (`models/detector.py`). The supervised loss is theirs: cross-entropy of each anchor's
score and each proposal's class, and a smooth L1 loss of the boxes of those on an object.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillhouse.data.boxes import BOXES, NO_BOX
from stillhouse.data.images import ImageData, Images
from stillhouse.data.targets import TargetRule
from stillhouse.data.views import Views
from stillhouse.models import detector_losses as parts
from stillhouse.models.architecture import Architecture
from stillhouse.models.detector import BOX_OUTPUT, DETECTIONS, PROPOSAL_OUTPUT, FasterRCNN, maps_of, packed
from stillhouse.models.layers import Shape
from stillhouse.spec.measure import Measure
from stillhouse.spec.metric import Metric
from stillhouse.tasks import _detection_metric as coco
from stillhouse.tasks import _detection_pictures as drawn
from stillhouse.tasks.task import Evidence, Reduction, SplitOutputs, Task

MAP = Metric(name="map", direction="max", label="mAP", digits=3)

VISIBLE_SHARE = 0.3
"""A box of which a view leaves less of its area is no target there."""
_DRAWS = 100

MEASURES = (
    Measure(
        name="map_50",
        label="mAP at overlap 0.5",
        direction="max",
        digits=3,
        description="mean average precision on the test split at the overlap 0.5",
    ),
    Measure(
        name="map_low",
        label="mAP, lower end over images",
        digits=3,
        description="2.5 % quantile of the mean average precision over drawing the test images again with replacement",
    ),
    Measure(
        name="map_high",
        label="mAP, upper end over images",
        digits=3,
        description="97.5 % quantile of the mean average precision over drawing the test images again with replacement",
    ),
    Measure(
        name="worst_class_ap",
        label="Worst class, AP",
        direction="max",
        digits=3,
        description="average precision on the test split of the class with the lowest one",
    ),
)


class Detection(Task):
    """Where the objects of an image are, and of which class.

    Targets are float32 [B, M, 5]. Outputs are `detections` [B, 100, 6]: (x1, y1, x2, y2, score, class), the best
    first, with the score 0 and the class -1 in rows without a box; in training mode what the loss needs.
    """

    metric: ClassVar[Metric] = MAP
    targets: ClassVar[TargetRule] = BOXES
    output: ClassVar[str] = "detections"
    several: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = MEASURES

    def training_targets(
        self, data: ImageData, views: Views, images: Images, indices: Tensor, view: int, labels: Tensor
    ) -> Tensor:
        """Boxes move with their pixels and are cut at the border; one that is hardly visible any more is left out."""
        boxes, share = views.move_boxes(labels[..., :4], indices.to(labels.device), view)
        real = (labels[..., 4] != NO_BOX) & (share >= VISIBLE_SHARE)
        classes = torch.where(real, labels[..., 4], float(NO_BOX)).unsqueeze(2)
        return torch.cat((boxes * real.unsqueeze(2), classes), 2)

    def outputs(self, raw: Any) -> dict[str, Tensor]:
        """In evaluation mode `detections` [B, 100, 6]; in training mode those of the model, by its own names."""
        return {self.output: packed(raw)} if "scores" in raw else dict(raw)

    def model_problem(self, model: Architecture) -> str | None:
        if (problem := super().model_problem(model)) is not None:
            return problem
        if {PROPOSAL_OUTPUT, BOX_OUTPUT} <= model.shapes.keys():
            return None
        return f"detects nothing; use fasterrcnn with backbone: {model.name}"

    def output_shapes(self, num_outputs: int, input_shape: Shape) -> dict[str, tuple[int, ...]]:
        return {self.output: (DETECTIONS, 6)}

    def losses(self, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean") -> dict[str, Tensor]:
        raise NotImplementedError("the loss of a detector needs its box head; supervised_terms has it")

    def supervised_terms(
        self, student: nn.Module, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean"
    ) -> dict[str, Tensor]:
        """`proposal_score` and `proposal_box` of the anchors, `box_class` and `box_position` of proposals and true boxes."""
        assert isinstance(student, FasterRCNN), "models of the task detection are detectors"
        anchors = parts.assign_anchors(student.anchors, targets)
        score, box = parts.proposal_losses(outputs["anchors"], student.anchors, anchors)
        boxes, meant = parts.with_true_boxes(outputs["proposals"], outputs["meant"], targets)
        logits, deltas = student.look_at(maps_of(outputs), boxes)
        classes, positions = parts.box_losses(logits, deltas, boxes, parts.assign_proposals(boxes, meant, targets))
        terms = {"proposal_score": score, "proposal_box": box, "box_class": classes, "box_position": positions}
        return {name: term.mean() if reduction == "mean" else term.sum() for name, term in terms.items()}

    def evaluator(self) -> coco.MeanAveragePrecision:
        coco.require_package()
        return coco.MeanAveragePrecision()

    def pictures(self, data: ImageData, test: SplitOutputs, teacher: SplitOutputs | None) -> list[tuple[str, str, str]]:
        """The first test images with the true boxes, and with those that the teacher and the student are sure of."""
        images = data.test.images[: drawn.SHOWN]
        found = [("truth", "the true boxes", drawn.real(test.targets[: drawn.SHOWN]))]
        for what, outputs in (("teacher", teacher), ("student", test)):
            if outputs is not None:
                own = drawn.surely(outputs.outputs[self.output][: drawn.SHOWN])
                found.append((what, f"the boxes that the {what} finds", own))
        return [(what, drawn.picture(images, own), drawn.words(maker, own, data.class_names)) for what, maker, own in found]

    def trivial_value(self, targets: Tensor) -> float:
        """Of a model that returns the same boxes for every image, practically 0."""
        return 0.0

    def evidence(self, validation: SplitOutputs, test: SplitOutputs, teacher: SplitOutputs | None) -> Evidence:
        """Precision at the overlap 0.5 and of single classes, and how much the choice of test images matters."""
        found = test.outputs[self.output]
        precision = coco.average_precision(found, test.targets)
        known = [value for value in precision.by_class if not math.isnan(value)]
        low, high = coco.interval(found, test.targets, draws=_DRAWS)
        counts = torch.bincount(test.targets[..., 4].flatten().long() + 1, minlength=len(precision.by_class) + 1)[1:]
        return Evidence(
            numbers={
                "map_50": precision.at_50,
                "map_low": low,
                "map_high": high,
                **({"worst_class_ap": min(known)} if known else {}),
            },
            details={
                "class_boxes": counts.tolist(),
                # A class without a test box has no precision: null in the record.
                "class_precision": [None if math.isnan(value) else value for value in precision.by_class],
            },
        )
