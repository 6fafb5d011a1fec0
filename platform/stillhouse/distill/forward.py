"""The student's forward passes in one stage of a training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from stillhouse.distill.precision import autocast
from stillhouse.models.features import FeatureReader
from stillhouse.spec.training import Training
from stillhouse.tasks import Task


class ForwardPass:
    """Runs the student; returns the task's named outputs and the outputs of the layers that the method reads, as float32.

    Args:
        layers: the layers that the method reads.
        until: the layer after which nothing is computed; there are no named outputs then.
        twice: whether the loss differentiates the student's gradient again, which a compiled network does not support.
        device: where the student is.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        training: Training,
        layers: Sequence[str],
        *,
        until: str | None,
        twice: bool,
        device: str,
    ) -> None:
        self._task = task
        self._precision = training.mixed_precision
        self._device = torch.device(device)
        self._reader = FeatureReader(student, layers, until=until)
        self._compiled: Callable[[Tensor], Any] | None = None
        if training.compile and not layers and until is None and not twice:
            # Students of one class share their `forward`, whose entries of all trials would count against one limit.
            self._compiled = torch.compile(student, isolate_recompiles=True)  # type: ignore[call-overload]

    def __call__(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """{name: [B, ...]} of the outputs, and {layer: output}, for normalised images [B, channels, H, W]."""
        raw: Any
        features: dict[str, Tensor] = {}
        with autocast(self._precision, self._device):
            if self._compiled is not None:
                raw = self._compiled(images)
            else:
                raw, features = self._reader(images)
        if self._precision != "off":
            raw, features = tree_map_only(Tensor, _as_float32, raw), tree_map_only(Tensor, _as_float32, features)
        return {} if raw is None else self._task.outputs(raw), features

    def close(self) -> None:
        """Removes the hooks from the student."""
        self._reader.close()


def _as_float32(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values
