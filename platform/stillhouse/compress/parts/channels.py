"""Removing channels through Torch-Pruning: on which layers, by which importance, and again from what was recorded.

Torch-Pruning is an extra of this package and is imported when channels are removed.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.operator import Context, OperatorError
from stillhouse.errors import describe_error
from stillhouse.models.modes import evaluating
from stillhouse.models.size import measure_size

_STEPS = 100
"""Parts in which channels are removed until the share of MACs or parameters is reached."""

Removed = Sequence[Any]
"""[layer, whether outputs of it, [indices]] in the order of removal, as Torch-Pruning's history has them."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is removed.

    Attributes:
        ratio: the share, of each layer's channels or of all (`is_global`), or of the network's `macs` or `parameters`.
        of: `channels`, `macs` or `parameters`.
        importance: `l1`, `l2`, `taylor`, `bn_scale` or `random`. Taylor needs gradients in the network.
    """

    ratio: float
    of: str
    importance: str
    is_global: bool
    round_to: int


def remove_channels(model: nn.Module, context: Context, cut: Cut) -> tuple[list[Any], list[str], dict[str, list[int]]]:
    """Removes channels from `model`, in place, on the CPU.

    Returns:
        What was removed; the layers that had to stay whole; by layer that lost channels of its output, those that remain.

    Raises:
        OperatorError: the network cannot be traced, or a layer would lose all its channels.
    """
    steps = 1 if cut.of == "channels" else _STEPS
    target = (1 - cut.ratio) * _amount(model, context, cut.of)
    with _tracing(model):
        pruner = _pruner(model, context, cut, steps)
        whole = _note_whole_layers(pruner)
        kept = _Kept(pruner)
        step, amount = 0, _amount(model, context, cut.of)
        while step < steps and (steps == 1 or amount > target):
            step = _next_step(step, steps, target / amount) if steps > 1 else 1
            pruner.current_step = step - 1
            for group in pruner.step(interactive=True):
                kept.note(group)
                group.prune()
            amount = _amount(model, context, cut.of)
        removed = [
            [name, bool(is_output), [int(index) for index in indices]] for name, is_output, indices in pruner.pruning_history()
        ]
    if whole and steps == 1 and not cut.is_global:
        raise OperatorError(f"leaves no channel of {whole[0]}; lower ratio or round_to, or set scope to global", option="ratio")
    if steps > 1 and amount > target:
        raise OperatorError(f"cannot remove {cut.ratio:g} of the {cut.of}; lower ratio", option="ratio")
    if not removed:
        raise OperatorError("finds no layer before the last one whose channels can be removed")
    _check_outputs(model, context)
    return removed, whole, kept.by_layer


def _next_step(step: int, steps: int, share: float) -> int:
    """The part after which the amount is measured next, when it must still fall to the share `share` of the present one.

    With the channels of all layers, parameters and MACs fall by the square at most. Half of the way to there is safe: numbers
    of channels are rounded down, and a layer that has several never loses all of them at once.
    """
    reached = steps - (steps - step) * math.sqrt(share)
    return max(step + 1, step + int((reached - step) / 2))


class _Kept:
    """The channels of each layer's output that remain of those before the first group was removed, by the layer's name."""

    def __init__(self, pruner: Any) -> None:
        self.by_layer: dict[str, list[int]] = {}
        self._graph = pruner.DG
        self._names = {module: name for name, module in pruner.model.named_modules()}

    def note(self, group: Any) -> None:
        """Called with each group of coupled layers before it is removed."""
        lost: dict[nn.Module, set[int]] = {}
        for dependency, indices in group:
            layer = dependency.target.module
            if layer in self._names and self._graph.is_out_channel_pruning_fn(dependency.handler):
                lost.setdefault(layer, set()).update(int(index) for index in indices)
        for layer, indices in lost.items():
            name = self._names[layer]
            before = self.by_layer.get(name, list(range(self._graph.get_out_channels(layer))))
            self.by_layer[name] = [channel for place, channel in enumerate(before) if place not in indices]


def remove_again(model: nn.Module, context: Context, removed: Removed) -> None:
    """Removes from `model`, in place, the channels that were removed before."""
    with _tracing(model):
        graph = _library().DependencyGraph().build_dependency(model, example_inputs=context.example(model))
        graph.load_pruning_history([tuple(entry) for entry in copy.deepcopy(list(removed))])


def measure_statistics(model: nn.Module, context: Context, samples: int) -> None:
    """Sets the statistics of batch normalisation to the means over training samples."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms or context.calibration is None:
        return
    before = [(norm, norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in norms]
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for images, _targets in context.calibration.batches(samples):
            if len(images) > 1:
                model(images)
    for norm, momentum, count in before:
        norm.momentum = momentum
        norm.get_buffer("num_batches_tracked").copy_(count)


def set_gradients(model: nn.Module, context: Context, samples: int) -> None:
    """Leaves in `model` the gradients of the mean supervised loss over training samples, in evaluation mode."""
    assert context.calibration is not None
    model.zero_grad(set_to_none=True)
    batches = list(context.calibration.batches(samples))
    total = sum(len(images) for images, _targets in batches)
    with evaluating(model), torch.enable_grad():
        for images, targets in batches:
            (context.calibration.loss(model(images), targets) * (len(images) / total)).backward()
    for weight in model.parameters():
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)


def gradient_times_weight(layer: nn.Module) -> Tensor:
    """|w dL/dw| of each weight, from the gradients that `set_gradients` left."""
    weight = layer.get_parameter("weight")
    assert weight.grad is not None
    return (weight.detach() * weight.grad).abs()


def output_layer(model: nn.Module, context: Context) -> nn.Module | None:
    """The convolution or linear layer that runs last, whose outputs are the network's."""
    ran: list[nn.Module] = []
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(lambda layer, _inputs, _output: ran.append(layer)) for layer in layers]
    try:
        with evaluating(model), torch.no_grad():
            model(context.example(model, 2))
    finally:
        for handle in handles:
            handle.remove()
    return ran[-1] if ran else None


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise OperatorError("needs Torch-Pruning; run: pip install 'stillhouse[compress]'") from error
    return torch_pruning


def _pruner(model: nn.Module, context: Context, cut: Cut, steps: int) -> Any:
    library = _library()
    last = output_layer(model, context)
    return library.pruner.BasePruner(
        model,
        context.example(model),
        importance=_importance(library, cut.importance),
        global_pruning=cut.is_global,
        pruning_ratio=cut.ratio if steps == 1 else 1.0,
        # Of a share of MACs, no layer may run out of channels before it is reached.
        max_pruning_ratio=1.0,
        iterative_steps=steps,
        ignored_layers=[] if last is None else [last],
        round_to=cut.round_to if cut.round_to > 1 else None,
        # Its defaults are mappings that all pruners of a process would share.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )


def _importance(library: Any, name: str) -> Any:
    makers: Mapping[str, Any] = {
        "l1": lambda: library.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: library.importance.GroupMagnitudeImportance(p=2),
        "taylor": library.importance.GroupTaylorImportance,
        "bn_scale": library.importance.BNScaleImportance,
        "random": library.importance.RandomImportance,
    }
    return makers[name]()


def _note_whole_layers(pruner: Any) -> list[str]:
    """A list that names each layer which Torch-Pruning leaves whole, since all its channels would go."""
    whole: list[str] = []
    check = pruner.DG.check_pruning_group
    names = {module: name for name, module in pruner.model.named_modules()}

    def noting(group: Any) -> bool:
        allowed: bool = check(group)
        if not allowed:
            name = names.get(group[0].dep.target.module, "a layer")
            whole.extend([name] if name not in whole else [])
        return allowed

    pruner.DG.check_pruning_group = noting
    return whole


def _amount(model: nn.Module, context: Context, of: str) -> int:
    if of == "macs":
        return measure_size(model, context.input_shape).macs
    return sum(weight.numel() for weight in model.parameters()) if of == "parameters" else 0


def _check_outputs(model: nn.Module, context: Context) -> None:
    try:
        with evaluating(model), torch.no_grad():
            shape = tuple(model(context.example(model, 2)).shape)
    except Exception as error:
        raise _not_followed(error) from error
    if shape[1:] != (context.num_classes,):
        raise OperatorError(f"changes the number of outputs, from {context.num_classes} to {shape[-1]}")


@contextmanager
def _tracing(model: nn.Module) -> Iterator[None]:
    """The library's warnings are about layers that it handles itself; its errors mean that it does not follow the network."""
    try:
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OperatorError:
        raise
    except Exception as error:
        raise _not_followed(error) from error


def _not_followed(error: Exception) -> OperatorError:
    return OperatorError(
        f"cannot follow the channels of this network: {describe_error(error)}; prune another model, or single weights"
    )
