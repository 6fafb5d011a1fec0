"""Paraphrasing Complex Network: Network Compression via Factor Transfer (Kim, Park, Kwak 2018, arXiv 1802.04977).

    stage "paraphraser"  L = |x - P(x)|^2, x the teacher's map, P an autoencoder                   (equation 1)
    stage "transfer"     L = CE + beta |F_T / |F_T|_2 - F_S / |F_S|_2|_p                           (equations 2 and 3)

F_T is the code of the frozen paraphraser, F_S the output of a translator on the student's map. Both have `code_ratio` times the
teacher's channels. Encoder and translator are three 3x3 convolutions with leaky ReLU of slope 0.1, as in the authors' code; the
paraphraser's decoder is three transposed convolutions. p = 1 by default.

Reduction: for p = 1 the mean over batch and elements, for p = 2 the norm per sample, averaged over the batch. beta = 500
belongs to p = 1, as in the authors' code. Equation 1 is a mean of squares here; `reconstruction="absolute"` is the authors'
code.
Deviations: the paraphraser is trained on the views that the student will see, for a share of the trial's epochs, so that every
method has the same budget. It is trained by Adam, whose steps do not depend on the scale of the activations. The last maps of
both networks are compared; the larger one is average-pooled to the size of the smaller, the teacher's map at the teacher.

Verified against the numbers of the authors' code (both stages, gradients of all weights) and of torchdistill (both norms).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import MapMethod, meeting_size, shrink
from stillhouse.distill.method import ANY_TASK, Card, Helper, MethodError, Setup, Stage, Step, hyperparameter
from stillhouse.distill.stages import epochs_of_first_stage
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform

_SLOPE = 0.1
"""Negative slope of every leaky ReLU in the authors' code."""


def factor_loss(student_factor: Tensor, teacher_factor: Tensor, norm: int = 1) -> Tensor:
    """The distance between factors [B, M, H, W], each divided by its L2 norm over all elements of a sample.

    Args:
        norm: 1 for the mean of absolute differences over batch and elements; 2 for the mean over the batch of the L2 norms,
            between 0 and 2.
    """
    difference = F.normalize(student_factor.flatten(1)) - F.normalize(teacher_factor.flatten(1))
    if norm == 1:
        return difference.abs().mean()
    norms: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return norms.mean()


def reconstruction_loss(reconstructed: Tensor, maps: Tensor, kind: str = "squared") -> Tensor:
    """The mean of the squared or absolute differences between two maps [B, K, H, W]."""
    return F.mse_loss(reconstructed, maps) if kind == "squared" else F.l1_loss(reconstructed, maps)


def make_translator(num_inputs: int, num_codes: int) -> nn.Sequential:
    """Three 3x3 convolutions, each with a leaky ReLU: K, K, then M channels."""
    return _stack(nn.Conv2d, (num_inputs, num_inputs, num_codes, num_codes))


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map; its code is the teacher's factor."""

    def __init__(self, num_inputs: int, num_codes: int) -> None:
        super().__init__()
        self.encoder = make_translator(num_inputs, num_codes)
        self.decoder = _stack(nn.ConvTranspose2d, (num_codes, num_codes, num_inputs, num_inputs))

    def forward(self, maps: Tensor) -> Tensor:
        reconstructed: Tensor = self.decoder(self.encoder(maps))
        return reconstructed


def _stack(convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d], channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [convolution(before, after, 3, padding=1), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


@dataclass(frozen=True, kw_only=True)
class FactorTransfer(MapMethod):
    """The student's translated map matches the code that an autoencoder computes from the teacher's map."""

    card: ClassVar[Card] = Card(
        title="Paraphrasing Complex Network: Network Compression via Factor Transfer",
        arxiv="1802.04977",
        family="F",
        equations="equations 1 to 3; the paraphraser is trained first and then frozen",
        deviations="the paraphraser is trained during a share of the trial's epochs, by Adam",
        suggested="factor_weight 500 (authors) or 200 (RepDistiller), code_ratio 0.5, norm 1",
        interactions="worse than no teacher if the architectures differ much (VGG-13 to MobileNetV2 on CIFAR-100); with "
        "norm 1 the distance is larger for smaller maps: 93.7% with 500 on maps of 2 x 2, 95.1% with 100, 95.9% without a "
        "teacher (12 epochs of 1000 digits, resnet8 of width 0.25, 2 seeds)",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    last_pair_only: ClassVar[bool] = True

    factor_weight: float = hyperparameter(
        500.0, minimum=0, prior=LogUniform(20, 1000), help="beta, weight of the distance between the factors"
    )
    code_ratio: float = hyperparameter(
        0.5, above=0, maximum=4, help="k, channels of the factor divided by the teacher's channels"
    )
    norm: Literal[1, 2] = hyperparameter(1, choices=(1, 2), help="p; the loss has another scale with 2, the mean of norms")
    paraphraser_fraction: float = hyperparameter(
        0.1, above=0, below=1, prior=Uniform(0.05, 0.3), help="share of the epochs in which the paraphraser is trained"
    )
    reconstruction: Literal["squared", "absolute"] = hyperparameter(
        "squared", choices=("squared", "absolute"), help="error that the paraphraser minimises"
    )

    @property
    def active(self) -> bool:
        return self.factor_weight > 0

    def pairs(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """The single pair: the last maps, unless others are named."""
        for named in (self.teacher_maps, self.student_maps):
            if named and "," in named:
                raise MethodError(f"transfers a single factor: name one layer of each network, got '{named}'", names=[named])
        return super().pairs(teacher, student)

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        ((guided, hint),) = self.pairs(teacher, student).items()
        height, width = meeting_size(student.shape(guided), teacher.shape(hint))
        return {"map": reduced(shrink, hint, height=height, width=width)}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        if not self.active:
            return super().stages(setup)
        epochs = epochs_of_first_stage(setup.epochs, self.paraphraser_fraction)
        # The student takes no part while the paraphraser is trained, so its forward pass ends as early as possible.
        first = next(iter(setup.student.shapes))
        return [
            Stage(name="paraphraser", epochs=epochs, until=first, comparable=False),
            Stage(name="transfer", epochs=setup.epochs - epochs),
        ]

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.active:
            return {}
        assert setup.teacher is not None, "factors come from a teacher"
        ((guided, hint),) = self.pairs(setup.teacher, setup.student).items()
        channels = setup.teacher.shape(hint)[0]
        num_codes = max(1, int(self.code_ratio * channels))
        adam = {"optimizer": "adam", "learning_rate": 0.001}
        return {
            "paraphraser": Helper(module=Paraphraser(channels, num_codes), training=adam),
            "translator": Helper(module=make_translator(setup.student.shape(guided)[0], num_codes)),
        }

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.stage.name == "paraphraser":
            maps = step.teacher["map"]
            return {"reconstruction": reconstruction_loss(step.modules["paraphraser"](maps), maps, self.reconstruction)}
        terms = super().loss(step)
        if not self.active:
            return terms
        (features,) = step.student_features.values()
        maps = step.teacher["map"]
        with torch.no_grad():
            teacher_factor = step.modules["paraphraser"].get_submodule("encoder")(maps)
        student_factor = step.modules["translator"](shrink(features, maps.shape[2], maps.shape[3]))
        return terms | {"factor": self.factor_weight * factor_loss(student_factor, teacher_factor, self.norm)}
