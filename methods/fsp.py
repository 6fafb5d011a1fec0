"""A Gift from Knowledge Distillation (Yim, Joo, Bae, Kim, CVPR 2017): the flow of solution procedure. No arXiv number.

    G_{ij} = sum_{hw} F1_{i,hw} F2_{j,hw} / (h w)                                      (equation 1)
    stage "flow"      L = weight * 1/N sum_n sum_pairs |G_teacher - G_student|_F^2     (equation 2, lambda_i = 1)
    stage "classify"  L = CE

F1 and F2 are maps of successive stages; the larger one is max-pooled to the size of the smaller. G is computed at the teacher:
K1 x K2 numbers per sample, whatever the size of the maps. In the first stage the student runs only up to its last map.

Deviations: the paper pairs the first and the last map of each residual stage, which other architectures do not have; here two
successive stages are a pair. The paper needs equal numbers of channels; where they differ, a 1x1 convolution maps the student's
channels to the teacher's. `form="mean"`: average pooling, and the mean over the entries of G instead of their sum, as in
RepDistiller.

Training: the first stage has a hundredth of the trial's learning rate, as in the paper (0.001 and 0.1), and the paper's
weight 1. The norm of its gradients is bounded by 5, without which a student of another family diverges. Validation accuracy
in % of students of 1,257 digits, 12 epochs at a rate of 0.05, teacher ResNet-14, mean of 3 seeds (`scratch`: 98.0, 95.6,
96.5):

    flow_weight, rate, bound    resnet8     lenet       resnet8 of width 0.5
    1, 1/100, 5                 97.4        92.8        95.3
    0.01, 1, 5                  97.5        88.6        95.0
    0.01, 1, none               96.0        diverges    diverges
    1, 1/100, none              95.7        diverges    at chance

With `form="mean"` the stage has the whole rate, which the weight of RepDistiller belongs to.

Verified against the paper's formula and, for the mean, RepDistiller and Knowledge-Distillation-Zoo; a TensorFlow
implementation differs only by a factor of 1/2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import MapMethod, meeting_size, shrink, widen
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Stage, Step, hyperparameter
from stillhouse.distill.stages import epochs_of_first_stage
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform

_RATE_FACTOR = 0.01
"""Learning rate of stage 1 over that of stage 2: 0.001 and 0.1 in the paper's CIFAR-10 experiments."""
_GRADIENT_CLIP = 5.0


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """G = F1 F2^T / (h w), [B, K1, K2], of maps [B, K1, H1, W1] and [B, K2, H2, W2]; the larger is max-pooled."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    first, second = (maps if maps.shape[2:] == size else F.adaptive_max_pool2d(maps, size) for maps in (first, second))
    flow: Tensor = first.flatten(2) @ second.flatten(2).transpose(1, 2)
    return flow / (size[0] * size[1])


def averaged_flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """As `flow_matrix`; the larger map is average-pooled."""
    height, width = meeting_size(first.shape[1:], second.shape[1:])
    return flow_matrix(shrink(first, height, width), shrink(second, height, width))


def flow_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|G_teacher - G_student|_F^2, the mean over the batch, of matrices [B, K1, K2]."""
    return (teacher - student).square().sum() / len(student)


def mean_flow_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(G_teacher - G_student)^2, the mean over all entries, of matrices [B, K1, K2]."""
    return (teacher - student).square().mean()


@dataclass(frozen=True, kw_only=True)
class FSP(MapMethod):
    """The student first learns how the teacher's features change from stage to stage, then its own task."""

    card: ClassVar[Card] = Card(
        title="A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
        family="F",
        equations="equations 1 and 2; the two stages of algorithm 1",
        deviations="pairs of successive stages; 1x1 convolutions where channels differ; gradients of stage 1 bounded by 5",
        suggested="flow_weight 1; 50 with form mean (RepDistiller, which has a single stage with the labels)",
        interactions="made for networks of one family: where channels differ, the added convolutions learn part of the flow, "
        "and the student ends below one without a teacher (digits: LeNet 92.8% and 95.6%)",
    )
    revision: ClassVar[int] = 2
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    relates_pairs: ClassVar[bool] = True

    flow_fraction: float = hyperparameter(
        0.25, above=0, below=1, prior=Uniform(0.1, 0.5), help="share of the epochs in stage 1"
    )
    flow_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.01, 10), help="lambda, weight of the loss in stage 1; 0 skips the stage"
    )
    form: Literal["paper", "mean"] = hyperparameter(
        "paper",
        choices=("paper", "mean"),
        help="paper: max pooling and the squared Frobenius norm; mean: average pooling and the mean over the entries",
    )

    @property
    def active(self) -> bool:
        return self.flow_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        layers = pairwise(self.pairs(teacher, student).values())
        reduction = flow_matrix if self.form == "paper" else averaged_flow_matrix
        return {f"flow.{number}": reduced(reduction, *ends) for number, ends in enumerate(layers)}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        if not self.active:
            return (Stage(name="classify", epochs=setup.epochs),)
        flow_epochs = epochs_of_first_stage(setup.epochs, self.flow_fraction)
        last = self.student_layers(setup.teacher, setup.student)[-1]
        return [
            Stage(
                name="flow",
                epochs=flow_epochs,
                until=last,
                comparable=False,
                rate_factor=_RATE_FACTOR if self.form == "paper" else 1.0,
                gradient_clip=_GRADIENT_CLIP,
            ),
            Stage(name="classify", epochs=setup.epochs - flow_epochs, knowledge=()),
        ]

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.connectors(setup, widen)

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.stage.name == "classify":
            return super().loss(step)
        maps = step.modules["connectors"](list(step.student_features.values()))
        flow, distance = (flow_matrix, flow_loss) if self.form == "paper" else (averaged_flow_matrix, mean_flow_loss)
        losses = [distance(flow(*ends), step.teacher[f"flow.{number}"]) for number, ends in enumerate(pairwise(maps))]
        return {"flow": self.flow_weight * torch.stack(losses).sum()}
