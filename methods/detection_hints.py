"""Learning Efficient Object Detection Models with Knowledge Distillation (Chen et al., NIPS 2017): hints, soft classes, bounds.

For the proposal stage and for the box head alike, with y the class of a box, P softmaxes, R deltas and r the deltas to the true
box:

    L_class = (1 - s) CE(P_student, y) + s sum_c -w_c P_teacher,c log P_student,c                          (section 3.2)
    L_box   = L1smooth(R_student, r) + b L_bound                                                           (section 3.3)
    L_bound = |R_student - r|^2  if  |R_student - r|^2 + m > |R_teacher - r|^2,  else 0                    (section 3.3)
    L_hint  = h |a(F_student) - F_teacher|^2, the mean over all elements, a a 1x1 convolution              (section 3.4)

w_0 of the background is `background_weight`, all other w are 1. s is `box_soft_weight` or `proposal_soft_weight`, b
`box_bound_weight` or `proposal_bound_weight`, h `hint_weight`, m `margin`. With all weights 0 it is supervised training.

Deviations: the hint is taken from every map of the neck, the mean over maps. The teacher judges its own proposals, which are
the same for all students, so that it runs once; the student's box head also runs on them, beside its own proposals and the true
boxes, which keep the supervised loss. In the paper both judge the student's proposals: detection_hints_own does. As everywhere
here, boxes are not drawn but weighted by the probability of being drawn (`models/detector_losses.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import MapMethod, meeting_size, shrink
from stillhouse.distill.method import Card, Helper, MethodError, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature
from stillhouse.models.architecture import Architecture
from stillhouse.models.boxes import is_large
from stillhouse.models.detector import BOX_OUTPUT, PROPOSAL_OUTPUT, FasterRCNN, anchor_moves, box_moves, maps_of, unpacked
from stillhouse.models.detector_losses import Assignment, assign_anchors, assign_proposals, of_class
from stillhouse.spec.priors import LogUniform, Uniform

Judgement = tuple[Tensor, Tensor, Tensor]
"""Boxes [B, N, 4], and the teacher's class logits [B, N, C + 1] and deltas [B, N, C + 1, 4] for them."""


def soft_score_losses(student: Tensor, teacher: Tensor, weights: Tensor, background: float) -> Tensor:
    """The cross-entropy of the scores [B, A] of two classes with the teacher's, weighted [B, A]: [B].

    Args:
        background: weight of the part of the background.
    """
    objects = teacher.sigmoid()
    losses = -objects * F.logsigmoid(student) - background * (1 - objects) * F.logsigmoid(-student)
    return (losses * weights).sum(1)


def soft_class_losses(student: Tensor, teacher: Tensor, meant: Tensor, background: float) -> Tensor:
    """The cross-entropy of logits [B, N, C + 1], background first, with the teacher's, the mean over boxes `meant` [B, N]: [B].

    Args:
        background: weight of the part of the background.
    """
    parts = -teacher.softmax(2) * student.log_softmax(2)
    losses = background * parts[..., 0] + parts[..., 1:].sum(2)
    return (losses * meant).sum(1) / meant.sum(1).clamp(min=1)


def bounded_losses(student: Tensor, teacher: Tensor, wanted: Tensor, weights: Tensor, margin: float) -> Tensor:
    """The squared error of deltas [B, N, 4] where it is not smaller by `margin` than the teacher's, weighted [B, N]: [B]."""
    own, other = ((deltas - wanted).square().sum(-1) for deltas in (student, teacher))
    return (torch.where(own.detach() + margin > other, own, 0.0) * weights).sum(1)


@dataclass(frozen=True, kw_only=True)
class DetectionHints(MapMethod):
    """The student's maps, classes and boxes follow the teacher's; its boxes only until they are as good."""

    card: ClassVar[Card] = Card(
        title="Learning Efficient Object Detection Models with Knowledge Distillation",
        family="F",
        equations="the losses of sections 3.2 to 3.4, for the proposal stage and the box head",
        deviations="hints from every map of the neck; the teacher judges its own proposals instead of the student's "
        "(detection_hints_own judges the student's); boxes are weighted instead of drawn",
        suggested="soft weights 0.5, bound weights 0.5, hint_weight 0.5, background_weight 1.5",
        interactions="teacher and student must have the same anchors, or proposal_soft_weight and proposal_bound_weight be 0",
    )
    tasks: ClassVar[tuple[str, ...]] = ("detection",)

    hint_weight: float = hyperparameter(0.5, minimum=0, prior=LogUniform(0.05, 5), help="h, weight of the hints")
    proposal_soft_weight: float = hyperparameter(
        0.5, minimum=0, maximum=1, prior=Uniform(0.1, 0.9), help="s of the proposal stage; its labels have the weight 1 - s"
    )
    box_soft_weight: float = hyperparameter(
        0.5, minimum=0, maximum=1, prior=Uniform(0.1, 0.9), help="s of the box head; its labels have the weight 1 - s"
    )
    proposal_bound_weight: float = hyperparameter(0.5, minimum=0, help="b of the proposal stage")
    box_bound_weight: float = hyperparameter(0.5, minimum=0, help="b of the box head")
    background_weight: float = hyperparameter(1.5, minimum=0, help="w_0, weight of the background among the soft classes")
    margin: float = hyperparameter(0.0, minimum=0, help="m, by how much the student must be better to be left alone")

    @property
    def active(self) -> bool:
        return self.hint_weight > 0

    @property
    def _reads_anchors(self) -> bool:
        return self.proposal_soft_weight > 0 or self.proposal_bound_weight > 0

    @property
    def _reads_boxes(self) -> bool:
        return self.box_soft_weight > 0 or self.box_bound_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        pairs = self.pairs(teacher, student) if self.active else {}
        needed = {f"hint.{ours}": feature(theirs) for ours, theirs in pairs.items()}
        if self._reads_anchors:
            ours, theirs = (shape_of(network, PROPOSAL_OUTPUT) for network in (student, teacher))
            if ours != theirs:
                raise MethodError(
                    f"{student.name} has {ours[0]} anchors and {teacher.name} {theirs[0]}; give both the same stride and "
                    "as many stages, or set proposal_soft_weight and proposal_bound_weight to 0"
                )
            needed["anchors"] = feature(PROPOSAL_OUTPUT)
        if self._reads_boxes:
            needed |= self.box_knowledge(teacher)
        return needed

    def box_knowledge(self, teacher: Architecture) -> dict[str, Knowledge]:
        """What the terms of the box head read."""
        shape_of(teacher, BOX_OUTPUT)
        return {"boxes": feature(BOX_OUTPUT)}

    def modules(self, setup: Setup) -> dict[str, Helper]:
        return self.connectors(setup, lambda ours, theirs: nn.Conv2d(ours, theirs, 1))

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        terms["proposal_score"] = (1 - self.proposal_soft_weight) * terms["proposal_score"]
        terms["box_class"] = (1 - self.box_soft_weight) * terms["box_class"]
        if self._reads_anchors:
            terms |= self._anchor_terms(step)
        if self._reads_boxes:
            terms |= self._box_terms(step)
        if self.active:
            terms["hint"] = self.hint_weight * self._hint(step)
        return terms

    def _anchor_terms(self, step: Step) -> dict[str, Tensor]:
        student, teacher, places = step.output("anchors"), step.teacher["anchors"], detector_of(step).anchors
        assigned = assign_anchors(places, step.targets)
        terms = {}
        if self.proposal_soft_weight:
            soft = soft_score_losses(student[..., 0], teacher[..., 0], assigned.weights, self.background_weight)
            terms["proposal_soft"] = self.proposal_soft_weight * soft.mean()
        if self.proposal_bound_weight:
            wanted = anchor_moves(assigned.boxes, places)
            bound = self._bounded(student[..., 1:], teacher[..., 1:], wanted, assigned)
            terms["proposal_bound"] = self.proposal_bound_weight * bound.mean()
        return terms

    def _box_terms(self, step: Step) -> dict[str, Tensor]:
        boxes, teacher_logits, teacher_deltas = self.judgement(step)
        logits, deltas = detector_of(step).look_at(maps_of(step.outputs), boxes)
        meant = is_large(boxes)
        terms = {}
        if self.box_soft_weight:
            soft = soft_class_losses(logits, teacher_logits, meant, self.background_weight)
            terms["box_soft"] = self.box_soft_weight * soft.mean()
        if self.box_bound_weight:
            assigned = assign_proposals(boxes, meant, step.targets)
            ours, theirs = (of_class(each, assigned.classes) for each in (deltas, teacher_deltas))
            bound = self._bounded(ours, theirs, box_moves(assigned.boxes, boxes), assigned)
            terms["box_bound"] = self.box_bound_weight * bound.mean()
        return terms

    def judgement(self, step: Step) -> Judgement:
        """The teacher's outputs for its own proposals."""
        return unpacked(step.teacher["boxes"])

    def _bounded(self, student: Tensor, teacher: Tensor, wanted: Tensor, assigned: Assignment) -> Tensor:
        on_object = assigned.classes > 0
        wanted = torch.where(on_object.unsqueeze(-1), wanted, 0.0)
        return bounded_losses(student, teacher, wanted, assigned.weights * on_object, self.margin)

    def _hint(self, step: Step) -> Tensor:
        layers: Sequence[str] = list(step.student_features)
        adapted = step.modules["connectors"]([step.student_features[layer] for layer in layers])
        losses = []
        for layer, ours in zip(layers, adapted, strict=True):
            theirs = step.teacher[f"hint.{layer}"]
            size = meeting_size(ours.shape[1:], theirs.shape[1:])
            losses.append((shrink(ours, *size) - shrink(theirs, *size)).square().mean())
        return torch.stack(losses).mean()


def detector_of(step: Step) -> FasterRCNN:
    """The student, which is a detector."""
    assert isinstance(step.student, FasterRCNN), "students of the task detection are detectors"
    return step.student


def shape_of(network: Architecture, layer: str) -> tuple[int, ...]:
    """The shape of one of a detector's own layers.

    Raises:
        MethodError: the network has no such layer.
    """
    if layer not in network.shapes:
        raise MethodError(f"{network.name} is no Faster R-CNN of this platform: it has no layer {layer}; use fasterrcnn")
    return network.shapes[layer]
