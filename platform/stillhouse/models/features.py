"""Reading layers' outputs by name, through forward hooks that leave the model as it is."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from stillhouse.models.architecture import UnknownLayer


class _Reached(Exception):
    """Ends a forward pass at the layer that was asked for."""


class FeatureReader:
    """Runs a model and returns its logits with the outputs of the named layers.

    Use as a context manager or call `close()`: the hooks live on the model until then.

    Args:
        model: the model; neither its mode nor its weights change.
        layers: module names as in `model.named_modules()`.
        until: a layer behind which nothing is computed; the logits are then None.

    Raises:
        UnknownLayer: the model has no such layer.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] = (), *, until: str | None = None) -> None:
        self._model = model
        self._outputs: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        modules = dict(model.named_modules())
        names = [*dict.fromkeys(layers)]
        for layer in [*names, *([until] if until else [])]:
            if layer not in modules:
                raise UnknownLayer(f"the model has no layer '{layer}'")
        for layer in names:
            self._handles.append(modules[layer].register_forward_hook(self._keeper(layer)))
        if until is not None:
            self._handles.append(modules[until].register_forward_hook(_stop))

    def _keeper(self, layer: str):  # type: ignore[no-untyped-def]  # torch's hook type is private
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._outputs[layer] = output

        return keep

    def __call__(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits [B, C] (None with `until`) and {layer: output} for normalised images [B, C, H, W]."""
        self._outputs = {}
        try:
            logits = self._model(images)
        except _Reached:
            logits = None
        outputs, self._outputs = self._outputs, {}
        return logits, outputs

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()


def _stop(_module: nn.Module, _inputs: object, _output: object) -> None:
    raise _Reached
