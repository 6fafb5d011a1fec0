"""What a worker reports of the tracking store that it can or cannot reach."""

import http.server
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stillhouse.sweep.cluster import node_probe
from stillhouse.sweep.cluster.node_probe import _connection_problem, _visible_gpus


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


LISTED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
"""  # NVIDIA's MIG user guide, "Listing the created instances"


@pytest.mark.parametrize(
    ("listed", "broken", "found"),
    [
        ("GPU 0: NVIDIA A10 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)\n", "", 2),
        (LISTED, "", 2),
        (LISTED, "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb", "CUDA-capable device(s) is/are busy"),
    ],
    ids=["two whole GPUs", "a GPU in two parts", "a GPU in two parts, one of which is broken"],
)
def test_a_process_sees_one_part_of_a_divided_gpu_so_each_is_tried_in_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: str, broken: str, found: int | str
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    (tmp_path / "python").write_text(
        "#!/bin/sh\n"
        'case "$CUDA_VISIBLE_DEVICES" in\n'
        f'"{broken or "-"}") echo "CUDA-capable device(s) is/are busy" >&2; exit 1;;\n'
        '"") echo 2;;\n'
        "MIG-*) echo 1;;\n"
        "esac\n"
    )
    for program in ("nvidia-smi", "python"):
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as Ray hides them from a worker that was assigned none
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert _visible_gpus() == found


def test_a_node_without_the_drivers_tool_has_no_divided_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_probe._mig_instances() == []
