"""Calling a teacher on inputs that a method generates: a differentiable function, whichever process runs it.

The teacher is frozen and in evaluation mode, so its output for a sample depends on that sample alone. A call is pure: it may
be repeated, split or merged with others.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stillhouse.device import float32_precision
from stillhouse.models.features import FeatureReader


class CallableTeacher(Protocol):
    """A teacher as a function of images [B, channels, H, W]; gradients flow through it to the images, never to its weights."""

    way: str
    samples_called: int

    def __call__(self, images: Tensor, *layers: str) -> tuple[Tensor, ...]:
        """The logits [B, C], then the output of each named layer."""


def run_teacher(model: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> tuple[Tensor, ...]:
    """The logits [B, C] of a frozen model in evaluation mode, then the output of each named layer, in IEEE float32."""
    if not layers:
        with float32_precision("ieee"):
            return (model(images),)
    with float32_precision("ieee"), FeatureReader(model, layers) as reader:
        logits, features = reader(images)
    assert logits is not None
    return (logits, *(features[layer] for layer in layers))


def pull_back(outputs: Sequence[Tensor], images: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The vector-Jacobian product: gradients with respect to `outputs`, with respect to `images` [B, channels, H, W]."""
    with float32_precision("ieee"):
        (gradient,) = torch.autograd.grad(outputs, images, gradients, allow_unused=True)
    return torch.zeros_like(images) if gradient is None else gradient


class InlineTeacher:
    """The teacher in the trial's process."""

    way = "inline"

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)
        self.samples_called = 0

    def __call__(self, images: Tensor, *layers: str) -> tuple[Tensor, ...]:
        self.samples_called += len(images)
        return run_teacher(self._model, images, layers)


class RemoteModel(Protocol):
    """The two pure calls of a served teacher."""

    def forward(self, images: Tensor, layers: Sequence[str], *, differentiable: bool) -> tuple[Any, Sequence[Tensor]]:
        """A token for `pull_back`, and the logits with the layers' outputs on the images' device.

        Args:
            differentiable: whether `pull_back` will follow, so that the teacher may store what it needs for it.
        """

    def pull_back(self, token: Any, images: Tensor, layers: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        """The gradient with respect to the images, given those of the outputs; the teacher may have forgotten the token."""


class ServedTeacher:
    """The teacher in another process: the forward pass and the backward pass are one call each.

    It cannot be differentiated twice: that is an error.
    """

    way = "served"

    def __init__(self, remote: RemoteModel) -> None:
        self._remote = remote
        self.samples_called = 0

    def __call__(self, images: Tensor, *layers: str) -> tuple[Tensor, ...]:
        self.samples_called += len(images)
        if not (images.requires_grad and torch.is_grad_enabled()):
            return tuple(self._remote.forward(images, layers, differentiable=False)[1])
        outputs: tuple[Tensor, ...] = _RemoteCall.apply(images, self._remote, layers)
        return outputs


class _RemoteCall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, remote: RemoteModel, layers: Sequence[str]) -> tuple[Tensor, ...]:
        ctx.token, outputs = remote.forward(images, layers, differentiable=True)
        ctx.remote, ctx.layers = remote, layers
        ctx.save_for_backward(images)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (images,) = ctx.saved_tensors
        return ctx.remote.pull_back(ctx.token, images, ctx.layers, gradients), None, None
