"""The served delivery mode: the teacher actor computes on the inputs of each batch."""

import itertools
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.distill.calls import Procedure
from stillhouse.distill.sources import Reading, is_named
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.teachers.actor_link import ActorLink


class ServedKnowledge:
    """Knowledge that the teacher actor computes on the pixels of each batch, for inputs that exist in no view."""

    way = "served"
    wait_seconds = 0.0

    def __init__(self, link: ActorLink, knowledge: Mapping[str, Knowledge], labels: Tensor | None = None) -> None:
        self._link = link
        self._knowledge = self._needed = dict(knowledge)
        self._labels = labels
        self._caller = secrets.token_hex(8)
        self.samples_forwarded = 0

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        self._needed = {name: kind for name, kind in self._knowledge.items() if is_named(name, names)}

    def reading(self, parts: Iterable[Tensor], device: str) -> AbstractContextManager[None]:
        return nullcontext()

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        if not self._needed:
            return {}
        pixels = images.detach().float().contiguous().cpu().numpy()
        labels = None
        if self._labels is not None and any(kind.of_input for kind in self._needed.values()):
            labels = self._labels[indices].numpy()
        answer = self._link.call("forward", pixels, self._needed, labels, self._caller)
        self.samples_forwarded += len(indices)
        # Ray's arrays are read-only views of shared memory; a batch is small, so it is copied.
        return {name: torch.from_numpy(array.copy()).to(images.device) for name, array in answer.items()}


class ActorModel:
    """The shared actor as the remote end of a `ServedTeacher`. The images travel once, for both directions."""

    def __init__(self, link: ActorLink) -> None:
        self._link = link
        self._caller = secrets.token_hex(8)
        self._numbers = itertools.count()

    def forward(self, images: Tensor, layers: Sequence[str], *, differentiable: bool) -> tuple[Any, Sequence[Tensor]]:
        reference = ray.put(_to_array(images))
        name = f"{self._caller}-{next(self._numbers)}" if differentiable else None
        answer = self._link.call("call", self._caller, reference, tuple(layers), name)
        return (reference, name), [_to_tensor(array, images) for array in answer]

    def pull_back(self, token: Any, images: Tensor, layers: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        reference, name = token
        arrays = [_to_array(gradient) for gradient in gradients]
        return _to_tensor(self._link.call("pull_back", self._caller, reference, tuple(layers), arrays, name), images)

    def run(self, procedure: Procedure, tensors: Sequence[Tensor], options: Mapping[str, Any]) -> Sequence[Tensor]:
        arrays = [_to_array(tensor) if tensor.is_floating_point() else tensor.cpu().numpy() for tensor in tensors]
        images = tensors[0]
        answer = self._link.call("run", self._caller, procedure, arrays, dict(options))
        return [
            _to_tensor(array, images) if array.dtype.kind == "f" else torch.from_numpy(np.array(array)).to(images.device)
            for array in answer
        ]


def _to_array(tensor: Tensor) -> NDArray[Any]:
    """One contiguous array; types other than float32 and float64 become float32."""
    tensor = tensor.detach()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    array: NDArray[Any] = tensor.contiguous().cpu().numpy()
    return array


def _to_tensor(array: NDArray[Any], like: Tensor) -> Tensor:
    """A copy on the device and of the type of `like`: Ray's arrays are read-only views of shared memory."""
    return torch.from_numpy(np.array(array)).to(like.device, like.dtype)
