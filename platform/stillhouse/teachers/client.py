"""A trial's side of the shared teacher: cached, served or inline, behind one interface."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError
from torch import Tensor

from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge, KnowledgeSource
from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore, SealedView
from stillhouse.models.weights import load_weights
from stillhouse.teachers.definition import TeacherTicket, view_identity
from stillhouse.teachers.service import kind_id

PATIENCE_S = 120.0
_POLL_S = 0.02
_REPEAT_S = 5.0


class _NoActorError(Exception):
    """No actor of this name, for the moment."""


class ActorLink:
    """Calls of the shared actor that outlive its restart: calls are pure, so repeating one is safe.

    Args:
        patience_s: how long a lost actor is waited for before the trial gives up.
    """

    def __init__(self, ticket: TeacherTicket, *, patience_s: float = PATIENCE_S) -> None:
        self._ticket = ticket
        self._patience_s = patience_s
        self._handle: Any = None
        self.calls = 0

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of one actor method.

        Raises:
            InfrastructureError: the actor did not come back in time.
        """
        deadline = time.monotonic() + self._patience_s
        pause = 0.1
        while True:
            try:
                handle = self._handle = self._handle or self._find()
                self.calls += 1
                return ray.get(getattr(handle, method).remote(*arguments))
            except (RayActorError, ObjectLostError, _NoActorError) as error:
                self._handle = None
                if time.monotonic() + pause > deadline:
                    raise InfrastructureError(
                        f"teacher '{self._ticket.definition.name}' did not answer for {self._patience_s:.0f} s: {error}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _find(self) -> Any:
        try:
            return ray.get_actor(self._ticket.actor, namespace=self._ticket.namespace)
        except ValueError as error:
            # Not to be taken for a ValueError that the actor's method raised, which repeating does not mend.
            raise _NoActorError(str(error)) from error


class ViewOpener:
    """Opens sealed views, asking the actor for those that are not there; at most one call per epoch when it is quick."""

    def __init__(self, ticket: TeacherTicket, knowledge: Mapping[str, Knowledge], link: ActorLink) -> None:
        self._ticket = ticket
        self._knowledge = knowledge
        self._link = link
        self._store = KnowledgeStore(Path(ticket.store))

    def __call__(self, view: int) -> Mapping[str, SealedView]:
        """{name: sealed view}, waiting until all are sealed.

        Raises:
            InfrastructureError: the actor can not fill the view, or is gone.
        """
        asked = 0.0
        failures = 0
        while True:
            try:
                return {
                    name: self._store.open(view_identity(self._ticket.base, kind, view))
                    for name, kind in self._knowledge.items()
                }
            except FileNotFoundError:
                damaged = False
            except Damaged:
                # The actor checks before it believes, unseals the view and makes it again.
                damaged = True
            if time.monotonic() - asked > _REPEAT_S:
                reason = self._link.call("request", view, list(self._knowledge.values()), False, damaged)
                asked = time.monotonic()
                failures += reason is not None
                if failures > 1:
                    raise InfrastructureError(f"teacher '{self._ticket.definition.name}' can not fill view {view}: {reason}")
            time.sleep(_REPEAT_S / 5 if damaged else _POLL_S)


class ServedKnowledge:
    """The teacher actor computes on the pixels of each batch; for inputs that exist in no view."""

    way = "served"

    def __init__(self, link: ActorLink, knowledge: Mapping[str, Knowledge]) -> None:
        self._link = link
        self._knowledge = dict(knowledge)

    def begin_epoch(self, view: int) -> None:
        """Nothing to wait for."""

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        answer = self._link.call("forward", images.detach().float().contiguous().cpu().numpy(), self._knowledge)
        # Ray's arrays are read-only views of shared memory; a batch is small, so it is copied.
        return {name: torch.from_numpy(array.copy()).to(images.device) for name, array in answer.items()}


class MixedKnowledge:
    """Different ways for different kinds of knowledge of one trial."""

    def __init__(self, sources: Sequence[KnowledgeSource]) -> None:
        self._sources = sources
        self.way = "+".join(dict.fromkeys(source.way for source in sources))

    def begin_epoch(self, view: int) -> None:
        for source in self._sources:
            source.begin_epoch(view)

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        gathered: dict[str, Tensor] = {}
        for source in self._sources:
            gathered |= source.gather(indices, images)
        return gathered


class TrialTeacher:
    """Makes a trial's knowledge source from a ticket, and counts what it used.

    Args:
        knowledge: what the method asks, by name; the ticket says which way each kind goes.
    """

    def __init__(self, ticket: TeacherTicket, knowledge: Mapping[str, Knowledge], *, device: str = "cpu") -> None:
        self.link = ActorLink(ticket)
        by_way: dict[str, dict[str, Knowledge]] = {}
        for name, kind in knowledge.items():
            by_way.setdefault(ticket.ways[kind_id(kind)], {})[name] = kind
        self._cached: CachedKnowledge | None = None
        self._inline: InlineKnowledge | None = None
        sources: list[KnowledgeSource] = []
        if "cached" in by_way:
            self._cached = CachedKnowledge(ViewOpener(ticket, by_way["cached"], self.link))
            sources.append(self._cached)
        if "served" in by_way:
            sources.append(ServedKnowledge(self.link, by_way["served"]))
        if "inline" in by_way:
            teacher = ticket.definition.build()
            load_weights(teacher, Path(ticket.weights_path))
            self._inline = InlineKnowledge(teacher.to(device), by_way["inline"])
            sources.append(self._inline)
        joined = join_sources(sources)
        assert joined is not None, "a trial with a teacher asks something of it"
        self.source: KnowledgeSource = joined

    def counters(self) -> dict[str, Any]:
        """`way`, `samples_gathered`, `bytes_gathered`, `samples_forwarded` (inline) and `remote_calls` of this trial."""
        return {
            "way": self.source.way,
            "samples_gathered": self._cached.samples_gathered if self._cached else 0,
            "bytes_gathered": self._cached.bytes_gathered if self._cached else 0,
            "samples_forwarded": self._inline.samples_forwarded if self._inline else 0,
            "remote_calls": self.link.calls,
        }


def join_sources(sources: Sequence[KnowledgeSource]) -> KnowledgeSource | None:
    """One source for all of them; None for none."""
    return MixedKnowledge(sources) if len(sources) > 1 else sources[0] if sources else None


def add_counters(teachers: Sequence[TrialTeacher]) -> dict[str, Any]:
    """The counters of a trial that learns from several teachers: sums, and the ways that were gone."""
    counted = [teacher.counters() for teacher in teachers]
    sums = {name: sum(each[name] for each in counted) for name in counted[0] if name != "way"}
    return {"way": "+".join(dict.fromkeys(each["way"] for each in counted)), **sums}
