"""A limit on latency, which is known only once the students were timed."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from stillhouse.errors import Interrupted
from stillhouse.models.size import Latency
from stillhouse.spec.load import validate
from stillhouse.sweep.execution.latency import measure_models
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.sweep import Sweep

SPEC: dict[str, Any] = {
    "name": "timed",
    "dataset": {"name": "digits"},
    "students": [{"model": "mlp", "hidden": {"choice": [[8], [16]]}}],
    "methods": {"scratch": {"label_smoothing": {"uniform": [0, 0.3]}}},
}


def sweep_of(home: Path, algorithm: str) -> Sweep:
    search = {"algorithm": algorithm, "trials_per_method": 8, "startup_trials": 4, "limits": {"latency_ms": 1}}
    return Sweep(validate({**SPEC, "search": search}), home=home)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_students_that_were_measured_to_be_too_slow_are_not_started(algorithm: str, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, algorithm)
    plan = sweep.plan()
    assert len(plan.students) == 2
    assert {tuple(trial.student.options["hidden"]) for trial in sweep._searched(plan, {}).known.values()} == {(8,), (16,)}
    slow = next(planned for planned in plan.students if planned.student.options["hidden"] == [16])
    sweep.sweep_home.write_latencies(
        {student_key(planned.student): {"latency_ms": 1.5 if planned is slow else 0.5} for planned in plan.students}
    )
    known = sweep._searched(plan, {}).known.values()
    assert known
    assert {tuple(trial.student.options["hidden"]) for trial in known} == {(8,)}
    (note,) = sweep._slow_students(plan)
    assert note == (
        f"search.limits.latency_ms = 1: 1 of 2 students are slower and {slow.trials} planned trials with them were dropped: "
        "mlp(hidden=[16]) 1.5 ms"
    )


def test_what_was_measured_once_is_not_measured_again(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def measure(models: dict[str, Any], _data: Any) -> dict[str, dict[str, float]]:
        asked.append(list(models))
        return {name: {"latency_ms": 0.25} for name in models}

    cluster: Any = SimpleNamespace(measure_latency=measure, threads=1, import_paths=(), home=None)
    sweep = sweep_of(tmp_path, "random")
    plan = sweep.plan()
    names = [student_key(planned.student) for planned in plan.students]
    assert sweep._environment(cluster, plan, {}).latencies == {name: {"latency_ms": 0.25} for name in names}
    sweep.sweep_home.write_latencies({names[0]: {"latency_ms": 0.5}})
    later = sweep_of(tmp_path, "random")
    for _ in range(2):
        measured = later._environment(cluster, plan, {}).latencies
        assert measured == {names[0]: {"latency_ms": 0.5}, names[1]: {"latency_ms": 0.25}}
    assert asked == [names, names[1:]]


BROKEN = """
from torch import nn

class Broken(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.last = nn.Linear(4, num_classes)

    def forward(self, images):
        if images.device.type != "meta":
            raise RuntimeError("no such kernel")
        return self.last(images.flatten(1)[:, :4])

def broken(num_classes, input_shape):
    return Broken(num_classes)
"""


def test_a_model_that_can_not_run_has_a_reason_and_the_others_their_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_nets.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    models: dict[str, tuple[str, dict[str, Any]]] = {"whole": ("mlp", {"hidden": [4]}), "broken": ("broken_nets:broken", {})}
    threads = torch.get_num_threads()
    found, reasons = measure_models(models, 10, (1, 8, 8), threads, [])
    assert found.keys() == {"whole"}
    assert found["whole"].keys() == {"latency_ms", "latency_p95_ms", "latency_batch64_ms"}
    assert reasons == {"broken": "RuntimeError: no such kernel (broken_nets.py:11)"}


@pytest.mark.parametrize("networks", [1, 300])
def test_all_networks_together_are_given_about_a_minute(networks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def measure(_model: Any, _shape: Any, *, budget_s: float, **_options: Any) -> dict[int, Latency]:
        given.append(budget_s)
        return {size: Latency(size, 1.0, 2.0) for size in (1, 64)}

    monkeypatch.setattr("stillhouse.sweep.execution.latency.measure_latency", measure)
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    models: dict[str, tuple[str, dict[str, Any]]] = {str(number): ("mlp", {}) for number in range(networks)}
    found, _ = measure_models(models, 10, (1, 8, 8), torch.get_num_threads(), [])
    assert len(found) == len(given) == networks
    # For each network one image and a batch, and for each of them as long again to warm up.
    assert 0 < 4 * sum(given) <= 60 * 1.001
    assert max(given) <= 1.5


def test_a_request_that_comes_while_the_spec_is_looked_at_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path, "random")
    monkeypatch.setattr(sweep.sweep_home, "write_spec", lambda *_spec, **_options: sweep.sweep_home.stop_request.touch())
    monkeypatch.setattr(sweep, "_run", lambda *_arguments: time.sleep(60))
    with pytest.raises(Interrupted):
        sweep.run()


def test_without_measurements_nothing_is_refused(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "random")
    plan = sweep.plan()
    assert len(sweep._searched(plan, {}).known) == len(plan.trials)
    assert sweep._slow_students(plan) == []
