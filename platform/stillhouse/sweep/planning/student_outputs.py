"""What a user-defined student returns, tried on a few random images before anything is trained."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from stillhouse import tasks
from stillhouse.durable import canonical_json
from stillhouse.models.example_input import example_input
from stillhouse.models.layers import Shape
from stillhouse.models.registry import build_model, is_user_defined
from stillhouse.tasks import OutputProblem

_IMAGES = 8


def student_output_problem(
    model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape, task: str | None
) -> OutputProblem | None:
    """What the task finds wrong with a student's outputs; None for shipped models and for one that cannot be tried here."""
    if not is_user_defined(model):
        return None
    return _tried(model, canonical_json(dict(options)), num_classes, input_shape, task)


@lru_cache(maxsize=256)
def _tried(model: str, options: str, num_classes: int, input_shape: Shape, task: str | None) -> OutputProblem | None:
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        try:
            built = build_model(model, num_classes=num_classes, input_shape=input_shape, **json.loads(options)).eval()
            example = example_input(built, _IMAGES, input_shape)
            raw = built(torch.randn_like(example) if example.is_floating_point() else example)
            outputs = tasks.find(task).outputs(raw)
        except Exception:  # other checks report a model that cannot be built or run
            return None
        return tasks.find(task).output_problem(outputs)
