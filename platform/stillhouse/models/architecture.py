"""What is known about a network before it is trained: its layers, their shapes, and which are useful to methods."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import did_you_mean
from stillhouse.models.example_input import example_input
from stillhouse.models.layers import Shape
from stillhouse.models.modes import evaluating

_SAMPLES = 2
"""Of the batch by which a model is described."""


class UnknownLayer(ValueError):
    """A layer name that the model does not have.

    Attributes:
        names: the layer's name; the plan looks up which hyper-parameter has it as its value.
    """

    def __init__(self, message: str, *, layer: str = "") -> None:
        super().__init__(message)
        self.names = (layer,)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model's layers as a method sees them at plan time.

    Attributes:
        name: the model's name in the spec.
        input_shape: of one sample of the data set, (channels, height, width) for images.
        shapes: output shape without the batch dimension of every layer that returns one tensor [B, ...], by module name.
        stages: layers whose outputs are the model's feature maps, shallow to deep, one per resolution; of a model with a single
            resolution, some that divide its depth evenly.
        pooled: the layer whose output is the embedding [K] before the classifier, if there is one.
        preactivations: layers whose outputs are the stages' maps before their last ReLU, if there are such layers.
        batch_norms: the BatchNorm layers with weights, in the order in which they run.
        reads: the shape of what it reads of one sample.
        returns: the shape of the tensor that it returns for one sample; empty if it returns anything else.
        kept_channels: of a student that began as its teacher, by layer, the teacher's channels that remain, where some were
            removed; None for every other network.
        token_layers: layers that return a vector for each token of a text, (L, K), shallow to deep; the first one is the
            embedding.
        attention_layers: layers that return the attention before the softmax, (heads, L, L): that of each of `token_layers` but
            the first one, or none.
        data_options: what every model for the same data is built with, such as the number of tokens.
    """

    name: str
    num_classes: int
    input_shape: Shape
    shapes: Mapping[str, tuple[int, ...]]
    stages: tuple[str, ...] = ()
    pooled: str | None = None
    preactivations: tuple[str, ...] = ()
    batch_norms: tuple[str, ...] = ()
    reads: Shape = ()
    returns: Shape = ()
    kept_channels: Mapping[str, tuple[int, ...]] | None = None
    token_layers: tuple[str, ...] = ()
    attention_layers: tuple[str, ...] = ()
    data_options: Mapping[str, Any] = field(default_factory=dict)

    def channels_of(self, teacher: "Architecture", layer: str) -> tuple[int, ...] | None:
        """The channels of the teacher's layer of the same name that this student's layer has, as it began as that teacher.

        None if it did not, if the teacher has no such layer, or if it is not known which channels remain.

        Raises:
            UnknownLayer: the student has no such layer.
        """
        channels, *positions = self.shape(layer)
        if self.kept_channels is None or layer not in teacher.shapes:
            return None
        of_teacher, *of_its_positions = teacher.shapes[layer]
        kept = self.kept_channels.get(layer, tuple(range(of_teacher)))
        return kept if positions == of_its_positions and len(kept) == channels and max(kept) < of_teacher else None

    def shape(self, layer: str) -> tuple[int, ...]:
        """Output shape of `layer` without the batch dimension: (K,) or (K, H, W).

        Raises:
            UnknownLayer: the model has no such layer.
        """
        if layer not in self.shapes:
            useful = {*self.stages, *([self.pooled] if self.pooled else [])}
            hint = did_you_mean(layer, useful or self.shapes)
            raise UnknownLayer(f"{self.name} has no layer '{layer}'{hint}", layer=layer)
        return self.shapes[layer]

    def normalisation(self, layer: str) -> str | None:
        """The BatchNorm whose output `layer` returns, alone or added to a shortcut; None if there is none.

        It is `layer` itself, or the last BatchNorm that runs inside `layer`, or before it in the same block.

        Raises:
            UnknownLayer: the model has no such layer.
        """
        channels, order = self.shape(layer)[0], list(self.shapes)
        block = layer.rpartition(".")[0]
        for norm in reversed(self.batch_norms):
            beside = norm.rpartition(".")[0] == block and order.index(norm) < order.index(layer)
            if norm == layer or norm.startswith(f"{layer}.") or beside:
                return norm if self.shapes[norm][0] == channels else None
        return None


def needs_two_samples(architecture: Architecture) -> bool:
    """Whether a BatchNorm sees one value of each channel per sample: it cannot train on a forward pass of one sample."""
    shapes = [architecture.shapes[layer] for layer in architecture.batch_norms]
    return any(len(shape) == 1 or _is_point(shape) for shape in shapes)


def describe(model: nn.Module, *, name: str, input_shape: Shape) -> Architecture:
    """Runs one batch of zeros through `model` and records the output shape of every layer.

    `stages` and `pooled` come from the model's attributes `stage_layers` and `pooled_layer` if it has them; a `pooled_layer` of
    None says that there is none. Stages whose map is 1x1 on these images are left out, since they have no spatial extent.
    Otherwise both follow from the shapes: the last map at each resolution, and the last vector before the output.

    Args:
        model: takes what `example_input` makes, and returns [B, num_classes]; a model that returns anything else, such as an
            image, has an attribute `num_outputs`, the number that counts as `num_classes`. It may be on the meta device; its
            mode is restored.
        name: the model's name in messages.
        input_shape: (channels, height, width).

    Raises:
        ValueError: the model does not return one tensor [B, num_classes], and has no `num_outputs`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = []
    for layer, module in modules.items():
        if not layer:
            continue

        def note(_module: nn.Module, _inputs: object, output: object, layer: str = layer) -> None:
            # A layer that runs on something else than samples, such as regions of images, has no shape for one sample.
            if isinstance(output, torch.Tensor) and output.ndim >= 2 and len(output) == _SAMPLES:
                shapes[layer] = tuple(output.shape[1:])
                if output.ndim == 2:
                    outputs[layer] = output

        handles.append(module.register_forward_hook(note))
    try:
        with evaluating(model), torch.no_grad():
            example = example_input(model, _SAMPLES, input_shape)
            logits = model(example)
    finally:
        for handle in handles:
            handle.remove()
    num_outputs: int | None = getattr(model, "num_outputs", None)
    if num_outputs is None and not (isinstance(logits, torch.Tensor) and logits.ndim == 2 and logits.shape[0] == 2):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"{name} must return logits [batch, classes], got {got} for a batch of 2")
    stages = getattr(model, "stage_layers", None)
    preactivations = getattr(model, "preactivation_layers", ())
    has_pooled = hasattr(model, "pooled_layer")
    return Architecture(
        name=name,
        num_classes=int(logits.shape[1]) if num_outputs is None else num_outputs,
        input_shape=input_shape,
        shapes=shapes,
        stages=_stages(shapes) if stages is None else tuple(layer for layer in stages if not _is_point(shapes.get(layer))),
        pooled=model.pooled_layer if has_pooled else _pooled(outputs, logits),  # type: ignore[arg-type]
        preactivations=tuple(layer for layer in preactivations if not _is_point(shapes.get(layer))),
        batch_norms=tuple(layer for layer in shapes if _is_affine_norm(modules[layer])),
        reads=tuple(example.shape[1:]),
        returns=tuple(logits.shape[1:]) if isinstance(logits, torch.Tensor) else (),
        token_layers=tuple(getattr(model, "token_layers", ())),
        attention_layers=tuple(getattr(model, "attention_layers", ())),
        data_options=getattr(model, "data_options", {}),
    )


def _is_affine_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm) and module.affine


def _is_point(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and len(shape) == 3 and shape[1] * shape[2] == 1


def _stages(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The last layer at each resolution, in the order in which resolutions appear."""
    last: dict[tuple[int, ...], str] = {}
    for layer, shape in shapes.items():
        if len(shape) == 3 and not _is_point(shape):
            last[shape[1:]] = layer
    return tuple(last.values())


def _pooled(vectors: Mapping[str, Tensor], logits: Tensor) -> str | None:
    """The last vector before the logits, which the last layer and those that contain it return."""
    before = [layer for layer, vector in vectors.items() if vector is not logits]
    return before[-1] if before and len(before) < len(vectors) else (before[-2] if len(before) > 1 else None)
