"""Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons (Heo et al. 2019, arXiv 1811.03233).

    s = r(student's map before its ReLU), r a 1x1 convolution and a BatchNorm
    l(s, t) = sum |[t > 0] max(0, m - s)^2 + [t <= 0] max(0, m + s)^2|              margin m = 1
    stage "boundaries"  L = weight * sum_i 2^(i - n + 1) l(s_i, t_i) / N            i = 0 .. n-1, the deepest weighs 1
    stage "distill"     L = w T^2 KL(p_T(teacher) || p_T(student)) + (1 - w) CE     as in `kd`

The method needs only the signs of the teacher's pre-activations, as 0 or 1. In stage 1 the student runs only up to its last
map.

Deviations: the authors' code sums over channels and positions and multiplies by 3/1000 on CIFAR; so does the default here.
Its second stage is KL at T = 3 without T^2 and without labels: `kd_weight` 1 is that, times T^2. Where maps differ in size,
the larger one is average-pooled. If a network has no layer before a ReLU, the output of the stage is used instead; for the
teacher this is equivalent, since a ReLU keeps the sign. The authors run the teacher in training mode; here it is in evaluation
mode, like every teacher.

Verified against the authors' code and RepDistiller; Knowledge-Distillation-Zoo takes the mean over all elements instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import ChannelMethod, channels_of_teacher, make_connector, meeting_size, shrink
from stillhouse.distill.method import Card, Helper, Setup, Stage, Step, hyperparameter
from stillhouse.distill.stages import epochs_of_first_stage
from stillhouse.knowledge.kinds import Knowledge, logits, reduced
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform


def activated(maps: Tensor, *, height: int, width: int) -> Tensor:
    """1 where a map [B, K, H, W], averaged down to height x width, is positive, else 0."""
    return (shrink(maps, height, width) > 0).to(maps.dtype)


def boundary_loss(student: Tensor, active: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinge loss at `margin`, on the side of 0 on which the teacher's neuron is: the sum divided by the batch size.

    Args:
        student: pre-activations [B, K, H, W].
        active: 1 where the teacher's pre-activations are positive, else 0; same shape.
        margin: a neuron that is at least this far from 0 on the right side has no loss.
    """
    sides = 2 * active - 1
    return F.relu(margin - sides * student).square().sum() / len(student)


@dataclass(frozen=True, kw_only=True)
class ActivationBoundaries(ChannelMethod):
    """The student's neurons first learn where the teacher's neurons are active, then its soft targets."""

    card: ClassVar[Card] = Card(
        title="Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        arxiv="1811.03233",
        family="F",
        equations="the alternative loss with connectors in the first stage, soft targets in the second",
        deviations="the teacher is in evaluation mode (authors' code: training mode); the larger of two maps is average-pooled "
        "to the size of the smaller; T^2 in the second stage",
        suggested="boundary_weight 0.003, temperature 3, kd_weight 1",
        interactions="the loss is a sum over positions, so larger images need a smaller boundary_weight (0.001 on 224x224)",
    )
    before_relu: ClassVar[bool] = True

    boundary_fraction: float = hyperparameter(
        0.25,
        above=0,
        below=1,
        prior=Uniform(0.1, 0.5),
        help="share of the epochs in stage 1; the paper's share differs by experiment",
    )
    boundary_weight: float = hyperparameter(
        0.003, minimum=0, prior=LogUniform(0.0003, 0.03), help="weight of the loss in stage 1; 0 skips the stage"
    )
    margin: float = hyperparameter(1.0, above=0, help="m, the distance from 0 beyond which a neuron has no loss")
    temperature: float = hyperparameter(3.0, above=0, prior=LogUniform(1, 10), help="T, softens both outputs in stage 2")
    kd_weight: float = hyperparameter(
        1.0,
        minimum=0,
        maximum=1,
        prior=Uniform(0.1, 1.0),
        help="w, weight of the soft targets in stage 2; the labels have weight 1 - w",
    )

    @property
    def active(self) -> bool:
        return self.boundary_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        needed = {"logits": logits()} if self.kd_weight else {}
        if not self.active:
            return needed
        for of_student, of_teacher in self.pairs(teacher, student).items():
            height, width = meeting_size(student.shape(of_student), teacher.shape(of_teacher))
            needed[f"active.{of_student}"] = reduced(activated, of_teacher, height=height, width=width)
        return needed

    def stages(self, setup: Setup) -> Sequence[Stage]:
        if not self.active:
            return (Stage(name="distill", epochs=setup.epochs),)
        boundary_epochs = epochs_of_first_stage(setup.epochs, self.boundary_fraction)
        guided = self.student_layers(setup.teacher, setup.student)
        signs = tuple(f"active.{layer}" for layer in guided)
        outputs = ("logits",) if self.kd_weight else ()
        return [
            Stage(name="boundaries", epochs=boundary_epochs, until=guided[-1], comparable=False, knowledge=signs),
            Stage(name="distill", epochs=setup.epochs - boundary_epochs, knowledge=outputs),
        ]

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.connectors(setup, make_connector)

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.stage.name == "distill":
            terms = {"cross_entropy": (1 - self.kd_weight) * step.supervised()}
            if self.kd_weight:
                terms["kd"] = self.kd_weight * kd_loss(step.logits, step.teacher["logits"], self.temperature)
            return terms
        active = [step.teacher[f"active.{layer}"] for layer in step.student_features]
        maps = [
            shrink(features, *theirs.shape[2:]) for features, theirs in zip(step.student_features.values(), active, strict=True)
        ]
        connectors = step.modules["connectors"]
        losses = [
            boundary_loss(ours, theirs, self.margin) / 2 ** (len(active) - 1 - depth)
            for depth, (ours, theirs) in enumerate(zip(connectors(maps), channels_of_teacher(connectors, active), strict=True))
        ]
        return {"boundaries": self.boundary_weight * torch.stack(losses).sum()}
