"""A trial's side of the shared teacher: cached, served or inline, behind one interface."""

import itertools
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError, RayActorError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stillhouse.distill.calls import CallableTeacher, InlineTeacher, ServedTeacher
from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge, KnowledgeSource, Reading, RestoredKnowledge, is_named
from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.node_home import node_home
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View
from stillhouse.models.weights import load_weights, state_hash
from stillhouse.teachers.call_queue import Busy
from stillhouse.teachers.definition import TeacherTicket, view_identity
from stillhouse.teachers.service import kind_id

TIMEOUT_S = 120.0
_POLL_S = 0.02
REPEAT_S = 5.0
_LONGEST_PAUSE_S = 10.0
_LONGEST_BUSY_PAUSE_S = 1.0
_CHOICE_S = 10.0
"""How long a replica is called before the replicas are asked again how much they have to do."""
_ANSWER_S = 2.0


class _NoActorError(Exception):
    """No actor of this name, for the moment."""


class ActorLink:
    """Calls of the shared actor that outlive its restart: calls are pure, so repeating one is safe.

    A call that the actor has no room for is repeated too, for as long as the actor answers. Of several replicas the one on
    this process's node is called, else the one with the fewest calls waiting; they are asked again every few seconds. What
    all of them must hear goes to one, which tells the others.

    Attributes:
        calls: of the actor and of its replicas, the questions how much they have to do among them.

    Args:
        timeout_s: how long a lost actor is waited for before the trial gives up.
    """

    def __init__(self, ticket: TeacherTicket, *, timeout_s: float = TIMEOUT_S) -> None:
        self._ticket = ticket
        self._patience_s = timeout_s
        self._handle: Any = None
        self._turn = os.getpid()
        self._names = (ticket.actor, *ticket.replicas)
        self._chosen = 0.0
        self.calls = 0

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of one actor method.

        Raises:
            InfrastructureError: the actor did not come back in time.
        """
        return self._answer(self._choose, method, arguments)

    def tell_all(self, method: str, *arguments: Any) -> Any:
        """The answer of one of the replicas, each in turn; it gets the names of all behind `arguments` and tells the others.

        Raises:
            InfrastructureError: none came back in time.
        """
        return self._answer(self._take_turns, method, (*arguments, self._names))

    def _answer(self, choose: Callable[[], Any], method: str, arguments: Sequence[Any]) -> Any:
        deadline = time.monotonic() + self._patience_s
        pause, busy_pause = 0.1, 0.01
        while True:
            try:
                handle = choose()
                self.calls += 1
                answer = ray.get(getattr(handle, method).remote(*arguments))
                if not isinstance(answer, Busy):
                    return answer
                time.sleep(busy_pause)
                busy_pause = min(2 * busy_pause, _LONGEST_BUSY_PAUSE_S)
                deadline, pause = time.monotonic() + self._patience_s, 0.1
                continue
            except (RayActorError, ObjectLostError, _NoActorError) as error:
                self._handle = None
                if time.monotonic() + pause > deadline:
                    raise InfrastructureError(
                        f"teacher '{self._ticket.definition.name}' did not answer for {self._patience_s:.0f} s: {error}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _choose(self) -> Any:
        several = len(self._names) > 1
        if self._handle is None or (several and time.monotonic() - self._chosen > _CHOICE_S):
            self._handle = self._least_loaded() if several else self._find(self._names[0])
            self._chosen = time.monotonic()
        return self._handle

    def _take_turns(self) -> Any:
        """Each replica in turn, so that one which does not answer or can not fill is not the next one again."""
        if len(self._names) == 1:
            return self._choose()
        self._turn += 1
        return self._find(self._names[self._turn % len(self._names)])

    def _least_loaded(self) -> Any:
        asked: dict[Any, Any] = {}
        for name in self._names:
            with suppress(RayActorError, _NoActorError):
                handle = self._find(name)
                self.calls += 1
                asked[handle.load.remote()] = handle
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        here = ray.get_runtime_context().get_node_id()
        found: list[tuple[bool, int, int, Any]] = []
        for answer in ready:
            with suppress(RayActorError):
                node, waiting = ray.get(answer)
                found.append((node != here, waiting, os.getpid() % (len(found) + 1), asked[answer]))
        if not found:
            raise _NoActorError("no replica answers")
        return min(found, key=lambda each: each[:3])[3]

    def _find(self, name: str) -> Any:
        try:
            return ray.get_actor(name, namespace=self._ticket.namespace)
        except ValueError as error:
            # Not to be taken for a ValueError that the actor's method raised, which repeating does not mend.
            raise _NoActorError(str(error)) from error


class ViewOpener:
    """Opens views, sealed or being filled, and waits for their rows.

    The actor is asked once per epoch for what is not sealed, and again whenever one batch has waited for a few seconds, in case
    it has died or failed since. One of its replicas is asked for all of them.
    """

    def __init__(self, ticket: TeacherTicket, knowledge: Mapping[str, Knowledge], link: ActorLink) -> None:
        self._ticket = ticket
        self._knowledge = knowledge
        self._link = link
        self._store = node_home(ticket.home).store if ticket.home else KnowledgeStore(Path(ticket.store))
        self._asked = 0.0
        self._view = 0
        self._wanted: Mapping[str, Knowledge] = {}
        self._reading: Reading | None = None
        self._views: Mapping[str, View] = {}

    def __call__(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> Mapping[str, View]:
        """{name: view} of the given names (None: all), waiting until the filling of each has begun.

        Raises:
            InfrastructureError: the actor can not fill the view, or is gone.
        """
        self._view, self._reading = view, reading
        self._wanted = {name: kind for name, kind in self._knowledge.items() if is_named(name, names)}
        self._asked = 0.0
        self._views = {}
        self._until(lambda: bool(self._views) or not self._wanted)
        if not (self._asked or all(each.complete for each in self._views.values())):
            # It is being filled; this trial's word may put it before what only runs ahead.
            self._ask(damaged=False)
        return self._views

    def await_rows(self, indices: Tensor) -> Mapping[str, View]:
        """The views that were opened last, when the rows of the samples `indices` [B] are ready in all of them.

        Raises:
            InfrastructureError: the actor can not fill the view, or is gone.
        """
        # What comes in the next seconds was not lost: a batch that waits for its turn asks nobody.
        self._asked = time.monotonic()
        self._until(lambda: all(each.ready(indices) for each in self._views.values()))
        return self._views

    def _until(self, there: Callable[[], bool]) -> None:
        """Waits until `there`, and asks the actor every few seconds."""
        failures = 0
        damaged = False
        while True:
            if not self._views or damaged:
                try:
                    self._views = self._open()
                    damaged = False
                except FileNotFoundError:
                    damaged = False
                except Damaged:
                    # The actor checks before it believes, unseals the view and makes it again.
                    damaged = True
            if not damaged and there():
                return
            if time.monotonic() - self._asked > REPEAT_S:
                reason = self._ask(damaged=damaged)
                failures += reason is not None
                if failures > 1:
                    raise InfrastructureError(
                        f"teacher '{self._ticket.definition.name}' can not fill view {self._view}: {reason}"
                    )
                # The files that are mapped may have been made anew.
                with suppress(FileNotFoundError, Damaged):
                    self._views = self._open()
            time.sleep(REPEAT_S / 5 if damaged else _POLL_S)

    def _open(self) -> Mapping[str, View]:
        return {
            name: self._store.follow(view_identity(self._ticket.base, kind, self._view)) for name, kind in self._wanted.items()
        }

    def _ask(self, *, damaged: bool) -> Any:
        # With what others will read of the view, since an actor that was restarted does not know of them.
        kinds = {kind_id(kind): kind for kind in (*self._wanted.values(), *self._ticket.plan.kinds(self._view))}
        reason = self._link.tell_all(
            "request", self._view, list(kinds.values()), False, damaged, self._reading, self._ticket.sweep
        )
        self._asked = time.monotonic()
        return reason


class ServedKnowledge:
    """The teacher actor computes on the pixels of each batch; for inputs that exist in no view."""

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


def _to_array(tensor: Tensor) -> NDArray[Any]:
    """One contiguous array; what is no float32 or float64 travels as float32."""
    tensor = tensor.detach()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    array: NDArray[Any] = tensor.contiguous().cpu().numpy()
    return array


def _to_tensor(array: NDArray[Any], like: Tensor) -> Tensor:
    """On the device and of the type of `like`. Ray's arrays are read-only views of shared memory, so they are copied."""
    return torch.from_numpy(np.array(array)).to(like.device, like.dtype)


class MixedKnowledge:
    """Different ways for different kinds of knowledge of one trial."""

    def __init__(self, sources: Sequence[KnowledgeSource]) -> None:
        self._sources = sources
        self.way = "+".join(dict.fromkeys(source.way for source in sources))

    @property
    def wait_seconds(self) -> float:
        return sum(source.wait_seconds for source in self._sources)

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        for source in self._sources:
            source.begin_epoch(view, names, reading)

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        gathered: dict[str, Tensor] = {}
        for source in self._sources:
            gathered |= source.gather(indices, images)
        return gathered


class TrialTeacher:
    """Makes a trial's knowledge source from a ticket, and counts what it used.

    Attributes:
        source: None for a method that only calls the teacher.
        callable: the teacher as a function, for a method that calls it on inputs of its own making.

    Args:
        knowledge: what the method asks, by name; the ticket says which way each kind goes.
        labels: [N] int64 of the training split, for knowledge that depends on the class.
        calls: whether the method calls the teacher on inputs of its own making.
    """

    def __init__(
        self,
        ticket: TeacherTicket,
        knowledge: Mapping[str, Knowledge],
        *,
        labels: Tensor | None = None,
        calls: bool = False,
        device: str = "cpu",
    ) -> None:
        self.link = ActorLink(ticket)
        knowledge = {name: ticket.form(kind) for name, kind in knowledge.items()}
        model: nn.Module | None = None
        if (calls and ticket.calling_way == "inline") or "inline" in {_way_of(kind, ticket) for kind in knowledge.values()}:
            model = ticket.definition.build()
            load_weights(model, weights_here(ticket))
            model.to(device)
        by_way: dict[str, dict[str, Knowledge]] = {}
        for name, kind in knowledge.items():
            by_way.setdefault(_way_of(kind, ticket), {})[name] = kind
        self._cached: CachedKnowledge | None = None
        self._computed: list[ServedKnowledge | InlineKnowledge] = []
        sources: list[KnowledgeSource] = []
        if "cached" in by_way:
            opener = ViewOpener(ticket, by_way["cached"], self.link)
            self._cached = CachedKnowledge(opener, opener.await_rows)
            sources.append(self._cached)
        if "served" in by_way:
            self._computed.append(ServedKnowledge(self.link, by_way["served"], labels))
        if "inline" in by_way:
            assert model is not None
            self._computed.append(InlineKnowledge(model, by_way["inline"], labels))
        self.source = join_sources([*sources, *self._computed])
        if self.source is not None and any(kind.restoration is not None for kind in knowledge.values()):
            self.source = RestoredKnowledge(self.source, knowledge)
        self.callable: CallableTeacher | None = None
        if calls:
            self.callable = ServedTeacher(ActorModel(self.link))
            if ticket.calling_way == "inline":
                assert model is not None
                self.callable = InlineTeacher(model)
        assert self.source or self.callable, "a trial with a teacher asks something of it"

    def counters(self) -> dict[str, Any]:
        """What this trial took of the teacher.

        `way`, `samples_gathered`, `bytes_gathered`, `samples_forwarded` (inline or served, of the training split),
        `samples_called` (of the method's own making) and `remote_calls`.
        """
        return {
            "way": "+".join(dict.fromkeys(used.way for used in (self.source, self.callable) if used is not None)),
            "samples_gathered": self._cached.samples_gathered if self._cached else 0,
            "bytes_gathered": self._cached.bytes_gathered if self._cached else 0,
            "samples_forwarded": sum(source.samples_forwarded for source in self._computed),
            "samples_called": self.callable.samples_called if self.callable else 0,
            "remote_calls": self.link.calls,
        }


def weights_here(ticket: TeacherTicket) -> Path:
    """The file of the teacher's weights on this node, fetched if need be; they are those that the actor has loaded.

    Raises:
        InfrastructureError: they are not, also where the home has them.
    """
    home = None if ticket.home is None else node_home(ticket.home)
    path = Path(ticket.weights_path) if home is None else home.here(ticket.weights_path)
    # A node's copy may be of an earlier training of this teacher.
    if not _holds(path, ticket.weights_hash) and home is not None:
        home.pull(path)
    if not _holds(path, ticket.weights_hash):
        raise InfrastructureError(
            f"{path} no longer holds the weights that teacher '{ticket.definition.name}' was loaded from; "
            "run the same command again"
        )
    return path


def _holds(path: Path, digest: str) -> bool:
    try:
        return state_hash(load_file(path)) == digest
    except (OSError, SafetensorError):
        return False


def _way_of(kind: Knowledge, ticket: TeacherTicket) -> str:
    # A search that chooses its trials as it goes may ask what nobody foresaw; recomputing always works.
    return ticket.ways.get(kind_id(kind), "inline")


def join_sources(sources: Sequence[KnowledgeSource]) -> KnowledgeSource | None:
    """One source for all of them; None for none."""
    return MixedKnowledge(sources) if len(sources) > 1 else sources[0] if sources else None


def add_counters(teachers: Sequence[TrialTeacher]) -> dict[str, Any]:
    """The counters of a trial that learns from several teachers: sums, and the ways that were gone."""
    return sum_counters([teacher.counters() for teacher in teachers])


def sum_counters(counted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several processes' or teachers' counters as one."""
    sums = {name: sum(each[name] for each in counted) for name in counted[0] if name != "way"}
    return {"way": "+".join(dict.fromkeys(each["way"] for each in counted)), **sums}
