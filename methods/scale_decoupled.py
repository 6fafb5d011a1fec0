"""Scale Decoupled Distillation (Wei, Luo, Luo 2024, arXiv 2403.13512): SDD, with the losses of DKD or of NKD.

    z_cell = W mean over the cell of the last map + b       the logits that the classifier gives to a part of the image
    L = CE + w(t) mean over samples and cells of a_cell (alpha target(z_cell) + beta others(z_cell))
    a_cell = 2 if the teacher is right on the cell and wrong on the whole image, or the other way round; 1 otherwise

The last map is averaged over the cells of grids of 1 x 1 (the whole image), 2 x 2 and 4 x 4. Where a network's logits are a
linear layer of the mean over the positions of its last map, that layer gives logits to each cell, too. The teacher's logits
of all cells are computed at the teacher. Cells where the whole image and a part of it lead to different answers weigh
double.

`base: decoupled`: target and others are the terms of DKD (see `decoupled`) at temperature T; `normalized`: those of NKD
(see `normalized_kd`), whose target term has temperature 1. w(t) rises linearly from 0 to 1 (in the authors' code over 20 of
240 epochs).

Grids with cells smaller than a pixel of either map are left out; for the whole image alone, the method is `decoupled`.

Deviations: w rises with every step, not with every epoch. The authors' code sets the whole loss to 0 where it is not
finite; here logarithms are finite, and what is not finite is reported. It pools 4 x 4 cells to 2 x 2, which differs where 4
does not divide the map. The whole image has the network's own logits. The target of a mixed sample is the class with the
larger share. The paper's form with plain KD is not part of this file.

A step costs 1.2 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

The paper itself was not available. Verified against the formulas of the authors' code by hand, against `decoupled` for the
whole image alone, and by the mean of a grid's cells, which is the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import shrink
from stillhouse.distill.method import Card, Helper, Method, MethodError, Setup, Step, Unsuitable, hyperparameter
from stillhouse.distill.schedule import risen
from stillhouse.knowledge.kinds import Knowledge, logits, reduced
from stillhouse.methods.decoupled import target_log_odds, without_target
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def class_cells(maps: Tensor, weight: Tensor, bias: Tensor, *, grids: str) -> Tensor:
    """The logits W mean + b of the cells of square grids, [B, cells, C], row by row and grid by grid.

    Args:
        maps: [B, K, H, W], whose mean over all positions the classifier reads.
        weight: W, [C, K].
        bias: b, [C].
        grids: cells along a side, as in "2,4".
    """
    cells = [shrink(maps, side, side).flatten(2) for side in map(int, grids.split(","))]
    return F.linear(torch.cat(cells, dim=2).mT, weight, bias)


def conflict_factors(teacher_logits: Tensor, labels: Tensor, factor: float) -> Tensor:
    """`factor` for the cells [B, N] on which the teacher is right or wrong unlike on the first one, 1 for the others.

    Args:
        teacher_logits: [B, N, C], the whole image first.
        labels: [B] int64.
    """
    right = teacher_logits.argmax(dim=2) == labels.unsqueeze(1)
    return torch.where(right == right[:, :1], 1.0, factor).to(teacher_logits.dtype)


def cell_losses(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, base: str) -> tuple[Tensor, Tensor]:
    """The two terms of each row, [R] and [R]: the sample's own class, and the others among themselves.

    Args:
        student: logits, [R, C].
        teacher: logits, [R, C].
        labels: [R] int64.
        temperature: T > 0.
        base: "decoupled" for the divergences of DKD, "normalized" for the cross-entropies of NKD.
    """
    others = [without_target(logits, labels) / temperature for logits in (student, teacher)]
    if base == "normalized":
        own = [F.log_softmax(logits, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1) for logits in (student, teacher)]
        entropies = -(F.softmax(others[1], dim=1) * F.log_softmax(others[0], dim=1)).sum(dim=1)
        return -own[1].exp() * own[0], temperature**2 * entropies
    odds = [target_log_odds(logits / temperature, labels) for logits in (student, teacher)]
    ranked = [F.log_softmax(logits, dim=1) for logits in others]
    own_class, other_classes = (
        temperature**2 * F.kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(dim=1)
        for of_student, of_teacher in (odds, ranked)
    )
    return own_class, other_classes


class ClassMap(nn.Module):
    """Records which layer of the student is its classifier, and the grids; has no weights."""

    def __init__(self, classifier: str, grids: str) -> None:
        super().__init__()
        self.classifier, self.grids = classifier, grids

    def forward(self, student: nn.Module, maps: Tensor) -> Tensor:
        """The logits of the cells, [B, cells, C], with the weights of the student's classifier."""
        layer = student.get_submodule(self.classifier)
        return class_cells(maps, layer.get_parameter("weight"), layer.get_parameter("bias"), grids=self.grids)


@dataclass(frozen=True, kw_only=True)
class ScaleDecoupled(Method):
    """The teacher's logits for parts of the image are learned as well as those for the whole."""

    card: ClassVar[Card] = Card(
        title="Scale Decoupled Distillation",
        arxiv="2403.13512",
        family="L",
        equations="logits of cells at several scales with the losses of DKD or NKD; double weight of cells that conflict",
        deviations="the warm-up advances with every step; a loss that is not finite is reported (authors' code: set to 0)",
        suggested="grids 1, 2, 4; target_weight 1, others_weight 8, temperature 4 as in DKD; for base normalized others_weight "
        "1.5, temperature 1",
        interactions="needs networks that end in the mean over positions of their last map and one linear layer",
    )

    target_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.25, 4), help="alpha, weight of the term of the sample's class"
    )
    others_weight: float = hyperparameter(
        8.0, minimum=0, prior=LogUniform(0.5, 16), help="beta, weight of the term of the other classes"
    )
    temperature: float = hyperparameter(4.0, above=0, prior=LogUniform(1, 10), help="T, softens both outputs")
    base: Literal["decoupled", "normalized"] = hyperparameter(
        "decoupled", choices=("decoupled", "normalized"), help="the losses of each cell: those of DKD or of NKD"
    )
    grids: tuple[int, ...] = hyperparameter(
        (1, 2, 4), help="cells along a side of each grid; 1, the whole image, is always used"
    )
    conflict_factor: float = hyperparameter(
        2.0, minimum=0, prior=LogUniform(1, 4), help="a, of cells where the teacher is right unlike on the whole image"
    )
    warmup_fraction: float = hyperparameter(
        1 / 12,
        minimum=0,
        maximum=1,
        help="share of the training over which both weights rise from 0; 20 of 240 epochs in the authors' code",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.grids or min(self.grids) < 1 or len(set(self.grids)) < len(self.grids):
            raise ValueError(f"grids must list numbers of cells >= 1, none twice, got {list(self.grids)}")

    @property
    def active(self) -> bool:
        """Whether the loss reads the teacher's outputs."""
        return bool(self.target_weight or self.others_weight)

    def parts(self, teacher: Architecture | None, student: Architecture) -> str:
        """The grids with more than one cell that fit both last maps, as in "2,4"; empty if only the whole image is used.

        Raises:
            Unsuitable: the student has no class map, or its map is too small for any of the grids.
            MethodError: the teacher has none.
        """
        wanted = [side for side in self.grids if side > 1]
        if not wanted or not self.active:
            return ""
        maps = [student.shape(class_map(student)[0])]
        if teacher is not None:
            maps.append(teacher.shape(class_map(teacher, whose="teacher")[0]))
        smallest = min(side for shape in maps for side in shape[1:])
        fitting = [side for side in wanted if side <= smallest]
        if not fitting:
            raise Unsuitable(
                f"needs last maps of at least {min(wanted)} x {min(wanted)} pixels for grids {list(self.grids)}, student "
                f"{student.name} has {' x '.join(map(str, maps[0][1:]))}; use larger images or set grids to [1]"
            )
        return ",".join(map(str, fitting))

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        needed = {"logits": logits()}
        if grids := self.parts(teacher, student):
            layer, classifier = class_map(teacher, whose="teacher")
            weights = (f"{classifier}.weight", f"{classifier}.bias")
            needed["cells"] = reduced(class_cells, layer, weights=weights, grids=grids)
        return needed

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return [class_map(student)[0]] if self.parts(teacher, student) else []

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not (grids := self.parts(setup.teacher, setup.student)):
            return {}
        return {"class_map": Helper(module=ClassMap(class_map(setup.student)[1], grids), trainable=False)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        student, teacher = step.logits.unsqueeze(1), step.teacher["logits"].unsqueeze(1)
        if step.student_features:
            (maps,) = step.student_features.values()
            student = torch.cat([student, step.modules["class_map"](step.student, maps)], dim=1)
            teacher = torch.cat([teacher, step.teacher["cells"]], dim=1)
        labels = step.targets if step.targets.ndim == 1 else step.targets.argmax(dim=1)
        factors = conflict_factors(teacher, labels, self.conflict_factor).flatten()
        repeated = labels.unsqueeze(1).expand(student.shape[:2]).flatten()
        losses = cell_losses(student.flatten(0, 1), teacher.flatten(0, 1), repeated, self.temperature, self.base)
        warm = risen(step.progress, self.warmup_fraction)
        for name, weight, of_cells in zip(
            ("target_class", "other_classes"), (self.target_weight, self.others_weight), losses, strict=True
        ):
            if weight:
                terms[name] = warm * weight * (factors * of_cells).mean()
        return terms


def class_map(network: Architecture, *, whose: Literal["student", "teacher"] = "student") -> tuple[str, str]:
    """The layer of the last map, whose mean is the embedding, and the classifier, a linear layer of the embedding.

    Raises:
        Unsuitable: the student does not end in this way.
        MethodError: the teacher does not.
    """
    order = list(network.shapes)
    if network.pooled in network.shapes:
        assert network.pooled is not None
        (channels,) = network.shape(network.pooled)
        place = order.index(network.pooled)
        # A flattened or pooled map may come between the map and the embedding, dropout between that and the classifier.
        before = next((name for name in reversed(order[:place]) if not _is_point(network.shape(name), channels)), None)
        after = next((name for name in order[place + 1 :] if network.shape(name) == (network.num_classes,)), None)
        between = order[place + 1 : order.index(after)] if after is not None else []
        straight = all(network.shape(name) == (channels,) for name in between)
        if before is not None and after is not None and straight and _is_map(network.shape(before), channels):
            return before, after
    kind = Unsuitable if whose == "student" else MethodError
    raise kind(f"needs a linear layer on the mean over positions of the last map, {whose} {network.name} has another end")


def _is_point(shape: tuple[int, ...], channels: int) -> bool:
    return shape in ((channels,), (channels, 1, 1))


def _is_map(shape: tuple[int, ...], channels: int) -> bool:
    return len(shape) == 3 and shape[0] == channels
