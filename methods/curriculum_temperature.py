"""Curriculum Temperature for Knowledge Distillation (Li, Li, Yang, Zhao, Song, Luo, Li, Yang 2023, arXiv 2211.16231): CTKD.

    T = T_0 + R sigmoid(theta)
    theta <- theta + rate lambda(t) dL / d theta        the student minimises L, the temperature maximises it
    lambda(t) = strength (1 - cos(pi min(t / t_1, 1))) / 2

A method on logits is trained with a temperature that is learned against the student: the gradient of its loss with respect to
the temperature is reversed, with a weight that grows from 0, so that the task becomes harder gradually. theta is one number
(the paper's global temperature) and starts at 1; in the authors' code T_0 = 1, R = 20, and lambda grows over 10 of 240 epochs.

Methods:
      curriculum_temperature: {method: decoupled, settings: [decoupled.others_weight=2]}

`method` is any method on logits with one `temperature`; theta gets the reversed gradient of all its terms, also of those that
the method multiplies by T^2. theta has the student's optimiser, with weight decay, as in the authors' code.

Deviations: lambda grows with every step, not with every epoch. The temperature of each sample from a small network (the paper's
instance-wise form) is not part of this file.

A step costs 1.0 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

The paper itself was not available. Verified against the formulas of the authors' code, finite differences for the gradient of
theta, and against the unchanged method at a fixed temperature.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, MethodError, Setup, Step, hyperparameter
from stillhouse.methods._other_methods import WrappingMethod
from stillhouse.spec.priors import LogUniform, Uniform

_START = 1.0
"""theta before training, as in the authors' code."""


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -weight."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


def reverse_gradient(value: Tensor, weight: float) -> Tensor:
    """`value`, through which gradients flow multiplied by -weight."""
    reversed_value: Tensor = _Reversed.apply(value, weight)
    return reversed_value


def reversal_weight(progress: float, growth_fraction: float, strength: float) -> float:
    """lambda: 0 at the beginning, `strength` once the fraction of the training is over; half of it in the middle.

    Args:
        progress: of the whole training, in [0, 1).
        growth_fraction: 0 means full strength from the first step.
        strength: the final weight.
    """
    grown = min(progress / growth_fraction, 1.0) if growth_fraction else 1.0
    return strength * (1 - math.cos(math.pi * grown)) / 2


class LearnedTemperature(nn.Module):
    """T = lowest + span sigmoid(theta), a scalar."""

    def __init__(self, lowest: float, span: float) -> None:
        super().__init__()
        self.lowest, self.span = lowest, span
        self.theta = nn.Parameter(torch.tensor(_START))

    def forward(self, weight: float) -> Tensor:
        """The temperature; the gradient of theta is multiplied by -weight."""
        return self.lowest + self.span * torch.sigmoid(reverse_gradient(self.theta, weight))


@dataclass(frozen=True, kw_only=True)
class CurriculumTemperature(WrappingMethod):
    """A method on logits whose temperature is learned against the student, with growing strength."""

    card: ClassVar[Card] = Card(
        title="Curriculum Temperature for Knowledge Distillation",
        arxiv="2211.16231",
        family="L",
        equations="the global learned temperature, the reversed gradient and its cosine schedule",
        deviations="the weight of the reversed gradient grows with every step; no temperature for each sample",
        suggested="lowest_temperature 1, span 20, strength 1, growth_fraction 10/240, kd_weight 0.9 (authors' code, CIFAR-100)",
        interactions="the method's own temperature has no effect",
    )

    method: str = hyperparameter("kd", help="name of the method on logits that is trained")
    lowest_temperature: float = hyperparameter(1.0, above=0, prior=LogUniform(0.5, 4), help="T_0, the lowest temperature")
    span: float = hyperparameter(20.0, above=0, prior=LogUniform(5, 40), help="R, the highest temperature minus the lowest")
    strength: float = hyperparameter(
        1.0, minimum=0, prior=Uniform(0.25, 2.0), help="lambda at the end of its growth; 0 keeps the temperature but for decay"
    )
    growth_fraction: float = hyperparameter(
        1 / 24,
        minimum=0,
        maximum=1,
        help="share of the training over which lambda rises from 0; 10 of 240 epochs in the authors' code",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.inner).card.family != "L" or "temperature" not in self.inner.hyperparameters():
            raise MethodError(
                f"cannot change the temperature of '{self.method}': it is not a method on logits with one temperature",
                names=[self.method],
            )

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        learned = LearnedTemperature(self.lowest_temperature, self.span)
        return {**super().modules(setup), "learned_temperature": Helper(module=learned)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        weight = reversal_weight(step.progress, self.growth_fraction, self.strength)
        return self.at(step.modules["learned_temperature"](weight)).loss(step)

    def at(self, temperature: Tensor) -> Method:
        """The changed method at a temperature that may require gradients."""
        changes: dict[str, Any] = {"temperature": temperature}
        changed: Method = replace(self.inner, **changes)
        return changed
