"""What a worker reports of the tracking store that it can or cannot reach."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stillhouse.sweep.cluster.node_probe import _connection_problem


@contextmanager
def server_that_answers(status: int) -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/health"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (200, ""),
        (401, ""),
        (404, ""),
        (403, "the server refuses this host name; start it with --allowed-hosts"),
        (500, "the server answers 500"),
    ],
)
def test_a_tracking_server_is_judged_by_what_it_answers(status: int, trouble: str) -> None:
    with server_that_answers(status) as address:
        assert _connection_problem(address) == trouble


def test_a_database_is_reached_by_its_socket_and_nobody_is_said() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert _connection_problem(f"127.0.0.1:{port}") == ""
    for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/health"):
        assert _connection_problem(address) == "cannot be reached: Connection refused"
