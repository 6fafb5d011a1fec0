"""Born-Again Neural Networks (Furlanello, Lipton, Tschannen, Itti, Anandkumar 2018, arXiv 1805.04770).

    p = softmax(teacher), q = softmax(student), y the label; B samples
    kd              L = 1/B sum_n -sum_c p_nc log q_nc
    kd_with_labels  L = CE(y, q) + the above
    cwtm            L = sum_n w_n CE(y_n, q_n),  w_n = max_c p_nc / sum_m max_c p_mc     (confidence-weighted)
    dkpp            L = 1/B sum_n -sum_c p'_nc log q_nc,  p' = p with all but its argmax permuted, sample by sample
    ensemble        p(x) = 1/K sum_k q_k(x) over the K generations                                    (BAN + E)

Generation 1 learns from the sweep's teacher; each later one starts from new weights and learns from the generation before it.
The last generation is the trial's student. The accuracy of the ensemble of all generations is reported in addition.

Deviations: in the paper, each generation has the teacher's size and a full training. Here all have the student's size and
share the trial's epochs equally, so that every method has the same budget.

Verified against the formulas of section 3 in float64 on recorded permutations; the authors published no code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.counters import Counters
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
from stillhouse.methods.decoupled import other_places
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import Choice, Integers

_VARIANTS = ("kd", "kd_with_labels", "cwtm", "dkpp")


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, permutations: Tensor | None = None) -> Tensor:
    """-sum_c p_c log q_c with the teacher's probabilities, the mean over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        permutations: if given, p is permuted as in `permute_non_argmax`.
    """
    probabilities = F.softmax(teacher_logits, dim=1)
    if permutations is not None:
        probabilities = permute_non_argmax(probabilities, permutations)
    return F.cross_entropy(student_logits, probabilities)


def confidence_weighted_loss(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """sum_n w_n CE_n; the weights are the teacher's confidences, divided by their sum over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; the confidence is the largest probability, whether or not it is the label's.
        targets: [B] classes or [B, C] probabilities.
    """
    confidence = F.softmax(teacher_logits, dim=1).amax(dim=1)
    losses = F.cross_entropy(student_logits, targets, reduction="none")
    return (confidence / confidence.sum() * losses).sum()


def permute_non_argmax(probabilities: Tensor, permutations: Tensor) -> Tensor:
    """Permutes each row's probabilities, except the largest.

    Args:
        probabilities: [B, C].
        permutations: [B, C - 1] int64; each row is a permutation of 0 .. C-2, which number the other classes in order.
    """
    others = other_places(probabilities.argmax(dim=1), probabilities.shape[1])
    rest = probabilities.gather(1, others)
    return probabilities.scatter(1, others, rest.gather(1, permutations))


class Generations(Counters):
    """The trained generations in order, and untrained networks in which later ones are stored.

    Args:
        members: networks of the student's architecture, one for each generation except the last.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_count("num_complete", 0)

    @property
    def complete(self) -> list[nn.Module]:
        return list(self.members)[: self.count("num_complete")]

    def add(self, student: nn.Module) -> None:
        """Stores a copy of the student as the next generation."""
        number = len(self.complete)
        self.members[number].load_state_dict(student.state_dict())
        self.set_count("num_complete", number + 1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, C] of the last complete generation."""
        logits: Tensor = self.complete[-1](images)
        return logits


class Ensemble(nn.Module):
    """Averages the probabilities of the complete generations and of the student in training."""

    def __init__(self, student: nn.Module, generations: Generations) -> None:
        super().__init__()
        self.student = student
        self.generations = generations

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, C]."""
        networks = [*self.generations.complete, self.student]
        return torch.stack([F.softmax(network(images), dim=1) for network in networks]).mean(dim=0).log()


@dataclass(frozen=True, kw_only=True)
class BornAgain(Method):
    """Generations of one architecture; each learns from the previous one."""

    card: ClassVar[Card] = Card(
        title="Born-Again Neural Networks",
        arxiv="1805.04770",
        family="G",
        equations="section 3: KD, confidence-weighted by teacher max (CWTM), dark knowledge with permuted predictions (DKPP), "
        "ensemble of generations (BAN+E)",
        deviations="all generations have the student's size and share the trial's epochs equally",
        suggested="2 or 3 generations; later ones gain little",
        interactions="a generation with too few epochs to converge teaches nearly uniform outputs, worst in kd and dkpp",
    )

    generations: int = hyperparameter(
        2, minimum=1, prior=Integers(1, 3), help="number of students, trained one after the other"
    )
    variant: Literal["kd", "kd_with_labels", "cwtm", "dkpp"] = hyperparameter(
        "kd_with_labels",
        choices=_VARIANTS,
        prior=Choice(_VARIANTS),
        help="the loss with which a generation learns from the previous one",
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return generations(setup.epochs, self.generations)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        members = [setup.new_student() for _ in range(self.generations - 1)]
        return {"generations": Helper(module=Generations(members), trainable=False)} if members else {}

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        generations = modules.get("generations")
        return {"student": student} | (
            {"ensemble": Ensemble(student, generations)} if isinstance(generations, Generations) else {}
        )

    def begin_stage(self, start: StageStart) -> None:
        if start.index:
            generations = start.modules["generations"]
            assert isinstance(generations, Generations)
            generations.add(start.student)
            start.student.load_state_dict(start.new_student().state_dict())

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.stage.name == "generation_1":
            teacher_logits = step.teacher["logits"]
        else:
            with torch.no_grad():
                teacher_logits = step.run_network(step.modules["generations"], step.images)
        match self.variant:
            case "cwtm":
                return {"weighted_cross_entropy": confidence_weighted_loss(step.logits, teacher_logits, step.targets)}
            case "dkpp":
                permutations = step.uniform(len(teacher_logits), teacher_logits.shape[1] - 1).argsort(dim=1, stable=True)
                return {"soft_cross_entropy": soft_cross_entropy(step.logits, teacher_logits, permutations)}
            case "kd":
                return {"soft_cross_entropy": soft_cross_entropy(step.logits, teacher_logits)}
            case _:
                soft = soft_cross_entropy(step.logits, teacher_logits)
                return {"cross_entropy": step.supervised(), "soft_cross_entropy": soft}
