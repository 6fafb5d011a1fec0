"""`detection_hints` as in its paper: the teacher's box head judges the student's proposals.

They change with every step, so that nothing of it can be stored: the teacher runs in every step, served or inline. The
equations and the hyper-parameters are those of detection_hints; the difference between the two methods is what the teacher's
own proposals cost or gain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stillhouse.distill.method import Card, Step
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.methods.detection_hints import DetectionHints, Judgement, shape_of
from stillhouse.models.architecture import Architecture
from stillhouse.models.detector import BOX_OUTPUT, unpacked


def judge(teacher: Callable[..., Any], images: Tensor, proposals: Tensor) -> tuple[Tensor]:
    """The output of the teacher's box head for proposals [B, N, 4]: a `BOX_OUTPUT`."""
    return (teacher(images, proposals)["judged"],)


@dataclass(frozen=True, kw_only=True)
class DetectionHintsOwn(DetectionHints):  # type: ignore[misc]  # methods are found at run time
    """The student's maps, classes and boxes follow the teacher's, which judges the student's proposals."""

    card: ClassVar[Card] = Card(
        title="Learning Efficient Object Detection Models with Knowledge Distillation",
        family="F",
        equations="the losses of sections 3.2 to 3.4, for the proposal stage and the box head",
        deviations="hints from every map of the neck; boxes are weighted instead of drawn",
        suggested="as detection_hints",
        interactions="the teacher runs in every step; as detection_hints, teacher and student must have the same anchors",
    )
    calls_teacher: ClassVar[bool] = True

    def box_knowledge(self, teacher: Architecture) -> dict[str, Knowledge]:
        shape_of(teacher, BOX_OUTPUT)
        return {}

    def judgement(self, step: Step) -> Judgement:
        """The teacher's outputs for the student's proposals."""
        proposals = step.output("proposals").detach()
        (packed,) = step.run_at_teacher(judge, step.images, proposals)
        return unpacked(packed)
