"""Opens the views that a trial reads, and requests from the teacher what is not stored yet."""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from torch import Tensor

from stillhouse.distill.sources import Reading, is_named
from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.node_home import node_home
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.view import View
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.ticket import FillRequest, TeacherTicket

_POLL_S = 0.02
REPEAT_S = 5.0


class ViewOpener:
    """Opens views, sealed or being filled, and waits for their rows.

    What is not sealed is requested once per epoch, and again whenever one batch has waited for a few seconds, in case the actor
    has died or failed since. One of the replicas gets the request and forwards it to the others.
    """

    def __init__(self, ticket: TeacherTicket, knowledge: Mapping[str, Knowledge], link: ActorLink) -> None:
        self._ticket = ticket
        self._knowledge = knowledge
        self._link = link
        self._store = node_home(ticket.home).store
        self._requested_at = 0.0
        self._view = 0
        self._wanted: Mapping[str, Knowledge] = {}
        self._reading: Reading | None = None
        self._views: Mapping[str, View] = {}

    def __call__(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> Mapping[str, View]:
        """{name: view} of the given names (None: all), waiting until the filling of each has begun.

        Raises:
            InfrastructureError: the actor cannot fill the view, or is gone.
        """
        self._view, self._reading = view, reading
        self._wanted = {name: kind for name, kind in self._knowledge.items() if is_named(name, names)}
        self._requested_at = 0.0
        self._views = {}
        self._until(lambda: bool(self._views) or not self._wanted)
        if not (self._requested_at or all(each.complete for each in self._views.values())):
            # It is being filled; a trial's request goes before those that only run ahead.
            self._request(damaged=False)
        return self._views

    def await_rows(self, indices: Tensor) -> Mapping[str, View]:
        """Waits for the rows of the samples `indices` [B]; returns the views that were opened last.

        Raises:
            InfrastructureError: the actor cannot fill the view, or is gone.
        """
        # A batch that waits only for its turn sends no request: rows that arrive within seconds were not lost.
        self._requested_at = time.monotonic()
        self._until(lambda: all(each.ready(indices) for each in self._views.values()))
        return self._views

    def _until(self, there: Callable[[], bool]) -> None:
        """Waits until `there`, and repeats the request every few seconds."""
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
                    # The actor checks the view itself, unseals it if it is damaged, and fills it again.
                    damaged = True
            if not damaged and there():
                return
            if time.monotonic() - self._requested_at > REPEAT_S:
                error = self._request(damaged=damaged)
                failures += error is not None
                if error is not None and failures > 1:
                    # The type is the actor's: a full disk there is one for this trial too.
                    raise type(error)(f"teacher '{self._ticket.definition.name}' cannot fill view {self._view}: {error}")
                # The mapped files may have been replaced.
                with suppress(FileNotFoundError, Damaged):
                    self._views = self._open()
            time.sleep(REPEAT_S / 5 if damaged else _POLL_S)

    def _open(self) -> Mapping[str, View]:
        return {
            name: self._store.follow(view_identity(self._ticket.base, kind, self._view)) for name, kind in self._wanted.items()
        }

    def _request(self, *, damaged: bool) -> InfrastructureError | None:
        """Requests the view from the actor; returns the error of its last filling, if that failed."""
        # With all kinds that other trials will read of the view: a restarted actor does not know their requests.
        kinds = {kind.id: kind for kind in (*self._wanted.values(), *self._ticket.plan.kinds(self._view))}
        request = FillRequest(
            view=self._view,
            kinds=tuple(kinds.values()),
            damaged=damaged,
            reading=self._reading,
            sweep=self._ticket.sweep,
        )
        error: InfrastructureError | None = self._link.broadcast("request", request)
        self._requested_at = time.monotonic()
        return error
