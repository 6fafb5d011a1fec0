"""Matching Guided Distillation (Yue, Deng, Zhou 2020, arXiv 2008.09958).

    C_ij = mean over images of |s_i / |s_i| - t_j / |t_j||^2, both maps flattened over positions
    M = argmin of the summed costs: one student channel for every teacher channel, equally many each (linear assignment)
    t' = reduce over the teacher channels of a student channel:
        absolute_max_pooling  the value of largest magnitude at each position, with its sign
        random_drop           the value of a channel that is drawn at each position
        max_pooling           the largest value at each position
        sparse_matching       the best channel only, one to one
    L = CE + weight * sum_i 2^(i - n + 1) d_p(BN(s_i), max(t'_i, m'_i)) / N        d_p and margins m as in `overhaul`

The BatchNorm is the only trainable layer. The student's maps are matched before that BatchNorm. The matching is computed at the
first step of every `refresh_epochs`-th epoch, from the costs of all batches of the previous epoch. In the first epoch, it is
computed after 1, 2, 4, 8, ... batches, from all batches so far. Margins are reduced like the maps, except for absolute max
pooling, which takes their mean, as in the authors' code.

Deviations: costs are collected during training instead of in separate passes, and are not rounded to integers. If the number of
the teacher's channels is not a multiple of the student's, the authors drop the last ones; here the assignment leaves out the
worst ones. Maps of different sizes are average-pooled to the smaller size.

Verified against the authors' code: costs, matchings, reductions, loss and gradients for all four reductions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.counters import Counters
from stillhouse.distill.maps import MapMethod, meeting_size, shrink
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, Unsuitable, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.methods.overhaul import batch_norm_margin, data_margin, norm_weights, partial_l2, shrunk
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import Integers, LogUniform


def channel_margins(maps: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """The margins [K] of the BatchNorm's weights, once per sample: [B, K]."""
    margins: Tensor = batch_norm_margin(gamma, beta)
    return margins.expand(len(maps), -1)


def matching_cost(student: Tensor, teacher: Tensor) -> Tensor:
    """2 - 2 cos of each student channel and each teacher channel, the mean over the batch: [Ks, Kt].

    Args:
        student: [B, Ks, H, W].
        teacher: [B, Kt, H, W].
    """
    ours, theirs = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    cost: Tensor = 2 - 2 * torch.einsum("bsp,btp->st", ours, theirs) / len(student)
    return cost


def match_channels(cost: Tensor, groups: int) -> Tensor:
    """The teacher channels assigned to each student channel, [groups, Ks] int64: smallest total cost, no channel twice.

    Args:
        cost: [Ks, Kt], Kt >= groups * Ks.
        groups: teacher channels per student channel.
    """
    # Here, since it takes half a second, which a list of methods need not wait for.
    from scipy.optimize import linear_sum_assignment

    finite = torch.nan_to_num(cost, nan=4.0).double().cpu().numpy()
    _, channels = linear_sum_assignment(torch.from_numpy(finite).repeat(groups, 1).numpy())
    return torch.from_numpy(channels).reshape(groups, len(cost)).to(cost.device)


def reduce_channels(maps: Tensor, matching: Tensor, reducer: str, draws: Tensor | None = None) -> Tensor:
    """Reduces teacher maps [B, Kt, H, W] to the student's channels, [B, Ks, H, W].

    Args:
        matching: [groups, Ks], as from `match_channels`.
        draws: for random_drop, the drawn group, [B, Ks, H, W] or a shape that broadcasts to it.
    """
    grouped: Tensor = maps[:, matching.flatten()].unflatten(1, matching.shape)
    if reducer == "max_pooling":
        return grouped.amax(dim=1)
    if reducer == "absolute_max_pooling":
        chosen = grouped.abs().argmax(dim=1, keepdim=True)
    elif reducer == "random_drop":
        assert draws is not None, "random_drop needs draws"
        chosen = draws.expand_as(grouped[:, 0]).unsqueeze(1)
    else:
        return grouped[:, 0]
    return grouped.gather(1, chosen).squeeze(1)


class Matching(Counters):
    """The BatchNorm of one student map and the matching of its channels, which is stored in checkpoints.

    Attributes:
        matching: [groups, Ks] int64, as from `match_channels`.
        cost: [Ks, Kt], the sum of the costs of the batches since the last matching that count for the next.
        first_cost: [Ks, Kt], the same for the batches of the first epoch.
        batches: number of batches in the first epoch.
        first: the first epoch; -1 before it.
        refreshed: the epoch in which the matching was computed last.
    """

    matching: Tensor
    cost: Tensor
    first_cost: Tensor

    def __init__(self, num_student: int, num_teacher: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_student)
        self.register_buffer("matching", torch.zeros(groups, num_student, dtype=torch.int64))
        for name in ("cost", "first_cost"):
            self.register_buffer(name, torch.zeros(num_student, num_teacher))
        for name, value in (("batches", 0), ("first", -1), ("refreshed", -1)):
            self.register_count(name, value)

    @torch.no_grad()
    def observe(self, student: Tensor, teacher: Tensor, epoch: int, refresh_epochs: int) -> None:
        """Collects the batch's costs in the last epoch of a period; computes the matching at the first step of the next.

        In the first epoch, the matching is computed whenever the number of batches is a power of two.
        """
        if self.count("first") < 0:
            self.set_count("first", epoch)
            self.set_count("refreshed", epoch)
        if epoch - self.count("refreshed") >= refresh_epochs:
            self.matching.copy_(match_channels(self.cost, len(self.matching)))
            self.cost.zero_()
            self.set_count("refreshed", epoch)
        is_first, counts = epoch == self.count("first"), epoch - self.count("refreshed") == refresh_epochs - 1
        if not (is_first or counts):
            return
        cost = matching_cost(student, teacher)
        if counts:
            self.cost.add_(cost)
        if is_first:
            self.first_cost.add_(cost)
            self.set_count("batches", self.count("batches") + 1)
            if self.count("batches").bit_count() == 1:
                self.matching.copy_(match_channels(self.first_cost, len(self.matching)))


@dataclass(frozen=True, kw_only=True)
class MGD(MapMethod):
    """Each channel of the student learns from the channels of the teacher that are most similar to it."""

    card: ClassVar[Card] = Card(
        title="Matching Guided Distillation",
        arxiv="2008.09958",
        family="F",
        equations="matching by linear assignment, all four reductions; margins and partial distance of arXiv 1904.01866",
        deviations="costs are collected during training; the assignment chooses which surplus channels to leave out",
        suggested="feature_weight 0.0001 on ImageNet; up to 0.001 on small images",
        interactions="needs a teacher with at least as many channels as the student in every matched layer",
    )
    revision: ClassVar[int] = 2
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    before_relu: ClassVar[bool] = True

    feature_weight: float = hyperparameter(
        0.0001,
        minimum=0,
        prior=LogUniform(0.00001, 0.01),
        help="weight of the feature loss, 1 / loss factor in the authors' code",
    )
    reducer: Literal["absolute_max_pooling", "random_drop", "max_pooling", "sparse_matching"] = hyperparameter(
        "absolute_max_pooling",
        choices=("absolute_max_pooling", "random_drop", "max_pooling", "sparse_matching"),
        help="how the teacher channels of a student channel are reduced to one",
    )
    refresh_epochs: int = hyperparameter(2, minimum=1, prior=Integers(1, 5), help="number of epochs between two matchings")
    margins: Literal["batch_norm", "data"] = hyperparameter(
        "batch_norm",
        choices=("batch_norm", "data"),
        help="source of the margins: the teacher's BatchNorm, or data: the mean negative value of the batch",
    )

    @property
    def active(self) -> bool:
        return self.feature_weight > 0

    def pairs(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """{student's layer: teacher's layer}.

        Raises:
            Unsuitable: a layer of the student has more channels than the paired layer of the teacher.
        """
        pairs = super().pairs(teacher, student)
        for of_student, of_teacher in pairs.items():
            ours, theirs = student.shape(of_student)[0], teacher.shape(of_teacher)[0]
            if ours > theirs:
                raise Unsuitable(
                    f"needs at least as many channels in the teacher's layer '{of_teacher}' ({theirs}) as in the student's "
                    f"layer '{of_student}' ({ours}); name other layers or use a narrower student",
                    names=[of_teacher, of_student],
                )
        return pairs

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        needed = {}
        for of_student, of_teacher in self.pairs(teacher, student).items():
            height, width = meeting_size(student.shape(of_student), teacher.shape(of_teacher))
            needed[f"maps.{of_student}"] = reduced(shrunk, of_teacher, height=height, width=width)
            if self.margins == "batch_norm":
                weights = norm_weights(teacher, of_teacher, remedy="set margins to data")
                needed[f"margins.{of_student}"] = reduced(channel_margins, of_teacher, weights=weights)
        return needed

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.active:
            return {}
        assert setup.teacher is not None, "features come from a teacher"
        matchings = []
        for of_student, of_teacher in self.pairs(setup.teacher, setup.student).items():
            ours, theirs = setup.student.shape(of_student)[0], setup.teacher.shape(of_teacher)[0]
            groups = 1 if self.reducer == "sparse_matching" else theirs // ours
            matchings.append(Matching(ours, theirs, groups))
        return {"matchings": Helper(module=nn.ModuleList(matchings))}

    @property
    def needs_whole_batch(self) -> bool:
        """True, since channels are matched over the whole batch."""
        return bool(self.feature_weight)

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        matchings = step.modules["matchings"]
        assert isinstance(matchings, nn.ModuleList)
        losses = []
        for depth, (layer, features) in enumerate(step.student_features.items()):
            matching, teacher = matchings[depth], step.teacher[f"maps.{layer}"]
            assert isinstance(matching, Matching)
            features = shrink(features, *teacher.shape[2:])
            matching.observe(features, teacher, step.epoch, self.refresh_epochs)
            margins = (
                step.teacher[f"margins.{layer}"][:1, :, None, None] if self.margins == "batch_norm" else data_margin(teacher)
            )
            target = self._target(teacher, margins, matching.matching, step)
            losses.append(partial_l2(matching.norm(features), target) / 2 ** (len(matchings) - 1 - depth))
        return terms | {"features": self.feature_weight * torch.stack(losses).sum()}

    def _target(self, teacher: Tensor, margins: Tensor, matching: Tensor, step: Step) -> Tensor:
        groups, channels = matching.shape
        if self.reducer == "absolute_max_pooling":
            reduced_margins = margins[:, matching.flatten()].unflatten(1, matching.shape).mean(dim=1)
            return torch.maximum(reduce_channels(teacher, matching, self.reducer), reduced_margins)

        def draws(*shape: int) -> Tensor | None:
            if self.reducer != "random_drop":
                return None
            return step.integers(groups, *shape)

        maps = reduce_channels(teacher, matching, self.reducer, draws(len(teacher), channels, *teacher.shape[2:]))
        return torch.maximum(maps, reduce_channels(margins, matching, self.reducer, draws(1, channels, 1, 1)))
