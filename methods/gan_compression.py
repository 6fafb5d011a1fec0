"""Compressing GANs using Knowledge Distillation (Aguinaldo, Chiang, Gain, Patil, Pearson, Feizi 2019, arXiv 1902.00159).

    L = w_i mean (G_s(z) - G_t(z))^2 + w_a softplus(-D(G_s(z)))

G_s is the student, G_t the teacher, z the same noise for both, and D a critic that is trained beside the student on real
images and on the student's, as without a teacher. With w_a = 0 the student only imitates the teacher's images, and no critic is
trained; with both weights it is the paper's joint loss, whose critic makes the images sharper. With w_i = 0 it is training
without a teacher's images, as `scratch` does it.

The teacher's image of each noise is knowledge: it is computed once for all trials. A sweep has `views.count` views of noise;
with few of them a student sees the same noise often.

Deviations: the weights of the joint loss are hyper-parameters with a default of our own; the critic is that of the task, the
same for every student, with the non-saturating loss instead of Wasserstein's.

Verified against values worked out by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, MethodError, Step, hyperparameter
from stillhouse.knowledge import Knowledge, output
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

IMAGE = "image"


def image_loss(student_images: Tensor, teacher_images: Tensor) -> Tensor:
    """The mean squared difference of images [B, channels, H, W] over batch, channels and pixels."""
    return F.mse_loss(student_images, teacher_images)


@dataclass(frozen=True, kw_only=True)
class GanCompression(Method):
    """A small generator matches the images of a big one, with a critic or without."""

    card: ClassVar[Card] = Card(
        title="Compressing GANs using Knowledge Distillation",
        arxiv="1902.00159",
        family="M",
        equations="the pixel loss and the joint loss of pixels and critic",
        deviations="weights of the joint loss as hyper-parameters; a critic with the non-saturating loss, not Wasserstein's",
        suggested="adversarial_weight 0 for the pixel loss, 0.01 to 0.1 for the joint loss; a view of noise for each epoch",
        interactions="with few views of noise the student learns single images; Adam with adam_beta1 0.5, as for the teacher",
    )
    tasks: ClassVar[tuple[str, ...]] = ("generation", "conditional_generation")

    image_weight: float = hyperparameter(1.0, minimum=0, help="w_i, of the squared difference from the teacher's images")
    adversarial_weight: float = hyperparameter(
        0.03, minimum=0, prior=LogUniform(0.003, 0.3), help="w_a, of the critic's loss; 0 trains no critic"
    )

    @property
    def uses_supervised_loss(self) -> bool:
        return self.adversarial_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        if not self.image_weight and not self.adversarial_weight:
            raise MethodError("needs image_weight or adversarial_weight above 0")
        return {IMAGE: output(IMAGE)} if self.image_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = {}
        if self.image_weight:
            terms["image"] = self.image_weight * image_loss(step.output(IMAGE), step.teacher[IMAGE])
        if self.adversarial_weight:
            terms["adversarial"] = self.adversarial_weight * step.supervised()
        return terms
