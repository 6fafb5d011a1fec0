"""Deep Model Compression: Distilling Knowledge from Noisy Teachers (Sau, Balasubramanian 2016, arXiv 1610.09650).

    z'_n = (1 + xi_n) z_n for the chosen samples, z_n for the others;  xi_n ~ N(0, sigma^2), one number per sample
    L = 1 / (2 B) sum_n |s_n - z'_n|^2

The student learns the teacher's logits by regression and uses no labels. Each sample of a batch is chosen with probability
alpha. sigma = 0 or alpha = 0 is plain logit regression (Ba, Caruana 2014, arXiv 1312.6184).

Deviations: `logit_weight` scales the loss; it is 1 in the paper, which can choose the learning rate for this loss. In a sweep
all methods share a learning rate that suits cross-entropy, so the default is 0.1, equivalent to a tenth of that rate. Students
of 1000 digits at a learning rate of 0.05: with weight 1 a perceptron diverges, with 0.1 it has 97.2%; a LeNet diverges with 1
and is unstable with 0.1; with gradients clipped at 5, both students train with both weights (95.6% to 97.4%).

Verified against the formula in float64 on recorded draws. The authors published no code; that of others differs (noise without
the 1, or one draw per class).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform


def logit_regression_loss(student_logits: Tensor, target_logits: Tensor) -> Tensor:
    """1/2 |s - z|^2, the sum over classes, the mean over the batch, of logits [B, C]."""
    return 0.5 * (student_logits - target_logits).square().sum(dim=1).mean()


def noisy_logits(teacher_logits: Tensor, noise: Tensor, chosen: Tensor) -> Tensor:
    """(1 + xi) z for the chosen samples, z for the others.

    Args:
        teacher_logits: z, [B, C].
        noise: xi, [B, 1].
        chosen: [B, 1] bool.
    """
    return teacher_logits * (1 + noise * chosen)


@dataclass(frozen=True, kw_only=True)
class NoisyTeacher(Method):
    """The student learns the teacher's logits, which are scaled at random for some samples."""

    card: ClassVar[Card] = Card(
        title="Deep Model Compression: Distilling Knowledge from Noisy Teachers",
        arxiv="1610.09650",
        family="L",
        equations="the squared error of logits and the multiplicative noise of section 3",
        deviations="the loss is scaled by logit_weight, 0.1 by default and 1 in the paper",
        suggested="sigma up to 1, alpha around 0.5 (the paper varies both); logit_weight 1 with gradients clipped at 5",
        interactions="gradients grow with the teacher's logits: a student without BatchNorm needs a lower learning rate or "
        "clipped gradients, whatever the weight",
    )

    sigma: float = hyperparameter(0.9, minimum=0, prior=Uniform(0.1, 1.0), help="standard deviation of the noise xi")
    alpha: float = hyperparameter(
        0.5, minimum=0, maximum=1, prior=Uniform(0.1, 1.0), help="probability that a sample's logits get noise"
    )

    logit_weight: float = hyperparameter(
        0.1,
        above=0,
        prior=LogUniform(0.01, 0.2),
        help="weight of the loss; 1 in the paper, 0.1 suits SGD at usual learning rates",
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()}

    def loss(self, step: Step) -> dict[str, Tensor]:
        batch = len(step.labels)
        noise = self.sigma * step.normal(batch, 1)
        chosen = step.uniform(batch, 1) < self.alpha
        target = noisy_logits(step.teacher["logits"], noise, chosen)
        return {"logit_regression": self.logit_weight * logit_regression_loss(step.logits, target)}
