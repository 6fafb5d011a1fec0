"""Correlation Congruence for Knowledge Distillation (Peng et al. 2019, arXiv 1904.01802): CC.

    C_ij = k(f_i, f_j),  f the outputs of a layer divided by their length
    gaussian           k(x, y) = exp(-2 gamma) sum_{p <= P} (2 gamma)^p / p! <x, y>^p     (equation 12: exp(-gamma |x - y|^2))
    bilinear           k(x, y) = <x, y>                                                    (equation 10)
    L = CE + beta / B^2 |C_student - C_teacher|_F^2                                        (equations 6 and 7)

A third kernel comes from the code that the authors gave to RepDistiller and differs from the paper:

    consecutive_pairs  L = CE + beta mean_i <|e_i - e'_i|, |e_(i+1) - e'_(i+1)|>,  e, e' trained linear embeddings

Deviations: the soft targets that the paper adds are not included; combine this method with `kd`. Batches are drawn at random,
not class by class (section 3.4). The squared mean discrepancy of section 3.3 is not implemented.

Verified against the numbers of Knowledge-Distillation-Zoo (gaussian), RepDistiller (consecutive pairs) and torchdistill, whose
matrices are the same, although it takes the norm of their difference without squaring it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from stillhouse.distill.embeddings import EmbeddingMethod, Relation, unit_rows
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.spec.priors import LogUniform

_KERNELS = ("gaussian", "bilinear", "consecutive_pairs")
_EMBEDDING = 128
"""Width of the variant's trained embeddings, as in RepDistiller."""


def correlation_loss(student: Tensor, teacher: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    """|C_s - C_t|_F^2 / B^2 of embeddings [B, K] and [B, K'], normalised to length 1 here; 0 for a batch of one."""
    ours, theirs = (correlations(unit_rows(vectors), kernel, gamma, order) for vectors in (student, teacher))
    return (ours - theirs).square().mean()


def correlations(embeddings: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    """C, [B, B], of embeddings [B, K].

    Args:
        embeddings: of length 1; only then is the sum a Taylor series of exp(-gamma |x - y|^2).
        kernel: "gaussian" or "bilinear".
        gamma: width parameter of the Gaussian kernel.
        order: P, the highest power in the Taylor series.
    """
    products = embeddings @ embeddings.T
    if kernel == "bilinear":
        return products
    powers = [(2 * gamma) ** power / math.factorial(power) * products**power for power in range(1, order + 1)]
    return math.exp(-2 * gamma) * (1 + sum(powers, start=products.new_zeros(())))


def consecutive_pairs_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """sum_d |e - e'|_(i, d) |e - e'|_(i + 1, d), the mean over consecutive samples i of [B, D]; 0 for a batch of one."""
    apart = (student - teacher).abs()
    return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)


@dataclass(frozen=True, kw_only=True)
class Correlation(EmbeddingMethod):
    """The student's embeddings of a batch correlate as the teacher's do."""

    card: ClassVar[Card] = Card(
        title="Correlation Congruence for Knowledge Distillation",
        arxiv="1904.01802",
        family="R",
        equations="equations 6, 7, 10 and 12 with the gaussian or bilinear kernel; consecutive_pairs as in the authors' code",
        deviations="without the paper's soft targets and without its sampling of batches by class",
        suggested="gamma 0.4, order 2; correlation_weight 0.02 with consecutive_pairs (RepDistiller), 100 is not published",
        interactions="helps little with small batches of many classes, in which a class has a single sample",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    correlation_weight: float = hyperparameter(
        100.0,
        minimum=0,
        prior=LogUniform(1, 1000),
        help="beta; with the default the term is about as large as the cross-entropy; use 0.02 with consecutive_pairs",
    )
    kernel: Literal["gaussian", "bilinear", "consecutive_pairs"] = hyperparameter(
        "gaussian",
        choices=_KERNELS,
        help="k; consecutive_pairs trains two linear embeddings and depends on the order of the samples",
    )
    gamma: float = hyperparameter(0.4, above=0, help="width parameter of the Gaussian kernel")
    order: int = hyperparameter(2, minimum=1, help="P, highest power in the kernel's Taylor series")

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        if self.kernel == "consecutive_pairs":
            return {"correlation": (self.correlation_weight, consecutive_pairs_loss)}
        relation = partial(correlation_loss, kernel=self.kernel, gamma=self.gamma, order=self.order)
        return {"correlation": (self.correlation_weight, relation)}

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if self.kernel != "consecutive_pairs" or not self.active:
            return {}
        assert setup.teacher is not None, "the correlations come from a teacher"
        student = setup.student.shape(self.layer(setup.student, whose="student"))
        teacher = setup.teacher.shape(self.layer(setup.teacher, whose="teacher"))
        return {
            "student_embedding": Helper(module=nn.Linear(math.prod(student), _EMBEDDING)),
            "teacher_embedding": Helper(module=nn.Linear(math.prod(teacher), _EMBEDDING)),
        }

    def embeddings(self, step: Step) -> tuple[Tensor, Tensor]:
        student, teacher = super().embeddings(step)
        if self.kernel != "consecutive_pairs":
            return student, teacher
        return step.modules["student_embedding"](student), step.modules["teacher_embedding"](teacher)
