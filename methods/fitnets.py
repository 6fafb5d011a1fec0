"""FitNets: Hints for Thin Deep Nets (Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, arXiv 1412.6550).

    stage "hint"     L = 1/2 |hint - r(guided)|^2                           (equation 3), up to the guided layer only
    stage "distill"  L = CE(y, p_1(s)) + lambda CE(p_T(z), p_T(s))          (equation 2), lambda falls linearly

One stage (`num_stages=1`), as the CRD benchmark has it (Tian, Krishnan, Isola 2020, arXiv 1910.10699), whose CIFAR-100 numbers
belong to it, with `hint_weight=100`:

    L = CE(y, s) + hint_weight mean (hint - r(guided))^2,   the mean over all elements

r is then followed by BatchNorm and ReLU between maps, and trained with the student by the trial's recipe; there are no soft
targets. A guided map of twice the hint's size is mapped by the kernel of section 2.2, where the benchmark has a stride of 2.

r is a convolution without padding, whose kernel size makes the guided map as large as the hint (section 2.2). It is a
transposed convolution if the guided map is smaller, and a fully connected layer between vectors.

Reduction: the authors' code sums the squares over channels and averages over batch and positions. This is the default, since
their results were computed with it. Equation 3 taken literally also sums over positions: `positions="sum"`.
Deviations: r is always linear, since the hint's non-linearity is not known when the sweep is planned. r is trained by Adam,
since SGD at a student's usual learning rate diverges on large hints (NaN in the first epoch at 0.05 between vectors). Stage 2
trains all layers at one learning rate; the authors' script can lower it for the layers of stage 1. By default the hint is the
teacher's middle stage, and the guided layer is the student's stage that is nearest to it in size.

Verified against the formulas of the authors' code (hint cost, softened cost) in float64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import KnownChannels, known_channels
from stillhouse.distill.method import (
    Card,
    Helper,
    Method,
    MethodError,
    Setup,
    Stage,
    Step,
    Unsuitable,
    hyperparameter,
)
from stillhouse.distill.stages import epochs_of_first_stage
from stillhouse.knowledge.kinds import Knowledge, feature, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform


def hint_loss(regressed: Tensor, hint: Tensor, positions: str = "mean") -> Tensor:
    """1/2 |hint - regressed|^2 summed over channels; mean or sum over positions, mean over the batch.

    Args:
        regressed: r(guided), [B, K] or [B, K, H, W].
        hint: of the same shape.
        positions: "mean" or "sum"; vectors have one position.
    """
    squares = 0.5 * (hint - regressed).square().sum(dim=1)
    return squares.mean() if positions == "mean" else squares.sum() / len(hint)


def softened_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """-sum_c softmax(teacher / T)_c log softmax(student / T)_c, the mean over the batch; both are [B, C].

    Without the factor T^2, as in the paper and in the authors' code.
    """
    return F.cross_entropy(student_logits / temperature, F.softmax(teacher_logits / temperature, dim=1))


def make_regressor(guided: tuple[int, ...], hint: tuple[int, ...]) -> nn.Module:
    """The layer that maps the guided output, (K,) or (K, H, W), to the shape of the hint.

    Raises:
        Unsuitable: one is a map and the other a vector, or the guided map is larger in one direction and smaller in the other.
    """
    if len(guided) == len(hint) == 1:
        return nn.Linear(guided[0], hint[0])
    if len(guided) != 3 or len(hint) != 3:
        raise Unsuitable(f"needs two maps or two vectors, got guided layer {guided} and hint {hint}; name other layers")
    differences = [of_guided - of_hint for of_guided, of_hint in zip(guided[1:], hint[1:], strict=True)]
    kernel = (1 + abs(differences[0]), 1 + abs(differences[1]))
    if min(differences) >= 0:
        return nn.Conv2d(guided[0], hint[0], kernel)
    if max(differences) <= 0:
        return nn.ConvTranspose2d(guided[0], hint[0], kernel)
    raise Unsuitable(f"guided layer {guided} is larger than hint {hint} in one direction only; name other layers")


@dataclass(frozen=True, kw_only=True)
class FitNets(Method):
    """The student's first layers learn to predict a hidden layer of the teacher; then the student learns its soft targets."""

    card: ClassVar[Card] = Card(
        title="FitNets: Hints for Thin Deep Nets",
        arxiv="1412.6550",
        family="F",
        equations="equations 2 and 3; the two stages of algorithm 1",
        deviations="linear regressor, trained by Adam; squares averaged over positions, as in the authors' code; one learning "
        "rate for all layers in stage 2",
        suggested="temperature 3, kd_weight 4, final_kd_weight 1 (authors, on CIFAR-10); final_kd_weight 0 on MNIST; "
        "hint_weight 100 with num_stages 1 (CRD benchmark, CIFAR-100)",
        interactions="hints close to the output over-regularise a small student (section 2.2 of the paper); in a short "
        "training, stage 1 lowers the accuracy: 94.9% with 0.3 of 12 epochs, 96.5% with 0.1, 96.8% without stage 1, 95.7% "
        "without a teacher (1000 digits, resnet8 of width 0.25, 4 seeds)",
    )

    hint_fraction: float = hyperparameter(0.3, above=0, below=1, prior=Uniform(0.1, 0.5), help="share of the epochs in stage 1")
    hint_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.03, 3), help="weight of the hint loss; 0 skips stage 1"
    )
    temperature: float = hyperparameter(3.0, above=0, prior=LogUniform(1, 10), help="T, softens both outputs in stage 2")
    kd_weight: float = hyperparameter(
        4.0, minimum=0, prior=Uniform(1, 8), help="lambda at the start of stage 2, weight of the soft targets"
    )
    final_kd_weight: float = hyperparameter(1.0, minimum=0, help="lambda at the end of stage 2")
    hint_layer: str | None = hyperparameter(None, help="the teacher's layer that gives the hint; by default its middle stage")
    guided_layer: str | None = hyperparameter(
        None, help="the student's layer that learns the hint; by default the stage nearest to it in size"
    )
    positions: Literal["mean", "sum"] = hyperparameter(
        "mean", choices=("mean", "sum"), help="whether the hint loss averages or sums over positions"
    )
    num_stages: int = hyperparameter(
        2, choices=(1, 2), added_later=True, help="2: the paper; 1: labels and hint together, as the CRD benchmark"
    )
    regressor: Literal["where_needed", "always"] = hyperparameter(
        "where_needed",
        choices=("where_needed", "always"),
        added_later=True,
        help="r; where_needed: not in a student that began as its teacher (`from`), whose channels are the teacher's",
    )

    def serves(self, task: str) -> bool:
        """Any task if stage 2 has no soft targets, which need logits."""
        return super().serves(task) or not self._is_soft

    def layers(self, teacher: Architecture, student: Architecture) -> tuple[str, str]:
        """The names of the hint layer and of the guided layer.

        Raises:
            Unsuitable: no layer of the student can be compared with the hint.
            MethodError: the teacher has no layer that can give a hint.
        """
        has_maps = bool(student.stages) if self.guided_layer is None else len(student.shape(self.guided_layer)) == 3
        hint = self.hint_layer or _middle(teacher, of_maps=has_maps)
        began_as_teacher = student.kept_channels is not None and hint in student.shapes
        guided = self.guided_layer or (hint if began_as_teacher else _nearest(student, teacher.shape(hint)))
        make_regressor(student.shape(guided), teacher.shape(hint))
        return hint, guided

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        needed = {"logits": logits()} if self._is_soft else {}
        return needed | ({"hint": feature(self.layers(teacher, student)[0])} if self.hint_weight else {})

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        if not self.hint_weight:
            return ()
        assert teacher is not None, "hints come from a teacher"
        return [self.layers(teacher, student)[1]]

    @property
    def _is_soft(self) -> bool:
        """Whether the second stage has soft targets."""
        return self.num_stages == 2 and (self.kd_weight > 0 or self.final_kd_weight > 0)

    def stages(self, setup: Setup) -> Sequence[Stage]:
        if not self.hint_weight or self.num_stages == 1:
            return (Stage(name="distill", epochs=setup.epochs),)
        assert setup.teacher is not None, "hints come from a teacher"
        hint_epochs = epochs_of_first_stage(setup.epochs, self.hint_fraction)
        return [
            Stage(
                name="hint",
                epochs=hint_epochs,
                until=self.layers(setup.teacher, setup.student)[1],
                comparable=False,
                knowledge=("hint",),
            ),
            Stage(name="distill", epochs=setup.epochs - hint_epochs, knowledge=("logits",) if self._is_soft else ()),
        ]

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.hint_weight:
            return {}
        assert setup.teacher is not None, "hints come from a teacher"
        hint, guided = self.layers(setup.teacher, setup.student)
        channels = known_channels(setup.student, setup.teacher, guided, hint)
        if channels is not None and self.regressor == "where_needed":
            return {"regressor": Helper(module=KnownChannels(channels), trainable=False)}
        regressor = make_regressor(setup.student.shape(guided), setup.teacher.shape(hint))
        if self.num_stages == 1:
            return {"regressor": Helper(module=_normalised(regressor, setup.teacher.shape(hint)))}
        return {"regressor": Helper(module=regressor, training={"optimizer": "adam", "learning_rate": 0.001})}

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.stage.name == "hint":
            return {"hint": self.hint_weight * hint_loss(*_regressed(step), self.positions)}
        if self.num_stages == 1 and self.hint_weight:
            hint = F.mse_loss(*_regressed(step))
            return {"cross_entropy": step.supervised(), "hint": self.hint_weight * hint}
        if not self._is_soft:
            return super().loss(step)
        weight = self.kd_weight + (self.final_kd_weight - self.kd_weight) * step.stage_progress
        soft = softened_cross_entropy(step.logits, step.teacher["logits"], self.temperature)
        return {"cross_entropy": step.supervised(), "soft_cross_entropy": weight * soft}


def _regressed(step: Step) -> tuple[Tensor, Tensor]:
    """r(guided), and the hint with as many channels."""
    (guided,) = step.student_features.values()
    regressor, hint = step.modules["regressor"], step.teacher["hint"]
    return regressor(guided), regressor.of_teacher(hint) if isinstance(regressor, KnownChannels) else hint


def _normalised(regressor: nn.Module, hint: tuple[int, ...]) -> nn.Module:
    """The regressor of the CRD benchmark: with BatchNorm and ReLU between maps, as it is between vectors."""
    return nn.Sequential(regressor, nn.BatchNorm2d(hint[0]), nn.ReLU()) if len(hint) == 3 else regressor


def _middle(teacher: Architecture, *, of_maps: bool) -> str:
    """The teacher's middle stage, or its embedding if the student has no maps."""
    if of_maps and teacher.stages:
        return teacher.stages[(len(teacher.stages) - 1) // 2]
    if not of_maps and teacher.pooled:
        return teacher.pooled
    raise MethodError(f"needs a {'feature map' if of_maps else 'vector'} of teacher {teacher.name}; set hint_layer")


def _nearest(student: Architecture, hint: tuple[int, ...]) -> str:
    """The stage nearest to the hint in height times width, the larger one of two; for a vector, the embedding."""
    if len(hint) == 1 and student.pooled:
        return student.pooled
    stages = [layer for layer in student.stages if len(student.shape(layer)) == len(hint)]
    if not stages:
        raise Unsuitable(f"needs a layer of student {student.name} like the hint {hint}; set guided_layer")
    pixels = {layer: math.prod(student.shape(layer)[1:]) for layer in stages}
    return min(stages, key=lambda layer: (abs(math.log(pixels[layer] / math.prod(hint[1:]))), -pixels[layer]))
