"""Base class and helpers of methods on feature maps: which maps are compared, at which size, through which layer.

B batch, K channels, H and W height and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Helper, Method, MethodError, Setup, Unsuitable, hyperparameter
from stillhouse.models.architecture import Architecture
from stillhouse.models.layers import initialise_convolutions


@dataclass(frozen=True, kw_only=True)
class MapMethod(Method):
    """Base class of methods that compare pairs of feature maps. Does nothing by itself."""

    before_relu: ClassVar[bool] = False
    """Whether the default maps of both networks are those before the stages' ReLU."""
    accepts_embeddings: ClassVar[bool] = False
    """Whether named layers may also return embeddings, [B, K]."""
    last_pair_only: ClassVar[bool] = False
    """Whether only the last pair of maps is compared, unless layers are named."""
    relates_pairs: ClassVar[bool] = False
    """Whether each pair is related to the next one, so that at least two are needed."""

    teacher_maps: str | None = hyperparameter(None, help="the teacher's layers, as in 'layer2, layer3'; by default its stages")
    student_maps: str | None = hyperparameter(None, help="the student's layers, shallow to deep; by default its stages")

    @property
    def active(self) -> bool:
        """False if the weight of the method's terms is 0; the method then needs no teacher."""
        return True

    @property
    def teacher_before_relu(self) -> bool:
        """Whether the teacher's default maps are those before the stages' ReLU."""
        return self.before_relu

    @property
    def student_before_relu(self) -> bool:
        """Whether the student's default maps are those before the stages' ReLU."""
        return self.before_relu

    def pairs_of_equal_size(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """As `pairs`, for losses that compare maps place by place.

        Raises:
            MethodError: the height or width of a pair differs.
        """
        pairs = self.pairs(teacher, student)
        for ours, theirs in pairs.items():
            if student.shape(ours)[1:] != teacher.shape(theirs)[1:]:
                raise MethodError(
                    f"the maps {ours} of {student.name} and {theirs} of {teacher.name} differ in size; "
                    "give both the same stride and as many stages"
                )
        return pairs

    def pairs(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """{student's layer: teacher's layer}, shallow to deep; see `paired_maps`.

        Raises:
            Unsuitable: two pairs are needed and there is only one.
        """
        pairs = paired_maps(
            teacher,
            student,
            teacher_maps=self.teacher_maps,
            student_maps=self.student_maps,
            teacher_before_relu=self.teacher_before_relu,
            student_before_relu=self.student_before_relu,
            embeddings=self.accepts_embeddings,
        )
        if self.relates_pairs and len(pairs) < 2:
            raise Unsuitable(
                f"needs two feature maps each of {teacher.name} and {student.name}; name them or use larger images"
            )
        if self.last_pair_only and not (self.teacher_maps or self.student_maps):
            return dict([pairs.popitem()])
        return pairs

    def connectors(self, setup: Setup, connect: Callable[[int, int], nn.Module]) -> dict[str, Helper]:
        """The helper `connectors`: for each pair, the layer that `connect` makes of the numbers of channels of both maps."""
        if not self.active:
            return {}
        assert setup.teacher is not None, "feature maps come from a teacher"
        pairs = self.pairs(setup.teacher, setup.student).items()
        layers = (self._connector(setup.student, setup.teacher, ours, theirs, connect) for ours, theirs in pairs)
        return {"connectors": Helper(module=Connectors(layers))}

    def _connector(
        self, student: Architecture, teacher: Architecture, ours: str, theirs: str, connect: Callable[[int, int], nn.Module]
    ) -> nn.Module:
        return connect(student.shape(ours)[0], teacher.shape(theirs)[0])

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        if not self.active:
            return ()
        assert teacher is not None, "feature maps come from a teacher"
        return list(self.pairs(teacher, student))


@dataclass(frozen=True, kw_only=True)
class ChannelMethod(MapMethod):
    """Base class of methods that compare a student's maps with the teacher's, channel by channel.

    Where the channels are others, a layer maps the student's to the teacher's. A student that began as its teacher has some of
    the teacher's own channels: it is compared with these, without a layer between.
    """

    regressor: Literal["where_needed", "always"] = hyperparameter(
        "where_needed",
        choices=("where_needed", "always"),
        added_later=True,
        help="a trained layer between the maps; where_needed: not in a student that began as its teacher (`from`)",
    )

    def _connector(
        self, student: Architecture, teacher: Architecture, ours: str, theirs: str, connect: Callable[[int, int], nn.Module]
    ) -> nn.Module:
        channels = None if self.regressor == "always" else known_channels(student, teacher, ours, theirs)
        return super()._connector(student, teacher, ours, theirs, connect) if channels is None else KnownChannels(channels)


def paired_maps(
    teacher: Architecture,
    student: Architecture,
    *,
    teacher_maps: str | None = None,
    student_maps: str | None = None,
    teacher_before_relu: bool = False,
    student_before_relu: bool = False,
    embeddings: bool = False,
) -> dict[str, str]:
    """{student's layer: teacher's layer} in the order of the student's layers, paired from the last backwards.

    Of a student that began as its teacher, whose layers have the teacher's names, a list that is given is also that of the
    other network. Maps of one pixel are not among the defaults.

    Args:
        teacher_maps: names of layers, separated by commas; None for the stages.
        student_maps: the same for the student.
        teacher_before_relu: the teacher's default is its stages' maps before their ReLU, if it has layers that return them.
        student_before_relu: the same for the student.
        embeddings: whether named layers may also return embeddings, (K,).

    Raises:
        Unsuitable: the student has no feature maps.
        MethodError: the teacher has none, a named layer returns no map, or the lists differ in length.
        UnknownLayer: a network has no layer of that name.
    """
    if student.kept_channels is not None and bool(teacher_maps) != bool(student_maps):
        given = teacher_maps or student_maps or ""
        if all(name in network.shapes for name in _names(given) for network in (student, teacher)):
            teacher_maps = student_maps = given
    of_student, of_teacher = (
        _chosen(network, named, before_relu=before_relu, embeddings=embeddings)
        for network, named, before_relu in (
            (student, student_maps, student_before_relu),
            (teacher, teacher_maps, teacher_before_relu),
        )
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
    """A 1x1 convolution without bias and a BatchNorm; maps [B, num_inputs, H, W] to [B, num_outputs, H, W]."""
    connector = nn.Sequential(nn.Conv2d(num_inputs, num_outputs, 1, bias=False), nn.BatchNorm2d(num_outputs))
    initialise_convolutions(connector)
    return connector


def widen(num_inputs: int, num_outputs: int) -> nn.Module:
    """A 1x1 convolution if the numbers of channels differ, the identity if they are equal."""
    return nn.Identity() if num_inputs == num_outputs else nn.Conv2d(num_inputs, num_outputs, 1)


class KnownChannels(nn.Module):
    """In place of a layer between two maps: channel i of the student's is channel indices[i] of the teacher's.

    Args:
        indices: of the teacher's channels, one for each of the student's.
    """

    indices: Tensor

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("indices", torch.tensor(indices, dtype=torch.int64))

    def forward(self, maps: Tensor) -> Tensor:
        return maps

    def of_teacher(self, maps: Tensor, *dimensions: int) -> Tensor:
        """The student's channels of the teacher's tensor, along each of the dimensions that count channels; by default 1."""
        for dimension in dimensions or (1,):
            maps = maps.index_select(dimension, self.indices)
        return maps


class Connectors(nn.ModuleList):
    """One layer for each pair of maps, in the order of `MapMethod.pairs`."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [connector(features) for connector, features in zip(self, maps, strict=True)]


def known_channels(student: Architecture, teacher: Architecture, ours: str, theirs: str) -> tuple[int, ...] | None:
    """Which of the teacher's channels the student's layer has, if it began as the teacher's layer of the same name."""
    return student.channels_of(teacher, ours) if ours == theirs else None


def channels_of_teacher(connectors: nn.Module, maps: Sequence[Tensor], *dimensions: int) -> list[Tensor]:
    """The teacher's tensors, one for each pair, with the channels that the connectors return.

    Args:
        connectors: `Connectors`, or a module that does the same without known channels.
        dimensions: those that count channels; by default 1.
    """
    layers = connectors if isinstance(connectors, Connectors) else [connectors] * len(maps)
    pairs = zip(layers, maps, strict=True)
    return [each.of_teacher(theirs, *dimensions) if isinstance(each, KnownChannels) else theirs for each, theirs in pairs]


def _names(named: str) -> list[str]:
    return [name.strip() for name in named.split(",")]


def _chosen(network: Architecture, named: str | None, *, before_relu: bool, embeddings: bool) -> list[str]:
    if named:
        layers = _names(named)
        for layer in layers:
            if len(network.shape(layer)) not in ((1, 3) if embeddings else (3,)):
                got = f"layer '{layer}' of {network.name} returns {network.shape(layer)}"
                raise MethodError(f"needs feature maps, {got}", names=[layer])
        return layers
    stages = network.preactivations if before_relu and network.preactivations else network.stages
    shapes = {layer: network.shape(layer) for layer in stages}
    return [layer for layer, shape in shapes.items() if len(shape) == 3 and shape[1] * shape[2] > 1]
