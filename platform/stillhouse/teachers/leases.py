"""Leases: what keeps a shared actor alive, and ends it when nobody needs it any more."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

RENEW_S = 10.0
"""How often a driver renews its leases."""
EXPIRE_S = 60.0
"""A lease that was not renewed for so long is over: its driver has died."""
_LONGEST_LOOK_S = 1.0


class LeaseBook:
    """The leases of one actor. Safe to call from several threads.

    Args:
        expire_s: how long a lease lasts, and how long the first one is waited for.
    """

    def __init__(self, expire_s: float = EXPIRE_S, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._expire_s = expire_s
        self._clock = clock
        self._began = clock()
        self._had_one = False
        self._leases: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._lock = threading.Lock()

    def renew(self, holder: str, about: Mapping[str, Any]) -> None:
        """Gives `holder` a lease, or lets it last from now on."""
        with self._lock:
            self._had_one = True
            self._leases[holder] = (self._clock(), about)

    def release(self, holder: str) -> None:
        with self._lock:
            self._leases.pop(holder, None)

    def listed(self) -> list[dict[str, Any]]:
        """What the holders said `about` themselves, and `renewed_s` ago."""
        with self._lock:
            self._drop_expired()
            return [{**about, "renewed_s": self._clock() - renewed} for renewed, about in self._leases.values()]

    @property
    def over(self) -> bool:
        """Whether the last lease was released or has expired, or none was ever asked for in time."""
        with self._lock:
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

    def lease(self, holder: str, about: Mapping[str, Any]) -> None:
        self._book.renew(holder, about)

    def release(self, holder: str) -> None:
        self._book.release(holder)

    def leases(self) -> list[dict[str, Any]]:
        """`LeaseBook.listed`."""
        return self._book.listed()

    def _end_when_over(self, own: Any, look_s: float) -> None:
        while not self._book.over:
            time.sleep(look_s)
        # An actor that merely left would be started anew.
        with suppress(Exception):
            ray.kill(own, no_restart=True)
            time.sleep(EXPIRE_S)
        os._exit(1)


class LeaseHolder:
    """Holds leases of actors for this process: a thread renews them until they are released or the process dies.

    Args:
        about: what the actors are told of this process, besides its `host` and `pid`.
    """

    def __init__(self, about: Mapping[str, Any], *, renew_s: float = RENEW_S) -> None:
        self._about = {**about, "host": socket.gethostname(), "pid": os.getpid()}
        self._holder = secrets.token_hex(8)
        self._renew_s = renew_s
        self._held: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)

    def hold(self, handle: Any, *brought: Any) -> None:
        """Leases the actor and goes on doing so. Nothing waits for the answer: the actor may not have a place yet.

        Args:
            brought: what the actor's `lease` takes besides.
        """
        with self._lock:
            self._held[handle._actor_id] = (handle, brought)
            if not self._renewer.is_alive():
                self._renewer.start()
        self._send(handle, brought)

    def close(self, patience_s: float = 5.0) -> None:
        """Releases all leases; an actor that does not answer in time finds that they expire."""
        self._ended.set()
        with self._lock:
            held = [handle for handle, _ in self._held.values()]
            self._held.clear()
        deadline = time.monotonic() + patience_s
        # The last one first: a teacher that comes to rest still needs the home's keeper.
        for handle in reversed(held):
            with suppress(RayActorError):
                ray.wait([handle.release.remote(self._holder)], timeout=max(0.0, deadline - time.monotonic()))

    def _send(self, handle: Any, brought: tuple[Any, ...]) -> None:
        # An actor that is gone for the moment is asked again in time.
        with suppress(RayActorError):
            handle.lease.remote(self._holder, self._about, *brought)

    def _renew(self) -> None:
        while not self._ended.wait(self._renew_s):
            with self._lock:
                held = list(self._held.values())
            for handle, brought in held:
                self._send(handle, brought)
