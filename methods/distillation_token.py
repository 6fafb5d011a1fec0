"""Training data-efficient image transformers and distillation through attention (Touvron, Cord, Douze, Massa, Sablayrolles,
Jegou 2021, arXiv 2012.12877): DeiT's distillation token.

    hard:  L = (1 - w) CE(y, p_1(class head)) + w CE(argmax teacher, p_1(distillation head))
    soft:  L = (1 - w) CE(y, p_1(class head)) + w T^2 KL(p_T(teacher) || p_T(distillation head))
    answer = the mean of both heads' logits

The student has two heads: the one of the class token learns the labels, the one of the distillation token the teacher. In
the paper w is 1/2 for `hard`, and w = 0.1 with T = 3 for `soft`. The model `vit` with `distilled: true` has such
heads, as have others whose layers are called `head` and `head_dist`.

Any other student keeps its own head for the labels and gets a second one on its embedding; the head is then a part of the
student that is evaluated, measured and stored.

Deviations: the second head of students without a distillation token, which share one embedding between both heads. The answer
is the mean of the logits, not of the probabilities, as in published implementations.

A step costs 1.1 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

The paper itself was not available. Verified by hand against the losses of timm's implementation, against `kd`, and by which
weights each term reaches.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, Setup, Step, Unsuitable, hyperparameter, sum_of_terms
from stillhouse.knowledge.kinds import LOGITS, Knowledge, logits
from stillhouse.methods.kd import hard_label_loss, kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.models.features import FeatureReader
from stillhouse.spec.priors import Choice, LogUniform, Uniform

_CLASS_HEAD, _DISTILLATION_HEAD = "head", "head_dist"
_HELPER = "distillation_head"


class TwoHeads(nn.Module):
    """A student with a second head on one of its layers; the answer is the mean of both heads' logits.

    Args:
        student: shares its parameters and buffers with this module; modules and modes are not shared.
        head: maps the layer's output [B, K] to logits [B, C].
        layer: the student's embedding.
    """

    def __init__(self, student: nn.Module, head: nn.Module, layer: str) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in chain(student.parameters(), student.buffers())}
        self.student = copy.deepcopy(student, shared)
        self.head, self.layer = head, layer

    def forward(self, images: Tensor) -> Tensor:
        with FeatureReader(self.student, [self.layer]) as reader:
            logits, outputs = reader(images)
        assert logits is not None
        answer: Tensor = (logits + self.head(outputs[self.layer])) / 2
        return answer


class SecondHead(nn.Linear):
    """A head on the student's embedding; records the layer."""

    def __init__(self, layer: str, num_inputs: int, num_classes: int) -> None:
        super().__init__(num_inputs, num_classes)
        self.layer = layer


@dataclass(frozen=True, kw_only=True)
class DistillationToken(Method):
    """The class head learns the labels and a second head the teacher; both answer together."""

    card: ClassVar[Card] = Card(
        title="Training data-efficient image transformers & distillation through attention",
        arxiv="2012.12877",
        family="L",
        equations="hard and soft distillation through a token of its own, and the joint answer of both heads",
        deviations="students without a distillation token have the second head on their embedding; the answer is the mean of "
        "logits",
        suggested="form hard with teacher_weight 0.5; form soft with teacher_weight 0.1 and temperature 3",
        interactions="the second head counts as a part of the student; the paper teaches with convolutional networks",
    )

    form: Literal["hard", "soft"] = hyperparameter(
        "hard", choices=("hard", "soft"), prior=Choice(("hard", "soft")), help="the teacher's argmax, or its softened outputs"
    )
    teacher_weight: float = hyperparameter(
        0.5, minimum=0, maximum=1, prior=Uniform(0.1, 0.9), help="w, weight of the second head; the labels have 1 - w"
    )
    temperature: float = hyperparameter(3.0, above=0, prior=LogUniform(1, 10), help="T, only for form soft")

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.teacher_weight else {}

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        """Both heads, or the embedding of a student with one.

        Raises:
            Unsuitable: the student has neither.
        """
        if not self.teacher_weight:
            return ()
        if _has_both_heads(student):
            return _CLASS_HEAD, _DISTILLATION_HEAD
        if student.pooled is None or student.pooled not in student.shapes:
            raise Unsuitable(f"needs an embedding before the classifier, student {student.name} has none")
        return (student.pooled,)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.teacher_weight or _has_both_heads(setup.student):
            return {}
        (layer,) = self.student_layers(setup.teacher, setup.student)
        return {_HELPER: Helper(module=SecondHead(layer, setup.student.shape(layer)[0], setup.student.num_classes))}

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        head = modules.get(_HELPER)
        if head is None:
            return {"student": student}
        assert isinstance(head, SecondHead), "made by modules()"
        return {"student": TwoHeads(student, head, head.layer)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        if not self.teacher_weight:
            return super().loss(step)
        class_logits, taught = self._heads(step)
        labelled = sum_of_terms(step.task.losses({LOGITS: class_logits}, step.targets))
        if self.form == "hard":
            distilled = hard_label_loss(taught, step.teacher["logits"])
        else:
            distilled = kd_loss(taught, step.teacher["logits"], self.temperature)
        return {
            "cross_entropy": (1 - self.teacher_weight) * labelled,
            "distillation_head": self.teacher_weight * distilled,
        }

    def _heads(self, step: Step) -> tuple[Tensor, Tensor]:
        """The logits [B, C] of the class head and of the distillation head."""
        if _HELPER in step.modules:
            (embedding,) = step.student_features.values()
            return step.logits, step.modules[_HELPER](embedding)
        return step.student_features[_CLASS_HEAD], step.student_features[_DISTILLATION_HEAD]


def _has_both_heads(student: Architecture) -> bool:
    return all(student.shapes.get(layer) == (student.num_classes,) for layer in (_CLASS_HEAD, _DISTILLATION_HEAD))
