"""Leases: a shared actor lives while a driver renews its lease, and ends itself afterwards."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

RENEW_S = 10.0
"""How often a driver renews its leases."""
EXPIRE_S = 60.0
"""A lease that was not renewed for this long is over: its driver has died."""
_LONGEST_LOOK_S = 1.0


class LeaseBook:
    """The leases of one actor. Safe to call from several threads.

    Args:
        expire_s: how long a lease lasts, and how long the actor waits for its first one.
    """

    def __init__(self, expire_s: float = EXPIRE_S, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._expire_s = expire_s
        self._clock = clock
        self._began = clock()
        self._had_one = self._closed = False
        self._leases: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._lock = threading.Lock()

    def renew(self, holder: str, about: Mapping[str, Any]) -> bool:
        """Grants `holder` a lease or renews it; returns False when the actor is about to end."""
        with self._lock:
            if not self._closed:
                self._had_one = True
                self._leases[holder] = (self._clock(), about)
            return not self._closed

    def release(self, holder: str) -> None:
        with self._lock:
            self._leases.pop(holder, None)

    def listed(self) -> list[dict[str, Any]]:
        """What the holders reported `about` themselves, and how many seconds ago each lease was renewed (`renewed_s`)."""
        with self._lock:
            self._drop_expired()
            return [{**about, "renewed_s": self._clock() - renewed} for renewed, about in self._leases.values()]

    @property
    def over(self) -> bool:
        """Whether the last lease was released or has expired, or the first one was not requested in time."""
        with self._lock:
            return self._is_over()

    def close_if_over(self) -> bool:
        """Whether the leases are over; once they are, no further lease is granted."""
        with self._lock:
            self._closed = self._closed or self._is_over()
            return self._closed

    def _is_over(self) -> bool:
        self._drop_expired()
        return not self._leases and (self._had_one or self._clock() - self._began > self._expire_s)

    def _drop_expired(self) -> None:
        oldest = self._clock() - self._expire_s
        self._leases = {holder: lease for holder, lease in self._leases.items() if lease[0] >= oldest}


class Leased:
    """An actor that ends itself, and is not restarted, when its leases are over.

    Args:
        expire_s: as for `LeaseBook`; None for an actor that ends with the driver that started it.
    """

    def __init__(self, expire_s: float | None) -> None:
        self._book = LeaseBook(EXPIRE_S if expire_s is None else expire_s)
        if expire_s is not None:
            look_s = min(_LONGEST_LOOK_S, expire_s / 10)
            own = ray.get_runtime_context().current_actor
            threading.Thread(target=self._end_when_over, args=(own, look_s), name="leases", daemon=True).start()

    def lease(self, holder: str, about: Mapping[str, Any]) -> bool:
        """`LeaseBook.renew`."""
        return self._book.renew(holder, about)

    def release(self, holder: str) -> None:
        self._book.release(holder)

    def leases(self) -> list[dict[str, Any]]:
        """`LeaseBook.listed`."""
        return self._book.listed()

    def _end_when_over(self, own: Any, look_s: float) -> None:
        while not self._book.close_if_over():
            time.sleep(look_s)
        # Ray would restart an actor whose process only exits.
        with suppress(Exception):
            ray.kill(own, no_restart=True)
            time.sleep(EXPIRE_S)
        os._exit(1)


@dataclass
class _Held:
    """A leased actor, the further arguments of its `lease`, the function that starts it again, and its last answer."""

    handle: Any
    brought: tuple[Any, ...]
    again: Callable[[], Any] | None
    answer: Any = None

    def is_lost(self, *, wait: bool = False) -> bool:
        """Whether the actor refused the lease or has ended; `wait` waits for an answer that has not arrived yet."""
        answer = self.answer
        if answer is not None and not wait and not ray.wait([answer], timeout=0)[0]:
            return False
        try:
            return answer is None or not ray.get(answer)
        except RayError:
            return True


class LeaseHolder:
    """Holds leases of actors for this process: a thread renews them until they are released or the process dies.

    Args:
        about: what the actors report of this process, besides its `host` and `pid`.
    """

    def __init__(self, about: Mapping[str, Any], *, renew_s: float = RENEW_S) -> None:
        self._about = {**about, "host": socket.gethostname(), "pid": os.getpid()}
        self._holder = secrets.token_hex(8)
        self._renew_s = renew_s
        self._held: dict[Any, _Held] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)

    def hold(self, handle: Any, *brought: Any, again: Callable[[], Any] | None = None) -> None:
        """Leases the actor and renews the lease. Does not wait for the answer: the actor may not have its resources yet.

        Args:
            brought: further arguments of the actor's `lease`.
            again: starts the actor again, or finds it; called when the actor ends in spite of the lease, as one does that was
                found just after its last lease was released. None: nothing starts it again.
        """
        held = _Held(handle, brought, again)
        with self._lock:
            self._held[handle] = held
            if not self._renewer.is_alive():
                self._renewer.start()
        self._send(held)

    def is_granted(self, handle: Any) -> bool:
        """Whether the actor granted this process a lease; waits for its answer."""
        with self._lock:
            held = self._held.get(handle)
        return held is not None and not held.is_lost(wait=True)

    def close(self, timeout_s: float = 5.0) -> None:
        """Releases all leases; at an actor that does not answer in time they expire."""
        self._ended.set()
        if self._renewer.is_alive():
            self._renewer.join(timeout_s)
        with self._lock:
            handles = [held.handle for held in self._held.values()]
            self._held.clear()
        deadline = time.monotonic() + timeout_s
        # The last one first: a teacher that finishes its work still needs the home's keeper.
        for handle in reversed(handles):
            with suppress(RayActorError):
                ray.wait([handle.release.remote(self._holder)], timeout=max(0.0, deadline - time.monotonic()))

    def _send(self, held: _Held) -> None:
        answer = None
        # An actor that is gone at the moment gets the next renewal.
        with suppress(RayActorError):
            answer = held.handle.lease.remote(self._holder, self._about, *held.brought)
        held.answer = answer

    def _renew(self) -> None:
        due = time.monotonic() + self._renew_s
        while not self._ended.wait(min(_LONGEST_LOOK_S, self._renew_s)):
            with self._lock:
                everything = list(self._held.values())
            is_due = time.monotonic() >= due
            for held in everything:
                again = held.again if held.again is not None and held.is_lost() else None
                if again is not None:
                    # A failure here is tried again at the next renewal.
                    with suppress(Exception):
                        held.handle = again()
                if again is not None or is_due:
                    self._send(held)
            due = time.monotonic() + self._renew_s if is_due else due
