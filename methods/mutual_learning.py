"""Deep Mutual Learning (Zhang, Xiang, Hospedales, Lu 2018, arXiv 1706.00384).

    L_k = CE(y, p_k) + 1 / (K - 1) sum_{l != k} KL(p_l || p_k)        (equations 6 to 10)

K networks start from different weights and are updated one after the other. After each update, the network's predictions for
the batch are computed again, and the next network learns from them (algorithm 1). No gradient flows into p_l.

The other networks, called peers, have the student's architecture or those that `peer_models` names (section 3.3 of the paper).

Deviations: computing the predictions again does not update the BatchNorm statistics, which would otherwise count each batch
twice. The authors' code omits 1 / (K - 1), which is 1 for two networks.

Verified against the numbers of Knowledge-Distillation-Zoo and, for three networks, against the paper's formula in float64.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, Setup, Step, Update, hyperparameter
from stillhouse.spec.priors import Integers


def mimicry_loss(own_logits: Tensor, others_logits: Sequence[Tensor]) -> Tensor:
    """1 / (K - 1) sum_l KL(p_l || p_own), the mean over the batch, of logits [B, C]; the others are constants."""
    own = F.log_softmax(own_logits, dim=1)
    divergences = [
        F.kl_div(own, F.log_softmax(other.detach(), dim=1), reduction="batchmean", log_target=True) for other in others_logits
    ]
    return torch.stack(divergences).mean()


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """The logits [B, C] of a network in training mode, without changing its buffers (BatchNorm's running statistics)."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    logits: Tensor = torch.func.functional_call(network, buffers, (images,))
    return logits


@dataclass(frozen=True, kw_only=True)
class MutualLearning(Method):
    """Several networks learn from the labels and from each other; the student is the first of them."""

    card: ClassVar[Card] = Card(
        title="Deep Mutual Learning",
        arxiv="1706.00384",
        family="M",
        equations="equations 6 to 10 and algorithm 1",
        deviations="predictions are computed again without changing BatchNorm's statistics",
        suggested="num_peers 2; more peers help a little more",
        interactions="needs no teacher, but trains every peer, too; a large peer gains less than a small one",
    )

    num_peers: int = hyperparameter(2, minimum=2, prior=Integers(2, 4), help="K, number of networks including the student")
    peer_models: tuple[str, ...] = hyperparameter(
        (), help="models of the other networks, in order; the rest have the student's model"
    )
    peer_width: float | None = hyperparameter(None, above=0, help="width of the models in peer_models; by default their own")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.peer_models) > self.num_peers - 1:
            raise ValueError(f"peer_models must name at most num_peers - 1 = {self.num_peers - 1}, got {len(self.peer_models)}")
        if self.peer_width is not None and not self.peer_models:
            warnings.warn("peer_width has no effect without peer_models", stacklevel=3)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        width = {} if self.peer_width is None else {"width": self.peer_width}
        named = [setup.new_model(model, **width) for model in self.peer_models]
        peers = named + [setup.new_student() for _ in range(self.num_peers - 1 - len(named))]
        return {f"peer_{number}": Helper(module=peer, evaluate=True) for number, peer in enumerate(peers, start=2)}

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        networks: dict[str, nn.Module] = {"student": step.student, **step.modules}
        logits = {"student": step.logits} | {name: step.run_network(peer, step.images) for name, peer in step.modules.items()}
        known, last = dict(logits), [*networks][-1]
        terms: dict[str, Tensor] = {}
        for name, network in networks.items():
            mine = {
                "cross_entropy": F.cross_entropy(logits[name], step.targets),
                "mimicry": mimicry_loss(logits[name], [other for peer, other in known.items() if peer != name]),
            }
            update.minimise(mine["cross_entropy"] + mine["mimicry"], name)
            terms = terms or mine
            if name != last:
                known[name] = step.run_network(partial(predict, network), step.images)
        return terms
