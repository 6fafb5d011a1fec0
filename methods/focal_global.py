"""Focal and Global Knowledge Distillation for Detectors (FGD, Yang et al. 2022, arXiv 2111.11837).

On each map of the neck, F the teacher's and f(F_s) the student's through a 1x1 convolution:

    A_S = H W softmax(mean_k |F_k| / T),   A_C = K softmax(mean_hw |F| / T)
    L_feature = a sum M S A_S A_C (F - f(F_s))^2 + b sum (1 - M) S A_S A_C (F - f(F_s))^2
    L_attention = c (|A_S,t - A_S,s|_1 + |A_C,t - A_C,s|_1)
    L_global = l sum (R_t(F) - R_s(f(F_s)))^2,  R(F) = F + W_2 ReLU(LN(W_1 sum_j softmax_j(W_k F) F_j))

M is 1 in places that a true box covers; S is 1 over the number of places of the smallest box there, and 1 over the number of
places without a box in the background. Sums over places and channels, means over the batch and sums over maps; in L_attention
means over places or channels. T is 0.5.

Deviations: R_t and R_s, two blocks of attention, learn with the student, as in the authors' code. M comes from the true boxes
of the view, which the student has, so that the teacher stores only its maps.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stillhouse.distill.maps import Connectors, MapMethod
from stillhouse.distill.method import Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def attentions(maps: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A_S [B, H, W] and A_C [B, K] of maps [B, K, H, W]; their means over places and over channels are 1."""
    _, channels, height, width = maps.shape
    size = maps.abs()
    places = (size.mean(1).flatten(1) / temperature).softmax(1) * height * width
    return places.unflatten(1, (height, width)), (size.mean((2, 3)) / temperature).softmax(1) * channels


def place_weights(targets: Tensor, image: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """M S and (1 - M) S, [B, H, W] each, on a map of `size` of an image of height and width `image`.

    Args:
        targets: [B, M, 5]; rows without a box have the class -1.
    """
    height, width = size
    scale = targets.new_tensor([width / image[1], height / image[0]] * 2)
    scaled = targets[..., :4] * scale
    low, high = scaled[..., :2].floor(), scaled[..., 2:].ceil()
    rows, columns = (torch.arange(length, device=targets.device) for length in size)
    in_rows = (rows >= low[..., 1:]) & (rows <= high[..., 1:])
    in_columns = (columns >= low[..., :1]) & (columns <= high[..., :1])
    real = (targets[..., 4] >= 0)[..., None, None]
    inside = in_rows.unsqueeze(3) & in_columns.unsqueeze(2) & real
    share = 1 / (high - low + 1).prod(-1)
    covered = (inside * share[..., None, None]).amax(1)
    free = (covered == 0).to(covered.dtype)
    return covered, free / free.sum((1, 2), keepdim=True).clamp(min=1)


class Relation(nn.Module):
    """R: each place of a map [B, K, H, W] with what the whole map says, GcBlock of 1904.11492."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(1, channels // 2)
        self.key = nn.Conv2d(channels, 1, 1)
        self.change = nn.Sequential(
            nn.Conv2d(channels, middle, 1), nn.LayerNorm([middle, 1, 1]), nn.ReLU(), nn.Conv2d(middle, channels, 1)
        )
        last = self.change[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, maps: Tensor) -> Tensor:
        weights = self.key(maps).flatten(2).softmax(2)
        context = (maps.flatten(2) * weights).sum(2)[..., None, None]
        changed: Tensor = maps + self.change(context)
        return changed


class Relations(nn.ModuleList):
    """A `Relation` for each map."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [block(features) for block, features in zip(self, maps, strict=True)]


@dataclass(frozen=True, kw_only=True)
class FocalGlobal(MapMethod):
    """The student's maps follow the teacher's: on objects and on the background apart, and as a whole."""

    card: ClassVar[Card] = Card(
        title="Focal and Global Knowledge Distillation for Detectors",
        arxiv="2111.11837",
        family="F",
        equations="the focal and the global distillation of section 3",
        deviations="the blocks of attention learn with the student, as in the authors' code",
        suggested="object_weight 5e-5, background_weight 2.5e-5, attention_weight 5e-5, global_weight 5e-7, temperature 0.5 "
        "(the paper's two-stage detectors on COCO with 256 channels); small images and few channels bear larger weights",
        interactions="teacher and student must have the same stride and as many stages",
    )
    tasks: ClassVar[tuple[str, ...]] = ("detection",)

    object_weight: float = hyperparameter(5e-5, minimum=0, prior=LogUniform(1e-5, 1e-2), help="a, weight of places on objects")
    background_weight: float = hyperparameter(2.5e-5, minimum=0, prior=LogUniform(5e-6, 5e-3), help="b, weight of other places")
    attention_weight: float = hyperparameter(5e-5, minimum=0, help="c, weight of the attention itself")
    global_weight: float = hyperparameter(5e-7, minimum=0, prior=LogUniform(1e-7, 1e-4), help="l, weight of the relations")
    temperature: float = hyperparameter(0.5, above=0, help="T of the attention")

    @property
    def active(self) -> bool:
        return max(self.object_weight, self.background_weight, self.attention_weight, self.global_weight) > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        pairs = self.pairs_of_equal_size(teacher, student) if self.active else {}
        return {f"map.{ours}": feature(theirs) for ours, theirs in pairs.items()}

    def modules(self, setup: Setup) -> dict[str, Helper]:
        helpers = self.connectors(setup, lambda ours, theirs: nn.Conv2d(ours, theirs, 1))
        if not self.active or not self.global_weight:
            return helpers
        assert setup.teacher is not None, "feature maps come from a teacher"
        channels = [setup.teacher.shape(layer)[0] for layer in self.pairs(setup.teacher, setup.student).values()]
        for name in ("relations", "teacher_relations"):
            helpers[name] = Helper(module=Relations(Relation(each) for each in channels))
        return helpers

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        layers = list(step.student_features)
        connectors = step.modules["connectors"]
        assert isinstance(connectors, Connectors)
        ours = connectors([step.student_features[layer] for layer in layers])
        theirs = [step.teacher[f"map.{layer}"] for layer in layers]
        image = (step.images.shape[2], step.images.shape[3])
        found = [self._focal(mine, other, step.targets, image) for mine, other in zip(ours, theirs, strict=True)]
        for place, (name, weight) in enumerate(
            (("objects", self.object_weight), ("background", self.background_weight), ("attention", self.attention_weight))
        ):
            if weight:
                terms[name] = weight * torch.stack([each[place] for each in found]).sum()
        if self.global_weight:
            related = zip(step.modules["relations"](ours), step.modules["teacher_relations"](theirs), strict=True)
            sums = torch.stack([(mine - other).square().sum() / len(mine) for mine, other in related])
            terms["global"] = self.global_weight * sums.sum()
        return terms

    def _focal(self, ours: Tensor, theirs: Tensor, targets: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The sums over one map, without weights, the means over the batch: objects, background, attention."""
        places, channels = attentions(theirs, self.temperature)
        own_places, own_channels = attentions(ours, self.temperature)
        weighted = (theirs - ours).square() * places.unsqueeze(1) * channels[..., None, None]
        on_objects, beside = place_weights(targets, image, (ours.shape[2], ours.shape[3]))
        objects, background = (
            (weighted * mask.unsqueeze(1)).sum() / len(ours) for mask in (on_objects.to(ours.dtype), beside.to(ours.dtype))
        )
        attention = (places - own_places).abs().mean() + (channels - own_channels).abs().mean()
        return objects, background, attention
