"""DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer (Chen et al. 2018, arXiv 1707.01220).

    S(x) = -alpha |q - x|^beta,  q a query, both embeddings of length 1                          (equation 3)
    P(pi) = prod_i exp S(x_pi(i)) / sum_{k >= i} exp S(x_pi(k))                                  (equation 1)
    hard    L = CE - w mean_q log P_student(pi_q),  pi_q the teacher's order                      (equation 5)
    soft    L = CE + w mean_q KL(P_teacher || P_student) over all orders of the list              (equation 4)

Every sample of the batch is a query once. Its list has the `list_length` samples that are nearest to it in the teacher.

The soft loss is that of the authors' code, which weights by the teacher's probabilities, minus the teacher's entropy, so that
it is 0 for equal embeddings. Deviations: the authors' code has beta 4, uses half of the batch as queries, and treats the query
as a constant in the backward pass. It adds 1e-12 inside the logarithm, which limits the hard loss to 27.6 and gives wrong
orders no gradient. Here gradients flow through the query, too, and the loss has no such limit.

Verified against the numbers of the authors' code (soft: value and gradient; hard: value and gradient of its exact form) and
of the authors of RKD (hard, list of 4).
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.embeddings import EmbeddingMethod, Relation, unit_rows
from stillhouse.distill.method import ANY_TASK, Card, hyperparameter
from stillhouse.spec.priors import Choice, LogUniform

_SMALLEST_DISTANCE = 1e-6
"""With a power below 1, a distance of 0 would have an infinite gradient."""
_LONGEST_SOFT_LIST = 6
"""A list of 6 has 720 orders, a list of 7 has 5040."""


def similarity_scores(queries: Tensor, candidates: Tensor, alpha: float, beta: float) -> Tensor:
    """S, [Q, N], at most 0, of queries [Q, K] and candidates [N, K]."""
    # In float32, distances computed by a matrix product are too inexact: scores of -200 have wrong first decimals.
    distances = torch.cdist(queries, candidates, compute_mode="donot_use_mm_for_euclid_dist")
    return -alpha * distances.clamp(min=_SMALLEST_DISTANCE) ** beta


def nearest(scores: Tensor, length: int) -> Tensor:
    """The candidates with the highest scores, without query i itself (candidate i): [Q, L] int64, nearest first.

    Args:
        scores: [Q, N]; the first Q candidates are the queries.
        length: length of the lists; 0, or more than N - 1, means all other candidates.
    """
    queries, candidates = scores.shape
    own = torch.eye(queries, candidates, dtype=torch.bool, device=scores.device)
    order = scores.masked_fill(own, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, : min(length or candidates, candidates - 1)]


def order_log_probabilities(scores: Tensor) -> Tensor:
    """The logarithm of P for the order of the last axis of [..., L]: [...]; 0 for lists of at most one sample."""
    length = scores.shape[-1]
    taken = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril(-1)
    left = scores.unsqueeze(-2).masked_fill(taken, -torch.inf).logsumexp(dim=-1)
    return (scores - left).sum(dim=-1)


def hard_loss(student: Tensor, teacher: Tensor, length: int) -> Tensor:
    """-log P_student of the teacher's order, the mean over queries; scores [Q, N] as in `nearest`."""
    likelihoods = order_log_probabilities(student.gather(1, nearest(teacher, length)))
    # NaN can be sorted, too; without this term the loss would hide it.
    return -likelihoods.mean() + 0 * teacher.sum()


@functools.cache
def all_orders(length: int, device: torch.device) -> Tensor:
    """The permutations of 0 .. length-1, int64 [length!, length]."""
    return torch.tensor([*itertools.permutations(range(length))], dtype=torch.int64, device=device)


def soft_loss(student: Tensor, teacher: Tensor, length: int) -> Tensor:
    """KL(P_teacher || P_student) over all orders of the teacher's nearest, the mean over queries; scores [Q, N]."""
    listed = nearest(teacher, length)
    orders = all_orders(listed.shape[1], student.device)
    ours, theirs = (order_log_probabilities(scores.gather(1, listed)[:, orders]) for scores in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def darkrank_loss(student: Tensor, teacher: Tensor, variant: str, alpha: float, beta: float, length: int) -> Tensor:
    """The loss of embeddings [B, K] and [B, K'], normalised to length 1 here; each sample is a query. 0 for a batch of one."""
    ours, theirs = (similarity_scores(unit, unit, alpha, beta) for unit in (unit_rows(student), unit_rows(teacher)))
    return (hard_loss if variant == "hard" else soft_loss)(ours, theirs, length)


@dataclass(frozen=True, kw_only=True)
class DarkRank(EmbeddingMethod):
    """For each sample, the student ranks the others of the batch by similarity as the teacher does."""

    card: ClassVar[Card] = Card(
        title="DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer",
        arxiv="1707.01220",
        family="R",
        equations="equations 1 and 3 to 5, soft and hard",
        deviations="all samples are queries; gradients flow through the query; no limit on the hard loss",
        suggested="alpha 3, beta 3, lists of 4 (the authors of RKD); rank_weight 2 equals 16 in the authors' code, which sums "
        "the cross-entropy over a batch of 8; its alpha is 12.25 and its beta 4",
        interactions="the hard loss starts near log(L!), which is 201 for all others of a batch of 64, and needs B L^2 numbers",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    variant: Literal["soft", "hard"] = hyperparameter(
        "soft",
        choices=("soft", "hard"),
        prior=Choice(("soft", "hard")),
        help="soft: all orders of a list; hard: only the teacher's order",
    )
    rank_weight: float = hyperparameter(2.0, minimum=0, prior=LogUniform(0.1, 10), help="w, weight of the ranking loss")
    alpha: float = hyperparameter(3.0, above=0, help="factor of the distance")
    beta: float = hyperparameter(3.0, above=0, help="power of the distance")
    list_length: int = hyperparameter(
        4, minimum=0, help="samples in a list; 0: all others of the batch, only with variant hard"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "soft" and not 2 <= self.list_length <= _LONGEST_SOFT_LIST:
            raise ValueError(
                f"list_length must be 2 to {_LONGEST_SOFT_LIST} with variant='soft', which computes every order of the list, "
                f"got {self.list_length}; use variant='hard' for longer lists"
            )

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        relation = partial(darkrank_loss, variant=self.variant, alpha=self.alpha, beta=self.beta, length=self.list_length)
        return {"rank": (self.rank_weight, relation)}
