"""Label Refinery: Improving ImageNet Classification through Label Progression (Bagherinezhad et al. 2018, arXiv 1805.02641).

    L = KL(p_previous(crop) || p_student(crop)), the mean over the batch

Each generation learns, without the labels, from what the generation before it answers to the same crop: labels that are
soft, and that change with what the crop shows. `first="teacher"` lets the sweep's teacher refine the labels of the first
generation (the paper's refinery of another architecture); `first="labels"` trains the first generation on the data set's
labels, as the paper's networks that refine their own.

Variant: with `adversarial_step` eta > 0 a generation that has a refinery also learns what that answers to images which set
the two apart,

    x' = x + eta d KL(p_previous(x) || p_student(x)) / dx,  L = the mean of the loss on x and on x'

with p_previous(x) as a constant. The authors' code has no such step; this is the reading of the paper's adversarial jittering
by one step of gradient ascent, on normalised pixels.

Deviations: all generations share the trial's epochs evenly, so that every method has the same budget; the paper gives each
a full training. The generation that learns from the sweep's teacher meets no adversarial images: its labels are made
beforehand. The authors' code minimises the cross-entropy, which differs from KL by the entropy of the labels and has the same
gradient.

Verified against the formula of the authors' code in float64; their licence does not allow to run it here. The adversarial
step against its closed form for linear networks.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillhouse.distill.method import (
    Card,
    Helper,
    Method,
    Setup,
    Stage,
    StageStart,
    Step,
    hyperparameter,
)
from stillhouse.distill.stages import generations
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import Integers


def refinery_loss(student_logits: Tensor, refined_logits: Tensor) -> Tensor:
    """KL(softmax(refined) || softmax(student)), the mean over the batch; both are [B, C]."""
    loss: Tensor = kd_loss(student_logits, refined_logits, temperature=1.0)
    return loss


def adversarial_images(images: Tensor, student_logits: Tensor, refined_logits: Tensor, eta: float) -> Tensor:
    """One step uphill of each sample's own loss, without gradient: [B, channels, H, W].

    Args:
        images: [B, channels, H, W], of which `student_logits` are a function.
        student_logits: [B, C].
        refined_logits: [B, C], taken as constants.
        eta: length of the step over that of the gradient.
    """
    loss = len(images) * refinery_loss(student_logits, refined_logits.detach())
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    return (images + eta * gradient).detach()


@dataclass(frozen=True, kw_only=True)
class LabelRefinery(Method):
    """Generations that each refine the labels of the next, crop by crop."""

    card: ClassVar[Card] = Card(
        title="Label Refinery: Improving ImageNet Classification through Label Progression",
        arxiv="1805.02641",
        family="G",
        equations="the KL to the previous generation's output on the same crop, over several generations",
        deviations="generations share the trial's epochs; adversarial images in generations behind the first only",
        suggested="2 to 4 generations with random crops",
        interactions="sees no labels: errors of the first refinery stay; without crops it is plain soft labels at T = 1; a "
        "generation too short to converge teaches nearly uniform labels: 79.0% with 2 generations in 12 epochs, 96.3% with "
        "1, 95.9% for plain training (1000 digits, resnet8 of width 0.25, 2 seeds)",
    )

    generations: int = hyperparameter(2, minimum=1, prior=Integers(1, 4), help="students trained one after the other")
    first: Literal["teacher", "labels"] = hyperparameter(
        "teacher", choices=("teacher", "labels"), help="what generation 1 learns from: the sweep's teacher or the labels"
    )
    adversarial_step: float = hyperparameter(
        0.0, minimum=0, help="eta, of the images that set a generation apart from the one before; 0 leaves them out"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adversarial_step and self.generations == 1:
            warnings.warn("adversarial_step has no effect with generations=1", stacklevel=3)

    @property
    def differentiates_images(self) -> bool:
        return self.adversarial_step > 0 and self.generations > 1

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.first == "teacher" else {}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return generations(setup.epochs, self.generations)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return {"refinery": Helper(module=setup.new_student(), trainable=False)} if self.generations > 1 else {}

    def begin_stage(self, start: StageStart) -> None:
        if start.index:
            start.modules["refinery"].load_state_dict(start.student.state_dict())
            start.student.load_state_dict(start.new_student().state_dict())

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.stage.name != "generation_1":
            return self._refined(step)
        if self.first == "teacher":
            return {"refined_labels": refinery_loss(step.logits, step.teacher["logits"])}
        return super().loss(step)

    def _refined(self, step: Step) -> dict[str, Tensor]:
        refinery = step.modules["refinery"]
        with torch.no_grad():
            refined = refinery(step.images)
        loss = refinery_loss(step.logits, refined)
        if not self.adversarial_step:
            return {"refined_labels": loss}
        images = adversarial_images(step.images, step.logits, refined, self.adversarial_step)
        with torch.no_grad():
            refined = refinery(images)
        return {"refined_labels": loss / 2, "adversarial": refinery_loss(step.student(images), refined) / 2}
