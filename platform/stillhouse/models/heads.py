"""A model's head: the weights whose shape follows the number of classes, whatever their names."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor

from stillhouse.durable import canonical_json
from stillhouse.errors import UsageError
from stillhouse.models.layers import Shape
from stillhouse.models.registry import sketch_model


def head_weights(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape) -> frozenset[str]:
    """The names of the weights that a model with one more class has in another shape.

    Raises:
        UsageError: there are none, or the model cannot be built.
    """
    names = _head_weights(model, canonical_json(dict(options)), num_classes, input_shape)
    if not names:
        raise UsageError(f"{model} has no head: none of its weights depends on the number of classes")
    return names


@lru_cache(maxsize=1024)
def _head_weights(model: str, options: str, num_classes: int, input_shape: Shape) -> frozenset[str]:
    first, second = (_shapes(model, json.loads(options), number, input_shape) for number in (num_classes, num_classes + 1))
    return frozenset(name for name in first if first[name] != second.get(name))


def _shapes(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape) -> dict[str, tuple[int, ...]]:
    sketch = sketch_model(model, num_classes=num_classes, input_shape=input_shape, **options)
    return {name: tuple(value.shape) for name, value in sketch.state_dict().items() if isinstance(value, Tensor)}
