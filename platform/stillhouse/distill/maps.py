"""What methods on feature maps share: which maps of two networks meet, at which size, through which layer.

B batch, K channels, H and W height and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Helper, Method, MethodError, Setup, Unsuitable, hyperparameter
from stillhouse.models.architecture import Architecture
from stillhouse.models.layers import initialise_convolutions


@dataclass(frozen=True, kw_only=True)
class MapMethod(Method):
    """Base class of methods that compare pairs of feature maps. Does nothing by itself."""

    before_relu: ClassVar[bool] = False
    """Whether the maps in front of the stages' ReLU are meant, by default."""
    last_alone: ClassVar[bool] = False
    """Whether only the last pair is compared, unless layers are named."""
    relates_pairs: ClassVar[bool] = False
    """Whether each pair is related to the next, so that there must be two."""

    teacher_maps: str | None = hyperparameter(None, help="the teacher's layers, as in 'layer2, layer3'; by default its stages")
    student_maps: str | None = hyperparameter(None, help="the student's layers, shallow to deep; by default its stages")

    @property
    def active(self) -> bool:
        """False when a weight of 0 switches the method off: nothing is asked of the teacher then."""
        return True

    def pairs(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """{student's layer: teacher's layer}, shallow to deep; see `paired_maps`.

        Raises:
            Unsuitable: there is one pair where two are needed.
        """
        pairs = paired_maps(
            teacher, student, teacher_maps=self.teacher_maps, student_maps=self.student_maps, before_relu=self.before_relu
        )
        if self.relates_pairs and len(pairs) < 2:
            raise Unsuitable(
                f"needs two feature maps each of {teacher.name} and {student.name}; name them or use larger images"
            )
        if self.last_alone and not (self.teacher_maps or self.student_maps):
            return dict([pairs.popitem()])
        return pairs

    def connectors(self, setup: Setup, connect: Callable[[int, int], nn.Module]) -> dict[str, Helper]:
        """The helper `connectors`: what `connect` makes of the student's and the teacher's channels, for each pair."""
        if not self.active:
            return {}
        assert setup.teacher is not None, "feature maps come from a teacher"
        pairs = self.pairs(setup.teacher, setup.student).items()
        layers = (connect(setup.student.shape(ours)[0], setup.teacher.shape(theirs)[0]) for ours, theirs in pairs)
        return {"connectors": Helper(module=Connectors(layers))}

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        if not self.active:
            return ()
        assert teacher is not None, "feature maps come from a teacher"
        return list(self.pairs(teacher, student))


def paired_maps(
    teacher: Architecture,
    student: Architecture,
    *,
    teacher_maps: str | None = None,
    student_maps: str | None = None,
    before_relu: bool = False,
) -> dict[str, str]:
    """{student's layer: teacher's layer} in the order in which the student runs, paired from the last backwards.

    Maps of one pixel are left out of what is chosen by default.

    Args:
        teacher_maps: names separated by commas; None takes the stages.
        student_maps: the same for the student.
        before_relu: takes the stages' maps in front of their ReLU, of a network that has layers that give them.

    Raises:
        Unsuitable: the student has no feature maps.
        MethodError: the teacher has none, a named layer gives no map, or the lists differ in length.
        UnknownLayer: a network has no layer of that name.
    """
    of_student, of_teacher = (
        _chosen(network, named, before_relu=before_relu)
        for network, named in ((student, student_maps), (teacher, teacher_maps))
    )
    if not of_student:
        raise Unsuitable(f"needs feature maps, student {student.name} has none; use a convolutional student")
    if not of_teacher:
        raise MethodError(f"needs feature maps, teacher {teacher.name} has none; use a convolutional teacher")
    if teacher_maps and student_maps and len(of_teacher) != len(of_student):
        raise MethodError(f"student_maps must name as many layers as teacher_maps, got {len(of_student)} and {len(of_teacher)}")
    pairs = zip(reversed(of_student), reversed(of_teacher), strict=False)
    runs = list(student.shapes)
    return dict(sorted(pairs, key=lambda pair: runs.index(pair[0])))


def meeting_size(student: Sequence[int], teacher: Sequence[int]) -> tuple[int, int]:
    """The smaller height and the smaller width of two shapes (K, H, W)."""
    return min(student[1], teacher[1]), min(student[2], teacher[2])


def shrink(maps: Tensor, height: int, width: int) -> Tensor:
    """Averages maps [B, K, H, W] down to [B, K, height, width]."""
    if maps.shape[2:] == (height, width):
        return maps
    if maps.shape[2] % height == 0 and maps.shape[3] % width == 0:
        # Unlike adaptive pooling, this has a deterministic backward pass on CUDA.
        return F.avg_pool2d(maps, (maps.shape[2] // height, maps.shape[3] // width))
    return F.adaptive_avg_pool2d(maps, (height, width))


def make_connector(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """A 1x1 convolution without bias and a BatchNorm: the student's map in the teacher's number of channels."""
    connector = nn.Sequential(nn.Conv2d(num_inputs, num_outputs, 1, bias=False), nn.BatchNorm2d(num_outputs))
    initialise_convolutions(connector)
    return connector


def widen(num_inputs: int, num_outputs: int) -> nn.Module:
    """A 1x1 convolution where the numbers of channels differ, nothing where they are equal."""
    return nn.Identity() if num_inputs == num_outputs else nn.Conv2d(num_inputs, num_outputs, 1)


class Connectors(nn.ModuleList):
    """One layer for each pair of maps, in the order of `MapMethod.pairs`."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [connector(features) for connector, features in zip(self, maps, strict=True)]


def _chosen(network: Architecture, named: str | None, *, before_relu: bool) -> list[str]:
    if named:
        layers = [name.strip() for name in named.split(",")]
        for layer in layers:
            if len(network.shape(layer)) != 3:
                got = f"layer '{layer}' of {network.name} returns {network.shape(layer)}"
                raise MethodError(f"needs feature maps, {got}", names=[layer])
        return layers
    stages = network.preactivations if before_relu and network.preactivations else network.stages
    shapes = {layer: network.shape(layer) for layer in stages}
    return [layer for layer, shape in shapes.items() if len(shape) == 3 and shape[1] * shape[2] > 1]
