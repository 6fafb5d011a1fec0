"""Searches on a real cluster: ended by a budget in the middle and resumed, stopped early, confirmed on fresh seeds."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
import ray

from stillhouse.spec.load import validate
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC: dict[str, Any] = {
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "teachers": {"big": {"model": "mlp", "hidden": [32], "train": {"epochs": 1}}},
    "students": [
        {"model": "mlp", "hidden": {"choice": [[8], [16]]}},
    ],
    "methods": {"scratch": {}, "kd": {"temperature": {"uniform": [1, 10]}, "kd_weight": 0.9}},
    "search": {
        "algorithm": "tpe",
        "trials_per_method": 6,
        "startup_trials": 2,
        "trials_ahead": 2,
        "max_epochs": 1,
    },
    # Nobody listens there, which costs a sweep nothing.
    "tracking": {"uri": "http://127.0.0.1:9"},
    "max_concurrent_trials": 1,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    connect(None)
    yield
    ray.shutdown()


def run(home: Path, name: str, **budget: Any) -> Results:
    return Sweep(validate({**SPEC, "name": name, "search": {**SPEC["search"], "budget": budget}}), home=home).run()


def outcome(results: Results) -> dict[str, str | None]:
    return {record.trial.key: record.weights_hash for record in results.records}


def test_a_search_that_its_budget_ended_goes_on_as_if_nothing_had_happened(cluster: None, tmp_path: Path) -> None:
    whole = run(tmp_path, "whole")
    counts = Counter(record.trial.method for record in whole.records)
    assert counts == {"scratch": 2, "kd": 6}, "scratch has two students, and nothing else to search"
    assert not [note for note in whole.facts.notes if "budget" in note]

    part = run(tmp_path, "part", trials=5)
    assert len(part.records) == 5
    assert [note for note in part.facts.notes if "search.budget.trials = 5 is spent; 3 trials were not started: kd 3" in note]
    assert outcome(run(tmp_path, "part", trials=5)) == outcome(part), "a budget that is spent starts nothing"

    resumed = run(tmp_path, "part")
    assert resumed.reused == 5
    assert outcome(resumed) == outcome(whole)


EARLY: dict[str, Any] = {
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "students": [{"model": "mlp", "hidden": [8], "name": "small"}, {"model": "mlp", "hidden": [64], "name": "large"}],
    "methods": {"scratch": {"label_smoothing": {"uniform": [0.0, 0.9]}}},
    "search": {"trials_per_method": 10, "max_epochs": 6, "grace_epochs": 1, "reduction_factor": 2, "confirm_seeds": 2},
    "tracking": {"uri": "http://127.0.0.1:9"},
    "max_concurrent_trials": 1,
}


def test_trials_are_stopped_within_their_size_and_the_winners_are_confirmed_on_fresh_seeds(
    cluster: None, tmp_path: Path
) -> None:
    spec = validate({**EARLY, "name": "early", "search": {**EARLY["search"], "scheduler": "asha"}})
    results = Sweep(spec, home=tmp_path).run()
    searched = [record for record in results.records if record.trial.phase == "search"]
    assert len(searched) == 10
    stopped = [record for record in searched if record.status == "stopped"]
    assert stopped
    assert all(1 <= record.epochs_run < 6 for record in stopped)
    for student in ("small", "large"):
        finished = [each for each in searched if each.trial.student.name == student and each.status == "finished"]
        # A large student that is better from its first epoch on does not stop all small ones.
        best = max(each.metrics["validation_accuracy"] for each in finished)
        # Several may be equally good by 80 validation images; one of them is confirmed.
        winners = {str(each.trial.hyperparameters): each for each in finished if each.metrics["validation_accuracy"] == best}
        confirmed = [each for each in results.records if each.trial.phase == "confirm" and each.trial.student.name == student]
        assert [(each.status, each.epochs_run) for each in confirmed] == [("finished", 6)] * 2
        (chosen,) = {str(each.trial.hyperparameters) for each in confirmed}
        assert len({winners[chosen].trial.seed, *(each.trial.seed for each in confirmed)}) == 3
    again = Sweep(spec, home=tmp_path).run()
    assert (again.planned, again.reused) == (14, 14), "what was stopped stays so"


def descendants(process: int) -> set[int]:
    """A process's children, theirs, and so on."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name in brackets may hold anything.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, new = set[int](), {process}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in new} - found
    return found - {process}


def listening(processes: Iterable[int]) -> list[IPv4Address | IPv6Address]:
    """The addresses on which these processes wait for connections, by the kernel's tables."""
    sockets = set[str]()
    for process in processes:
        for path in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                sockets.add(str(path.readlink()))
    found: list[IPv4Address | IPv6Address] = []
    for table, address in (("tcp", IPv4Address), ("tcp6", IPv6Address)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                words = bytes.fromhex(fields[1].partition(":")[0])
                found.append(address(b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))))
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's tables of connections")
def test_a_cluster_of_our_own_listens_on_the_loopback_interface_only(cluster: None) -> None:
    found = listening(descendants(os.getpid()))
    mapped = [getattr(each, "ipv4_mapped", None) or each for each in found]
    assert len(mapped) >= 3, "the control store's, the node's and the agent's at least"
    assert all(each.is_loopback for each in mapped), mapped
