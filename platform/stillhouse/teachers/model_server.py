"""A frozen model that answers calls of many trials: knowledge, forward passes, vector-Jacobian products, procedures."""

import itertools
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.device import free_memory, is_out_of_memory
from stillhouse.distill.calls import Procedure, pull_back, run_procedure, run_teacher
from stillhouse.distill.sources import compute_knowledge, layers_of
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.batch_parts import BatchParts
from stillhouse.models.features import FeatureReader
from stillhouse.tasks import Task
from stillhouse.teachers.call_queue import CACHE_TIMEOUT_S, MAX_QUEUED_BYTES, MAX_WAITING, Call, CallQueue, FairLock

MERGED_ROWS = 1024
"""The largest batch that calls are merged into on a GPU. On a CPU it is off, for equal bits in every run (decision 0010)."""
MAX_CACHED_BYTES = 1 << 30
"""Of cached forward passes whose gradients were not requested yet."""
_PIECE_ROWS = 2048
"""A larger batch is computed in pieces, so that the teacher's memory does not depend on a caller's batch size; the pieces are
smaller once memory ran out."""


class ForwardPassCache:
    """Forward passes whose gradients will be requested, so that the teacher need not compute them twice.

    A pass that was dropped, or lost with its process, is computed again.

    Args:
        max_bytes: the most that all passes may take; the oldest are dropped.
    """

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._passes: OrderedDict[str, tuple[Tensor, Sequence[Tensor], int, float]] = OrderedDict()

    def store(self, token: str, images: Tensor, outputs: Sequence[Tensor], num_bytes: int) -> None:
        self.drop_old()
        if num_bytes > self._max_bytes:
            return
        self._passes[token] = (images, outputs, num_bytes, time.monotonic())
        while sum(each[2] for each in self._passes.values()) > self._max_bytes:
            self._passes.popitem(last=False)

    def take(self, token: str | None) -> tuple[Tensor, Sequence[Tensor]] | None:
        """Removes a pass; returns its images and outputs."""
        found = self._passes.pop(token, None) if token is not None else None
        return None if found is None else found[:2]

    def clear(self) -> None:
        """Drops all passes."""
        self._passes.clear()

    def drop_old(self) -> None:
        """Drops passes whose gradients were not requested in time, such as those of trials that ended."""
        for token in [token for token, each in self._passes.items() if time.monotonic() - each[3] > CACHE_TIMEOUT_S]:
            del self._passes[token]

    def __contains__(self, token: object) -> bool:
        return token in self._passes


class ModelServer:
    """Answers calls of a frozen model in evaluation mode: knowledge, forward passes, vector-Jacobian products, procedures.

    Args:
        lock: held while the model computes.
        task: names the model's outputs; the default task unless given.
        merged_rows: the largest merged batch; by default `MERGED_ROWS` on a GPU and none on a CPU.
        merges_passes: whether forward passes whose gradients will be requested are merged too. Merged ones are computed again
            for the gradient; no GPU has shown yet which is faster.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lock: FairLock,
        task: Task | None = None,
        device: str = "cpu",
        merged_rows: int | None = None,
        merges_passes: bool = False,
        max_cached_bytes: int = MAX_CACHED_BYTES,
        max_waiting: int = MAX_WAITING,
        max_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._lock = lock
        self._task = task
        self._device = device
        self._passes = ForwardPassCache(max_cached_bytes)
        self._pass_bytes: dict[Hashable, float] = {}
        self._merges_passes = merges_passes
        self._pieces = BatchParts(_PIECE_ROWS)
        self.queue = CallQueue(
            self._compute,
            merged_rows=(0 if device == "cpu" else MERGED_ROWS) if merged_rows is None else merged_rows,
            max_waiting=max_waiting,
            max_bytes=max_bytes,
            on_idle=self._passes.drop_old,
        )
        self.samples_forwarded = 0
        self.samples_differentiated = 0

    def knowledge(
        self,
        caller: str,
        images: NDArray[np.float32],
        kinds: Mapping[str, Knowledge],
        labels: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Every kind of knowledge of normalised images [B, C, H, W], by name, [B, ...] each.

        Args:
            labels: [B], the samples' own classes, for kinds that depend on them.

        Raises:
            QueueFullError: too many calls or bytes are waiting.
        """
        arrays: list[NDArray[Any]] = [images] if labels is None else [images, labels]
        answer = self.queue.submit(Call(caller, ("knowledge", tuple(kinds.items()), len(arrays), *_form(images)), arrays))
        return dict(zip(kinds, answer, strict=True))

    def forward(self, caller: str, images: NDArray[Any], layers: Sequence[str], token: str | None = None) -> list[NDArray[Any]]:
        """The logits of normalised images [B, C, H, W], then the output of each named layer.

        Args:
            token: names this pass for the `pull_back` that will follow; None when none will.

        Raises:
            QueueFullError: too many calls or bytes are waiting.
        """
        # A pass that is merged with others' is not stored for its gradient, so it would be computed twice.
        alone = token if token is not None and not self._merges_passes else token is not None
        task = ("forward", alone, tuple(layers), *_form(images))
        return list(self.queue.submit(Call(caller, task, [images], token)))

    def pull_back(
        self, caller: str, images: NDArray[Any], layers: Sequence[str], gradients: Sequence[NDArray[Any]], token: str | None
    ) -> NDArray[Any]:
        """The gradient with respect to the images, given those with respect to the outputs of `forward`.

        Raises:
            QueueFullError: too many calls or bytes are waiting.
        """
        task: tuple[Hashable, ...] = ("pull_back", tuple(layers), *_form(images))
        if token in self._passes:
            task += (token,)  # computed alone, from the cached pass
        return self.queue.submit(Call(caller, task, [images, *gradients], token))[0]

    def run(
        self, caller: str, procedure: Procedure, arrays: Sequence[NDArray[Any]], options: Mapping[str, Any]
    ) -> list[NDArray[Any]]:
        """The results of a procedure on arrays [B, ...], of which the first are normalised images [B, C, H, W].

        Args:
            options: keyword arguments of the procedure, plain values.

        Raises:
            QueueFullError: too many calls or bytes are waiting.
        """
        forms = tuple(_form(array) for array in arrays)
        task = ("procedure", procedure, tuple(sorted(options.items())), forms)
        return list(self.queue.submit(Call(caller, task, arrays)))

    def counters(self) -> dict[str, float]:
        """`samples_served`, `samples_differentiated`, `batches_served` and `calls_merged`: calls that shared a batch."""
        return {
            "samples_served": self.samples_forwarded,
            "samples_differentiated": self.samples_differentiated,
            "batches_served": self.queue.batches,
            "calls_merged": self.queue.calls_merged,
        }

    def _compute(self, calls: Sequence[Call]) -> Sequence[Sequence[NDArray[Any]]]:
        task = calls[0].task
        assert isinstance(task, tuple)
        with self._lock:
            outputs = self._try_alone(task, calls[0]) if len(calls) == 1 and calls[0].rows <= _PIECE_ROWS else None
            if outputs is None:
                # Copied out of shared memory and joined at once.
                joined = [
                    torch.from_numpy(np.concatenate(parts)) for parts in zip(*(call.arrays for call in calls), strict=True)
                ]
                outputs = self._in_pieces(task, joined)
            arrays = [output.detach().cpu().numpy() for output in outputs]
        ends = list(itertools.accumulate(call.rows for call in calls))
        return [[array[end - call.rows : end] for array in arrays] for call, end in zip(calls, ends, strict=True)]

    def _try_alone(self, task: tuple[Any, ...], call: Call) -> Sequence[Tensor] | None:
        """The answer of one call; None if memory ran out, as it may only do when nothing is stored for gradients."""
        try:
            return self._compute_alone(task, call)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self._passes.clear()
        free_memory()
        return None

    def _compute_alone(self, task: tuple[Any, ...], call: Call) -> Sequence[Tensor]:
        if task[0] == "pull_back" and (stored := self._passes.take(call.token)) is not None:
            images, outputs = stored
            self.samples_differentiated += call.rows
            return [pull_back(outputs, images, [self._tensor(gradient) for gradient in call.arrays[1:]])]
        tensors = [self._tensor(array) for array in call.arrays]
        if task[0] == "forward" and call.token is not None:
            images = tensors[0].requires_grad_()
            per_sample = self._bytes_per_sample(task, images)
            outputs = run_teacher(self._model, images, task[2])
            self.samples_forwarded += call.rows
            self._passes.store(call.token, images, outputs, int(per_sample * call.rows))
            return outputs
        return self._run(task, tensors)

    def _in_pieces(self, task: tuple[Any, ...], joined: Sequence[Tensor]) -> Sequence[Tensor]:
        answers = self._pieces.apply(
            joined[0], lambda piece: self._run(task, [tensor[piece].to(self._device) for tensor in joined])
        )
        return [torch.cat(parts) for parts in zip(*answers, strict=True)]

    def _run(self, task: tuple[Any, ...], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        if task[0] == "procedure":
            return run_procedure(self._forward, task[1], tensors, dict(task[2]))
        images = tensors[0]
        self.samples_forwarded += len(images)
        if task[0] == "knowledge":
            kinds = dict(task[1])
            labels = tensors[1] if len(tensors) > 1 else None
            with FeatureReader(self._model, layers_of(kinds)) as reader:
                return [value.float() for value in compute_knowledge(reader, kinds, images, labels, task=self._task).values()]
        if task[0] == "forward":
            with torch.no_grad():
                return run_teacher(self._model, images, task[2])
        images.requires_grad_()
        self.samples_differentiated += len(images)
        return [pull_back(run_teacher(self._model, images, task[1]), images, tensors[1:])]

    def _forward(self, images: Tensor, *others: Tensor) -> Any:
        self.samples_forwarded += len(images)
        return self._model(images, *others)

    def _bytes_per_sample(self, task: tuple[Any, ...], images: Tensor) -> float:
        """The bytes that a forward pass stores for its gradient, measured once per form of input on one sample."""
        form = task[2:]
        if form not in self._pass_bytes:
            weights = {tensor.untyped_storage().data_ptr() for tensor in self._model.state_dict().values()}
            sizes: dict[int, int] = {}

            def count(saved: Tensor) -> int:
                storage = saved.untyped_storage()
                if storage.data_ptr() not in weights:
                    sizes[storage.data_ptr()] = storage.nbytes()
                return 0

            one = images[:1].detach().clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
                run_teacher(self._model, one, task[2])
            self._pass_bytes[form] = sum(sizes.values())
        return self._pass_bytes[form]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """A writable copy on the device: arrays from the object store are read-only shared memory."""
        return torch.from_numpy(np.array(array)).to(self._device)


def _form(images: NDArray[Any]) -> tuple[Hashable, ...]:
    return (images.shape[1:], images.dtype.str)
