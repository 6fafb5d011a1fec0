"""Contrastive Representation Distillation (Tian, Krishnan, Isola 2020, arXiv 1910.10699): CRD.

    e = W f / |W f|, of the student and of the teacher, W trained;  m the other network's e, stored for every sample
    h(e, m) = g / (g + N / M),  g = exp(<e, m> / T) / Z                                 (equation 19, M training samples)
    L = CE - w sum_{student, teacher} mean_n [log h(e_n, m_n) + sum_{k = 1..N} log (1 - h(e_n, m_k))]      (equation 10)

A sample's student embedding is distinguished from the teacher embeddings of N other samples, and the other way round. The N
samples are drawn with replacement from other classes; N is at most M. After a batch, m moves half way to its e. Z is set once,
by the first batch, so that g is about 1 / M.

The memory holds 2 M D numbers of 4 bytes (D is the width of the embeddings; 51 MB for 50000 samples and D = 128). It is a
helper: stored with the trial, not part of the student. A memory larger than `memory_limit_mb` is an error. A batch of B samples
needs 2 B (M + N) numbers more.

Deviations: the soft targets with which the paper has its best results are not included; combine this method with `kd`.

Verified against the numbers of RepDistiller, the authors' code, over two batches: loss, gradients, memory and Z.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stillhouse.distill.embeddings import EmbeddingMethod, unit_rows
from stillhouse.distill.method import Card, Helper, MethodError, Setup, Step, hyperparameter
from stillhouse.spec.priors import LogUniform

_EPSILON = 1e-7
"""Added inside the logarithms, as in the authors' code."""


def contrast_loss(similarities: Tensor, num_samples: int) -> Tensor:
    """-log h of column 0 and -log (1 - h) of the others, the sum over columns and the mean over rows.

    Args:
        similarities: g, [B, 1 + N], the positive first.
        num_samples: M.
    """
    expected = (similarities.shape[1] - 1) / num_samples
    positive, negatives = similarities[:, 0], similarities[:, 1:]
    right = (positive / (positive + expected + _EPSILON)).log()
    wrong = (expected / (negatives + expected + _EPSILON)).log()
    return -(right + wrong.sum(dim=1)).mean()


def draw_contrast(classes: Tensor, indices: Tensor, uniform: Tensor) -> Tensor:
    """The samples that are compared, [B, 1 + N] int64: the row's own sample, then N of other classes, equally probable.

    Args:
        classes: [M] int64, the class of every sample.
        indices: [B] int64, the batch's samples. If all M samples have one class, the N are drawn from all.
        uniform: [B, N] in [0, 1).
    """
    known, order = classes.sort(stable=True)
    own = classes[indices].unsqueeze(1)
    first, end = torch.searchsorted(known, own), torch.searchsorted(known, own, right=True)
    others = len(classes) - (end - first)
    free = torch.where(others > 0, others, len(classes))
    drawn = torch.minimum((uniform * free).long(), free - 1)
    drawn = torch.where(drawn < first, drawn, drawn + end - first) % len(classes)
    return torch.cat([indices.unsqueeze(1), order[drawn]], dim=1)


class ContrastMemory(nn.Module):
    """Both networks' embeddings of every training sample, their classes, and both Z (-1 until set).

    Args:
        classes: [M] int64, the class of every training sample.
        width: D.
    """

    student: Tensor
    teacher: Tensor
    classes: Tensor
    normalisers: Tensor

    def __init__(self, classes: Tensor, width: int) -> None:
        super().__init__()
        for name in ("student", "teacher"):
            bound = 1 / math.sqrt(width / 3)  # vectors of length 1 on average
            self.register_buffer(name, torch.empty(len(classes), width).uniform_(-bound, bound))
        self.register_buffer("classes", classes.clone())
        self.register_buffer("normalisers", torch.full((2,), -1.0))

    def similarities(self, student: Tensor, teacher: Tensor, contrast: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Both g, [B, 1 + N]: of each network's e [B, D] with the other's m at `contrast`; the first call sets Z."""
        raw = [
            (embeddings @ memory.T).gather(1, contrast).div(temperature).exp()
            for embeddings, memory in ((student, self.teacher), (teacher, self.student))
        ]
        first = torch.stack([given.detach().mean() for given in raw]) * len(self.classes)
        self.normalisers = torch.where(self.normalisers < 0, first, self.normalisers)
        return raw[0] / self.normalisers[0], raw[1] / self.normalisers[1]

    @torch.no_grad()
    def remember(self, indices: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Moves the samples' m towards their e [B, D]; changes copies, since the backward pass still needs the old values."""
        for name, embeddings in (("student", student), ("teacher", teacher)):
            memory = getattr(self, name)
            moved = unit_rows(momentum * memory[indices] + (1 - momentum) * embeddings)
            setattr(self, name, memory.index_copy(0, indices, moved))


@dataclass(frozen=True, kw_only=True)
class Contrastive(EmbeddingMethod):
    """A sample's student embedding is identified among others by its teacher embedding, and the other way round."""

    card: ClassVar[Card] = Card(
        title="Contrastive Representation Distillation",
        arxiv="1910.10699",
        family="R",
        equations="equations 10 and 19; memory and negatives as in the authors' code",
        deviations="negatives with replacement, at most as many as training samples",
        suggested="contrast_weight 0.8, 16384 negatives, temperature 0.07 on CIFAR-100",
        interactions="needs many steps: after 320 steps 87.9%, without a teacher 93.1%; with temperature 0.3 92.6%, with "
        "contrast_weight 0.2 93.7% (20 epochs of 1000 cropped digits, resnet8 of width 0.25, 3 seeds); memory grows with the "
        "number of training samples",
    )
    revision: ClassVar[int] = 2

    contrast_weight: float = hyperparameter(0.8, minimum=0, prior=LogUniform(0.1, 3), help="w, weight of both contrast terms")
    temperature: float = hyperparameter(0.07, above=0, prior=LogUniform(0.04, 0.5), help="T, divides the similarities")
    num_negatives: int = hyperparameter(
        16_384, minimum=1, help="N, negatives per sample; at most the number of training samples"
    )
    width: int = hyperparameter(128, minimum=1, help="D, width of the trained embeddings")
    momentum: float = hyperparameter(
        0.5, minimum=0, below=1, help="weight of the old embedding when a sample's memory is updated"
    )
    memory_limit_mb: int = hyperparameter(2048, minimum=1, help="largest allowed memory, in 10^6 bytes")

    @property
    def active(self) -> bool:
        return self.contrast_weight > 0

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.active:
            return {}
        assert setup.teacher is not None, "contrast needs a teacher"
        size_mb = 2 * setup.num_samples * self.width * 4 / 1e6
        if size_mb > self.memory_limit_mb:
            raise MethodError(
                f"memory_limit_mb is {self.memory_limit_mb}, but the memory of {setup.num_samples} samples in {self.width} "
                f"dimensions takes {size_mb:.0f}; lower width or raise memory_limit_mb"
            )
        classes = torch.zeros(setup.num_samples, dtype=torch.int64) if setup.labels is None else setup.labels
        student = setup.student.shape(self.layer(setup.student, whose="student"))
        teacher = setup.teacher.shape(self.layer(setup.teacher, whose="teacher"))
        return {
            "student_embedding": Helper(module=nn.Linear(math.prod(student), self.width)),
            "teacher_embedding": Helper(module=nn.Linear(math.prod(teacher), self.width)),
            "memory": Helper(module=ContrastMemory(classes, self.width), trainable=False),
        }

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = step.supervised_terms()
        if not self.active:
            return terms
        memory = step.modules["memory"]
        assert isinstance(memory, ContrastMemory), "made by modules()"
        student, teacher = self.embeddings(step)
        num_samples = len(memory.classes)
        uniform = step.uniform(len(step.indices), min(self.num_negatives, num_samples))
        contrast = draw_contrast(memory.classes, step.indices, uniform)
        similarities = memory.similarities(student, teacher, contrast, self.temperature)
        memory.remember(step.indices, student, teacher, self.momentum)
        for name, given in zip(("student_contrast", "teacher_contrast"), similarities, strict=True):
            terms[name] = self.contrast_weight * contrast_loss(given, num_samples)
        return terms

    def embeddings(self, step: Step) -> tuple[Tensor, Tensor]:
        student, teacher = super().embeddings(step)
        return (
            unit_rows(step.modules["student_embedding"](student)),
            unit_rows(step.modules["teacher_embedding"](teacher)),
        )
