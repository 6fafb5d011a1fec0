"""Knowledge Distillation with Adversarial Samples Supporting Decision Boundary (Heo et al. 2019, arXiv 1805.05532): BSS.

    base samples       x with class y that teacher and student both classify correctly, at most `num_samples` of a batch: those
                       with the largest sum_{c != y} (t_c - s_c)^2 of the probabilities
    target class k     drawn for each by the teacher's probabilities of the classes other than y
    attack             x <- x + eta (z_y - z_k + 1e-4) g / |g|,  g = d(z_k - z_y) / dx at the teacher's logits z, until the
                       teacher's class is no longer y, at most `num_steps` times; pixels are limited to [-2.5, 2.5]
    L = CE(y, s) + a(p) KL(t^T || s^T) + b(p) KL(t^T(x*) || s^T(x*)),  p the fraction of the training that is done
    a(p) = 1 + 3 (1 - p),  b(p) = 2 max(0, 1 - 4p/3),  T = 3, without the factor T^2

The samples x* lie just beyond the teacher's decision boundary, which the student learns from them. The attack needs only the
teacher, which runs all its steps in one call. After 3/4 of the training b is 0, and there is no attack.

Follows the authors' code where the paper leaves values open: sizes, schedules, the limit of pixels in normalised units.
Deviations: KL instead of cross-entropy (same gradient); the weights change with every step, not with every epoch; base samples
are those that both networks classify correctly, as in the paper (the later version of the authors' code asks the teacher only).
A step always attacks the same number of samples, so that it need not wait for the device: those that are no base samples have
the weight 0 in the loss, but take part in the statistics of the student's BatchNorm layers. A batch without a base sample has a
boundary loss of 0; in the authors' code one with a single base sample ends the training.

A step costs 10.6 times one of `kd` while it attacks 64 samples of a batch of 64, 6.0 times with 16, and as much as one of `kd`
after 3/4 of the training (resnet8 taught by resnet20, digits, one thread).

Verified against the authors' attack and losses (reference cases bss-attack, bss-losses, bss-selection-formula).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_EPSILON = 1e-4


def base_samples(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The places [K] of the base samples in a batch, K = min(`number`, B), and which of them are base samples, [K] bool.

    Base samples come first, by falling distance of the two networks' probabilities of the other classes.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: [B] int64.
    """
    right = (student_logits.argmax(dim=1) == labels) & (teacher_logits.argmax(dim=1) == labels)
    squares = (F.softmax(teacher_logits, dim=1) - F.softmax(student_logits, dim=1)).square()
    distances = squares.scatter(1, labels.unsqueeze(1), 0.0).sum(dim=1)
    scores, places = distances.masked_fill(~right, -1.0).topk(min(number, len(labels)))
    return places, scores >= 0


def draw_targets(teacher_logits: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
    """A class other than the label for each sample, [B], drawn by the teacher's probabilities of these classes.

    Args:
        teacher_logits: [B, C].
        labels: [B] int64.
        draws: [B], uniform on [0, 1): the share of the other classes' probability, from the most probable one, that is passed.
    """
    others = teacher_logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    shares, classes = F.softmax(others, dim=1).sort(dim=1, descending=True)
    passed = (shares.cumsum(dim=1) < draws.unsqueeze(1)).sum(dim=1, keepdim=True)
    # Rounding may leave the last sum below the draw; the label itself comes last.
    return classes.gather(1, passed.clamp(max=teacher_logits.shape[1] - 2)).squeeze(1)


def cross_boundary(
    teacher: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, *, num_steps: int, step_size: float, limit: float
) -> tuple[Tensor, Tensor]:
    """Images [B, channels, H, W] just beyond the teacher's boundary towards the classes `targets` [B], and its logits [B, C].

    A sample moves until the teacher's class is no longer that of the given image, at most `num_steps` times.

    Args:
        step_size: eta, the share of the difference of logits by which a step is scaled.
        limit: the largest absolute value of a pixel.
    """
    base: Tensor | None = None
    for _ in range(num_steps):
        images = images.detach().requires_grad_()
        outputs = teacher(images)
        base = outputs.argmax(dim=1) if base is None else base
        pair = outputs.gather(1, torch.stack([base, targets], dim=1))
        (gradient,) = torch.autograd.grad((pair[:, 1] - pair[:, 0]).sum(), images)
        lengths = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        gaps = (pair[:, 0] - pair[:, 1]).detach() + _EPSILON
        factors = torch.where(outputs.argmax(dim=1) == base, step_size * gaps / lengths, torch.zeros_like(gaps))
        images = (images.detach() + factors.view(-1, 1, 1, 1) * gradient).clamp(-limit, limit)
    with torch.no_grad():
        return images, teacher(images)


def soft_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) of each sample, [B], without the factor T^2."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class BoundarySamples(Method):
    """The student learns the teacher's outputs, also on samples just beyond the teacher's decision boundary."""

    card: ClassVar[Card] = Card(
        title="Knowledge Distillation with Adversarial Samples Supporting Decision Boundary",
        arxiv="1805.05532",
        family="A",
        equations="the attack on the teacher's logits, the choice of base samples and target classes, the loss of three terms",
        deviations="KL instead of cross-entropy (same gradient); weights change with every step; samples that are no base "
        "samples are attacked too, with the weight 0",
        suggested="num_samples 64 of a batch of 256, 10 steps of 0.3, temperature 3 (authors' code, CIFAR-10)",
        interactions="pixel_limit is in normalised units: raise it for data whose pixels exceed 2.5 (MNIST: 2.9); a step "
        "costs 10.6 times one of kd while all 64 samples of a batch are attacked (resnet8 taught by resnet20)",
    )
    calls_teacher: ClassVar[bool] = True

    temperature: float = hyperparameter(3.0, above=0, prior=LogUniform(1, 10), help="T, softens all outputs")
    kd_weight: float = hyperparameter(
        4.0, minimum=0, prior=LogUniform(1, 16), help="a(0), weight of the teacher's outputs at the start"
    )
    final_kd_weight: float = hyperparameter(1.0, minimum=0, help="a(1), to which kd_weight changes linearly")
    boundary_weight: float = hyperparameter(
        2.0, minimum=0, prior=LogUniform(0.25, 8), help="b(0), weight of the boundary samples at the start"
    )
    boundary_fraction: float = hyperparameter(
        0.75, above=0, maximum=1, help="share of the training after which the weight of the boundary samples is 0"
    )
    num_samples: int = hyperparameter(64, minimum=1, help="the most samples of a batch that are attacked")
    num_steps: int = hyperparameter(10, minimum=1, help="steps of the attack")
    step_size: float = hyperparameter(0.3, above=0, prior=LogUniform(0.1, 1), help="eta, size of a step of the attack")
    pixel_limit: float = hyperparameter(2.5, above=0, help="largest absolute value of an attacked pixel, in normalised units")
    outcome: Literal["any", "target"] = hyperparameter(
        "any",
        choices=("any", "target"),
        help="any: all attacked samples are used, as in the authors' code; target: those that reached their target class",
    )

    @property
    def needs_whole_batch(self) -> bool:
        return True

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        needed = self.kd_weight or self.final_kd_weight or self.boundary_weight
        return {"logits": logits()} if needed else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        kd_weight = self.kd_weight + step.progress * (self.final_kd_weight - self.kd_weight)
        boundary_weight = self.boundary_weight * max(0.0, 1 - step.progress / self.boundary_fraction)
        if kd_weight:
            terms["kd"] = kd_weight * soft_losses(step.logits, step.teacher["logits"], self.temperature).mean()
        if boundary_weight:
            terms["boundary"] = boundary_weight * self._boundary_loss(step)
        return terms

    def _boundary_loss(self, step: Step) -> Tensor:
        """The mean of the soft losses over the boundary samples; 0 without any."""
        labels = step.targets if step.targets.ndim == 1 else step.targets.argmax(dim=1)
        teacher_logits = step.teacher["logits"]
        places, used = base_samples(step.logits.detach(), teacher_logits, labels, self.num_samples)
        targets = draw_targets(teacher_logits, labels, step.uniform(len(labels)))[places]
        images, attacked_logits = step.run_at_teacher(
            cross_boundary,
            step.images[places],
            targets,
            num_steps=self.num_steps,
            step_size=self.step_size,
            limit=self.pixel_limit,
        )
        if self.outcome == "target":
            used = used & (attacked_logits.argmax(dim=1) == targets)
        losses = soft_losses(step.run_network(step.student, images), attacked_logits, self.temperature)
        return (used * losses).sum() / used.sum().clamp_min(1)
