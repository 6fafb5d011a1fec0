"""Several workers and micro-batches against one worker that sees each batch whole."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.compress.chain import Chain
from stillhouse.distill import ddp
from stillhouse.distill.ddp import Workers, split_problem
from stillhouse.distill.method import Method, MethodError, Step
from stillhouse.distill.stage_training import EpochPlace
from stillhouse.distill.trainer import Trainer
from stillhouse.tasks import find as find_task

MakeTrainer = Callable[..., Trainer]

# Each process trains every case; rank 0 writes weights and curves. 160 samples in batches of 63, 63 and 34: slices differ.
SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from torch import nn
from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import Context
from stillhouse.data.datasets import load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method
from stillhouse.distill import ddp
from stillhouse.distill.ddp import ALONE, Workers
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.distill.trainer import Trainer
from stillhouse.methods import find
from stillhouse.models.architecture import describe
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training
from pathlib import Path

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
workers = ALONE
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    workers = Workers(rank, size)
data = load_dataset("digits", options={"limit": 200}, validation=40)

def build(model, **options):
    return lambda: build_model(model, num_classes=10, input_shape=data.input_shape, **options)

def taught(method):
    torch.manual_seed(0)
    teacher = build("lenet")()
    architecture, student = (describe(build(m)(), name=m, input_shape=data.input_shape) for m in ("lenet", "lenet"))
    source = InlineKnowledge(teacher, method.knowledge(architecture, student), data.train.labels)
    return {"teacher": source, "teacher_architecture": architecture}

def normed():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

def trainer(make, method=None, recipe=(), **fields):
    method = method or Method()
    taught_by = taught(method) if method.card.family != "control" else {}
    training = Training.model_validate({"batch_size": 63, "learning_rate": 0.05, "gradient_clip": 1.0, **dict(recipe)})
    return Trainer(new_student=make, method=method, data=data, views=Views(("crop", "mixup"), 2, data.input_shape, 160),
                   training=training, epochs=3, seed=1, workers=workers, **taught_by, **fields)

operators = Chain.of([{"prune": {"ratio": 0.5, "pattern": "unstructured"}}, {"share_weights": {"k": 8, "share_at": 0.4}},
                      {"quantize": {"weight_bits": 4, "activation_bits": 32, "exempt": "none"}}])
context = Context(num_classes=10, input_shape=data.input_shape)
cases = {
    "plain": trainer(build("mlp", hidden=[16])),
    "batch norm": trainer(normed),
    "recomputed statistics": trainer(normed, recipe={"batchnorm_statistics": "recomputed"}),
    "hints with a helper and a stage": trainer(build("lenet"), find("fitnets")()),
    "noise of its own": trainer(build("mlp", hidden=[16]), find("noisy_teacher")()),
    "micro-batches besides": trainer(build("mlp", hidden=[16]), recipe={"micro_batch": 7}),
    "operators": trainer(lambda: operators.convert(normed(), context).model, operators=operators),
}
results = {}
for name, one in cases.items():
    one.run_epoch()
    if rank == 0:
        one.save(folder / "checkpoint")
    if size > 1:
        dist.barrier()
    one.load(folder / "checkpoint")
    assert one.workers_agree()
    one.fit()
    results[name] = one.student.state_dict()
    results[name + " curve"] = {k: torch.tensor([e[k] for e in one.curve]) for k in ("train_loss", "validation_accuracy")}
results["gathered"] = {str(place): part for place, part in enumerate(workers.gather(torch.full((rank + 1, 2), float(rank))))}
if size > 1:
    if rank == 1:
        one.epoch = 9
    assert not one.workers_agree()
if rank == 0:
    torch.save(results, folder / "results")
"""

CASES = (
    *("plain", "batch norm", "recomputed statistics", "hints with a helper and a stage", "noise of its own"),
    *("micro-batches besides", "operators"),
)


def train_all(folder: Path, size: int) -> dict[str, dict[str, Tensor]]:
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py")]
    running = [
        subprocess.Popen([*command, str(rank), str(size), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=200)[1] for process in running]
    assert not any(process.returncode for process in running), "\n".join(errors)
    results: dict[str, dict[str, Tensor]] = torch.load(folder / "results", weights_only=True)
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Tensor]]]:
    root = tmp_path_factory.mktemp("workers")
    return {size: train_all(root / str(size), size) for size in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_workers_train_the_student_of_one(case: str, trained: dict[int, dict[str, dict[str, Tensor]]]) -> None:
    one, two = trained[1], trained[2]
    torch.testing.assert_close(two[case], one[case], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two[f"{case} curve"], one[f"{case} curve"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_every_worker_gets_what_each_has_in_the_order_of_ranks(
    size: int, trained: dict[int, dict[str, dict[str, Tensor]]]
) -> None:
    """Worker r has r + 1 rows of the number r."""
    gathered = trained[size]["gathered"]
    assert [gathered[str(rank)].tolist() for rank in range(size)] == [[[rank, rank]] * (rank + 1) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_slices_part_a_batch_without_loss(size: int) -> None:
    for length in (size, 7, 64):
        slices = [Workers(rank, size).slice_of(np.arange(length)) for rank in range(size)]
        assert [place for first, last in slices for place in range(first, last)] == list(range(length))
        assert max(last - first for first, last in slices) - min(last - first for first, last in slices) <= 1


class OwnNorm(nn.BatchNorm2d):
    """A normalisation that the platform does not know."""


@pytest.mark.parametrize(("norm", "sent"), [(nn.BatchNorm2d, False), (OwnNorm, True)])
def test_buffers_that_are_equal_on_all_workers_are_not_sent_before_every_pass(
    monkeypatch: pytest.MonkeyPatch, norm: type[nn.Module], sent: bool
) -> None:
    options: list[Any] = []
    monkeypatch.setattr(ddp, "DistributedDataParallel", lambda _module, **given: options.append(given["broadcast_buffers"]))
    student = nn.Sequential(nn.Conv2d(1, 2, 3), norm(2))
    ddp.share_statistics(student, Workers(0, 2))
    ddp.JointLoss([student], Workers(0, 2))
    assert options == [sent]


def test_statistics_may_be_shared_by_pytorch_which_changes_no_name_weight_hook_or_output() -> None:
    """PyTorch refuses it on a CPU while several processes train, so only its evaluation can be compared here."""
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), OwnNorm(2)).eval()
    names, images = set(student.state_dict()), torch.randn(4, 1, 8, 8)
    expected, seen = student(images), []
    student[1].register_forward_hook(lambda *_arguments: seen.append(1))
    ddp.share_statistics(student, Workers(0, 2), by_torch=True)
    assert [type(part) for part in student] == [nn.Conv2d, nn.SyncBatchNorm, OwnNorm]
    assert set(student.state_dict()) == names
    assert torch.equal(student(images), expected)
    assert seen == [1]


def test_buffers_of_pytorchs_shared_statistics_are_not_sent_either(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[Any] = []
    monkeypatch.setattr(ddp, "DistributedDataParallel", lambda _module, **given: options.append(given["broadcast_buffers"]))
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    ddp.share_statistics(student, Workers(0, 2), by_torch=True)
    ddp.JointLoss([student], Workers(0, 2))
    assert options == [False]


class Sensitive(Method):
    """Reads the gradient of the images."""

    @property
    def differentiates_images(self) -> bool:
        return True


def test_a_method_that_differentiates_twice_refuses_pytorchs_shared_statistics(make_trainer: MakeTrainer) -> None:
    make_trainer(Sensitive())
    with pytest.raises(MethodError, match=r"SyncBatchNorm does not support: set training\.sync_batchnorm to false"):
        make_trainer(Sensitive(), recipe={"sync_batchnorm": True})


# Micro-batches


def weights(trainer: Trainer) -> Mapping[str, Tensor]:
    trainer.fit()
    return trainer.student.state_dict()


@pytest.mark.parametrize("micro_batch", [1, 7, 63, 1000])
def test_micro_batches_add_up_to_the_batch(make_trainer: MakeTrainer, micro_batch: int) -> None:
    recipe = {"batch_size": 63, "gradient_clip": 1.0}
    whole = make_trainer(options={"hidden": [16]}, policy=("crop", "mixup"), recipe=recipe)
    parted = make_trainer(options={"hidden": [16]}, policy=("crop", "mixup"), recipe={**recipe, "micro_batch": micro_batch})
    torch.testing.assert_close(weights(parted), weights(whole), rtol=1e-4, atol=1e-6)
    for one, other in zip(parted.curve, whole.curve, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["learning_rate"] == other["learning_rate"]


def test_no_forward_pass_is_larger_than_a_micro_batch_nor_one_sample_long(make_trainer: MakeTrainer) -> None:
    sizes: list[int] = []

    class Counting(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if self.training and images.device.type == "cpu":
                sizes.append(len(images))
            logits: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return logits

    trainer = make_trainer(
        model=lambda: Counting(nn.Flatten(), nn.Linear(64, 10)), epochs=1, recipe={"batch_size": 63, "micro_batch": 31}
    )
    sizes.clear()
    trainer.fit()
    # 160 = 63 + 63 + 34
    assert sorted(sizes) == [17, 17, 21, 21, 21, 21, 21, 21]


def test_a_samples_draws_are_those_it_has_in_the_whole_batch(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(recipe={"batch_size": 40, "micro_batch": 10})
    current = trainer._enter_stage(0)
    batch = next(trainer.split.batches(0))
    at = EpochPlace(epoch=0, stage_epoch=0, view=0)
    whole = current.make_step(batch, at, 0)
    draws = whole.normal(40, 3), whole.uniform(40)
    part = current.make_step(batch[10:20], at, 0, part=(10, 40))
    assert torch.equal(part.normal(10, 3), draws[0][10:20])
    assert torch.equal(part.uniform(10), draws[1][10:20])


class Related(Method):
    @property
    def needs_whole_batch(self) -> bool:
        return True

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"spread": F.mse_loss(step.logits, step.logits.mean(0, keepdim=True))}


class OwnStep(Method):
    def step(self, step: Step, update: Any) -> dict[str, Tensor]:
        return super().step(step, update)


@pytest.mark.parametrize(
    ("method", "reason"), [(Related(), "relates the samples of a batch"), (OwnStep(), "has its own training step")]
)
def test_methods_that_need_the_whole_batch_refuse_a_part(make_trainer: MakeTrainer, method: Method, reason: str) -> None:
    assert reason in (split_problem(method, find_task()) or "")
    with pytest.raises(MethodError, match=reason):
        make_trainer(method, recipe={"micro_batch": 8})
    make_trainer(method, recipe={"micro_batch": "auto"})


def test_a_student_that_notes_ranges_of_whole_batches_refuses_a_part(make_trainer: MakeTrainer) -> None:
    reason = "trains a student with quantize, which must see each batch whole"
    with pytest.raises(MethodError, match=reason):
        make_trainer(recipe={"micro_batch": 8}, operators=Chain.of([{"quantize": {"weight_bits": 8}}]))
    assert make_trainer(operators=Chain.of([{"quantize": {"weight_bits": 8}}])).split_problem == reason
    make_trainer(recipe={"micro_batch": 8}, operators=Chain.of([{"quantize": {"weight_bits": 8, "activation_bits": 32}}]))


def test_a_checkpoint_keeps_the_micro_batch_that_memory_allowed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    one = make_trainer(recipe={"micro_batch": "auto"}, micro_batch=8)
    one.run_epoch()
    one.save(tmp_path / "checkpoint")
    other = make_trainer(recipe={"micro_batch": "auto"})
    assert other.micro_batch is None
    other.load(tmp_path / "checkpoint")
    assert other.micro_batch == 8
    assert json.dumps(one.curve) == json.dumps(other.curve)
    for trainer in (one, other):
        trainer.fit()
    assert all(torch.equal(weight, other.student.state_dict()[name]) for name, weight in one.student.state_dict().items())
