"""Variational Information Distillation for Knowledge Transfer (Ahn, Hu, Damianou, Lawrence, Dai 2019, arXiv 1904.05835).

    L = CE + lambda sum_k E[-log q(t_k | s_k)]                                              (equation 4)
    -log q(t | s) = sum_chw log sigma_c + (t_chw - mu_chw(s))^2 / (2 sigma_c^2) + constant  (equation 5)
    sigma_c^2 = log(1 + exp(alpha_c)) + epsilon                                             (equation 6)

q is a Gaussian. Its mean is computed from the student's layer by a small network; its variance is one number per channel of the
teacher; both are trained. Maximising its likelihood maximises a lower bound on the mutual information of the two layers.

Reduction: the mean over batch, channels and positions instead of the sum of equation 5, as in the implementations for which a
weight of 1 is published; `information_weight` includes the factor. The constant is left out.
Deviations: mu is three 1x1 convolutions with ReLU between them, or three fully connected layers between vectors. The larger of
two maps is average-pooled to the size of the smaller, the teacher's map at the teacher. A student without maps learns from the
teacher's embedding, as in the paper's transfer from a convolutional network to a perceptron.

Verified against the numbers of RepDistiller and Knowledge-Distillation-Zoo, including the gradients of all parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import MapMethod, meeting_size, shrink
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def variational_loss(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """1/2 ((t - mu)^2 / sigma^2 + log sigma^2), the mean over all elements. Its minimum is at sigma^2 = (t - mu)^2.

    Args:
        mean: mu, [B, K] or [B, K, H, W].
        variance: sigma^2 > 0, [K].
        target: t, of the same shape as the mean.
    """
    variance = variance.reshape(-1, *(1,) * (mean.ndim - 2))
    return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


class GaussianRegressor(nn.Module):
    """Predicts the mean and the variance of the teacher's layer from the student's layer.

    Args:
        num_inputs: channels of the student's layer.
        num_outputs: channels of the teacher's layer.
        num_dimensions: 1 for vectors, 3 for maps.
        initial_variance: sigma^2 before training, above `epsilon`.
        epsilon: the smallest variance.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_dimensions: int,
        *,
        initial_variance: float,
        epsilon: float,
        num_hidden: int | None = None,
    ) -> None:
        super().__init__()
        sizes = (num_inputs, num_hidden or num_outputs, num_hidden or num_outputs, num_outputs)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            linear = nn.Conv2d(before, after, 1, bias=False) if num_dimensions == 3 else nn.Linear(before, after, bias=False)
            layers += [linear, nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        self.log_scale = nn.Parameter(torch.full((num_outputs,), math.log(math.expm1(initial_variance - epsilon))))
        self.epsilon = epsilon

    @property
    def variance(self) -> Tensor:
        """log(1 + exp(alpha)) + epsilon, one per channel."""
        return F.softplus(self.log_scale) + self.epsilon

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(features), self.variance


@dataclass(frozen=True, kw_only=True)
class Variational(MapMethod):
    """The student's layers carry as much information on the teacher's layers as possible."""

    card: ClassVar[Card] = Card(
        title="Variational Information Distillation for Knowledge Transfer",
        arxiv="1904.05835",
        family="F",
        equations="equations 4 to 6, on feature maps, or on embeddings if the student has no maps",
        deviations="mean over elements instead of the sum; the larger of two maps is average-pooled to the size of the smaller",
        suggested="information_weight 1, initial_variance 5",
        interactions="the loss is a log-likelihood and can be negative; needs three 1x1 convolutions per stage during training",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    information_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.1, 10), help="lambda, weight of every pair of layers"
    )
    initial_variance: float = hyperparameter(5.0, above=1e-3, help="sigma^2 before training")
    epsilon: float = hyperparameter(1e-5, above=0, below=1e-3, help="the smallest variance")

    @property
    def active(self) -> bool:
        return self.information_weight > 0

    def pairs(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """{student's layer: teacher's layer}: the stages, or the embeddings if the student has no maps.

        Raises:
            Unsuitable: the student has neither maps nor an embedding.
        """
        named = self.teacher_maps or self.student_maps
        if not named and not student.stages and student.pooled and teacher.pooled:
            return {student.pooled: teacher.pooled}
        return super().pairs(teacher, student)

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        return {
            f"hint.{guided}": hint_at_size(hint, teacher.shape(hint), student.shape(guided))
            for guided, hint in self.pairs(teacher, student).items()
        }

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.active:
            return {}
        assert setup.teacher is not None, "variational distillation needs a teacher"
        helpers = {}
        for guided, hint in self.pairs(setup.teacher, setup.student).items():
            inputs, outputs = setup.student.shape(guided), setup.teacher.shape(hint)
            helpers[f"regressor.{guided}"] = Helper(
                module=GaussianRegressor(
                    inputs[0], outputs[0], len(outputs), initial_variance=self.initial_variance, epsilon=self.epsilon
                )
            )
        return helpers

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        losses = [
            self._loss(step.modules[f"regressor.{guided}"], features, step.teacher[f"hint.{guided}"])
            for guided, features in step.student_features.items()
        ]
        return terms | ({"information": self.information_weight * torch.stack(losses).sum()} if losses else {})

    def _loss(self, regressor: nn.Module, features: Tensor, hint: Tensor) -> Tensor:
        if features.ndim == 4:
            features = shrink(features, *hint.shape[2:])
        mean, variance = regressor(features)
        return variational_loss(mean, variance, hint)


def hint_at_size(layer: str, hint: tuple[int, ...], guided: tuple[int, ...]) -> Knowledge:
    """The output of the teacher's layer, average-pooled at the teacher to the student's height and width if these are smaller.

    Args:
        hint: shape of the teacher's layer, (K,) or (K, H, W).
        guided: shape of the student's.
    """
    if len(hint) == 1:
        return feature(layer)
    height, width = meeting_size(guided, hint)
    return reduced(shrink, layer, height=height, width=width)
