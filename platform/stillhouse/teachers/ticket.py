"""What a trial is given to use a teacher: its ticket, the plan of its views, and a request to fill one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import cloudpickle

from stillhouse.distill.sources import Reading
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.top_k import TopK
from stillhouse.teachers.definition import TeacherDefinition


@dataclass(frozen=True)
class FillPlan:
    """What each view is filled with, so that one forward pass gives all that any trial reads of it.

    Attributes:
        packed: the kinds of knowledge, pickled: a process may hold the plan before it can import what they name.
        views: of each kind, in the same order, the views in which some trial reads it.
    """

    packed: bytes = b""
    views: tuple[frozenset[int], ...] = ()

    @classmethod
    def make(cls, views_of: Iterable[tuple[Knowledge, Iterable[int]]]) -> "FillPlan":
        pairs = list(views_of)
        packed = cloudpickle.dumps([kind for kind, _ in pairs])
        return cls(packed, tuple(frozenset(views) for _, views in pairs))

    def kinds(self, view: int) -> list[Knowledge]:
        """What view number `view` is filled with."""
        if not any(view in views for views in self.views):
            return []
        # From the driver's own memory by way of Ray's, never from a file.
        kinds: list[Knowledge] = cloudpickle.loads(self.packed)
        return [kind for kind, views in zip(kinds, self.views, strict=True) if view in views]


@dataclass(frozen=True, kw_only=True)
class TeacherTicket:
    """What a trial needs to know of a loaded teacher to find its knowledge, or to run it itself.

    Attributes:
        weights_path: safetensors file of the loaded weights, as the driver sees it.
        base: the part of every sealed view's identity that does not depend on the kind of knowledge or the view.
        actor: the name of the shared actor.
        replicas: the names of other actors that do the same work.
        home: which holds the weights and the sealed views.
        modes: the delivery mode of each kind of knowledge, by its id: `cached`, `served` or `inline`.
        calling_mode: `served` or `inline`, for methods that call the teacher on inputs that they generate.
        plan: what the views are filled with for all trials together.
        top_k: how logits are stored; None stores them whole.
        sweep: the name of the sweep that its requests are made for.
    """

    definition: TeacherDefinition
    weights_path: str
    weights_hash: str
    base: Mapping[str, Any]
    actor: str
    replicas: tuple[str, ...] = ()
    home: HomeAddress
    modes: Mapping[str, str] = field(default_factory=dict)
    calling_mode: str = "inline"
    plan: FillPlan = FillPlan()
    top_k: TopK | None = None
    sweep: str = ""

    def form(self, kind: Knowledge) -> Knowledge:
        """The form in which `kind` is requested from the teacher: logits, or the largest of them."""
        return kind if self.top_k is None else self.top_k.of(kind, self.definition.num_classes)


@dataclass(frozen=True, kw_only=True)
class FillRequest:
    """A request to fill one view with some kinds of knowledge.

    Attributes:
        view: the number of the view.
        kinds: what is needed of it, now or later.
        ahead: whether no trial waits for it yet.
        damaged: whether the caller found the stored view damaged; it is then compared with its checksums again.
        reading: the order in which the caller will read it.
        sweep: the name of the sweep to which the log of fills attributes the work.
    """

    view: int
    kinds: tuple[Knowledge, ...]
    ahead: bool = False
    damaged: bool = False
    reading: Reading | None = None
    sweep: str = ""
