"""Reads layers' outputs by name, with forward hooks that do not change the model."""

import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from stillhouse.errors import did_you_mean
from stillhouse.models.architecture import UnknownLayer

ForwardHook = Callable[[nn.Module, tuple[Any, ...], Any], None]


class UnreadableLayer(ValueError):
    """A layer whose output cannot be read: it is not one tensor, or a later layer overwrites it in place."""


class _Reached(Exception):
    """Ends a forward pass at the requested layer."""


class FeatureReader:
    """Runs a model and returns its logits with the outputs of the named layers.

    Use it as a context manager or call `close()`: until then the model has hooks, which do nothing in forward passes of other
    callers. If the model calls a layer several times, the last output is returned. The hooks do not keep the reader alive, so
    that a model that is dropped with its reader is freed at once.

    Args:
        model: the model; neither its mode nor its weights change.
        layers: module names as in `model.named_modules()`.
        until: a layer after which nothing is computed; the logits are then None.

    Raises:
        UnknownLayer: the model has no such layer.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] = (), *, until: str | None = None) -> None:
        self._model = model
        self._reading = False
        self._outputs: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        modules = {name: module for name, module in model.named_modules() if name}
        names = [*dict.fromkeys(layers)]
        for layer in [*names, *([until] if until is not None else [])]:
            if layer not in modules:
                raise UnknownLayer(f"the model has no layer '{layer}'{did_you_mean(layer, modules)}")
        for layer in names:
            self._handles.append(modules[layer].register_forward_hook(self._keeper(layer)))
        if until is not None:
            self._handles.append(modules[until].register_forward_hook(self._stopper()))

    def _keeper(self, layer: str) -> ForwardHook:
        own = weakref.ref(self)

        def keep(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            if (reader := own()) is None or not reader._reading:
                return
            if not isinstance(output, Tensor):
                raise UnreadableLayer(f"layer '{layer}' must return one tensor, got {type(output).__name__}")
            reader._outputs[layer] = output
            if _has_version(output):
                reader._versions[layer] = output._version

        return keep

    def _stopper(self) -> ForwardHook:
        own = weakref.ref(self)

        def stop(_module: nn.Module, _inputs: tuple[Any, ...], _output: Any) -> None:
            if (reader := own()) is not None and reader._reading:
                raise _Reached

        return stop

    def __call__(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits [B, C] (None with `until`) and {layer: output} for normalised images [B, C, H, W].

        Raises:
            UnreadableLayer: a named layer does not return one tensor, or a later layer overwrites it in place.
        """
        self._outputs, self._versions = {}, {}
        logits: Tensor | None
        self._reading = True
        try:
            logits = self._model(images)
        except _Reached:
            logits = None
        finally:
            self._reading = False
        outputs, self._outputs = self._outputs, {}
        for layer, version in self._versions.items():
            if outputs[layer]._version != version:
                raise UnreadableLayer(f"layer '{layer}' is overwritten in place by a later layer; name the later one instead")
        return logits, outputs

    def weight(self, name: str) -> Tensor:
        """The model's parameter or buffer `name`, as in its `state_dict`, detached.

        Raises:
            UnknownLayer: the model has none with this name.
        """
        layer, _, attribute = name.rpartition(".")
        try:
            weight = getattr(self._model.get_submodule(layer), attribute)
        except AttributeError:
            weight = None
        if not isinstance(weight, Tensor):
            raise UnknownLayer(f"the model has no weight '{name}'")
        return weight.detach()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()


def _has_version(output: Tensor) -> bool:
    """Whether the tensor counts its in-place changes: inference tensors do not, and a compiler cannot trace the count."""
    return not torch.compiler.is_compiling() and not output.is_inference()
