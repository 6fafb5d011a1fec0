"""Measures how fast networks train and teach: about a second for each, here or on the cluster that will run them."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
import torch
from ray import cloudpickle
from torch import nn

from stillhouse import tasks
from stillhouse.compress.students import chain_of, fresh_student
from stillhouse.data.datasets import ImageData, Split
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import evaluate as evaluate_model
from stillhouse.distill.method import Method
from stillhouse.distill.sources import compute_knowledge, layers_of
from stillhouse.distill.trainer import Trainer
from stillhouse.models.features import FeatureReader
from stillhouse.spec.records import StudentChoice
from stillhouse.spec.schema import Resources, SweepSpec, TrialResources
from stillhouse.spec.training import Training
from stillhouse.sweep.cluster.placement import ray_options
from stillhouse.teachers.judges import prepare_untrained
from stillhouse.workers import prepare_worker

SECONDS_EACH = 1.0
_FEW_BATCHES = 4
_EVALUATED = 512
_TAUGHT = 64


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds per sample of one network.

    Attributes:
        train: of a supervised training step on augmented images.
        forward: of a forward pass.
        teach: of a pass that computes all kinds of knowledge of the job, with a backward pass if one is needed.
    """

    train: float
    forward: float
    teach: float = 0.0


class Job(NamedTuple):
    """A network to measure, and the kinds of knowledge that it computes as a teacher, pickled."""

    network: StudentChoice
    knowledge: bytes = b""


Measure = Callable[[Sequence[Job], Training, Resources | TrialResources], tuple[str, list[Speed]]]


def measure_here(spec: SweepSpec, data: ImageData) -> Measure:
    small = _excerpt(data, spec.training.batch_size)

    def measure(jobs: Sequence[Job], training: Training, claim: Resources | TrialResources) -> tuple[str, list[Speed]]:
        before = torch.get_num_threads()
        torch.set_num_threads(_threads(claim))
        try:
            return measure_speeds(jobs, small, training, spec.views.policy)
        finally:
            torch.set_num_threads(before)

    return measure


def measure_on_cluster(spec: SweepSpec, data: ImageData) -> Measure:
    shared = ray.put(_excerpt(data, spec.training.batch_size).to_arrays(test=False))
    folders = tuple(spec.method_paths)

    def work(
        reference: list[Any], jobs: Sequence[Job], training: Training, policy: tuple[Any, ...], threads: int
    ) -> tuple[str, list[Speed]]:
        prepare_worker((), threads, folders)
        return measure_speeds(jobs, ImageData.from_arrays(*ray.get(reference[0])), training, policy)

    def measure(jobs: Sequence[Job], training: Training, claim: Resources | TrialResources) -> tuple[str, list[Speed]]:
        task = ray.remote(work).options(num_cpus=claim.cpu, num_gpus=claim.gpu, **ray_options(claim))
        found: tuple[str, list[Speed]] = ray.get(
            task.remote([shared], list(jobs), training, spec.views.policy, _threads(claim))
        )
        return found

    return measure


def measure_speeds(
    jobs: Iterable[Job], data: ImageData, training: Training, policy: tuple[Any, ...]
) -> tuple[str, list[Speed]]:
    """The device, and the speed of each network; takes about a second for each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name(0) if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return where, [_speed(job, data, training, policy, device) for job in jobs]


def _speed(job: Job, data: ImageData, training: Training, policy: tuple[Any, ...], device: str) -> Speed:
    epochs = 10_000
    trainer = Trainer(
        new_student=lambda: fresh_student(job.network, data.num_classes, data.input_shape),
        method=Method(),
        data=data,
        views=Views(policy, epochs, data.input_shape, len(data.train.labels), drawn=tasks.of(data).draws),
        # Almost no learning: training must not reach a loss that is not finite.
        training=training.model_copy(update={"learning_rate": 1e-12, "warmup_epochs": 0.0, "compile": False}),
        epochs=epochs,
        student_name=job.network.model,
        device=device,
        operators=chain_of(job.network),
    )

    def evaluate() -> None:
        evaluate_model(trainer.student, data, data.for_checks, device)

    forward = _median_s(evaluate, SECONDS_EACH / 2) / len(data.for_checks.labels)
    whole = _median_s(trainer.run_epoch, SECONDS_EACH)
    return Speed(
        train=max(0.0, whole - forward * len(data.validation.labels)) / len(data.train.labels),
        forward=forward,
        teach=max(forward, _teaching_s(trainer.student, job, data, device)) if job.knowledge else forward,
    )


def _teaching_s(model: nn.Module, job: Job, data: ImageData, device: str) -> float:
    """Seconds per sample of one pass that computes all kinds of knowledge of the job."""
    kinds = {str(number): kind for number, kind in enumerate(cloudpickle.loads(job.knowledge))}
    count = min(_TAUGHT, len(data.train.labels))
    places, labels = torch.arange(count), data.train.labels[:count].to(device)
    images = tasks.of(data).first_inputs(data, data.train, count, device)
    with FeatureReader(model.eval(), layers_of(kinds)) as reader:
        seconds = _median_s(
            lambda: compute_knowledge(reader, kinds, images, labels, (0, places), tasks.of(data)), SECONDS_EACH / 2
        )
    return seconds / count


def _median_s(work: Callable[[], Any], seconds: float) -> float:
    """The median time of a call, over about `seconds` and at least two calls after a first one that does not count."""
    work()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def _excerpt(data: ImageData, batch_size: int) -> ImageData:
    """A few batches of the data set: enough to measure, small enough to send."""

    def first(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count], split.name)

    few = first(data.train, _FEW_BATCHES * batch_size)
    small = ImageData(
        name=data.name,
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        class_names=data.class_names,
        fingerprint=data.fingerprint,
        mean=data.mean,
        std=data.std,
        train=few,
        validation=first(data.validation, _EVALUATED),
        read_test=lambda: few,
        task=data.task,
    )
    prepare_untrained(small)
    return small


def one_worker(claim: TrialResources) -> TrialResources:
    parts = claim.num_workers
    return claim.model_copy(update={"cpu": claim.cpu / parts, "gpu": claim.gpu / parts, "workers": 1})


def _threads(claim: Resources | TrialResources) -> int:
    return max(1, int(claim.cpu))
