"""Everything that Stillhouse uses of Ray beyond its public interface, each with what happens where it is missing.

pyproject.toml limits Ray to the releases for which this was checked; the tests of this module check the installed one.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stillhouse.spec.secret_masking import names_secret

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable in which `ray job submit` passes a job's runtime environment to its entry point.

Where Ray calls it otherwise, the job's runtime environment is not found, and the driver sends its own code and variables.
"""
HEAD_RESOURCE = "node:__internal_head__"
"""The resource that only the head node has. Where it is missing, no nodes are counted that an autoscaler may add."""
WORKER_DEATHS = ("because its worker process has died", "due to the node running low on memory")
"""What Ray reports of a worker that died by itself, and of one that it ended to save the node.

Where the words differ, a trial that kills its workers is not recognised as such: the sweep ends with the reason instead of
recording the trial as failed.
"""
TUNE_ATTEMPT = "Failure # "
"""What Tune writes before each error in a trial's error file. Where it differs, deaths of earlier attempts count too."""
VERSION_MISMATCH = "Version mismatch"
"""How Ray's error begins when the cluster has another version. Where it differs, the message has no remedy."""
NOT_CONNECTED = "Failed to connect"
"""How Ray's error begins when a cluster does not let this process in. Where it differs, the message has no remedy."""


RAYLET_VARIABLE = "RAY_RAYLET_PID"
"""The environment variable that names its raylet to each process of a node. Where it differs, processes of a dead raylet are
left to end by themselves, which takes Ray up to two minutes."""


@dataclass(frozen=True)
class RayServers:
    """The processes of Ray without which this process cannot work.

    Attributes:
        essential: those that this process started and that it cannot work without, by name.
        others: those that this process started besides.
        raylet_socket: of the raylet of this node, a Unix socket; None where it is not known.
        gcs_address: `HOST:PORT` of the cluster's control service.
        session: the folder of logs and sockets of this Ray on this node.
    """

    essential: dict[str, "Popen[bytes]"]
    others: tuple["Popen[bytes]", ...]
    raylet_socket: str | None
    gcs_address: str | None
    session: Path


def ray_servers() -> RayServers | None:
    """The servers of the Ray that this process uses.

    Where Ray does not name them, None: the death of one ends the process with Ray's words, and session folders stay.
    """
    try:
        from ray._private import worker

        node = worker._global_node
        started = {name: [info.process for info in infos] for name, infos in node.all_processes.items()}
        essential = {name: started.pop(name)[0] for name in ("gcs_server", "raylet") if started.get(name)}
        return RayServers(
            essential=essential,
            others=tuple(process for group in started.values() for process in group),
            raylet_socket=node.raylet_socket_name,
            gcs_address=node.gcs_address,
            session=Path(node.get_session_dir_path()),
        )
    except (ImportError, AttributeError):
        return None


def processes_of_raylet(pid: int) -> list[int]:
    """The agents and workers of the raylet with this pid, and what they started, also after its death; Linux only."""
    wanted, found = f"{RAYLET_VARIABLE}={pid}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [each for each in found if each != os.getpid()]


def make_private_token(path: Path = Path("~/.ray/auth_token")) -> None:
    """Makes the token of Ray's clusters so that only this user can read it; Ray writes it for everyone to read.

    Where Ray's generator is missing, Ray makes the token by itself.
    """
    path = path.expanduser()
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
    except ImportError:
        return
    # A folder that cannot be written is Ray's to report.
    with suppress(OSError):
        if path.exists():
            path.chmod(path.stat().st_mode & 0o700)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(generate_new_authentication_token().encode())


def draining_nodes() -> frozenset[str]:
    """The ids of the nodes that are about to be taken away and start nothing new.

    Where Ray has no such interface, none: an actor or trial that is placed on one is started again elsewhere.
    """
    try:
        from ray._private import state

        found = state.state.get_draining_nodes()
    except (ImportError, AttributeError):
        return frozenset()
    return frozenset(found)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray that starts in this context listens on the loopback interface, as it does on macOS and Windows.

    Where Ray has no such switch, it listens on every interface of the machine, as it does by default on Linux.
    """
    try:
        from ray._private import ray_constants
    except ImportError:
        yield
        return
    if not hasattr(ray_constants, "ENABLE_RAY_CLUSTER"):
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def keep_secrets_out_of_trials() -> None:
    """Removes secrets from the variables that Tune copies into the runtime environment of each trial.

    Ray writes runtime environments into its logs, which every user of the machine can read. A trial on this machine has the
    variables of the driver anyway; one on a node of a cluster has those of its node. Where Tune has no such list, it copies
    nothing.
    """
    try:
        from ray.tune.execution import class_cache
    except ImportError:
        return
    names = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", None)
    if names is not None:
        class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not names_secret(name)}


def prefer_node(node_id: str) -> dict[str, Any]:
    """Ray's options for an actor that should run on this node, or elsewhere where the node is full or gone.

    Where Ray cannot fall back from a full node, the actor goes to any node that has room for it.

    Args:
        node_id: Ray's; "" for any node.
    """
    if not node_id or "_spill_on_unavailable" not in inspect.signature(NodeAffinitySchedulingStrategy).parameters:
        return {}
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)}
