"""What a sweep stands on at every node of a cluster, looked at by a worker there."""

import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import GetTimeoutError, NodeDiedError, RayError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stillhouse.doctor import LEAST_FREE_BYTES, Finding
from stillhouse.durable import Damaged, read_checked, write_checked
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.node_home import COMMON_VARIABLE, SCRATCH_VARIABLE, common_home_is_off, scratch_base
from stillhouse.provenance import code_facts
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.cluster.placement import NodeKind
from stillhouse.tracking import Location, locate

TIMEOUT_S = 120.0
_PACKAGES = ("ray", "torch", "torchvision", "numpy", "pyarrow")
_HEAD = "node:__internal_head__"
_LARGEST_CLOCK_DIFFERENCE_S = 10.0
_SOCKET_TIMEOUT_S = 10.0
_GPU_TIMEOUT_S = 60.0
_LOSSES = (NodeDiedError, TaskUnschedulableError, WorkerCrashedError)
_LOSS_TIMEOUT_S, _LOSS_PAUSE_S = 30.0, 1.0
"""Ray notices within about 20 s that a machine is gone without a word."""


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a worker found on one node.

    Attributes:
        node: `ADDRESS (first digits of Ray's node id)`.
        gpus: that Ray counts there.
        facts: what `look_around` gave; None when it could not run, `error` says why.
        lost: whether the worker or its node died meanwhile, which may have nothing to do with the platform.
        came_back: whether what the worker wrote into the home was read here.
        clock_difference_s: of the node's clock and this one's, beyond what the round trip explains.
    """

    node: str
    gpus: float
    facts: Mapping[str, Any] | None
    error: str = ""
    lost: bool = False
    came_back: bool = False
    clock_difference_s: float = 0.0

    @property
    def shares_home(self) -> bool:
        """Whether the node and this process see the same home, each what the other wrote."""
        return self.facts is not None and bool(self.facts["probe_read"]) and self.came_back


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


def examine_nodes(home: Path, tracking_uri: str | None = None) -> list[Finding]:
    """All checks from a worker on every node of the connected cluster: one finding for each check and node."""
    location = locate(tracking_uri, home)
    ours = versions()
    return [finding for report in ask_nodes(home, location) for finding in findings_of(report, ours, location.shown)]


def examine_cluster(address: str, home: Path, tracking_uri: str | None = None) -> list[Finding]:
    """`examine_nodes` of the cluster at `address`.

    Raises:
        InfrastructureError: it can not be reached.
    """
    connect(address)
    try:
        return examine_nodes(home, tracking_uri)
    finally:
        ray.shutdown()


def check_nodes(home: Path) -> list[str]:
    """Holds a sweep back from a cluster that it can not run on. Gives what else there is to know of it, in sentences.

    Raises:
        InfrastructureError: a node runs nothing, has other versions than this process, or has neither the home nor a scratch
            folder.
    """
    reports = _ask_again(ask_nodes(home), home)
    problems = [f"node {report.node} can not run the platform: {report.error}" for report in reports if report.facts is None]
    ours = versions()
    differing = {report.node: _differing(ours, report.facts["versions"]) for report in reports if report.facts is not None}
    problems += [f"node {node} has {what}; install the same versions on every node" for node, what in differing.items() if what]
    apart = nodes_without_home(reports)
    problems += [_no_scratch(report) for report in apart if report.facts and report.facts["scratch_trouble"]]
    if problems:
        more = f" (and {len(problems) - 1} more problems: stillhouse doctor --address lists them)" if len(problems) > 1 else ""
        raise InfrastructureError(problems[0] + more)
    if not apart:
        return []
    which = f"node {apart[0].node} does" if len(apart) == 1 else f"{len(apart)} of {len(reports)} nodes do"
    return [f"{which} not see the home {home}: what is there goes through the home's keeper"]


def _ask_again(reports: Sequence[NodeReport], home: Path) -> list[NodeReport]:
    """The reports without nodes that went while they were asked: Ray lists a dead one as alive until it misses it."""
    found, deadline = list(reports), time.monotonic() + _LOSS_TIMEOUT_S
    while True:
        alive = {_name(node) for node in _usable_nodes()}
        found = [report for report in found if report.facts is not None or report.node in alive]
        doubtful = {report.node for report in found if report.lost}
        if not doubtful or time.monotonic() > deadline:
            return found
        time.sleep(_LOSS_PAUSE_S)
        found = [report for report in found if not report.lost] + ask_nodes(home, among=doubtful)


def nodes_without_home(reports: Iterable[NodeReport]) -> list[NodeReport]:
    """The nodes that do not share the driver's home, among those that can run anything."""
    return [report for report in reports if report.facts is not None and not report.shares_home]


def nodes_of_cluster() -> list[NodeKind]:
    """The nodes that can be used, with all that they have, whoever uses it now."""
    return [
        NodeKind(name=_name(node), resources=node["Resources"], labels=node.get("Labels") or {}, node_id=node["NodeID"])
        for node in _usable_nodes()
    ]


def _usable_nodes() -> list[dict[str, Any]]:
    """The nodes that are alive and that nobody is about to take away: those start nothing new."""
    draining = ray._private.state.state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def addable_nodes() -> list[NodeKind] | None:
    """The kinds of nodes that the cluster's autoscaler may add; None where it keeps them to itself, as KubeRay does."""
    head = next((node for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]), None)
    if head is None:
        return []
    try:
        config: dict[str, Any] | None = ray.get(_on(head, _autoscaler_config), timeout=TIMEOUT_S)
    except (RayError, GetTimeoutError):
        return []
    return None if config is None else kinds_of_config(config)


def kinds_of_config(config: Mapping[str, Any]) -> list[NodeKind]:
    """The worker kinds of a cluster launcher's configuration, as far as it says what they have."""
    largest = int(config.get("max_workers", 0))
    return [
        NodeKind(
            name=name,
            resources={key: float(amount) for key, amount in kind["resources"].items()},
            labels=kind.get("labels") or {},
            count=min(int(kind.get("max_workers", largest)), largest),
        )
        for name, kind in (config.get("available_node_types") or {}).items()
        if name != config.get("head_node_type") and kind.get("resources")
    ]


def ask_nodes(home: Path, location: Location | None = None, among: Collection[str] | None = None) -> list[NodeReport]:
    """A report of every node that can be used, in the order of their addresses.

    Args:
        among: names of the nodes that are asked; None for all.
    """
    nodes = sorted((node for node in _usable_nodes() if among is None or _name(node) in among), key=_name)
    folder = home / f".doctor-{secrets.token_hex(4)}"
    try:
        write_checked(folder / "driver", b"driver")
    except OSError as error:
        raise InfrastructureError(
            f"can not write into {home}: {error.strerror or error}; choose another with --home"
        ) from error
    try:
        errands = [
            _on(node, look_around, str(folder), _reachable_part(location), node["Resources"].get("GPU", 0)) for node in nodes
        ]
        done = set(ray.wait(errands, num_returns=len(errands), timeout=TIMEOUT_S)[0])
        return [_report(node, errand, folder, done=errand in done) for node, errand in zip(nodes, errands, strict=True)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def look_around(folder: str, tracking: str | None, gpus: float) -> dict[str, Any]:
    """What this process sees of its node; runs in a worker."""
    own = Path(folder) / f"node-{ray.get_runtime_context().get_node_id()}"
    probe_read = written = False
    trouble = f"{COMMON_VARIABLE} is 0 there" if common_home_is_off() else ""
    try:
        if not trouble:
            probe_read = read_checked(Path(folder) / "driver") == b"driver"
            write_checked(own, b"node")
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
        "tracking": _knock(tracking) if tracking else "",
        "gpus": _visible_gpus() if gpus else "",
        "asks_for_token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        "has_token": _has_token(),
    }


def findings_of(report: NodeReport, ours: Mapping[str, str], store: str) -> list[Finding]:
    """The checks of one node, judged.

    Args:
        ours: the versions of this process.
        store: MLflow's address as it may be shown.
    """
    facts, node = report.facts, report.node
    if facts is None:
        return [Finding("worker", False, report.error, node)]
    home, theirs = Path(facts["home"]), facts["versions"]
    differing = _differing(ours, theirs)
    versions_fact = differing or ", ".join(f"{name} {theirs[name]}" for name in ("python", "ray", "torch", "stillhouse"))
    full = facts["free_bytes"] < LEAST_FREE_BYTES
    room = f"{facts['free_bytes'] / 2**30:.1f} GiB free"
    home_fact = f"{home} is writable and common, {room}" if report.shares_home else f"{_not_common(report, home)}, {room}"
    fit = report.shares_home or not facts["scratch_trouble"]
    if not fit:
        home_fact = _no_scratch(report)
    refused = facts["tracking"]
    apart = report.clock_difference_s
    return [
        Finding("versions", not differing, f"{versions_fact}, from {facts['package_path']}", node),
        Finding("home", fit and not full, home_fact, node),
        Finding("mlflow", not refused, f"{store}: {refused}" if refused else f"{store} is reachable or the driver's own", node),
        _gpu_finding(report, facts["gpus"]),
        _token_finding(facts, node),
        Finding(
            "clock",
            apart <= _LARGEST_CLOCK_DIFFERENCE_S,
            f"{apart:.1f} s apart" + ("" if apart <= _LARGEST_CLOCK_DIFFERENCE_S else "; set it by NTP"),
            node,
        ),
    ]


def _gpu_finding(report: NodeReport, seen: Any) -> Finding:
    if not report.gpus:
        return Finding("gpus", True, "Ray counts none", report.node)
    counted = f"Ray counts {report.gpus:g}"
    if not isinstance(seen, int):
        return Finding("gpus", False, f"{counted}, but PyTorch can not use them: {seen}", report.node)
    good = seen >= report.gpus
    return Finding("gpus", good, f"{counted}, PyTorch sees {seen}", report.node)


def _token_finding(facts: Mapping[str, Any], node: str) -> Finding:
    if not facts["asks_for_token"]:
        return Finding("token", True, "the cluster asks for none: whoever reaches its ports can run code on it", node)
    if facts["has_token"]:
        return Finding("token", True, "the cluster asks for one, and the node has it", node)
    return Finding("token", False, "the cluster asks for one; put it into RAY_AUTH_TOKEN or ~/.ray/auth_token here", node)


def _not_common(report: NodeReport, home: Path) -> str:
    facts = report.facts or {}
    why = "what was written there is not what is read here"
    if not facts.get("probe_read"):
        why = f"it does not see what is written here ({facts.get('trouble') or 'another file lies there'})"
    elif not facts.get("written"):
        why = f"it can not write there ({facts.get('trouble')})"
    sentence = f"node {report.node} does not share the home {home}: {why}"
    return f"{sentence}; it goes through the keeper, copies in {facts.get('scratch_folder')}"


def _no_scratch(report: NodeReport) -> str:
    facts = report.facts or {}
    return (
        f"node {report.node} sees neither the home nor a scratch folder "
        f"({facts['scratch_folder']}: {facts['scratch_trouble']}); share the home, or set {SCRATCH_VARIABLE} there"
    )


def _trouble_with(folder: Path) -> str:
    """Why nothing can be written into the folder; empty when it can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """`torch 2.13.0 (2.14.1 here)` for all that differs; a commit counts where both are known."""
    return ", ".join(
        f"{name} {theirs.get(name, 'unknown')} ({value} here)"
        for name, value in ours.items()
        if theirs.get(name) != value and not (name == "commit" and name not in theirs)
    )


def _report(node: Mapping[str, Any], errand: Any, folder: Path, *, done: bool) -> NodeReport:
    name, gpus = _name(node), float(node["Resources"].get("GPU", 0))
    if not done:
        ray.cancel(errand, force=True)
        return NodeReport(node=name, gpus=gpus, facts=None, error=f"no worker answered within {TIMEOUT_S:.0f} s")
    try:
        facts = {**ray.get(errand), "home": str(folder.parent)}
        apart = _clock_difference(node)
    except RayError as error:
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        said = lines[-1] if lines else type(error).__name__
        return NodeReport(node=name, gpus=gpus, facts=None, error=said, lost=isinstance(error, _LOSSES))
    came_back = False
    with suppress(OSError, Damaged):
        came_back = read_checked(folder / f"node-{node['NodeID']}") == b"node"
    return NodeReport(node=name, gpus=gpus, facts=facts, came_back=came_back, clock_difference_s=apart)


def _clock_difference(node: Mapping[str, Any]) -> float:
    """Seconds by which the node's clock must differ from this one's, by a call to a worker that is there already."""
    before = time.time()
    there: float = ray.get(_on(node, time.time), timeout=TIMEOUT_S)
    after = time.time()
    return max(0.0, before - there, there - after)


def _on(node: Mapping[str, Any], task: Any, *arguments: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return (
        ray.remote(lambda *given: task(*given))
        .options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
        .remote(*arguments)
    )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _autoscaler_config() -> dict[str, Any] | None:
    """What the cluster launcher left on its head; {} without one; None on Kubernetes. Runs in a worker on the head."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "RAY_NODE_TYPE_NAME" in os.environ:
        return None
    try:
        config = yaml.safe_load(Path("~/ray_bootstrap_config.yaml").expanduser().read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return {name: config.get(name) for name in ("available_node_types", "head_node_type", "max_workers")}


def _reachable_part(location: Location | None) -> str | None:
    """What a worker tries of the tracking store, without its credentials: a server's health page, or a database's socket."""
    if location is None:
        return None
    if location.is_server:
        return f"{location.pages}/health"
    return ":".join(map(str, location.address)) if location.address else None


def _knock(tracking: str) -> str:
    """Why the tracking store can not be reached from here; empty when it can."""
    try:
        if tracking.startswith("http"):
            urllib.request.urlopen(tracking, timeout=_SOCKET_TIMEOUT_S).close()  # noqa: S310
        else:
            host, _, port = tracking.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_SOCKET_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code == 403:
            return "the server refuses this name of its host; start it with --allowed-hosts"
        return "" if error.code in (401, 404) else f"the server answers {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"can not be reached: {getattr(reason, 'strerror', None) or reason}"
    return ""


def _visible_gpus() -> int | str:
    """How many GPUs PyTorch can use on this node, or why none. A process of its own: this worker was given none of them."""
    program = "import torch; torch.zeros(1, device='cuda'); print(torch.cuda.device_count())"
    free = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        found = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, env=free
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if found.returncode:
        return (found.stderr.strip().splitlines() or ["its process died"])[-1]
    return int(found.stdout)


def _has_token() -> bool:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
