"""Mimicking Very Efficient Network for Object Detection (Li, Jin, Yan 2017): the features of proposals.

    L = L_supervised + w / (2 N) sum_i 1 / m |u_i - r(v_i)|^2

u_i are the teacher's features inside proposal i and v_i the student's, both pooled to 7 x 7, m is their number of elements, N
the number of proposals and r a 1x1 convolution. Proposals are those of the student, as in the paper, and the true boxes.

Deviations: features are those of the neck's maps, each box on the map for its size; r is applied to the maps before pooling,
which gives the same numbers apart from its bias at the image's border. The teacher's maps are stored, so that it runs once
although the proposals change.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from stillhouse.distill.maps import MapMethod
from stillhouse.distill.method import Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature
from stillhouse.methods.detection_hints import detector_of
from stillhouse.models.architecture import Architecture
from stillhouse.models.detector_losses import with_true_boxes
from stillhouse.spec.priors import LogUniform


def mimic_losses(student: Tensor, teacher: Tensor, meant: Tensor) -> Tensor:
    """Half of the mean square over elements of features [B, N, K, H, W], the mean over boxes `meant` [B, N]: [B]."""
    squares = (student - teacher).square().flatten(2).mean(2) / 2
    return (squares * meant).sum(1) / meant.sum(1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class FeatureMimic(MapMethod):
    """The student's features inside its proposals equal the teacher's there."""

    card: ClassVar[Card] = Card(
        title="Mimicking Very Efficient Network for Object Detection",
        family="F",
        equations="the mimic loss beside the supervised one; not a second stage that trains the box head again",
        deviations="maps of a feature pyramid; true boxes are mimicked too; the 1x1 convolution comes before the pooling",
        suggested="mimic_weight 1",
        interactions="teacher and student must have the same stride and as many stages",
    )
    tasks: ClassVar[tuple[str, ...]] = ("detection",)

    mimic_weight: float = hyperparameter(1.0, minimum=0, prior=LogUniform(0.1, 10), help="w, weight of the features")

    @property
    def active(self) -> bool:
        return self.mimic_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        pairs = self.pairs_of_equal_size(teacher, student) if self.active else {}
        return {f"map.{ours}": feature(theirs) for ours, theirs in pairs.items()}

    def modules(self, setup: Setup) -> dict[str, Helper]:
        return self.connectors(setup, lambda ours, theirs: nn.Conv2d(ours, theirs, 1))

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        layers = list(step.student_features)
        adapted = step.modules["connectors"]([step.student_features[layer] for layer in layers])
        boxes, meant = with_true_boxes(step.output("proposals"), step.output("meant"), step.targets)
        pool = detector_of(step).roi_heads.pooled
        ours, theirs = pool(adapted, boxes), pool([step.teacher[f"map.{layer}"] for layer in layers], boxes)
        return terms | {"mimic": self.mimic_weight * mimic_losses(ours, theirs, meant).mean()}
