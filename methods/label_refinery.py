"""Label Refinery: Improving ImageNet Classification through Label Progression (Bagherinezhad et al. 2018, arXiv 1805.02641).

    L = KL(p_previous(crop) || p_student(crop)), the mean over the batch

Each generation learns the outputs of the previous one (its refinery) for the same crop, without the data set's labels: these
labels are soft and depend on what the crop shows. With `first="teacher"` the sweep's teacher is the refinery of the first
generation, as in the paper's refinery of another architecture. With `first="labels"` the first generation is trained on the
data set's labels, as the paper's networks that refine their own labels.

Variant: with `adversarial_step` eta > 0, a generation also learns its refinery's outputs for images on which the two disagree
more,

    x' = x + eta d KL(p_previous(x) || p_student(x)) / dx,  L = the mean of the loss on x and on x'

with p_previous(x) as a constant. The authors' code has no such step; here the paper's adversarial jittering is taken as one
step of gradient ascent on normalised pixels.

Deviations: all generations share the trial's epochs equally, so that every method has the same budget; in the paper each has a
full training. The generation that learns from the sweep's teacher gets no adversarial images, since its labels are computed
before. The authors' code minimises the cross-entropy, which differs from KL by the entropy of the labels and has the same
gradient. The authors run the refinery in training mode; here it is in evaluation mode, like every teacher.

Verified against the formula of the authors' code in float64 (its licence does not allow running it here), and the adversarial
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
    """KL(softmax(refined) || softmax(student)), the mean over the batch, of logits [B, C]."""
    loss: Tensor = kd_loss(student_logits, refined_logits, temperature=1.0)
    return loss


def adversarial_images(
    images: Tensor, student_logits: Tensor, refined_logits: Tensor, eta: float, scale: float = 1.0
) -> Tensor:
    """The images after one step of gradient ascent on each sample's own loss, [B, channels, H, W], detached.

    Args:
        images: [B, channels, H, W], from which `student_logits` were computed.
        student_logits: [B, C].
        refined_logits: [B, C], taken as constants.
        eta: factor of the gradient.
        scale: of the loss while it is differentiated, so that no gradient in float16 becomes 0.
    """
    loss = len(images) * refinery_loss(student_logits, refined_logits.detach())
    (scaled,) = torch.autograd.grad(loss * scale, images, retain_graph=True)
    return (images + eta * (scaled / scale)).detach()


@dataclass(frozen=True, kw_only=True)
class LabelRefinery(Method):
    """Each generation provides soft labels for the next one, for each crop anew."""

    card: ClassVar[Card] = Card(
        title="Label Refinery: Improving ImageNet Classification through Label Progression",
        arxiv="1805.02641",
        family="G",
        equations="KL to the output of the previous generation for the same crop, over several generations",
        deviations="the refinery is in evaluation mode (authors' code: training mode); generations share the trial's epochs "
        "equally; adversarial images only after the first generation",
        suggested="2 to 4 generations with random crops",
        interactions="uses no labels, so errors of the first refinery stay; without crops it is kd with soft labels at T = 1; "
        "a generation that is too short to converge teaches nearly uniform labels: 79.0% with 2 generations in 12 epochs, "
        "96.3% with 1, 95.9% without a teacher (1000 digits, resnet8 of width 0.25, 2 seeds)",
    )

    generations: int = hyperparameter(
        2, minimum=1, prior=Integers(1, 4), help="number of students, trained one after the other"
    )
    first: Literal["teacher", "labels"] = hyperparameter(
        "teacher",
        choices=("teacher", "labels"),
        help="whether generation 1 learns from the sweep's teacher or from the data set's labels",
    )
    adversarial_step: float = hyperparameter(
        0.0, minimum=0, help="eta, step towards images on which a generation disagrees with the previous one; 0: no such images"
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
            refined = step.run_network(refinery, step.images)
        loss = refinery_loss(step.logits, refined)
        if not self.adversarial_step:
            return {"refined_labels": loss}
        images = adversarial_images(step.images, step.logits, refined, self.adversarial_step, step.gradient_scale)
        with torch.no_grad():
            refined = step.run_network(refinery, images)
        taught = step.run_network(step.student, images)
        return {"refined_labels": loss / 2, "adversarial": refinery_loss(taught, refined) / 2}
