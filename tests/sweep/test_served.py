"""A sweep whose method calls the teacher on inputs that it generates, inline and in the shared actor, which is killed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from stillhouse.errors import SpecError
from stillhouse.spec.load import validate
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.workers import environment_of_workers

SPEC: dict[str, Any] = {
    "name": "calling",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 420, "limit_test": 100}},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 2}}},
    "students": [{"model": "lenet", "width": 0.5}],
    "methods": {
        "data_free_adversarial": {"student_steps": 1, "generator_channels": 8, "generated_batch": 32, "generator_steps": 30}
    },
    "search": {"algorithm": "grid", "max_epochs": 3, "scheduler": "none", "confirm_seeds": 0},
    "training": {"batch_size": 32, "optimizer": "sgd", "learning_rate": 0.001, "momentum": 0.0},
    "max_concurrent_trials": 1,
}


def sweep(way: str, home: Path, **options: Any) -> Sweep:
    return Sweep(validate({**SPEC, "knowledge": {"way": way}}), home=home, **options)


def test_a_method_that_calls_its_teacher_has_no_sealed_view_to_read() -> None:
    with pytest.raises(SpecError, match=r"knowledge\.way must be auto, served or inline for data_free_adversarial"):
        sweep("cached", Path()).plan()


class Killer(Progress):
    """Kills the teacher's process after the trial's first epoch."""

    def __init__(self) -> None:
        super().__init__("calling", quiet=True)
        self.killed = 0

    def trial_epoch(self, key: str, epoch: int, accuracy: float | None) -> None:
        super().trial_epoch(key, epoch, accuracy)
        if epoch == 1 and "scratch" not in key and not self.killed:
            (name,) = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
            actor = ray.get_actor(name, namespace="stillhouse")
            self.killed = ray.get(actor.process_id.remote())
            os.kill(self.killed, signal.SIGKILL)


@pytest.fixture
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


def student_of(results: Results) -> dict[str, torch.Tensor]:
    (record,) = [record for record in results.records if record.trial.method == "data_free_adversarial"]
    assert record.status == "finished", record.reason
    assert record.weights is not None
    return load_file(results.sweep_home.folder / record.weights)


@pytest.mark.ray
@pytest.mark.slow
def test_a_student_is_the_same_whether_its_teacher_is_inline_or_served_by_an_actor_that_is_killed(
    cluster: None, tmp_path: Path
) -> None:
    killer = Killer()
    served = sweep("served", tmp_path / "served", progress=killer).run()
    inline = sweep("inline", tmp_path / "inline").run()
    assert killer.killed
    one, other = student_of(served), student_of(inline)
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=1e-4, atol=1e-5)
    (record,) = [record for record in served.records if record.trial.method == "data_free_adversarial"]
    # 30 steps of the student and of the generator, 32 images each.
    assert record.teaching["samples_called"] == 2 * 30 * 32
    assert record.teaching["way"] == "served"
    # The 10 steps of an epoch take two forward calls and a backward call each; a call that the kill hits is repeated.
    assert record.teaching["remote_calls"] >= 3 * 10 * 3
