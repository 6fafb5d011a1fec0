"""Students before and without their training: the model of a spec's entry with its operators applied."""

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import Calibration, Context, Conversion, History
from stillhouse.compress.parts.kept_channels import followed_channels
from stillhouse.durable import canonical_json
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.blueprint import Blueprint, blueprint
from stillhouse.models.layers import Shape
from stillhouse.models.registry import build_model, sketch_model
from stillhouse.models.size import measure_size
from stillhouse.spec.records import StudentChoice, trained_name

_KEPT = 20_000


def chain_of(student: StudentChoice) -> Chain:
    """The student's operators.

    Raises:
        UsageError: there is no such operator.
        ChainError: a value breaks its rule.
    """
    return Chain.of(student.compress)


def student_blueprint(student: StudentChoice, num_classes: int, input_shape: Shape) -> Blueprint:
    """Size and layers of a student; cached. Sizes are those of the finalised network, layers those that methods see.

    Raises:
        UsageError: the model cannot be built.
        ChainError: an operator cannot change it.
    """
    if not student.compress:
        return blueprint(student.model, student.options, num_classes, input_shape)
    key = _Key.of(student, num_classes, input_shape)
    return _blueprint(key)


def student_architecture(student: StudentChoice, teachers: Sequence[str], num_classes: int, input_shape: Shape) -> Architecture:
    """The student's layers as a method sees them that trains it with these teachers.

    Args:
        teachers: their names in the spec; methods compare a student with the first one.

    Raises:
        UsageError: the model cannot be built.
        ChainError: an operator cannot change it.
    """
    architecture = student_blueprint(student, num_classes, input_shape).architecture
    if not begins_as_teacher(student, teachers):
        return replace(architecture, kept_channels=None)
    return architecture if student.compress else replace(architecture, kept_channels={})


def begins_as_teacher(student: StudentChoice, teachers: Sequence[str]) -> bool:
    """Whether the student began with the weights of the first of these teachers, or of its trained counterpart."""
    return bool(teachers) and student.derived_from == trained_name(teachers[0])


def describe_student(
    model: nn.Module, kept_channels: Mapping[str, Sequence[int]], *, name: str, input_shape: Shape
) -> Architecture:
    """The layers of a converted network that began as its teacher.

    Args:
        kept_channels: of its conversion.
    """
    architecture = describe(model, name=name, input_shape=input_shape)
    if not kept_channels:
        return replace(architecture, kept_channels={})
    images = Context(num_classes=architecture.num_classes, input_shape=input_shape).example(model, 2)
    return replace(architecture, kept_channels=followed_channels(model, kept_channels, images))


def sketch_student(student: StudentChoice, num_classes: int, input_shape: Shape) -> nn.Module:
    """A new student without storage, as it is trained.

    Raises:
        UsageError: the model cannot be built.
        ChainError: an operator cannot change it.
    """
    if not student.compress:
        return sketch_model(student.model, num_classes=num_classes, input_shape=input_shape, **student.options)
    return copy.deepcopy(_sketch(_Key.of(student, num_classes, input_shape)).model)


def fresh_student(student: StudentChoice, num_classes: int, input_shape: Shape) -> nn.Module:
    """A student with fresh weights as it is trained, to be measured."""
    built = _build(student, num_classes, input_shape)
    return chain_of(student).convert(built, _context(student, num_classes, input_shape)).model


def finalised_student(student: StudentChoice, num_classes: int, input_shape: Shape) -> nn.Module:
    """A student with fresh weights as it is used, to be measured."""
    model = fresh_student(student, num_classes, input_shape)
    chain_of(student).finalise(model)
    return model


def convert_student(
    model: nn.Module, student: StudentChoice, *, num_classes: int, input_shape: Shape, seed: int, calibration: Calibration
) -> Conversion:
    """The network of a trial, from a model with the weights that the student begins with.

    Raises:
        ChainError: an operator cannot change it.
    """
    context = replace(_context(student, num_classes, input_shape), seed=seed, calibration=calibration)
    return chain_of(student).convert(model, context)


def rebuilt_student(student: StudentChoice, history: History, num_classes: int, input_shape: Shape) -> nn.Module:
    """The finalised network of a trained student, before its weights are loaded.

    Args:
        history: of its conversion, as its record has it.
    """
    chain = chain_of(student)
    model = _build(student, num_classes, input_shape)
    model = chain.replay(model, history, _context(student, num_classes, input_shape))
    chain.finalise(model)
    return model


def _build(student: StudentChoice, num_classes: int, input_shape: Shape) -> nn.Module:
    return build_model(student.model, num_classes=num_classes, input_shape=input_shape, **student.options)


def _context(student: StudentChoice, num_classes: int, input_shape: Shape) -> Context:
    return Context(num_classes=num_classes, input_shape=input_shape, trained=student.derived_from is not None)


@dataclass(frozen=True)
class _Key:
    """What decides a student's network before training, hashable; its label does not."""

    model: str
    options: str
    compress: str
    derived: bool
    num_classes: int
    input_shape: Shape

    @classmethod
    def of(cls, student: StudentChoice, num_classes: int, input_shape: Shape) -> "_Key":
        compress = canonical_json(list(student.compress))
        derived = student.derived_from is not None
        return cls(student.model, canonical_json(student.options), compress, derived, num_classes, input_shape)

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"num_classes": self.num_classes, "input_shape": self.input_shape, **json.loads(self.options)}

    @property
    def chain(self) -> Chain:
        return Chain.of(json.loads(self.compress))


@lru_cache(maxsize=64)
def _sketch(key: _Key) -> Conversion:
    return key.chain.sketch(
        functools.partial(build_model, key.model, **key.arguments),
        functools.partial(sketch_model, key.model, **key.arguments),
        Context(num_classes=key.num_classes, input_shape=key.input_shape, trained=key.derived),
    )


@lru_cache(maxsize=_KEPT)
def _blueprint(key: _Key) -> Blueprint:
    chain, converted = key.chain, _sketch(key)
    model = copy.deepcopy(converted.model)
    architecture = describe_student(model, converted.kept_channels, name=key.model, input_shape=key.input_shape)
    with torch.no_grad():
        chain.finalise(model)
    size = replace(measure_size(model, key.input_shape), size_bytes=chain.stored_bytes(model, converted.history))
    return Blueprint(size, architecture, estimated=chain.sizes_are_estimates, notes=tuple(converted.notes))
