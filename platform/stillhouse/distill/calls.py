"""Calling a teacher on inputs that a method generates: a differentiable function, whichever process runs it.

The teacher is frozen and in evaluation mode, so its output for a sample depends on that sample alone. A call is pure: it may
be repeated, split or merged with others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stillhouse.device import float32_precision
from stillhouse.models.features import FeatureReader

Procedure = Callable[..., tuple[Tensor, ...]]
"""A module-level function `procedure(teacher, images, *tensors, **options)` that calls `teacher(images)` as often as it needs.

`teacher` returns what the model returns, logits [B, C] of a classifier, through which gradients flow to the images; a model
that takes more than images gets what else the procedure gives it. Inputs and results are tensors [B, ...], and a row
of a result depends on that row of the inputs alone. It is sent to another process by its import path.
"""


class CallableTeacher(Protocol):
    """A teacher as a function of images [B, channels, H, W]; gradients flow through it to the images, never to its weights."""

    way: str
    samples_called: int

    def __call__(self, images: Tensor, *layers: str) -> tuple[Tensor, ...]:
        """The logits [B, C], then the output of each named layer."""

    def run(self, procedure: Procedure, images: Tensor, *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        """The results of a procedure, computed where the teacher is, in one call. No gradient flows through them."""


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


def run_procedure(
    teacher: Callable[..., Any], procedure: Procedure, tensors: Sequence[Tensor], options: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    """The results of a procedure in IEEE float32 and without a graph.

    Args:
        teacher: a frozen model in evaluation mode.
        tensors: [B, ...] each, the images first.
    """
    with float32_precision("ieee"), torch.enable_grad():
        results = procedure(teacher, *(tensor.detach() for tensor in tensors), **options)
    return tuple(result.detach() for result in results)


def check_procedure(procedure: Procedure) -> None:
    """Raises:
    ValueError: workers cannot import the procedure.
    """
    if "<locals>" in getattr(procedure, "__qualname__", "<locals>"):
        raise ValueError(f"a procedure must be a function of a module, so that workers can import it, got {procedure}")


class InlineTeacher:
    """The teacher in the trial's process."""

    way = "inline"

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)
        self.samples_called = 0

    def __call__(self, images: Tensor, *layers: str) -> tuple[Tensor, ...]:
        self.samples_called += len(images)
        return run_teacher(self._model, images, layers)

    def run(self, procedure: Procedure, images: Tensor, *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        check_procedure(procedure)
        self.samples_called += len(images)
        return run_procedure(self._model, procedure, (images, *tensors), options)


class RemoteModel(Protocol):
    """The pure calls of a served teacher."""

    def forward(self, images: Tensor, layers: Sequence[str], *, differentiable: bool) -> tuple[Any, Sequence[Tensor]]:
        """A token for `pull_back`, and the logits with the layers' outputs on the images' device.

        Args:
            differentiable: whether `pull_back` will follow, so that the teacher may store what it needs for it.
        """

    def pull_back(self, token: Any, images: Tensor, layers: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        """The gradient with respect to the images, given those of the outputs; the teacher may have forgotten the token."""

    def run(self, procedure: Procedure, tensors: Sequence[Tensor], options: Mapping[str, Any]) -> Sequence[Tensor]:
        """`run_procedure` at the teacher, with the results on the device of the images, which are the first of `tensors`."""


class ServedTeacher:
    """The teacher in another process: the forward pass, the backward pass and a whole procedure are one call each.

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

    def run(self, procedure: Procedure, images: Tensor, *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        check_procedure(procedure)
        self.samples_called += len(images)
        return tuple(self._remote.run(procedure, (images, *tensors), options))


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
