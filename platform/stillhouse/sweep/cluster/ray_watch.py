"""Notices the death of Ray before Ray ends this process: it does so natively, without a sentence and past every handler."""

import os
import signal
import socket
import threading
import time
from contextlib import suppress

from stillhouse.sweep.cluster.ray_internals import RayServers, processes_of_raylet
from stillhouse.sweep.shutdown import ShutdownRequest

_LOOK_S = 0.3
_CONNECT_TIMEOUT_S = 2.0
GCS_TIMEOUT_S = 40.0
"""How long the control service of a cluster may be away, since it may be started again. Ray gives up after 60 s."""


class RayWatch:
    """Watches the servers of the Ray that this process started or joined, until `stop`.

    When one dies, the other processes of a Ray that this process started are killed, which also frees a main thread that waits
    inside Ray, and the sweep fails with one sentence.

    Args:
        servers: of Ray, by `ray_servers`; None watches nothing.
    """

    def __init__(self, servers: RayServers | None, shutdown: ShutdownRequest) -> None:
        self._shutdown = shutdown
        self._servers = servers
        self._over = threading.Event()
        self._gcs_lost_at: float | None = None
        self._thread = threading.Thread(target=self._look, name="stillhouse-ray-watch", daemon=True)
        if self._servers is not None:
            shutdown.before_end = self.kill
            self._thread.start()

    def stop(self) -> None:
        """Ray may end from now on. Until `forget`, a second request still kills what is left of it."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def forget(self) -> None:
        """Ray has ended, or is no longer this process's to end."""
        self._shutdown.before_end = lambda: None

    def kill(self) -> None:
        """Kills the Ray that this process started, with all its workers; a cluster that it joined is left alone."""
        servers = self._servers
        if servers is None or not servers.essential:
            return
        for process in (*servers.essential.values(), *servers.others):
            with suppress(OSError):
                process.kill()
        if (raylet := servers.essential.get("raylet")) is not None:
            for pid in processes_of_raylet(raylet.pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _look(self) -> None:
        assert self._servers is not None
        while not self._over.wait(_LOOK_S):
            dead = self._dead_server(self._servers)
            if dead is None or self._over.is_set():
                continue
            self.kill()
            self._shutdown.fail(f"Ray has died: {dead}; its logs are in {self._servers.session / 'logs'}")
            return

    def _dead_server(self, servers: RayServers) -> str | None:
        """What of Ray is dead, as words for the user; None while all live."""
        if servers.essential:
            dead = [name for name, process in servers.essential.items() if process.poll() is not None]
            return f"its process {dead[0]} ended" if dead else None
        if servers.raylet_socket is not None and _refuses(servers.raylet_socket):
            return "the raylet of this node ended"
        if servers.gcs_address is None or not _refuses_connection(servers.gcs_address):
            self._gcs_lost_at = None
            return None
        self._gcs_lost_at = self._gcs_lost_at or time.monotonic()
        gone_s = time.monotonic() - self._gcs_lost_at
        return f"the head of the cluster at {servers.gcs_address} is not reachable" if gone_s > GCS_TIMEOUT_S else None


def _refuses(path: str) -> bool:
    """Whether nobody listens at a Unix socket. A listener that is only busy does not refuse."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False


def _refuses_connection(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError):
        return True
    return False
