"""Efficient Knowledge Distillation from an Ensemble of Teachers (Fukuda, Suzuki, Kurata, Thomas, Cui, Ramabhadran 2017).

Interspeech 2017, doi 10.21437/Interspeech.2017-614; no arXiv version. K teachers, q_k = softmax(teacher_k / T):

    weighted_mean  L = T^2 CE(sum_k w_k q_k, p_T(student)),  sum_k w_k = 1
    drawn          L = T^2 CE(q_k, p_T(student)),  one k for each batch, drawn with probability w_k
    streams        each sample is trained once with each teacher's labels before the first teacher comes again

The paper's two strategies are `drawn` and `streams`. In `streams`, sample i of epoch e learns from teacher (i + e + c) mod K,
where c counts the least common multiples of K and the number of views that have passed: so a crop that comes back after all
views has another teacher, also where K divides their number.

All teachers of the sweep take part, in the order of the spec. With `kd_weight` w < 1 the labels have the weight 1 - w, as in
`kd`.

Within a batch, the mean of the losses of all teachers equals the loss on the mean of their labels, since cross-entropy is
linear in them. In `streams` the labels of a sample come in different batches, here in different epochs, which is not the same.
Deviations: T^2 keeps the scale of the gradient when T is searched; the paper has T = 1. An epoch has as many steps as with one
teacher, so that every method has the same budget; the paper's augmented data set is K times as large.

Verified against the formulas in float64; the authors published no code.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, MethodError, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import Choice, LogUniform, Uniform

_VARIANTS = ("weighted_mean", "drawn", "streams")


def soft_labels(teachers_logits: Tensor, temperature: float) -> Tensor:
    """softmax(teacher / T) of the logits [K, B, C] of K teachers."""
    return F.softmax(teachers_logits / temperature, dim=2)


def mean_labels(labels: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k q_k, [B, C], of labels [K, B, C] and weights [K] that sum to 1."""
    return torch.einsum("k,kbc->bc", weights.to(labels.dtype), labels)


def labels_of(labels: Tensor, teachers: Tensor) -> Tensor:
    """The labels [B, C] of each sample's chosen teacher, from labels [K, B, C] and teachers [B] int64 in 0 .. K-1."""
    return labels[teachers, torch.arange(labels.shape[1], device=labels.device)]


def stream_teachers(indices: Tensor, epoch: int, num_views: int, num_teachers: int) -> Tensor:
    """The teacher of each sample in an epoch, [B] int64 in 0 .. num_teachers-1, of the samples' places `indices` [B].

    Any num_teachers epochs from a multiple of num_teachers on use each teacher once for each sample. Over num_teachers times
    the least common multiple of both numbers, each view of a sample has each teacher equally often.
    """
    shift = epoch // math.lcm(num_views, num_teachers)
    return (indices + epoch + shift) % num_teachers


def label_loss(student_logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 CE(labels, softmax(student / T)), the mean over the batch; both are [B, C]."""
    return temperature**2 * F.cross_entropy(student_logits / temperature, labels)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Method):
    """One student learns from all teachers of the sweep."""

    card: ClassVar[Card] = Card(
        title="Efficient Knowledge Distillation from an Ensemble of Teachers",
        family="L",
        equations="the weighted mean of the teachers' labels; one teacher drawn per batch; streams of all teachers' labels",
        deviations="the loss has the factor T^2; streams extend over several epochs of the usual length",
        suggested="teachers that make different errors; temperature 1, kd_weight 1",
        interactions="with one teacher it is kd with soft labels only; needs the knowledge of all K teachers, K times the cost",
    )
    revision: ClassVar[int] = 2
    every_teacher: ClassVar[bool] = True

    variant: Literal["weighted_mean", "drawn", "streams"] = hyperparameter(
        "drawn", choices=_VARIANTS, prior=Choice(_VARIANTS), help="how the teachers' labels are combined"
    )
    weights: tuple[float, ...] = hyperparameter((), help="w_k, one for each teacher in the order of the spec; by default equal")
    temperature: float = hyperparameter(1.0, above=0, prior=LogUniform(1, 10), help="T, softens all outputs")
    kd_weight: float = hyperparameter(
        1.0,
        minimum=0,
        maximum=1,
        prior=Uniform(0.5, 1.0),
        help="w, weight of the teachers' soft labels; the labels have weight 1 - w",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not (math.isfinite(weight) and weight >= 0) for weight in self.weights) or (
            self.weights and not sum(self.weights) > 0
        ):
            raise ValueError(f"weights must be >= 0 and not all 0, got {list(self.weights)}")
        if self.weights and self.variant == "streams":
            raise ValueError("weights must be left out with variant='streams', which uses every teacher equally often")

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.kd_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = {}
        if self.kd_weight < 1:
            terms["cross_entropy"] = (1 - self.kd_weight) * step.supervised()
        if self.kd_weight:
            labels = self._labels(step, step.from_each("logits"))
            terms["soft_cross_entropy"] = self.kd_weight * label_loss(step.logits, labels, self.temperature)
        return terms

    def _labels(self, step: Step, teachers: Sequence[Tensor]) -> Tensor:
        labels = soft_labels(torch.stack(list(teachers)), self.temperature)
        if self.variant == "streams":
            return labels_of(labels, stream_teachers(step.indices, step.epoch, step.num_views, len(labels)))
        weights = self._weights(len(labels), labels.device)
        if self.variant == "drawn":
            # The teacher whose part of [0, 1) contains the draw; the last one if rounding leaves a gap before 1.
            drawn = (step.uniform(1) >= weights.cumsum(0)).sum().clamp(max=len(labels) - 1)
            return labels.index_select(0, drawn.view(1)).squeeze(0)
        return mean_labels(labels, weights)

    def _weights(self, num_teachers: int, device: torch.device) -> Tensor:
        weights = self.weights or (1.0,) * num_teachers
        if len(weights) != num_teachers:
            raise MethodError(f"weights must have one entry for each of the {num_teachers} teachers, got {len(weights)}")
        return _shares(weights, device)


@functools.cache
def _shares(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """The weights [K] float64, divided by their sum; made once, since sending them to a GPU waits for it."""
    return torch.tensor(weights, dtype=torch.float64, device=device) / sum(weights)
