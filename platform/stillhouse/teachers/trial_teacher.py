"""How a trial uses its teacher: one source of knowledge, whichever delivery mode each kind has."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stillhouse import tasks
from stillhouse.distill.calls import CallableTeacher, InlineTeacher, ServedTeacher
from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge, KnowledgeSource, Reading, RestoredKnowledge
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.node_home import node_home
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.weights import load_weights, state_hash
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.served import ActorModel, ServedKnowledge
from stillhouse.teachers.ticket import TeacherTicket
from stillhouse.teachers.view_opener import ViewOpener


class MixedKnowledge:
    """One source that combines several, of different delivery modes or teachers."""

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

    @contextmanager
    def reading(self, parts: Iterable[Tensor], device: str) -> Iterator[None]:
        announced = list(parts)
        with ExitStack() as stack:
            for source in self._sources:
                stack.enter_context(source.reading(announced, device))
            yield


class TrialTeacher:
    """A trial's source of knowledge, made from a ticket, and the counts of what it used.

    Attributes:
        source: None for a method that only calls the teacher.
        callable: the teacher as a function, for a method that calls it on inputs that the method generates.

    Args:
        knowledge: what the method needs, by name; the ticket gives the delivery mode of each kind.
        labels: of the training split, [N] or [N, K], for knowledge that depends on the target.
        calls: whether the method calls the teacher on inputs that it generates.
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
        if (calls and ticket.calling_mode == "inline") or "inline" in {_mode_of(kind, ticket) for kind in knowledge.values()}:
            model = ticket.definition.build()
            load_weights(model, weights_here(ticket))
            ticket.definition.adapt(model).to(device)
        by_mode: dict[str, dict[str, Knowledge]] = {}
        for name, kind in knowledge.items():
            by_mode.setdefault(_mode_of(kind, ticket), {})[name] = kind
        self._cached: CachedKnowledge | None = None
        self._computed: list[ServedKnowledge | InlineKnowledge] = []
        sources: list[KnowledgeSource] = []
        if "cached" in by_mode:
            opener = ViewOpener(ticket, by_mode["cached"], self.link)
            self._cached = CachedKnowledge(opener, opener.await_rows)
            sources.append(self._cached)
        if "served" in by_mode:
            self._computed.append(ServedKnowledge(self.link, by_mode["served"], labels))
        if "inline" in by_mode:
            assert model is not None
            self._computed.append(InlineKnowledge(model, by_mode["inline"], labels, tasks.find(ticket.definition.task)))
        self.source = join_sources([*sources, *self._computed])
        if self.source is not None and any(kind.restoration is not None for kind in knowledge.values()):
            self.source = RestoredKnowledge(self.source, knowledge)
        self.callable: CallableTeacher | None = None
        if calls:
            self.callable = ServedTeacher(ActorModel(self.link))
            if ticket.calling_mode == "inline":
                assert model is not None
                self.callable = InlineTeacher(model)
        assert self.source or self.callable, "a trial with a teacher uses it"

    def counters(self) -> dict[str, Any]:
        """What this trial used of the teacher.

        `way`, `samples_gathered`, `bytes_gathered`, `samples_forwarded` (inline or served, of the training split),
        `samples_called` (that the method generated) and `remote_calls`.
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
    """The file of the weights that the actor has loaded, on this node; copied from the home if necessary.

    Raises:
        InfrastructureError: neither this node nor the home has these weights.
    """
    home = node_home(ticket.home)
    path = home.here(ticket.weights_path)
    # A node's copy may come from an earlier training of this teacher.
    if not _holds(path, ticket.weights_hash):
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


def _mode_of(kind: Knowledge, ticket: TeacherTicket) -> str:
    # An adaptive search may need a kind that the plan did not foresee; computing it inline always works.
    return ticket.modes.get(kind.id, "inline")


def join_sources(sources: Sequence[KnowledgeSource]) -> KnowledgeSource | None:
    """One source for all of them; None for none."""
    return MixedKnowledge(sources) if len(sources) > 1 else sources[0] if sources else None


def add_counters(teachers: Sequence[TrialTeacher]) -> dict[str, Any]:
    """The counters of a trial that learns from several teachers: sums, and all delivery modes that were used."""
    return sum_counters([teacher.counters() for teacher in teachers])


def sum_counters(counted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counters of several processes or teachers, added up."""
    sums = {name: sum(each[name] for each in counted) for name in counted[0] if name != "way"}
    return {"way": "+".join(dict.fromkeys(each["way"] for each in counted)), **sums}
