"""From Knowledge Distillation to Self-Knowledge Distillation (Yang, Zeng, Li, Zhang, Yuan, Li 2023, arXiv 2303.13005): USKD.

A student learns from soft labels that it makes itself; there is no teacher.

    target = -p_y log s_y,  p_y = 1 + s_y^2 - mean over the batch of s_y^2, without gradient;  y the sample's class
    others = -sum_{c != y} z_c log s^_c,  s^: softmax over the classes other than y;  z_c in proportion to 1 / rank of c
    weak   = CE(0.9 y + 0.1 / C, w),  w: outputs of a linear classifier on an earlier layer, the mean over its positions
    L = CE + alpha target + beta others + mu weak

Classes are ranked by s_c / (1 - s_y) + w_c / (1 - w_y), the most probable first, and their soft labels follow Zipf's law. The
weak classifier is a helper, not part of the student; with `weak_weight` 0 there is none, and s alone ranks the classes.

`ranks`: in the authors' code the sample's own class takes part in the ranking, mostly as the first, so that the soft labels of
the others are in proportion to 1/2, 1/3, 1/4, ... (`all`); `others` ranks the others alone: 1, 1/2, 1/3, ...

Deviations: the target of a mixed sample is the class with the larger share; the authors' code sums over both classes. The
probabilities among the other classes are computed from logits, so they are finite where s_y rounds to 1.

A step costs 1.0 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

The paper itself was not available. Verified against the authors' code, evaluated by hand on small outputs, and against the
closed form of its gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, Setup, Step, Unsuitable, hyperparameter
from stillhouse.methods.decoupled import without_target
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_SMOOTHING = 0.1
"""Of the weak classifier's labels, as in the authors' code."""


def smoothed_target_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-p_y log s_y with p_y = 1 + s_y^2 - mean(s_y^2), the mean over the batch, of logits [B, C] and labels [B] int64.

    For a batch of one, p_y is 1 and the loss the cross-entropy.
    """
    target = F.log_softmax(logits, dim=1).gather(1, labels.unsqueeze(1))
    squares = target.detach().exp().square()
    return -((1 + squares - squares.mean()) * target).mean()


def zipf_labels(scores: Tensor, labels: Tensor, ranks: str = "all") -> Tensor:
    """Soft labels of the classes other than the sample's own: in proportion to 1 / rank, with sum 1, [B, C - 1].

    Args:
        scores: [B, C]; the largest has rank 1, and of equal ones the class with the smaller number comes first.
        labels: [B] int64.
        ranks: "all" counts the sample's own class among the ranks, "others" leaves it out.
    """
    ranked = scores if ranks == "all" else without_target(scores, labels)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    shares = 1 / torch.arange(1, ranked.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    placed = torch.zeros_like(ranked).scatter_(1, order, shares.expand_as(ranked))
    others = without_target(placed, labels) if ranks == "all" else placed
    return others / others.sum(dim=1, keepdim=True)


def other_class_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """s_c / (1 - s_y) for all classes c of logits [B, C]; infinite for y if s_y rounds to 1."""
    scores: Tensor = (logits - without_target(logits, labels).logsumexp(dim=1, keepdim=True)).exp()
    return scores


@dataclass(frozen=True, kw_only=True)
class SelfKD(Method):
    """The student learns from soft labels made of its own outputs and of those of a classifier on an earlier layer."""

    card: ClassVar[Card] = Card(
        title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        arxiv="2303.13005",
        family="L",
        equations="USKD: the smoothed target, Zipf's law for the other classes, and the weak classifier; without a teacher",
        deviations="a mixed sample has the class of the larger share as its target (authors' code: both classes)",
        suggested="0.1 for all three weights on CIFAR-100; target_weight 1, others_weight 0.1, weak_weight 0.005 on ImageNet "
        "(authors' code)",
        interactions="a student whose stages are not known needs student_layer",
    )

    target_weight: float = hyperparameter(
        0.1, minimum=0, prior=LogUniform(0.03, 3), help="alpha, weight of the term of the sample's class"
    )
    others_weight: float = hyperparameter(
        0.1, minimum=0, prior=LogUniform(0.01, 1), help="beta, weight of the term of the other classes"
    )
    weak_weight: float = hyperparameter(
        0.1, minimum=0, prior=LogUniform(0.003, 1), help="mu, weight of the weak classifier's own labels"
    )
    ranks: Literal["all", "others"] = hyperparameter(
        "all",
        choices=("all", "others"),
        help="whether the sample's class takes a rank (authors' code: all) or only the others are ranked",
    )
    student_layer: str | None = hyperparameter(
        None, help="what the weak classifier reads; by default the student's last stage but one"
    )

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return [self.layer(student)] if self.weak_weight else []

    def layer(self, student: Architecture) -> str:
        """The layer that the weak classifier reads.

        Raises:
            Unsuitable: no layer is named and the student does not have two stages.
        """
        if self.student_layer is not None:
            return self.student_layer
        if len(student.stages) < 2:
            raise Unsuitable(f"needs two feature maps of student {student.name}; set student_layer or weak_weight to 0")
        return student.stages[-2]

    @property
    def needs_whole_batch(self) -> bool:
        return self.target_weight > 0

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.weak_weight:
            return {}
        channels = setup.student.shape(self.layer(setup.student))[0]
        return {"weak_classifier": Helper(module=nn.Linear(channels, setup.student.num_classes))}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        labels = step.targets if step.targets.ndim == 1 else step.targets.argmax(dim=1)
        if self.target_weight:
            terms["soft_target"] = self.target_weight * smoothed_target_loss(step.logits, labels)
        weak = None
        if self.weak_weight:
            (features,) = step.student_features.values()
            weak = step.modules["weak_classifier"](features.flatten(2).mean(dim=2) if features.ndim > 2 else features)
            terms["weak"] = self.weak_weight * F.cross_entropy(weak, step.targets, label_smoothing=_SMOOTHING)
        if self.others_weight:
            soft = self._soft_labels(step.logits.detach(), None if weak is None else weak.detach(), labels)
            terms["other_classes"] = self.others_weight * F.cross_entropy(without_target(step.logits, labels), soft)
        return terms

    def _soft_labels(self, logits: Tensor, weak: Tensor | None, labels: Tensor) -> Tensor:
        scores = other_class_scores(logits, labels)
        if weak is not None:
            scores = scores + other_class_scores(weak, labels)
        return zipf_labels(scores, labels, self.ranks)
