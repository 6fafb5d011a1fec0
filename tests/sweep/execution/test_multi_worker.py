"""Trials that several processes train, through a real sweep; and trials that run out of memory."""

import dataclasses
import errno
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from stillhouse import workers as worker_setup
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.batches import Indices
from stillhouse.distill.method import Step
from stillhouse.distill.stage_training import EpochPlace, StageTraining
from stillhouse.errors import DiskFullError, InfrastructureError, SpecError, TrialError
from stillhouse.spec.load import validate
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.training import Training
from stillhouse.sweep.cluster.placement import worker_bundles
from stillhouse.sweep.execution import multi_worker
from stillhouse.sweep.execution.multi_worker import GroupWorker, WorkerGroup
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.sweep import Sweep
from stillhouse.workers import prepare_worker

MakeTrial = Callable[..., Trial]


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "together",
        "dataset": {"name": "digits", "validation": 40, "options": {"limit": 200, "limit_test": 50}},
        "views": {"policy": ["crop"], "count": 2},
        "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}}},
        "students": [{"model": "mlp", "hidden": [16]}],
        "methods": {"scratch": {}, "kd": "defaults"},
        "search": {"trials_per_method": 1, "max_epochs": 2},
        "training": {"batch_size": 63, "learning_rate": 0.05},
        # Nobody listens there, which costs a sweep nothing.
        "tracking": {"uri": "http://127.0.0.1:9"},
        **changes,
    }


# Several workers


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_with_two_workers_per_trial_has_the_students_of_one(tmp_path: Path) -> None:
    students: list[Mapping[str, Mapping[str, torch.Tensor]]] = []
    for workers in (1, 2):
        home = tmp_path / str(workers)
        plain = spec(trial_resources={"cpu": 1, "workers": workers}, max_concurrent_trials=1)
        results = Sweep(check(plain), home=home).run()
        assert [record.status for record in results.records] == ["finished"] * 2, [r.reason for r in results.records]
        taught = next(record for record in results.records if record.trial.method == "kd")
        # 160 samples in 2 epochs, each read once, whichever worker did.
        assert taught.teaching["samples_gathered"] == 2 * 160
        assert len(list((results.sweep_home.folder / "ledger").glob("*"))) == 2
        students.append(
            {record.trial.key: load_file(results.sweep_home.folder / str(record.weights)) for record in results.records}
        )
    one, two = students
    torch.testing.assert_close(dict(two), dict(one), rtol=1e-4, atol=1e-5)


@pytest.fixture
def _one_core() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("_one_core")
def test_trials_read_the_data_set_in_the_nodes_object_store(digits: ImageData) -> None:
    """The images of a trial lie in a mapping of the store's shared memory, which is read-only."""

    def look(data: list[Any]) -> tuple[list[bool], list[str]]:
        arrays, facts = ray.get(data[0])
        images = ImageData.from_arrays(arrays, facts).train.images
        start = images.data_ptr()
        mappings = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= start and start + images.nbytes <= last:
                mappings.append(line)
        return [array.flags.writeable for array in arrays.values()], mappings

    writeable, mappings = ray.get(ray.remote(look).remote([ray.put(digits.to_arrays())]))
    assert not any(writeable)
    assert len(mappings) == 1
    assert "plasma" in mappings[0] or "/dev/shm" in mappings[0]


def answer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remote calls return their answers; `NEVER` is an answer that does not come."""

    def wait(answers: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        done = [answer for answer in answers if answer is not NEVER][:1]
        assert done or timeout is not None, "nobody would ever answer"
        return done, [answer for answer in answers if not done or answer is not done[0]]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda answer: answer)


NEVER = object()
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:36576.")


@pytest.mark.parametrize(
    ("own", "told", "raised", "message"),
    [
        (CLOSED, ("trial", "out of memory: none left"), TrialError, "^out of memory: none left$"),
        (CLOSED, ("infrastructure", "teacher 'big' did not answer"), InfrastructureError, "teacher 'big' did not answer"),
        (CLOSED, ("lost", "Connection closed"), InfrastructureError, "lost each other: Connection closed"),
        (TrialError("diverged"), ("lost", "Connection closed"), TrialError, "^diverged$"),
        (None, ("infrastructure", "The actor died"), InfrastructureError, "lost each other: The actor died"),
    ],
)
def test_the_worker_that_failed_first_gives_the_reason(
    own: Exception | None, told: tuple[str, str], raised: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one worker fails, all others lose their connection to it, which is not the reason."""

    class Handle:
        @property
        def run_epoch(self) -> "Handle":
            return self

        def remote(self) -> tuple[str, str]:
            return told

    def fail() -> None:
        if own is not None:
            raise own

    answer_at_once(monkeypatch)
    peers = object.__new__(WorkerGroup)
    peers.broken, peers._handles = False, [Handle()]
    with pytest.raises(raised, match=message):
        peers.run_on_all("run_epoch", own=fail)
    assert peers.broken


def test_a_full_disk_of_another_worker_is_a_full_disk_of_the_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "any text", "/node/file")

    other = GroupWorker.__new__(GroupWorker)
    other._environment = SimpleNamespace(folder=str(tmp_path))  # type: ignore[assignment]
    call = SimpleNamespace(remote=lambda: other._answer(full))
    group = WorkerGroup.__new__(WorkerGroup)
    group._handles, group.broken = [SimpleNamespace(run_epoch=call)], False
    answer_at_once(monkeypatch)
    with pytest.raises(DiskFullError, match=r"^any text \(/node/file\)$"):
        group.run_on_all("run_epoch", own=lambda: None)
    assert group.broken


def test_a_worker_that_waits_for_a_failed_one_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's kernels wait for a worker that is gone; only the time limit of the collective calls would end them."""
    killed: list[Any] = []
    answer_at_once(monkeypatch)
    monkeypatch.setattr(ray, "kill", killed.append)
    waiting = SimpleNamespace(run_epoch=SimpleNamespace(remote=lambda: NEVER))
    failed = SimpleNamespace(run_epoch=SimpleNamespace(remote=lambda: ("trial", "diverged in epoch 3")))
    group = WorkerGroup.__new__(WorkerGroup)
    group._handles, group.broken = [waiting, failed], False
    with pytest.raises(TrialError, match=r"^diverged in epoch 3$"):
        group.run_on_all("run_epoch", own=lambda: None)
    assert killed == [waiting]


def test_the_first_worker_stops_waiting_when_another_one_reports_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted = threading.Event()

    def in_a_kernel() -> None:
        assert aborted.wait(30), "the first worker would have waited for ten minutes"
        raise ValueError("Default process group has not been initialized, please make sure to call init_process_group.")

    answer_at_once(monkeypatch)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: not aborted.is_set())
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: pytest.fail("waits for the kernels"))
    monkeypatch.setattr(multi_worker, "_abort_process_group", aborted.set)
    group = WorkerGroup.__new__(WorkerGroup)
    group._handles, group.broken = [SimpleNamespace(run_epoch=SimpleNamespace(remote=lambda: ("trial", "diverged")))], False
    with pytest.raises(TrialError, match=r"^diverged$"):
        group.run_on_all("run_epoch", own=in_a_kernel)
    assert group.broken


def test_a_worker_frees_its_last_trial_before_it_begins_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Runner:
        def __init__(self, *_arguments: object, **_options: object) -> None:
            happened.append("made")
            weakref.finalize(self, happened.append, "freed")
            self.itself = self

    monkeypatch.setattr(multi_worker, "TrialRunner", Runner)
    monkeypatch.setattr(multi_worker, "own_device", lambda: "cpu")
    monkeypatch.setattr(Trial, "model_validate_json", lambda _text: None)
    worker = GroupWorker.__new__(GroupWorker)
    worker._runner, worker._environment, worker._data, worker._workers = None, None, None, None  # type: ignore[assignment]
    gc.disable()
    try:
        assert worker.begin("one") is None
        assert worker.begin("two") is None
    finally:
        gc.enable()
    assert happened == ["made", "freed", "made"]


def test_workers_share_what_the_trial_holds_evenly() -> None:
    claim = validate(spec(trial_resources={"cpu": 2, "gpu": 4})).trial_resources
    assert claim.num_workers == 4
    assert worker_bundles(claim) == [{"CPU": 0.5, "GPU": 1.0}] * 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"trial_resources": {"gpu": 4, "workers": 2}},
            "trial_resources.workers must be 4, one for each GPU, got 2",
        ),
        (
            {"trial_resources": {"gpu": 1, "workers": 2}},
            "trial_resources.workers must be 1, one for each GPU, got 2",
        ),
        (
            {"trial_resources": {"gpu": 0.5, "workers": 2}},
            "trial_resources.workers must be 1, one for each GPU, got 2",
        ),
        (
            {"trial_resources": {"gpu": 2, "workers": 3}},
            "trial_resources.workers must be 2, one for each GPU, got 3",
        ),
        (
            {"trial_resources": {"workers": 80}},
            "training.batch_size must be >= the 80 workers of a trial, got 63",
        ),
        (
            {"trial_resources": {"workers": 2}, "methods": {"mutual_learning": {}}},
            "methods.mutual_learning fits no student: for mlp with big it has its own training step, which must see each "
            "batch whole, and trial_resources divides it among 2 workers; remove mutual_learning",
        ),
        (
            {"training": {"micro_batch": 8}, "methods": {"dist": {}}},
            "methods.dist fits no student: for mlp with big it relates the samples of a batch to each other, so that it must "
            "see each batch whole, and training.micro_batch = 8 divides it; remove dist",
        ),
    ],
)
def test_what_cannot_be_parted_is_refused_before_anything_starts(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(spec(**changes))
    assert [str(problem) for problem in caught.value.problems] == [sentence]


def test_a_last_batch_must_have_a_sample_for_each_worker() -> None:
    data = load_dataset("digits", validation=40, options={"limit": 200})
    with pytest.raises(SpecError, match=r"training\.batch_size must leave a last batch of at least 4 samples.*leaves 3 of 160"):
        check(spec(trial_resources={"workers": 4}, training={"batch_size": 157}), data)


def test_micro_batches_that_are_not_used_leave_the_keys_of_trials_as_they_were() -> None:
    assert "micro_batch" not in Training().identity()
    assert Training(micro_batch=8).identity()["micro_batch"] == 8


# Memory


@pytest.fixture
def environment(tmp_path: Path, digits: ImageData) -> TrialEnvironment:
    views = Views(("crop",), 2, digits.input_shape, len(digits.train))
    return TrialEnvironment(folder=str(tmp_path), views=views, training=Training(batch_size=64), checkpoint_interval_s=0.0)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Room for a forward pass of 20 training samples from the second epoch on; the sizes that were tried."""
    tried: list[int] = []
    make_step = StageTraining.make_step

    def limited(current: StageTraining, indices: Indices, at: EpochPlace, *arguments: Any, **options: Any) -> Step:
        tried.append(len(indices))
        if at.epoch > 0 and len(indices) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")
        return make_step(current, indices, at, *arguments, **options)

    monkeypatch.setattr(StageTraining, "make_step", limited)
    return tried


def run(environment: TrialEnvironment, data: ImageData, trial: Trial, **training: Any) -> TrialRecord:
    recipe = Training(batch_size=64, **training)
    return run_to_end(trial, dataclasses.replace(environment, training=recipe), data)


def test_a_trial_without_memory_fails_with_advice(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, small_memory: list[int]
) -> None:
    record = run(environment, digits, make_trial())
    assert record.status == "failed"
    assert record.reason == (
        "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB; lower training.batch_size, set "
        "training.micro_batch to auto, or give each trial a larger trial_resources.gpu"
    )


def test_a_trial_that_may_starts_again_with_micro_batches_that_fit(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, small_memory: list[int]
) -> None:
    shrunk = run(environment, digits, make_trial("shrunk"), micro_batch="auto")
    assert (shrunk.status, shrunk.epochs_run, shrunk.metrics["micro_batch"]) == ("finished", 2, 16)
    assert max(small_memory) == 64
    small_memory.clear()
    explicit = run(environment, digits, make_trial("explicit"), micro_batch=16)
    assert max(small_memory) == 16
    # Bit for bit, although the first attempt had trained for an epoch and written a checkpoint.
    assert explicit.weights_hash == shrunk.weights_hash
    assert "micro_batch" not in explicit.metrics


def test_memory_that_holds_not_even_one_sample_ends_the_trial(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: Any, **_options: Any) -> Step:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(StageTraining, "make_step", never)
    record = run(environment, digits, make_trial(), micro_batch="auto")
    assert record.status == "failed"
    assert (record.reason or "").startswith("out of memory: none left;")


def test_a_share_of_a_gpu_limits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(worker_setup, "limit_memory", limits.append)
    prepare_worker((), torch.get_num_threads(), gpu_share=0.25)
    assert limits == [0.25]
