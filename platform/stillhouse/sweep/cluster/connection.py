"""The connection to a Ray cluster: how it is reached, what code is sent along, and one sentence when it can not be had."""

import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import RayError

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.ray_process import NAMESPACE
from stillhouse.provenance import code_facts
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.cluster.ray_internals import JOB_VARIABLE, NOT_CONNECTED, VERSION_MISMATCH, on_loopback
from stillhouse.workers import COMMIT_VARIABLE, environment_of_workers, stage_code

_TIMEOUT_S = 5.0
_RAYS = (ConnectionError, RayError, TimeoutError, RuntimeError, ValueError)
"""What Ray raises when it does not start or a cluster can not be joined."""
_TOKEN_FILE = Path("~/.ray/auth_token")


def connect(address: str | None, spec: SweepSpec | None = None) -> None:
    """Connects this process to the cluster at `address`; None starts one on this machine.

    Args:
        spec: the sweep whose code of the user's own goes to the nodes.

    Raises:
        InfrastructureError: the cluster can not be reached.
    """
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "namespace": NAMESPACE,
    }
    if address is None:
        # Without a word Ray joins whatever cluster it finds traces of on this machine, also one that is gone.
        options |= {"address": "local", "include_dashboard": False}
        with _one_sentence("can not start a local Ray cluster"), on_loopback():
            ray.init(**options, runtime_env={"env_vars": dict(environment_of_workers())})
        return
    _knock(address)
    with TemporaryDirectory(prefix="stillhouse-code-") as folder, _one_sentence(f"can not join the cluster at {address}"):
        ray.init(**options, address=address, runtime_env=_runtime_env(Path(folder), spec))


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster at `address` for a question or two.

    Raises:
        InfrastructureError: the cluster can not be reached.
    """
    ours = not ray.is_initialized()
    if ours:
        connect(address)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself takes 20 seconds to say that nobody is there.

    Raises:
        InfrastructureError: nothing listens at `HOST:PORT`, or it is none.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if not host:
            raise ValueError("it is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InfrastructureError(
            f"can not reach the cluster at {address}: {getattr(error, 'strerror', None) or error}; "
            "give the address that `ray start` printed on the head, HOST:6379, or auto on a node of the cluster"
        ) from error


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        # Ray's own answer to a SIGTERM that comes while it starts.
        raise KeyboardInterrupt from error
    except Exception as error:
        # A node that is not up in 30 seconds is a bare Exception of Ray's.
        if not (isinstance(error, _RAYS) or type(error) is Exception):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise InfrastructureError(f"{what}: {said.rstrip('.')}{_remedy(said)}") from error


def _remedy(said: str) -> str:
    if said.startswith(VERSION_MISMATCH):
        return "; install the cluster's versions here, or run the command on a node of the cluster"
    if not said.startswith(NOT_CONNECTED):
        return ""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return "; its token may differ from the one here (RAY_AUTH_TOKEN, or the file ~/.ray/auth_token)"
    # Ray sends a token to an address that is spelled out only when it is told to.
    have = "" if _TOKEN_FILE.expanduser().exists() or "RAY_AUTH_TOKEN" in os.environ else " and RAY_AUTH_TOKEN to its token"
    return f"; if the cluster asks for a token, set RAY_AUTH_MODE=token{have}; this machine must be a node of the cluster"


def _runtime_env(folder: Path, spec: SweepSpec | None) -> dict[str, Any]:
    """What the nodes get of this process: its code and its variables. A job's own runtime environment goes first."""
    job = json.loads(os.environ.get(JOB_VARIABLE) or "{}").get("runtime_env") or {}
    commit = code_facts()["commit"]
    variables = {**environment_of_workers(), **({COMMIT_VARIABLE: commit} if commit else {})}
    environment: dict[str, Any] = {}
    if "working_dir" not in job:
        paths = stage_code(folder, modules=_modules(spec), method_folders=spec.method_paths if spec else ())
        environment["working_dir"] = str(folder)
        variables["PYTHONPATH"] = paths
    taken = job.get("env_vars") or {}
    environment["env_vars"] = {name: value for name, value in variables.items() if name not in taken}
    return environment


def _modules(spec: SweepSpec | None) -> Iterable[str]:
    """Modules of the names `module:function` in the spec."""
    if spec is None:
        return ()
    names = [spec.dataset.name, *(student.model for student in spec.students)]
    names += [teacher.model for teacher in spec.teachers.values()]
    return dict.fromkeys(name.partition(":")[0] for name in names if ":" in name and not name.startswith("torchvision:"))
