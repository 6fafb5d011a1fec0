"""Logits of many classes in little space: the k largest, and the total weight of the others.

z are a sample's logits, K the classes of its k largest, R the other classes, p = softmax(z). Stored: z_c and c for c in K,
and log t with t = Σ_{c in R} exp z_c; for the drawn tail also m classes that are drawn from R in proportion to p. A method
receives logits [B, C], so that every method works:

- **even tail** (m = 0): z_c for c in K, log t - log(C - k) for the others.
  Exact: z_c of the k largest, and at temperature 1 the probabilities of the k largest and of the tail as a whole.
  Not exact: any single probability in the tail, hence KL and its gradient there (the estimate is biased towards an even
  tail); and at a temperature T ≠ 1 the tail's mass, Σ exp(z_c / T), which an even tail overstates for T > 1 and understates for
  T < 1 (Jensen), so that the probabilities of the k largest are wrong as well.
- **drawn tail** (m > 0): the tail's mass goes to the drawn classes, t / m for each time that a class was drawn.
  Exact: as above, at temperature 1. In expectation over the draws the probability of every class is the teacher's,
  E[p̂] = p, so that at T = 1 the expected cross-entropy with p̂ as its target, and the gradient of KL, are the teacher's
  (unbiased sampling of a teacher's distribution: "Sparse Logit Sampling", arXiv 2503.16870).
  Not exact: a single sample's tail; and at T ≠ 1 expectations too, since p̂^(1/T) is not linear in p̂.
  A class that was not drawn has a probability of e^-80 times the whole, practically zero, but a finite logit.

Losses that compare logits directly, such as a mean square, see the tail's substitutes: use full logits for those.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.knowledge.kinds import Knowledge, logits

_NOTHING = -80.0
"""The log-probability of a class that was not drawn: exp(-80) = 2e-35 is a normal float32."""
_DIGIT = 1024
"""Classes are stored as two digits where one would not be exact in float16."""


@dataclass(frozen=True)
class TopK:
    """How logits are stored.

    Attributes:
        k: how many of the largest.
        draws: how many classes are drawn for the tail; 0 spreads its mass evenly.
    """

    k: int
    draws: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.draws < 0:
            raise ValueError(f"top-k logits need k >= 1 and draws >= 0, got {self.k} and {self.draws}")

    def of(self, kind: Knowledge, num_classes: int) -> Knowledge:
        """What the teacher computes instead of `kind`: the top-k form of logits if that is smaller, otherwise `kind` itself."""
        if kind != logits() or self.k >= num_classes or self._width(num_classes) >= num_classes:
            return kind
        options = {"classes": num_classes, "k": self.k}
        return Knowledge(
            reduction=top_k if self.draws == 0 else top_k_and_draws,
            restoration=restore,
            options=tuple(sorted(options.items())),
            draws=self.draws,
        )

    def _width(self, num_classes: int) -> int:
        return self.k + 1 + (self.k + self.draws) * _digits(num_classes)


def top_k(values: Tensor, *, k: int, classes: int) -> Tensor:
    """The k largest logits, their classes and the log of the others' summed exponentials, [B, k + 1 + k * digits].

    Args:
        values: logits [B, C].
    """
    largest, places = values.topk(k, dim=1)
    tail = values.scatter(1, places, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([largest, tail, _spell(places, classes)], dim=1)


def top_k_and_draws(values: Tensor, draws: Tensor, *, k: int, classes: int) -> Tensor:
    """`top_k`, and behind it the classes of the tail that the `draws` [B, m] in [0, 1) fall on, m * digits more."""
    places = values.topk(k, dim=1).indices
    shares = values.double().scatter(1, places, -math.inf).softmax(1).cumsum(1)
    # Divided by its own end, the last step is 1, which no draw reaches; a class without a share is no step.
    shares = shares / shares[:, -1:]
    drawn = torch.searchsorted(shares, draws.to(shares), right=True)
    return torch.cat([top_k(values, k=k, classes=classes), _spell(drawn, classes)], dim=1)


def restore(stored: Tensor, *, k: int, classes: int) -> Tensor:
    """Logits [B, C] of what `top_k` or `top_k_and_draws` gave."""
    stored = stored.float()
    largest, tail, spelled = stored[:, :k], stored[:, k : k + 1], stored[:, k + 1 :]
    read = _read(spelled, classes)
    places, drawn = read[:, :k], read[:, k:]
    if drawn.shape[1] == 0:
        full = (tail - math.log(classes - k)).expand(-1, classes)
    else:
        counts = torch.zeros(len(stored), classes, device=stored.device).scatter_add_(1, drawn, torch.ones_like(drawn).float())
        whole = torch.logaddexp(largest.logsumexp(1, keepdim=True), tail)
        full = torch.where(counts > 0, tail + (counts / drawn.shape[1]).log(), whole + _NOTHING)
    return full.scatter(1, places, largest)


def _digits(classes: int) -> int:
    return 1 if classes <= 2048 else 2


def _spell(places: Tensor, classes: int) -> Tensor:
    """Classes [B, n] as floats [B, n * digits] that are exact in float16."""
    if _digits(classes) == 1:
        return places.float()
    return torch.stack([places // _DIGIT, places % _DIGIT], dim=2).flatten(1).float()


def _read(spelled: Tensor, classes: int) -> Tensor:
    if _digits(classes) == 1:
        return spelled.long()
    high, low = spelled.long().view(len(spelled), -1, 2).unbind(2)
    return high * _DIGIT + low
