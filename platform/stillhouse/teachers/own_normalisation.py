"""A given teacher's own normalisation: where it is known from, and how the network gets it from the pixels of a student."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillhouse.data.images import ImageData
from stillhouse.data.normalisation import (
    TIMM_ATTRIBUTE,
    Normalisation,
    beside,
    chosen,
    configuration_beside,
    stated_by_model,
    stated_in,
)
from stillhouse.errors import UsageError
from stillhouse.models.blueprint import sketch
from stillhouse.models.checkpoint_files import checkpoint_file
from stillhouse.models.given_weights import TIMM, stated_by_weights
from stillhouse.models.layers import Shape
from stillhouse.models.registry import is_user_defined
from stillhouse.spec.schema import TeacherSpec
from stillhouse.user_code import is_of_library


@dataclass(frozen=True)
class OwnNormalisation:
    """The normalisation of a teacher, where it is not that of the data set.

    Attributes:
        own: what the network was trained with.
        data: what the pixels have that it is called with.
        source: what states it: a key of the spec, or a file.
    """

    own: Normalisation
    data: Normalisation
    source: str = ""

    def attach(self, model: nn.Module) -> RemovableHandle:
        """Lets the model be called with the data's normalised pixels: they are converted before its first layer."""
        return model.register_forward_pre_hook(_Conversion(self))


class _Conversion:
    """(x s_d + m_d - m_t) / s_t: a student's pixels x, undone and normalised again; gradients flow through it."""

    def __init__(self, wanted: OwnNormalisation) -> None:
        pairs = list(zip(wanted.data.mean, wanted.data.std, wanted.own.mean, wanted.own.std, strict=True))
        self._scale = torch.tensor([std / own_std for _, std, _, own_std in pairs]).view(1, -1, 1, 1)
        self._shift = torch.tensor([(mean - own) / own_std for mean, _, own, own_std in pairs]).view(1, -1, 1, 1)

    def __call__(self, _model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = inputs
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images * self._scale.to(images.dtype) + self._shift.to(images.dtype), *rest)


def own_normalisation(teacher: TeacherSpec, data: ImageData, weights: str | None = None) -> OwnNormalisation | None:
    """The normalisation of a teacher; None where it is the data set's, or where nothing states another.

    Args:
        teacher: without `normalization`, what is stated with the weights is taken, then what its model states.
        weights: the path of the weights if they were fetched to another one than `teacher` names.

    Raises:
        UsageError: it does not fit the data's channels.
    """
    found, source = _found(teacher, data, weights or teacher.weights)
    data_normalisation = Normalisation.of(data)
    if found is None or found == data_normalisation:
        return None
    return OwnNormalisation(found, data_normalisation, source)


def is_stated(teacher: TeacherSpec, data: ImageData, weights: str | None = None) -> bool:
    """Whether the spec, the weights or the model state a normalisation, that of the data set included."""
    return _found(teacher, data, weights or teacher.weights)[0] is not None


def _found(teacher: TeacherSpec, data: ImageData, weights: str | None) -> tuple[Normalisation | None, str]:
    if weights is None or teacher.weights is None:
        return None, ""
    if not data.mean and teacher.normalization is None:  # samples without pixels, such as texts
        return None, ""
    if teacher.normalization is not None:
        return chosen(teacher.normalization, data), "the spec"
    if is_of_library(teacher.weights):
        return stated_in(stated_by_weights(teacher.weights), data), teacher.weights.partition(":")[0]
    if (stated := beside(checkpoint_file(weights)[0], data)) is not None:
        return stated
    if is_user_defined(teacher.model):
        network = sketch(teacher.model, teacher.options, data.num_classes, data.input_shape)
        return stated_by_model(network, data), f"{TIMM_ATTRIBUTE} of {teacher.model}"
    if _has_tag(teacher.model):
        return stated_in(stated_by_weights(teacher.model), data), teacher.model
    return None, ""


def with_own_size(teacher: TeacherSpec, input_shape: Shape) -> TeacherSpec:
    """The teacher with the option `resize`, where its weights state another image size and its model is timm's.

    A spec that gives the option decides.
    """
    if not teacher.model.startswith(TIMM) or teacher.weights is None or "resize" in teacher.options:
        return teacher
    side = stated_side(teacher)
    if side is None or tuple(input_shape[1:]) == (side, side):
        return teacher
    return teacher.model_copy(update={"options": {**teacher.options, "resize": side}})


def stated_side(teacher: TeacherSpec) -> int | None:
    """The side of the images with which given weights were trained; None where nothing states it."""
    stated: Any = None
    if teacher.weights is not None:
        with suppress(UsageError):  # reported where weights are checked
            if is_of_library(teacher.weights):
                stated = stated_by_weights(teacher.weights)
            else:
                stated = configuration_beside(checkpoint_file(teacher.weights)[0])
                stated = stated_by_weights(teacher.model) if not stated and _has_tag(teacher.model) else stated
    size = stated.get("input_size") if isinstance(stated, Mapping) else None
    return size[1] if isinstance(size, list | tuple) and len(size) == 3 and isinstance(size[1], int) else None


def _has_tag(model: str) -> bool:
    """Whether the model's name is that of published weights, `timm:resnet18.a1_in1k`."""
    return model.startswith(TIMM) and "." in model
