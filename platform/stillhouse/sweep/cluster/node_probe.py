"""What a worker finds on its node: versions, home, disk, tracking store, GPUs, token."""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from stillhouse.durable import Damaged, read_checked, write_checked
from stillhouse.errors import last_line
from stillhouse.home_access.home_address import COMMON_VARIABLE, common_home_is_off, scratch_base
from stillhouse.provenance import code_facts
from stillhouse.tracking import Location

_PACKAGES = ("ray", "torch", "torchvision", "numpy", "pyarrow")
_SOCKET_TIMEOUT_S = 10.0
_GPU_TIMEOUT_S = 60.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIG_UUID = re.compile(r"MIG-[0-9A-Za-z/-]+")


def versions() -> dict[str, str]:
    """What must be equal on all nodes: Python, the packages, and Stillhouse's own version and commit."""
    code = code_facts()
    commit = {"commit": str(code["commit"])} if code["commit"] else {}
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "stillhouse": str(code["version"]),
        **commit,
    }


def look_around(folder: str, tracking: str | None, gpus: float) -> dict[str, Any]:
    """What this process finds on its node; runs in a worker."""
    own_probe = Path(folder) / f"node-{ray.get_runtime_context().get_node_id()}"
    probe_read = written = False
    trouble = f"{COMMON_VARIABLE} is 0 there" if common_home_is_off() else ""
    try:
        if not trouble:
            probe_read = read_checked(Path(folder) / "driver") == b"driver"
            write_checked(own_probe, b"node")
            written = True
    except (OSError, Damaged) as error:
        trouble = getattr(error, "strerror", None) or str(error)
    home = Path(folder).parent if probe_read and written else scratch_base()
    return {
        "scratch_folder": str(scratch_base()),
        "scratch_trouble": "" if probe_read and written else _trouble_with(scratch_base()),
        "versions": versions(),
        "package_path": code_facts()["package_path"],
        "probe_read": probe_read,
        "written": written,
        "trouble": trouble,
        "free_bytes": shutil.disk_usage(home).free if home.is_dir() else 0,
        "tracking": _connection_problem(tracking) if tracking else "",
        "gpus": _visible_gpus() if gpus else "",
        "requires_token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        "has_token": _has_token(),
    }


def _trouble_with(folder: Path) -> str:
    """Why the folder cannot be written; empty if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _reachable_part(location: Location | None) -> str | None:
    """What a worker connects to, without credentials: a tracking server's health page, or a database's host and port."""
    if location is None:
        return None
    if location.is_server:
        return f"{location.pages}/health"
    return ":".join(map(str, location.address)) if location.address else None


def _connection_problem(tracking: str) -> str:
    """Why the tracking store cannot be reached from this node; empty if it can."""
    try:
        if tracking.startswith("http"):
            urllib.request.urlopen(tracking, timeout=_SOCKET_TIMEOUT_S).close()  # noqa: S310
        else:
            host, _, port = tracking.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_SOCKET_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code == 403:
            return "the server refuses this host name; start it with --allowed-hosts"
        return "" if error.code in (401, 404) else f"the server answers {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"cannot be reached: {getattr(reason, 'strerror', None) or reason}"
    return ""


def _visible_gpus() -> int | str:
    """How many GPUs PyTorch can use on this node, or why none. Runs other processes, since this worker was assigned none.

    A process can use one MIG instance (a part of a divided GPU) and sees no other, so each is tried in its own process.
    """
    free = {name: value for name, value in os.environ.items() if name != _VISIBLE}
    instances = _mig_instances()
    environments = [{**free, _VISIBLE: instance} for instance in instances] or [free]
    with ThreadPoolExecutor(len(environments)) as pool:
        counts = list(pool.map(_count_gpus, environments))
    return next((count for count in counts if isinstance(count, str)), None) or sum(map(int, counts))


def _count_gpus(environment: Mapping[str, str]) -> int | str:
    """How many GPUs PyTorch can use in a process with this environment, or why none."""
    program = "import torch; torch.zeros(1, device='cuda'); print(torch.cuda.device_count())"
    try:
        found = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GPU_TIMEOUT_S,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if found.returncode:
        return last_line(found.stderr, "its process died")
    return int(found.stdout)


def _mig_instances() -> list[str]:
    """The UUIDs of this node's MIG instances; none without a GPU that is divided into them."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=_GPU_TIMEOUT_S)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return []
    return _MIG_UUID.findall(listed.stdout)


def _has_token() -> bool:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
