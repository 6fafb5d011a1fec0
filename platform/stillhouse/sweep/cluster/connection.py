"""Connects this process to a Ray cluster, sends the user's code to its nodes, and explains in one sentence when it fails."""

import json
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.ray_process import NAMESPACE
from stillhouse.provenance import code_facts
from stillhouse.spec.schema import SweepSpec, named_code
from stillhouse.sweep.cluster.ray_internals import (
    JOB_VARIABLE,
    NOT_CONNECTED,
    VERSION_MISMATCH,
    make_private_token,
    on_loopback,
)
from stillhouse.temporary_folders import temporary_folder
from stillhouse.user_code import modules_of
from stillhouse.workers import COMMIT_VARIABLE, environment_of_workers, stage_code

_TIMEOUT_S = 5.0
_RAY_ERRORS = (ConnectionError, RayError, TimeoutError, RuntimeError, ValueError)
"""What Ray raises when it does not start or a cluster cannot be joined."""
_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""The longest path of a Unix socket (unix(7))."""
_TOKEN_FILE = Path("~/.ray/auth_token")


def connect(address: str | None, spec: SweepSpec | None = None) -> None:
    """Connects this process to the cluster at `address`; None starts one on this machine.

    Args:
        spec: of the sweep whose user-defined code is sent to the nodes.

    Raises:
        InfrastructureError: the cluster cannot be reached.
    """
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "namespace": NAMESPACE,
    }
    if address is None:
        # By default Ray joins any cluster of which it finds traces on this machine, even one that has ended.
        options |= {"address": "local", "include_dashboard": False}
        _check_temporary_folder()
        make_private_token()
        with _infrastructure_errors("cannot start a local Ray cluster"), on_loopback(), _in_root_folder():
            ray.init(**options, runtime_env={"env_vars": dict(environment_of_workers())})
        return
    _check_reachable(address)
    with (
        temporary_folder("code") as folder,
        _infrastructure_errors(f"cannot join the cluster at {address}"),
    ):
        ray.init(**options, address=address, runtime_env=_runtime_env(folder, spec))


@contextmanager
def _in_root_folder() -> Iterator[None]:
    """A context in another working folder: Ray lets workers import from the folder in which it is started, before libraries."""
    try:
        before = Path.cwd()
    except FileNotFoundError:
        before = None
    os.chdir(os.sep)
    try:
        yield
    finally:
        if before is not None:
            os.chdir(before)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A short connection to the cluster at `address`.

    Raises:
        InfrastructureError: the cluster cannot be reached.
    """
    connects = not ray.is_initialized()
    if connects:
        connect(address)
    try:
        yield
    finally:
        if connects:
            ray.shutdown()


def _check_temporary_folder() -> None:
    """Checks that the paths of Ray's sockets fit, of which Ray's own error names no variable.

    Raises:
        InfrastructureError: the folder for temporary files has too long a path.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    if variable is None:
        return
    folder = os.environ[variable]
    longest = _SOCKET_PATH_BYTES - len(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    if (length := len(os.fsencode(folder))) > longest:
        raise InfrastructureError(
            f"Ray cannot start: the path in {variable} has {length} bytes, and sockets need one of at most {longest}, got "
            f"{folder}; set {variable} to a shorter folder, such as /tmp"
        )


def _check_reachable(address: str) -> None:
    """Checks that something listens at the address, for which Ray itself takes 20 seconds.

    Raises:
        InfrastructureError: nothing listens there, or the address is not `HOST:PORT`.
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
            f"cannot reach the cluster at {address}: {getattr(error, 'strerror', None) or error}; "
            "give the address that `ray start` printed on the head, HOST:6379, or auto on a node of the cluster"
            + (", or unset RAY_ADDRESS, which names it, to start Ray here" if os.environ.get("RAY_ADDRESS") == address else "")
        ) from error


@contextmanager
def _infrastructure_errors(what: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        # Ray exits when a SIGTERM arrives while it starts.
        raise KeyboardInterrupt from error
    except Exception as error:
        # Ray raises a bare Exception for a node that does not start within 30 seconds.
        if not (isinstance(error, _RAY_ERRORS) or type(error) is Exception):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise InfrastructureError(f"{what}: {text.rstrip('.')}{_remedy(text)}") from error


def _remedy(text: str) -> str:
    if text.startswith(VERSION_MISMATCH):
        return "; install the cluster's versions here, or run the command on a node of the cluster"
    if not text.startswith(NOT_CONNECTED):
        return ""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return "; the cluster's token may differ from the one here (RAY_AUTH_TOKEN, or the file ~/.ray/auth_token)"
    # Ray sends a token to a given address only in this mode.
    have = "" if _TOKEN_FILE.expanduser().exists() or "RAY_AUTH_TOKEN" in os.environ else " and RAY_AUTH_TOKEN to its token"
    return f"; if the cluster requires a token, set RAY_AUTH_MODE=token{have}; this machine must be a node of the cluster"


def _runtime_env(folder: Path, spec: SweepSpec | None) -> dict[str, Any]:
    """What the nodes get from this process: its code and its variables. A job's own runtime environment takes precedence."""
    job = json.loads(os.environ.get(JOB_VARIABLE) or "{}").get("runtime_env") or {}
    commit = code_facts()["commit"]
    variables = {**environment_of_workers(), **({COMMIT_VARIABLE: commit} if commit else {})}
    environment: dict[str, Any] = {}
    if "working_dir" not in job:
        paths = stage_code(folder, modules=_modules(spec), method_folders=spec.method_paths if spec else ())
        environment["working_dir"] = str(folder)
        variables["PYTHONPATH"] = paths
    given = job.get("env_vars") or {}
    environment["env_vars"] = {name: value for name, value in variables.items() if name not in given}
    return environment


def _modules(spec: SweepSpec | None) -> Iterable[str]:
    """The modules that the spec names as `module:function`."""
    if spec is None:
        return ()
    return modules_of(named_code(spec))
