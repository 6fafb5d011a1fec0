"""A packed worker without Ray: its trials have the records that they have alone, and its successor knows what it ran."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stillhouse.data import images as images_module
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.training import Training
from stillhouse.sweep.execution import packed_worker, trainable
from stillhouse.sweep.execution.packed_worker import PackedWorker, on_device
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.home.ledger import Ledger

MakeTrial = Callable[..., Trial]
SEEDS = {"a": 0, "b": 1, "c": 2}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits", validation=40, options={"limit": 200})


@pytest.fixture
def make_worker(monkeypatch: pytest.MonkeyPatch, data: ImageData, tmp_path: Path) -> Callable[..., PackedWorker]:
    for module in (packed_worker, trainable):
        monkeypatch.setattr(module, "own_device", lambda: "cpu")
        monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda reference: reference))
    monkeypatch.setattr(packed_worker, "prepare_worker", lambda *_arguments: None)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))

    def make(folder: Path, name: str = "worker", **changes: Any) -> PackedWorker:
        return PackedWorker(environment(folder, data, **changes), [data.to_arrays()], name)

    return make


def environment(folder: Path, data: ImageData, **changes: Any) -> TrialEnvironment:
    for part in ("ledger", "students", "trials"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    views = Views(("crop", "mixup"), 2, data.input_shape, len(data.train))
    return TrialEnvironment(
        folder=str(folder), views=views, training=Training(**{"batch_size": 32, "learning_rate": 0.05, **changes})
    )


def run(worker: PackedWorker, trial: Trial) -> list[dict[str, Any]]:
    """The results of the whole trial, as its `PackedTrial` receives them."""
    worker.begin(trial.key, trial.model_dump_json())
    results = [worker.step(trial.key)]
    while not results[-1]["done"]:
        results.append(worker.step(trial.key))
    worker.end(trial.key)
    return results


def record(folder: Path, key: str) -> TrialRecord:
    found = Ledger(folder / "ledger").read(key)
    assert found is not None
    return found


def test_trials_of_one_process_have_the_results_and_weights_that_they_have_alone(
    make_worker: Callable[..., PackedWorker], make_trial: MakeTrial, data: ImageData, tmp_path: Path
) -> None:
    trials = [make_trial(key, seed=seed, epochs=3) for key, seed in SEEDS.items()]
    worker = make_worker(tmp_path / "packed")
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda trial: run(worker, trial), trials))
    worker.close()
    alone = environment(tmp_path / "alone", data)
    for trial, told in zip(trials, results, strict=True):
        run_to_end(trial, alone, data)
        expected, found = record(tmp_path / "alone", trial.key), record(tmp_path / "packed", trial.key)
        assert found.status == "finished"
        assert found.weights_hash == expected.weights_hash
        timed = {"seconds"}
        for one, other in zip(found.curve, expected.curve, strict=True):
            assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
        assert [each["epoch"] for each in told] == [1, 2, 3]
        assert told[-1]["status"] == "finished"


def test_a_trial_that_diverges_fails_alone(
    make_worker: Callable[..., PackedWorker], make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.distill.trainer import Trainer
    from stillhouse.errors import TrialError

    entry = Trainer._entry

    def diverges(self: Trainer, *arguments: Any) -> dict[str, Any]:
        if self._seed == SEEDS["b"]:
            raise TrialError("diverged in epoch 1")
        return entry(self, *arguments)

    monkeypatch.setattr(Trainer, "_entry", diverges)
    worker = make_worker(tmp_path / "packed")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda key: run(worker, make_trial(key, seed=SEEDS[key])), SEEDS))
    worker.close()
    statuses = {key: record(tmp_path / "packed", key).status for key in SEEDS}
    assert statuses == {"a": "finished", "b": "failed", "c": "finished"}
    assert record(tmp_path / "packed", "b").reason == "diverged in epoch 1"


def test_a_trial_that_is_ended_between_two_epochs_goes_on_in_another_worker(
    make_worker: Callable[..., PackedWorker], make_trial: MakeTrial, data: ImageData, tmp_path: Path
) -> None:
    trial = make_trial("a", epochs=3)
    first = make_worker(tmp_path / "packed")
    first.begin("a", trial.model_dump_json())
    first.step("a")
    first.close()
    second = make_worker(tmp_path / "packed")
    second.begin("a", trial.model_dump_json())
    resumed = second.step("a")
    assert resumed["epoch"] == 2
    assert [entry["epoch"] for entry in json.loads(resumed["curve"])] == [1, 2]
    second.step("a")
    second.close()
    run_to_end(trial, environment(tmp_path / "alone", data), data)
    assert record(tmp_path / "packed", "a").weights_hash == record(tmp_path / "alone", "a").weights_hash


def test_a_trial_is_begun_again_when_its_caller_died(
    make_worker: Callable[..., PackedWorker], make_trial: MakeTrial, tmp_path: Path
) -> None:
    worker = make_worker(tmp_path / "packed")
    worker.begin("a", make_trial("a", epochs=2).model_dump_json())
    worker.step("a")
    # The epoch before was stored when the earlier session was dropped.
    assert [each["epoch"] for each in run(worker, make_trial("a", epochs=2))] == [2]
    worker.close()


def test_the_worker_that_takes_the_place_of_a_dead_one_knows_which_trials_it_ran(
    make_worker: Callable[..., PackedWorker], make_trial: MakeTrial, tmp_path: Path
) -> None:
    assert make_worker(tmp_path / "packed", "other").suspects() is None
    (tmp_path / "stillhouse-packed-worker.json").write_text(json.dumps(["b"]))
    restarted = make_worker(tmp_path / "packed")
    assert restarted.suspects() == ["b"]
    assert run(restarted, make_trial("a"))[-1]["status"] == "finished"
    restarted.close()
    assert not (tmp_path / "stillhouse-packed-worker.json").exists()


def test_images_are_copied_to_the_device_once_unless_they_are_large(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device `meta` stands for a GPU."""
    images = data.train.images
    assert on_device(data, "cpu") is data
    for module in (packed_worker, images_module):
        monkeypatch.setattr(module, "memory_limit", lambda _device: 5 * images.nbytes)
    there = on_device(data, "meta")
    assert {there.train.images.device.type, there.validation.images.device.type} == {"meta"}
    assert torch.equal(there.train.labels, data.train.labels)
    monkeypatch.setattr(images_module, "memory_limit", lambda _device: 5 * images.nbytes - 1)
    assert on_device(data, "meta").train.images.device.type == "cpu"
