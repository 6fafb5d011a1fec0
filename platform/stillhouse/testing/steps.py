"""Makes the step that a test calls a loss with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.distill.method import Stage, Step
from stillhouse.knowledge.output_names import LOGITS


def make_step(
    *,
    student_logits: Tensor | None = None,
    labels: Tensor | None = None,
    teacher: Mapping[str, Tensor] | None = None,
    device: str | torch.device | None = None,
    **fields: Any,
) -> Step:
    """A step as the trainer makes it; fields that a test does not need have defaults.

    Args:
        student_logits: [B, C]; None for a stage that does not compute them, and for other tasks, whose outputs are `outputs`.
        labels: [B] int64; zeros by default. Needed without student_logits.
        teacher: {name: [B, ...]} of what the method's `knowledge` names.
        device: where all tensors of the step are, given ones and defaults; None leaves given ones where they are, and the
            defaults are on the device of the labels.
        fields: any other field of `Step`.
    """
    if labels is None:
        assert student_logits is not None, "labels are needed without student_logits: they define the batch size"
        labels = torch.zeros(len(student_logits), dtype=torch.int64, device=student_logits.device)
    values: dict[str, Any] = {
        "images": torch.zeros(len(labels), 1, 8, 8, device=labels.device),
        "labels": labels,
        "targets": labels,
        "indices": torch.arange(len(labels), device=labels.device),
        "student": nn.Identity(),
        "outputs": {} if student_logits is None else {LOGITS: student_logits},
        "student_features": {},
        "teacher": teacher or {},
        "modules": {},
        "stage": Stage(epochs=1),
        "epoch": 0,
        "progress": 0.0,
        "seed": 0,
    }
    values |= fields
    return Step(**(values if device is None else {name: _on(value, device) for name, value in values.items()}))


def _on(value: Any, device: str | torch.device) -> Any:
    """A field of a step with its tensors and networks on the device; a tensor that requires a gradient passes it on."""
    if isinstance(value, Tensor | nn.Module):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _on(each, device) for name, each in value.items()}
    return value
