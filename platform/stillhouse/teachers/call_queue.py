"""Calls of many trials on one model: queued within bounds, served fairly, computed together where that pays.

Every call is a pure function of its arrays and treats the samples of a batch independently, so calls may be merged into one
batch, split, and repeated.
"""

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.distill.calls import pull_back, run_teacher
from stillhouse.distill.sources import compute_knowledge, layers_of
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.features import FeatureReader

Asked = ParamSpec("Asked")
Answered = TypeVar("Answered")

MERGED_ROWS = 1024
"""The largest batch that calls are merged into on a GPU. On a CPU it is off, for equal bits in every run (decision 0010)."""
MAX_WAITING = 48
"""Calls that may wait at once; each holds a thread of the actor, which has more."""
MAX_QUEUED_BYTES = 1 << 30
KEPT_BYTES = 1 << 30
"""Of forward passes that are kept until their gradients are asked for."""
_KEPT_S = 60.0
_PIECE_ROWS = 2048
"""A larger batch is computed in pieces, so that a caller's batch size does not decide the teacher's memory."""


@dataclass(frozen=True)
class Busy:
    """The answer to a call for which there is no room now; the caller should ask again after a pause."""

    waiting: int


class NoRoom(Exception):
    """The queue is full."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} calls are waiting")
        self.waiting = waiting


def unless_busy(answer: Callable[Asked, Answered], *arguments: Asked.args, **options: Asked.kwargs) -> "Answered | Busy":
    """The answer, or `Busy` where `NoRoom` is raised: what no room looks like to another process."""
    try:
        return answer(*arguments, **options)
    except NoRoom as error:
        return Busy(error.waiting)


class FairLock:
    """A lock that is given in the order in which it was asked for: a loop that takes it again and again starves nobody."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._queue: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._queue.append(turn)
        turn.wait()

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._held = False


@dataclass(eq=False)
class Call:
    """One call of one trial.

    Attributes:
        caller: who asks; the callers share the teacher equally, by rows.
        task: what is computed; calls with equal tasks can be merged.
        arrays: [B, ...] each, of the same B.
        token: names the forward pass that a gradient belongs to.
    """

    caller: str
    task: Hashable
    arrays: Sequence[NDArray[Any]]
    token: str | None = None
    done: threading.Event = field(default_factory=threading.Event)
    answer: Sequence[NDArray[Any]] = ()
    error: Exception | None = None
    turn: tuple[float, int] = (0.0, 0)

    @property
    def rows(self) -> int:
        return len(self.arrays[0])

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class CallQueue:
    """Waiting calls and the one thread that computes them.

    The next call is that of the caller who has had the fewest rows (start-time fair queueing); others with the same task
    join it up to `merged_rows`.

    Args:
        compute: gives the answers of calls that share a task, in order.
        merged_rows: the largest merged batch; 0 computes every call alone.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Call]], Sequence[Sequence[NDArray[Any]]]],
        *,
        merged_rows: int = 0,
        max_waiting: int = MAX_WAITING,
        max_bytes: int = MAX_QUEUED_BYTES,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._compute = compute
        self._merged_rows = merged_rows
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._calls: list[Call] = []
        self._waiting = 0
        self._bytes = 0
        self._now = 0.0
        self._had: dict[str, float] = {}
        self._order = itertools.count()
        self._worker: threading.Thread | None = None
        self.batches = 0
        self.calls_merged = 0

    @property
    def num_waiting(self) -> int:
        """Calls that were not answered yet."""
        return self._waiting

    def ask(self, call: Call) -> Sequence[NDArray[Any]]:
        """The answer; waits for its turn.

        Raises:
            NoRoom: as many calls or bytes as may wait are waiting.
        """
        with self._changed:
            if self._waiting >= self._max_waiting or (self._waiting and self._bytes + call.num_bytes > self._max_bytes):
                raise NoRoom(self._waiting)
            begin = max(self._now, self._had.get(call.caller, 0.0))
            self._had[call.caller] = begin + call.rows
            call.turn = (begin, next(self._order))
            self._calls.append(call)
            self._waiting += 1
            self._bytes += call.num_bytes
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, name="server", daemon=True)
                self._worker.start()
            self._changed.notify()
        call.done.wait()
        with self._changed:
            self._waiting -= 1
            self._bytes -= call.num_bytes
        if call.error is not None:
            raise call.error
        return call.answer

    def take(self, *, timeout_s: float | None = None) -> list[Call]:
        """The calls of the next batch; none when there is nothing to do for `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._calls), timeout_s):
                return []
            first, *others = sorted(self._calls, key=lambda call: call.turn)
            batch, rows = [first], first.rows
            for call in others:
                if call.task == first.task and rows + call.rows <= self._merged_rows:
                    batch.append(call)
                    rows += call.rows
            self._calls = [call for call in self._calls if call not in batch]
            self._now = first.turn[0]
            self._had = {caller: had for caller, had in self._had.items() if had > self._now}
            return batch

    def _work(self) -> None:
        while True:
            batch = self.take(timeout_s=_KEPT_S)
            if not batch:
                self._on_idle()
                continue
            self._answer(batch)

    def _answer(self, batch: Sequence[Call]) -> None:
        try:
            answers = self._compute(batch)
        except Exception as error:  # belongs to the caller, in whose thread it is raised
            if len(batch) > 1:
                # What one trial sends must not fail the others.
                for call in batch:
                    self._answer([call])
                return
            batch[0].error = error
        else:
            self.batches += 1
            self.calls_merged += len(batch) if len(batch) > 1 else 0
            for call, answer in zip(batch, answers, strict=True):
                call.answer = answer
        for call in batch:
            call.done.set()


class KeptPasses:
    """Forward passes whose gradients will be asked for: they save the teacher from computing them twice.

    Only a saving: a pass that was dropped, or that died with its process, is computed again.

    Args:
        max_bytes: of all of them; the oldest are dropped.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._passes: OrderedDict[str, tuple[Tensor, Sequence[Tensor], int, float]] = OrderedDict()

    def keep(self, token: str, images: Tensor, outputs: Sequence[Tensor], num_bytes: int) -> None:
        self.drop_old()
        if num_bytes > self._max_bytes:
            return
        self._passes[token] = (images, outputs, num_bytes, time.monotonic())
        while sum(kept[2] for kept in self._passes.values()) > self._max_bytes:
            self._passes.popitem(last=False)

    def take(self, token: str | None) -> tuple[Tensor, Sequence[Tensor]] | None:
        """The images and the outputs, once."""
        found = self._passes.pop(token, None) if token is not None else None
        return None if found is None else found[:2]

    def drop_old(self) -> None:
        """Forgets what nobody asked for, such as the passes of trials that ended."""
        for token in [token for token, kept in self._passes.items() if time.monotonic() - kept[3] > _KEPT_S]:
            del self._passes[token]

    def __contains__(self, token: object) -> bool:
        return token in self._passes


class ModelServer:
    """Answers calls of a frozen model in evaluation mode: knowledge, forward passes, vector-Jacobian products.

    Args:
        lock: held while the model computes.
        merged_rows: the largest merged batch; by default `MERGED_ROWS` on a GPU and none on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lock: FairLock,
        device: str = "cpu",
        merged_rows: int | None = None,
        kept_bytes: int = KEPT_BYTES,
        max_waiting: int = MAX_WAITING,
        max_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._lock = lock
        self._device = device
        self._kept = KeptPasses(kept_bytes)
        self._pass_bytes: dict[Hashable, float] = {}
        self.queue = CallQueue(
            self._compute,
            merged_rows=(0 if device == "cpu" else MERGED_ROWS) if merged_rows is None else merged_rows,
            max_waiting=max_waiting,
            max_bytes=max_bytes,
            on_idle=self._kept.drop_old,
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
            NoRoom: too much is waiting.
        """
        arrays: list[NDArray[Any]] = [images] if labels is None else [images, labels]
        answer = self.queue.ask(Call(caller, ("knowledge", tuple(kinds.items()), len(arrays), *_form(images)), arrays))
        return dict(zip(kinds, answer, strict=True))

    def forward(self, caller: str, images: NDArray[Any], layers: Sequence[str], token: str | None = None) -> list[NDArray[Any]]:
        """The logits of normalised images [B, C, H, W], then the output of each named layer.

        Args:
            token: names this pass for the `pull_back` that will follow; None when none will.

        Raises:
            NoRoom: too much is waiting.
        """
        task = ("forward", token is not None, tuple(layers), *_form(images))
        return list(self.queue.ask(Call(caller, task, [images], token)))

    def pull_back(
        self, caller: str, images: NDArray[Any], layers: Sequence[str], gradients: Sequence[NDArray[Any]], token: str | None
    ) -> NDArray[Any]:
        """The gradient with respect to the images, for those with respect to what `forward` gave.

        Raises:
            NoRoom: too much is waiting.
        """
        task: tuple[Hashable, ...] = ("pull_back", tuple(layers), *_form(images))
        if token in self._kept:
            task += (token,)  # to be computed by itself, from the pass that is there
        return self.queue.ask(Call(caller, task, [images, *gradients], token))[0]

    def counters(self) -> dict[str, float]:
        """`samples_served`, `samples_differentiated`, `batches_served` and `calls_merged`: those that shared a batch."""
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
            if len(calls) == 1 and calls[0].rows <= _PIECE_ROWS:
                outputs = self._compute_alone(task, calls[0])
            else:
                # Copied from the shared memory that calls come in, and joined, in one go.
                joined = [
                    torch.from_numpy(np.concatenate(parts)) for parts in zip(*(call.arrays for call in calls), strict=True)
                ]
                outputs = self._in_pieces(task, joined)
            arrays = [output.detach().cpu().numpy() for output in outputs]
        ends = list(itertools.accumulate(call.rows for call in calls))
        return [[array[end - call.rows : end] for array in arrays] for call, end in zip(calls, ends, strict=True)]

    def _compute_alone(self, task: tuple[Any, ...], call: Call) -> Sequence[Tensor]:
        if task[0] == "pull_back" and (kept := self._kept.take(call.token)) is not None:
            images, outputs = kept
            self.samples_differentiated += call.rows
            return [pull_back(outputs, images, [self._tensor(gradient) for gradient in call.arrays[1:]])]
        tensors = [self._tensor(array) for array in call.arrays]
        if task[0] == "forward" and call.token is not None:
            images = tensors[0].requires_grad_()
            per_sample = self._bytes_per_sample(task, images)
            outputs = run_teacher(self._model, images, task[2])
            self.samples_forwarded += call.rows
            self._kept.keep(call.token, images, outputs, int(per_sample * call.rows))
            return outputs
        return self._run(task, tensors)

    def _in_pieces(self, task: tuple[Any, ...], joined: Sequence[Tensor]) -> Sequence[Tensor]:
        pieces = zip(*(tensor.split(_PIECE_ROWS) for tensor in joined), strict=True)
        answers = [self._run(task, [part.to(self._device) for part in piece]) for piece in pieces]
        return [torch.cat(parts) for parts in zip(*answers, strict=True)]

    def _run(self, task: tuple[Any, ...], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        images = tensors[0]
        self.samples_forwarded += len(images)
        if task[0] == "knowledge":
            kinds = dict(task[1])
            labels = tensors[1] if len(tensors) > 1 else None
            with FeatureReader(self._model, layers_of(kinds)) as reader:
                return [value.float() for value in compute_knowledge(reader, kinds, images, labels).values()]
        if task[0] == "forward":
            with torch.no_grad():
                return run_teacher(self._model, images, task[2])
        images.requires_grad_()
        self.samples_differentiated += len(images)
        return [pull_back(run_teacher(self._model, images, task[1]), images, tensors[1:])]

    def _bytes_per_sample(self, task: tuple[Any, ...], images: Tensor) -> float:
        """What a forward pass keeps for its gradient, counted once for each form of input on one sample."""
        if task not in self._pass_bytes:
            weights = {tensor.untyped_storage().data_ptr() for tensor in self._model.state_dict().values()}
            kept: dict[int, int] = {}

            def count(saved: Tensor) -> int:
                storage = saved.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = storage.nbytes()
                return 0

            one = images[:1].detach().clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
                run_teacher(self._model, one, task[2])
            self._pass_bytes[task] = sum(kept.values())
        return self._pass_bytes[task]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """A writable copy on the device: what comes through the object store is read-only shared memory."""
        return torch.from_numpy(np.array(array)).to(self._device)


def _form(images: NDArray[Any]) -> tuple[Hashable, ...]:
    return (images.shape[1:], images.dtype.str)
