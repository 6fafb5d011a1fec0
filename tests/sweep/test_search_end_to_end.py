"""An adaptive search on a real cluster: ended by its budget in the middle, resumed, and the same as one undisturbed."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from stillhouse.spec.load import validate
from stillhouse.sweep.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.workers import environment_of_workers

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
    "max_concurrent_trials": 1,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        namespace="stillhouse",
        runtime_env={"env_vars": dict(environment_of_workers())},
    )
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
