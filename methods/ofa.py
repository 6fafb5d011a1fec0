"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation (Hao, Guo, Han, Tang, Hu, Wang, Xu
2023, arXiv 2310.19444): OFA-KD.

    l(z) = -sum_c ((p_c + y_c)^gamma - y_c) log softmax(z / T)_c,  p = softmax(teacher / T),  y: 1 for the sample's class
    L = CE + alpha l(student) + beta sum_i l(branch_i(F_i))

The outputs of the student's stages F_i go through branches of their own to logits, where nothing of an architecture is
left, and each is taught by the teacher's logits. gamma > 1 adds to the target's share, the more the surer the teacher is;
with gamma 1, l is the cross-entropy with the teacher.

A branch halves the map once for every later stage, by two separable convolutions with BatchNorm and ReLU each time, to the
wider of both networks' embeddings; the last stage has a 1x1 convolution instead. Then come the mean over positions and a
linear layer, as in the authors' code for convolutional students. Branches are helpers, not part of the student.

`raised`: the authors' code raises all probabilities to the power gamma (`all`), which also makes the other classes less;
`target` raises that of the sample's class alone.

Deviations: the target of a mixed sample is the class with the larger share. Students of patches have convolutional branches
too, on their maps of patches; the authors' code gives them transformer blocks.

A step costs 1.7 times one of `kd` (resnet8 taught by resnet20, digits, one thread), mostly for the branches.

The paper itself was not available. Verified against the formulas of the authors' code by hand, and against the
cross-entropy with the teacher at gamma 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, Setup, Step, Unsuitable, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.models.layers import GlobalAveragePool, initialise_convolutions
from stillhouse.spec.priors import LogUniform, Uniform


def enhanced_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, power: float, temperature: float, raised: str = "all"
) -> Tensor:
    """l, the mean over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: [B] int64.
        power: gamma.
        temperature: T > 0.
        raised: "all" for the powers of all probabilities, "target" for that of the label's alone.
    """
    teacher, student = F.softmax(teacher_logits / temperature, dim=1), F.log_softmax(student_logits / temperature, dim=1)
    target = torch.zeros_like(teacher).scatter_(1, labels.unsqueeze(1), 1.0)
    enhanced = (teacher + target) ** power - target
    if raised == "target":
        enhanced = torch.where(target > 0, enhanced, teacher)
    return -(enhanced * student).sum(dim=1).mean()


class Halving(nn.Sequential):
    """Two separable 3x3 convolutions, the first with stride 2: [B, num_inputs, H, W] to [B, num_outputs, H / 2, W / 2]."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        layers: list[nn.Module] = []
        for stride, outputs in ((2, num_inputs), (1, num_outputs)):
            layers += [
                nn.Conv2d(num_inputs, num_inputs, 3, stride=stride, padding=1, groups=num_inputs, bias=False),
                nn.Conv2d(num_inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class Branch(nn.Sequential):
    """Logits [B, num_classes] of a stage's map [B, num_inputs, H, W].

    Args:
        num_inputs: channels of the map.
        halvings: how many stages come after it.
        width: channels before the linear layer.
    """

    def __init__(self, num_inputs: int, halvings: int, width: int, num_classes: int) -> None:
        channels = [num_inputs * 2**number for number in range(halvings)] + [width]
        layers: list[nn.Module] = [Halving(before, after) for before, after in pairwise(channels)]
        classifier = nn.Linear(width, num_classes)
        super().__init__(*(layers or [nn.Conv2d(num_inputs, width, 1)]), GlobalAveragePool(), classifier)
        initialise_convolutions(self)
        nn.init.trunc_normal_(classifier.weight, std=0.02)
        nn.init.zeros_(classifier.bias)


@dataclass(frozen=True, kw_only=True)
class OFA(Method):
    """Every stage of the student learns the teacher's logits through a branch of its own."""

    card: ClassVar[Card] = Card(
        title="One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
        arxiv="2310.19444",
        family="L",
        equations="the loss with adaptive target enhancement, on the logits and on branches of all stages",
        deviations="all students have convolutional branches (authors' code: transformer blocks for transformers)",
        suggested="power 1.5 for ResNet-18 taught by DeiT-T on ImageNet; all weights 1, temperature 1 (authors' code)",
        interactions="the branches of wide maps can cost more than a small student",
    )

    logit_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.1, 10), help="alpha, weight of the teacher's outputs at the student's own logits"
    )
    branch_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.1, 10), help="beta, weight of the teacher's outputs at each branch"
    )
    power: float = hyperparameter(1.5, minimum=1, prior=Uniform(1.0, 2.0), help="gamma, enhances the target; 1: not at all")
    temperature: float = hyperparameter(1.0, above=0, prior=LogUniform(0.5, 4), help="T, softens both outputs")
    raised: Literal["all", "target"] = hyperparameter(
        "all",
        choices=("all", "target"),
        help="which of the teacher's probabilities have the power gamma; all in the authors' code",
    )

    @property
    def active(self) -> bool:
        """Whether the loss reads the teacher's outputs."""
        return bool(self.logit_weight or self.branch_weight)

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.active else {}

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        """The student's stages.

        Raises:
            Unsuitable: it has none.
        """
        if not self.branch_weight:
            return ()
        if not student.stages:
            raise Unsuitable(f"needs feature maps, student {student.name} has none; set branch_weight to 0")
        return student.stages

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        stages = self.student_layers(setup.teacher, setup.student)
        if not stages:
            return {}
        networks = [setup.student, *([setup.teacher] if setup.teacher is not None else [])]
        width = max(_embedding_width(network) for network in networks)
        branches = nn.ModuleList(
            Branch(setup.student.shape(stage)[0], len(stages) - 1 - number, width, setup.student.num_classes)
            for number, stage in enumerate(stages)
        )
        return {"branches": Helper(module=branches)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if self.logit_weight:
            terms["logits"] = self.logit_weight * self._taught(step, step.logits)
        if self.branch_weight:
            branches = step.modules["branches"]
            assert isinstance(branches, nn.ModuleList), "made by modules()"
            losses = [
                self._taught(step, branch(maps)) for branch, maps in zip(branches, step.student_features.values(), strict=True)
            ]
            terms["branches"] = self.branch_weight * torch.stack(losses).sum()
        return terms

    def _taught(self, step: Step, student_logits: Tensor) -> Tensor:
        labels = step.targets if step.targets.ndim == 1 else step.targets.argmax(dim=1)
        return enhanced_loss(
            student_logits,
            step.teacher["logits"],
            labels,
            power=self.power,
            temperature=self.temperature,
            raised=self.raised,
        )


def _embedding_width(network: Architecture) -> int:
    """Channels of the embedding, or else of the last stage; 1 if the network has neither."""
    for layer in (network.pooled, *reversed(network.stages)):
        if layer is not None and layer in network.shapes:
            return network.shape(layer)[0]
    return 1
