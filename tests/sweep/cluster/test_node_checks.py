"""What is made of the reports of the nodes: findings of `doctor`, and sweeps that are refused with one sentence."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.doctor import Finding
from stillhouse.errors import InfrastructureError
from stillhouse.sweep.cluster import node_checks as nodes
from stillhouse.sweep.cluster.node_checks import NodeReport, check_nodes, findings_of

OURS = {"python": "3.11.2", "ray": "2.60.0", "torch": "2.14.1", "stillhouse": "0.1.0", "commit": "a" * 40}


STORE = "http://mlflow.internal:5000"


GOOD: dict[str, Any] = {
    "home": "/shared/home",
    "scratch_folder": "/tmp",
    "scratch_trouble": "",
    "versions": OURS,
    "package_path": "/venv/stillhouse",
    "probe_read": True,
    "written": True,
    "trouble": "",
    "free_bytes": 9 << 30,
    "tracking": "",
    "gpus": 1,
    "requires_token": True,
    "has_token": True,
}


def found(report: dict[str, Any] | None = None, **facts: Any) -> dict[str, Finding]:
    node = NodeReport(**{"node": "10.0.0.11 (4c2e1f)", "gpus": 1.0, "facts": GOOD | facts, "came_back": True, **(report or {})})
    return {finding.what: finding for finding in findings_of(node, OURS, STORE)}


def test_a_node_that_has_everything_is_good() -> None:
    assert [finding.good for finding in found().values()] == [True] * 6


APART = "node 10.0.0.11 (4c2e1f) does not share the home /shared/home: "


KEPT = "; its files go through the keeper, with copies in /tmp, 9.0 GiB free"


@pytest.mark.parametrize(
    ("what", "report", "facts", "sentence"),
    [
        ("versions", {}, {"versions": OURS | {"torch": "2.13.0"}}, "torch 2.13.0 (2.14.1 here), from /venv/stillhouse"),
        (
            "versions",
            {},
            {"versions": OURS | {"commit": "b" * 40}},
            f"commit {'b' * 40} ({'a' * 40} here), from /venv/stillhouse",
        ),
        ("home", {}, {"free_bytes": 1 << 29}, "/shared/home is writable and shared, 0.5 GiB free"),
        (
            "home",
            {},
            {"probe_read": False, "scratch_trouble": "Permission denied"},
            "node 10.0.0.11 (4c2e1f) can access neither the home nor a scratch folder (/tmp: Permission denied); "
            "share the home, or set STILLHOUSE_SCRATCH there",
        ),
        ("mlflow", {}, {"tracking": "the server answers 500"}, f"{STORE}: the server answers 500"),
        ("gpus", {"gpus": 2.0}, {}, "Ray counts 2, PyTorch sees 1"),
        ("gpus", {}, {"gpus": "no driver"}, "Ray counts 1, but PyTorch cannot use them: no driver"),
        (
            "token",
            {},
            {"has_token": False},
            "the cluster requires one; put it into RAY_AUTH_TOKEN or ~/.ray/auth_token here",
        ),
        ("clock", {"clock_difference_s": 11.0}, {}, "11.0 s apart; set it by NTP"),
    ],
)
def test_a_check_that_fails_says_what_is_wrong_and_no_other_fails(
    what: str, report: dict[str, Any], facts: dict[str, Any], sentence: str
) -> None:
    checks = found(report, **facts)
    assert checks[what].fact == sentence
    assert [name for name, finding in checks.items() if not finding.good] == [what]


@pytest.mark.parametrize(
    ("report", "facts", "sentence"),
    [
        (
            {},
            {"probe_read": False, "trouble": "No such file or directory"},
            "it does not read what is written here (No such file or directory)",
        ),
        (
            {"came_back": False},
            {"written": False, "trouble": "Read-only file system"},
            "it cannot write there (Read-only file system)",
        ),
        ({"came_back": False}, {}, "what the node wrote there is not what is read here"),
    ],
)
def test_a_home_that_a_node_does_not_share_is_said_and_is_no_failure(
    report: dict[str, Any], facts: dict[str, Any], sentence: str
) -> None:
    finding = found(report, **facts)["home"]
    assert (finding.good, finding.fact) == (True, f"{APART}{sentence}{KEPT}")


def report(node: str = "10.0.0.11 (4c2e1f)", *, shared: bool = True, **facts: Any) -> NodeReport:
    return NodeReport(node=node, gpus=0.0, facts=GOOD | facts, came_back=shared)


OLD = report("10.0.0.12 (9ab03d)", versions=OURS | {"torch": "2.13.0"})


NO_SCRATCH = report("10.0.0.13 (77aa00)", shared=False, probe_read=False, scratch_trouble="Permission denied")


DEAD = NodeReport(node="10.0.0.14 (0f0f0f)", gpus=0.0, facts=None, error="no worker answered within 120 s")


@pytest.mark.parametrize(
    ("reports", "sentence"),
    [
        ([OLD], "node 10.0.0.12 (9ab03d) has torch 2.13.0 (2.14.1 here); install the same versions on every node"),
        (
            [NO_SCRATCH],
            "node 10.0.0.13 (77aa00) can access neither the home nor a scratch folder (/tmp: Permission denied); share "
            "the home, or set STILLHOUSE_SCRATCH there",
        ),
        (
            [NO_SCRATCH, OLD, DEAD],
            "node 10.0.0.14 (0f0f0f) cannot run the platform: no worker answered within 120 s "
            "(and 2 more problems: stillhouse doctor --address lists them)",
        ),
    ],
)
def test_a_node_on_which_a_sweep_cannot_run_holds_it_back_with_one_sentence(
    reports: list[NodeReport], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, [report(), *reports])
    with pytest.raises(InfrastructureError) as caught:
        check_nodes(Path("/shared/home"))
    assert str(caught.value) == sentence


def test_nodes_that_cannot_access_the_home_are_reported_and_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = [report(node, shared=False, probe_read=False) for node in ("10.0.0.12 (9ab03d)", "10.0.0.13 (77aa00)")]
    rest = "cannot access the home /shared/home; files go through the keeper actor"
    for some, who in ((apart[:0], None), (apart[:1], "node 10.0.0.12 (9ab03d)"), (apart, "2 of 3 nodes")):
        pretend(monkeypatch, [report(), *some])
        assert check_nodes(Path("/shared/home")) == ([] if who is None else [f"{who} {rest}"])


def pretend(monkeypatch: pytest.MonkeyPatch, reports: list[NodeReport]) -> None:
    """Nodes that answer so."""
    monkeypatch.setattr(nodes, "probe_nodes", lambda _home: reports)
    monkeypatch.setattr(nodes, "usable_nodes", lambda: reports)
    monkeypatch.setattr(nodes, "_name", lambda each: each.node)
    monkeypatch.setattr(nodes, "versions", lambda: OURS)


def test_a_commit_that_an_installed_package_does_not_know_is_no_difference() -> None:
    unknown = {name: value for name, value in OURS.items() if name != "commit"}
    assert found(versions=unknown)["versions"].good


def test_a_cluster_that_requires_no_token_is_reported() -> None:
    finding = found(requires_token=False, has_token=False)["token"]
    assert finding.good
    assert "anyone who reaches its ports can run code on it" in finding.fact


def test_a_node_that_runs_nothing_has_its_reason_and_no_other_check() -> None:
    (finding,) = found({"facts": None, "error": "no worker answered within 120 s"}).values()
    assert (finding.what, finding.good, finding.fact) == ("worker", False, "no worker answered within 120 s")
