"""Knowledge Distillation with the Reused Teacher Classifier (Chen, Mei, Zhang, Wang, Feng, Chen 2022, arXiv 2203.14001).

    L = |f_teacher - P(f_student)|^2, the mean over all elements                                   (equation 4)
    logits = teacher's classifier(mean over positions of P(f_student))

The student's last map goes through a projector P and then through the teacher's classifier, which is copied and frozen. Neither
the labels nor the student's own classifier are used. P is a 1x1, a 3x3 and a 1x1 convolution, each with BatchNorm and ReLU; its
inner channels are the teacher's divided by `bottleneck`. The student up to its last map, the projector and the classifier are
evaluated, measured and stored together, as the paper counts them.

Deviations: if no map of the teacher has the channels of its embedding, or if the student has no map, the embedding is matched
as a map of one pixel. The larger of two maps is average-pooled to the size of the smaller, the teacher's map at the teacher.

Verified against the numbers of the authors' code: loss, logits and gradients of all weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import meeting_size, shrink
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
from stillhouse.knowledge.kinds import Knowledge, logits, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.models.trunk import Trunk
from stillhouse.spec.priors import LogUniform

_TOLERANCE = 0.02
"""Relative to the largest logit; the knowledge may have been stored as float16."""


def feature_loss(projected: Tensor, target: Tensor) -> Tensor:
    """(p - t)^2, the mean over all elements, of maps [B, K, H, W]."""
    return F.mse_loss(projected, target)


def as_map(outputs: Tensor, *, height: int, width: int) -> Tensor:
    """[B, K] or [B, K, H, W] as a map [B, K, height, width], average-pooled; a vector is a map of one pixel."""
    return shrink(outputs if outputs.ndim == 4 else outputs[:, :, None, None], height, width)


def mean_over_positions(outputs: Tensor) -> Tensor:
    """[B, K] of [B, K, H, W] or of [B, K]."""
    return outputs.flatten(2).mean(dim=2) if outputs.ndim == 4 else outputs


class Projector(nn.Module):
    """P: maps the student's channels to the teacher's, at a fixed size.

    Args:
        num_hidden: channels between the convolutions.
        size: height and width of the output.
    """

    def __init__(self, num_inputs: int, num_hidden: int, num_outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.height, self.width = size
        layers: list[nn.Module] = []
        for (before, after), kernel in zip(pairwise((num_inputs, num_hidden, num_hidden, num_outputs)), (1, 3, 1), strict=True):
            convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.layers(as_map(features, height=self.height, width=self.width))
        return projected


class ReusedClassifier(nn.Module):
    """The network that is evaluated: the student up to a layer, the projector, the teacher's classifier."""

    def __init__(self, trunk: nn.Module, projector: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.trunk, self.projector, self.classifier = trunk, projector, classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(mean_over_positions(self.projector(self.trunk(images))))
        return logits


class Copied(nn.Linear):
    """A copy of the teacher's classifier; records the student's layer from which the projector starts.

    Args:
        weights: the teacher's weights by name; None leaves random ones, when only shapes matter.

    Raises:
        MethodError: no layer of the teacher turns its embedding into logits.
    """

    def __init__(
        self, teacher: Architecture, student: Architecture, student_layer: str, weights: Mapping[str, Tensor] | None
    ) -> None:
        assert teacher.pooled is not None
        super().__init__(teacher.shape(teacher.pooled)[0], teacher.num_classes)
        self.student_layer, self.input_shape = student_layer, student.input_shape
        if weights is None:
            return
        names = [name for name, value in weights.items() if value.squeeze().shape == self.weight.shape]
        if not names:
            raise MethodError(
                f"reuses the teacher's classifier, but {teacher.name} has no weights of shape {tuple(self.weight.shape)}"
            )
        bias = weights.get(names[-1].removesuffix("weight") + "bias", torch.zeros(teacher.num_classes))
        with torch.no_grad():
            self.weight.copy_(weights[names[-1]].squeeze())
            self.bias.copy_(bias)


@dataclass(frozen=True, kw_only=True)
class SimKD(Method):
    """The student learns features for the teacher's classifier, which it then uses."""

    card: ClassVar[Card] = Card(
        title="Knowledge Distillation with the Reused Teacher Classifier",
        arxiv="2203.14001",
        family="F",
        equations="equation 4; predictions go through the projector and the teacher's classifier",
        deviations="embeddings are matched if the maps do not fit",
        suggested="feature_weight 1, bottleneck 2",
        interactions="projector and classifier count as parts of the student; they can be larger than a small student itself",
    )

    feature_weight: float = hyperparameter(1.0, above=0, prior=LogUniform(0.3, 30), help="weight of the loss")
    bottleneck: int = hyperparameter(2, minimum=1, help="the teacher's channels divided by the inner channels of the projector")
    teacher_layer: str | None = hyperparameter(
        None, help="input of the classifier before averaging; by default the map whose mean is the embedding"
    )
    student_layer: str | None = hyperparameter(None, help="input of the projector; by default the student's last map")

    def layers(self, teacher: Architecture, student: Architecture) -> tuple[str, str]:
        """The names of the teacher's and of the student's layer.

        Raises:
            Unsuitable: the student has neither map nor embedding.
            MethodError: the teacher has no embedding, or the named layer does not have its number of channels.
        """
        if teacher.pooled is None:
            raise MethodError(f"needs an embedding before the classifier, teacher {teacher.name} has none")
        channels = teacher.shape(teacher.pooled)[0]
        of_teacher = self.teacher_layer or _averaged_map(teacher, channels) or teacher.pooled
        if teacher.shape(of_teacher)[0] != channels:
            raise MethodError(
                f"teacher_layer '{of_teacher}' must have {channels} channels, the input size of the classifier, "
                f"got {teacher.shape(of_teacher)[0]}",
                names=[of_teacher],
            )
        of_student = self.student_layer or _last_map(student) or student.pooled
        if of_student is None:
            raise Unsuitable(f"needs a map or an embedding of student {student.name}; set student_layer")
        return of_teacher, of_student

    def size(self, teacher: Architecture, student: Architecture) -> tuple[int, int]:
        """Height and width at which the maps are compared."""
        of_teacher, of_student = self.layers(teacher, student)
        return meeting_size(_shape_as_map(student, of_student), _shape_as_map(teacher, of_teacher))

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        layer, _ = self.layers(teacher, student)
        height, width = self.size(teacher, student)
        return {
            "features": reduced(as_map, layer, height=height, width=width),
            "embedding": reduced(mean_over_positions, layer),
            "logits": logits(),
        }

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        assert teacher is not None, "the classifier comes from a teacher"
        return [self.layers(teacher, student)[1]]

    def stages(self, setup: Setup) -> Sequence[Stage]:
        assert setup.teacher is not None, "the classifier comes from a teacher"
        return (Stage(epochs=setup.epochs, until=self.layers(setup.teacher, setup.student)[1]),)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        teacher, student = setup.teacher, setup.student
        assert teacher is not None, "the classifier comes from a teacher"
        of_teacher, of_student = self.layers(teacher, student)
        channels = teacher.shape(of_teacher)[0]
        inner = max(1, channels // self.bottleneck)
        projector = Projector(student.shape(of_student)[0], inner, channels, self.size(teacher, student))
        weights = None if setup.teacher_weights is None else setup.teacher_weights()
        return {
            "projector": Helper(module=projector),
            "classifier": Helper(module=Copied(teacher, student, of_student, weights), trainable=False),
        }

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        copied = modules["classifier"]
        assert isinstance(copied, Copied)
        trunk = Trunk(student, copied.student_layer, copied.input_shape)
        return {"student": ReusedClassifier(trunk, modules["projector"], copied)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.progress == 0:
            _check_copy(step)
        (features,) = step.student_features.values()
        projected = step.modules["projector"](features)
        return {"features": self.feature_weight * feature_loss(projected, step.teacher["features"])}


def _check_copy(step: Step) -> None:
    """Raises a MethodError if the copied classifier does not reproduce the teacher's logits."""
    with torch.no_grad():
        error = (step.modules["classifier"](step.teacher["embedding"]) - step.teacher["logits"]).abs().max()
    if not error <= _TOLERANCE * step.teacher["logits"].abs().max():
        raise MethodError(
            "reuses the teacher's classifier, but this classifier does not turn the mean of the teacher's layer into the "
            "teacher's logits; set teacher_layer to the layer whose mean over positions is the classifier's input"
        )


def _averaged_map(architecture: Architecture, channels: int) -> str | None:
    """The map with `channels` channels whose mean is the embedding; None where other layers, such as tokens, are between."""
    before = _before_embedding(architecture)
    shape = architecture.shape(before[-1]) if before else ()
    return before[-1] if len(shape) == 3 and shape[0] == channels else None


def _last_map(architecture: Architecture) -> str | None:
    """The last map before the embedding."""
    maps = [layer for layer in _before_embedding(architecture) if len(architecture.shape(layer)) == 3]
    return maps[-1] if maps else None


def _before_embedding(architecture: Architecture) -> list[str]:
    layers = list(architecture.shapes)
    return layers[: layers.index(architecture.pooled)] if architecture.pooled else layers


def _shape_as_map(architecture: Architecture, layer: str) -> tuple[int, ...]:
    shape = architecture.shape(layer)
    return shape if len(shape) == 3 else (shape[0], 1, 1)
