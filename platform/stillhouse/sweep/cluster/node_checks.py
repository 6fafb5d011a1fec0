"""Checks of every node of a cluster, made by a worker on each: what a sweep needs, and what `stillhouse doctor` shows."""

import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError, WorkerCrashedError

from stillhouse.doctor import LEAST_FREE_BYTES, Finding
from stillhouse.durable import Damaged, read_checked, write_checked
from stillhouse.errors import InfrastructureError, last_line
from stillhouse.home_access.home_address import SCRATCH_VARIABLE
from stillhouse.sweep.cluster.cluster_nodes import TIMEOUT_S, _name, _on, usable_nodes
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.cluster.node_probe import _reachable_part, look_around, versions
from stillhouse.tracking import Location, locate

_LARGEST_CLOCK_DIFFERENCE_S = 10.0
_LOSSES = (NodeDiedError, TaskUnschedulableError, WorkerCrashedError)
_LOSS_TIMEOUT_S, _LOSS_PAUSE_S = 30.0, 1.0
"""Ray notices within about 20 s that a machine has vanished."""


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a worker found on one node.

    Attributes:
        node: `ADDRESS (first digits of Ray's node id)`.
        gpus: how many Ray counts there.
        facts: what `look_around` returned; None when it could not run, for the reason in `error`.
        lost: whether the worker or its node died meanwhile, which need not be a problem of the platform.
        came_back: whether this process read what the worker wrote into the home.
        clock_difference_s: between the node's clock and this one's, beyond what the round trip explains.
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
        """Whether the node and this process share the home: each reads what the other wrote."""
        return self.facts is not None and bool(self.facts["probe_read"]) and self.came_back


def examine_nodes(home: Path, tracking_uri: str | None = None) -> list[Finding]:
    """All checks from a worker on every node of the connected cluster: one finding for each check and node."""
    location = locate(tracking_uri, home)
    expected = versions()
    return [finding for report in probe_nodes(home, location) for finding in findings_of(report, expected, location.shown)]


def examine_cluster(address: str, home: Path, tracking_uri: str | None = None) -> list[Finding]:
    """`examine_nodes` of the cluster at `address`.

    Raises:
        InfrastructureError: the cluster cannot be reached.
    """
    connect(address)
    try:
        return examine_nodes(home, tracking_uri)
    finally:
        ray.shutdown()


def check_nodes(home: Path) -> list[str]:
    """Refuses a cluster that cannot run the sweep. Returns notes about the cluster, a sentence each.

    Raises:
        InfrastructureError: a node runs nothing, has other versions than this process, or can access neither the home nor a
            scratch folder.
    """
    reports = _without_lost_nodes(probe_nodes(home), home)
    problems = [f"node {report.node} cannot run the platform: {report.error}" for report in reports if report.facts is None]
    expected = versions()
    differing = {report.node: _differing(expected, report.facts["versions"]) for report in reports if report.facts is not None}
    problems += [f"node {node} has {what}; install the same versions on every node" for node, what in differing.items() if what]
    apart = nodes_without_home(reports)
    problems += [_no_scratch(report) for report in apart if report.facts and report.facts["scratch_trouble"]]
    if problems:
        more = f" (and {len(problems) - 1} more problems: stillhouse doctor --address lists them)" if len(problems) > 1 else ""
        raise InfrastructureError(problems[0] + more)
    if not apart:
        return []
    which = f"node {apart[0].node}" if len(apart) == 1 else f"{len(apart)} of {len(reports)} nodes"
    return [f"{which} cannot access the home {home}; files go through the keeper actor"]


def _without_lost_nodes(reports: Sequence[NodeReport], home: Path) -> list[NodeReport]:
    """The reports, without nodes that ended meanwhile: Ray lists a dead node as alive until it notices."""
    found, deadline = list(reports), time.monotonic() + _LOSS_TIMEOUT_S
    while True:
        alive = {_name(node) for node in usable_nodes()}
        found = [report for report in found if report.facts is not None or report.node in alive]
        doubtful = {report.node for report in found if report.lost}
        if not doubtful or time.monotonic() > deadline:
            return found
        time.sleep(_LOSS_PAUSE_S)
        found = [report for report in found if not report.lost] + probe_nodes(home, among=doubtful)


def nodes_without_home(reports: Iterable[NodeReport]) -> list[NodeReport]:
    """The nodes that do not share the driver's home, among those that can run anything."""
    return [report for report in reports if report.facts is not None and not report.shares_home]


def probe_nodes(home: Path, location: Location | None = None, among: Collection[str] | None = None) -> list[NodeReport]:
    """A report of every usable node, in the order of their addresses.

    Args:
        among: names of the nodes to probe; None for all.
    """
    nodes = sorted((node for node in usable_nodes() if among is None or _name(node) in among), key=_name)
    folder = home / f".doctor-{secrets.token_hex(4)}"
    try:
        write_checked(folder / "driver", b"driver")
    except OSError as error:
        raise InfrastructureError(f"cannot write into {home}: {error.strerror or error}; choose another with --home") from error
    try:
        calls = [
            _on(node, look_around, str(folder), _reachable_part(location), node["Resources"].get("GPU", 0)) for node in nodes
        ]
        done = set(ray.wait(calls, num_returns=len(calls), timeout=TIMEOUT_S)[0])
        return [_report(node, call, folder, done=call in done) for node, call in zip(nodes, calls, strict=True)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def findings_of(report: NodeReport, expected: Mapping[str, str], store: str) -> list[Finding]:
    """The findings of one node's report.

    Args:
        expected: the versions of this process.
        store: MLflow's address without secrets.
    """
    facts, node = report.facts, report.node
    if facts is None:
        return [Finding("worker", False, report.error, node)]
    home, found = Path(facts["home"]), facts["versions"]
    differing = _differing(expected, found)
    versions_fact = differing or ", ".join(f"{name} {found[name]}" for name in ("python", "ray", "torch", "stillhouse"))
    full = facts["free_bytes"] < LEAST_FREE_BYTES
    room = f"{facts['free_bytes'] / 2**30:.1f} GiB free"
    home_fact = f"{home} is writable and shared, {room}" if report.shares_home else f"{_not_shared(report, home)}, {room}"
    fit = report.shares_home or not facts["scratch_trouble"]
    if not fit:
        home_fact = _no_scratch(report)
    refused = facts["tracking"]
    apart = report.clock_difference_s
    return [
        Finding("versions", not differing, f"{versions_fact}, from {facts['package_path']}", node),
        Finding("home", fit and not full, home_fact, node),
        Finding(
            "mlflow",
            not refused,
            f"{store}: {refused}" if refused else f"{store} is reachable, or only the driver uses it",
            node,
        ),
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
        return Finding("gpus", False, f"{counted}, but PyTorch cannot use them: {seen}", report.node)
    good = seen >= report.gpus
    return Finding("gpus", good, f"{counted}, PyTorch sees {seen}", report.node)


def _token_finding(facts: Mapping[str, Any], node: str) -> Finding:
    if not facts["requires_token"]:
        return Finding("token", True, "the cluster requires none: anyone who reaches its ports can run code on it", node)
    if facts["has_token"]:
        return Finding("token", True, "the cluster requires one, and the node has it", node)
    return Finding("token", False, "the cluster requires one; put it into RAY_AUTH_TOKEN or ~/.ray/auth_token here", node)


def _not_shared(report: NodeReport, home: Path) -> str:
    facts = report.facts or {}
    why = "what the node wrote there is not what is read here"
    if not facts.get("probe_read"):
        why = f"it does not read what is written here ({facts.get('trouble') or 'it has another file'})"
    elif not facts.get("written"):
        why = f"it cannot write there ({facts.get('trouble')})"
    sentence = f"node {report.node} does not share the home {home}: {why}"
    return f"{sentence}; its files go through the keeper, with copies in {facts.get('scratch_folder')}"


def _no_scratch(report: NodeReport) -> str:
    facts = report.facts or {}
    return (
        f"node {report.node} can access neither the home nor a scratch folder "
        f"({facts['scratch_folder']}: {facts['scratch_trouble']}); share the home, or set {SCRATCH_VARIABLE} there"
    )


def _differing(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """All differing versions, as `torch 2.13.0 (2.14.1 here)`; a commit counts where both are known."""
    return ", ".join(
        f"{name} {found.get(name, 'unknown')} ({value} here)"
        for name, value in expected.items()
        if found.get(name) != value and not (name == "commit" and name not in found)
    )


def _report(node: Mapping[str, Any], call: Any, folder: Path, *, done: bool) -> NodeReport:
    name, gpus = _name(node), float(node["Resources"].get("GPU", 0))
    if not done:
        ray.cancel(call, force=True)
        return NodeReport(node=name, gpus=gpus, facts=None, error=f"no worker answered within {TIMEOUT_S:.0f} s")
    try:
        facts = {**ray.get(call), "home": str(folder.parent)}
        apart = _clock_difference(node)
    except RayError as error:
        reason = last_line(str(error), type(error).__name__)
        return NodeReport(node=name, gpus=gpus, facts=None, error=reason, lost=isinstance(error, _LOSSES))
    came_back = False
    with suppress(OSError, Damaged):
        came_back = read_checked(folder / f"node-{node['NodeID']}") == b"node"
    return NodeReport(node=name, gpus=gpus, facts=facts, came_back=came_back, clock_difference_s=apart)


def _clock_difference(node: Mapping[str, Any]) -> float:
    """The least number of seconds by which the node's clock differs from this one's, by a call to a running worker."""
    before = time.time()
    there: float = ray.get(_on(node, time.time), timeout=TIMEOUT_S)
    after = time.time()
    return max(0.0, before - there, there - after)
