"""What is known about a model before it is trained: its size and its layers, without storage for its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from stillhouse.durable import canonical_json
from stillhouse.errors import Problem
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.layers import Shape
from stillhouse.models.registry import model_problems, sketch_model
from stillhouse.models.size import ModelSize, measure_size

_KEPT = 20_000


@dataclass(frozen=True)
class Blueprint:
    """A model's size and layers.

    Attributes:
        estimated: whether the sizes depend on weights that are not known yet.
        notes: what operators report about the model.
    """

    size: ModelSize
    architecture: Architecture
    estimated: bool = False
    notes: tuple[str, ...] = ()


def blueprint(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape) -> Blueprint:
    """Size and layers of a model; cached, since a sweep needs the same few thousands of times.

    Raises:
        UsageError: the model cannot be built.
    """
    return _blueprint(model, canonical_json(dict(options)), num_classes, input_shape)


def sketch(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape) -> nn.Module:
    """A new model without storage."""
    return sketch_model(model, num_classes=num_classes, input_shape=input_shape, **options)


def build_problems(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape) -> tuple[Problem, ...]:
    """Why the model cannot be built and run on such images; cached."""
    return _problems(model, canonical_json(dict(options)), num_classes, input_shape)


@lru_cache(maxsize=_KEPT)
def _blueprint(model: str, options: str, num_classes: int, input_shape: Shape) -> Blueprint:
    module = sketch(model, json.loads(options), num_classes, input_shape)
    return Blueprint(measure_size(module, input_shape), describe(module, name=model, input_shape=input_shape))


@lru_cache(maxsize=_KEPT)
def _problems(model: str, options: str, num_classes: int, input_shape: Shape) -> tuple[Problem, ...]:
    return tuple(model_problems(model, json.loads(options), num_classes, input_shape))
