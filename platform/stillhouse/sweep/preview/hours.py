"""What a plan will take in hours, from a measured second of each student and teacher on the machine that will run them."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import ray
import torch
from ray import cloudpickle
from torch import nn

from stillhouse import tasks
from stillhouse.data.datasets import ImageData, Split
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import evaluate as evaluate_model
from stillhouse.distill.method import Method
from stillhouse.distill.sources import compute_knowledge, layers_of
from stillhouse.distill.trainer import Trainer
from stillhouse.durable import canonical_json
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.spec.schema import Resources, SweepSpec, TrialResources
from stillhouse.spec.training import Training
from stillhouse.sweep.cluster.cluster_nodes import addable_nodes, nodes_of_cluster
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.cluster.placement import Placement, place, ray_options
from stillhouse.sweep.planning.cost import PlannedStudent
from stillhouse.sweep.planning.knowledge_demand import knowledge_demand
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.workers import prepare_worker

SECONDS_EACH = 1.0
_MAX_STUDENTS = 16
_FEW_BATCHES = 4
_EVALUATED = 512
_TAUGHT = 64
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds per sample of one network.

    Attributes:
        train: of a supervised training step on augmented images.
        forward: of a forward pass.
        teach: of a pass that gives all the knowledge that is asked of it, with its pass backward where one is needed.
    """

    train: float
    forward: float
    teach: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Hours that the search phase takes, all trials and teachers added up, not the time that passes.

    Attributes:
        where: the machine that was measured.
        measured: distinct students that were measured; the others are scaled by their MACs from the nearest one.
        trial_hours: of the trials without their teachers.
        gpu_hours: of trials and teachers, each by its share of a GPU; 0 without GPUs.
        teacher_hours: each teacher's passes over the views that the trials see, once, for all that they ask of it.
        teacher_training_hours: training the teachers that are not given, if that was never done.
        inside_hours: the passes with a teacher inside every trial.
        confirm_hours: of the confirm phase at most.
    """

    where: str
    students: int
    measured: int
    trial_hours: float
    gpu_hours: float
    teacher_hours: float
    teacher_training_hours: float
    inside_hours: float
    confirm_hours: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self, at_once: int | None) -> list[str]:
        """The estimate for a person; `at_once` is how many trials run together, where that is known."""
        alone = self.trial_hours + self.teacher_training_hours
        lines = [
            f"measured on {self.where}: {self.measured} of {self.students} students"
            + (", the others scaled by their MACs" if self.measured < self.students else ""),
            f"trials: {_hours(self.trial_hours)} in all, without their methods' own terms"
            + (f"; about {_hours(self.trial_hours / at_once)} with {at_once} at once" if at_once else "")
            + (f"; confirming: at most {_hours(self.confirm_hours)}" if self.confirm_hours else ""),
            f"teachers: {_hours(self.teacher_hours)} shared, {_hours(self.inside_hours)} inside every trial; "
            f"training them, once: {_hours(self.teacher_training_hours)}",
        ]
        if self.gpu_hours:
            lines.append(f"GPU-hours: {self.gpu_hours:.3g}")
        share = (self.teacher_hours / alone) if alone else 0.0
        return [*lines, f"the shared teachers add {100 * share:.1f}% to trials and training"] if self.teacher_hours else lines


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What can be said of a plan before it starts: what it takes, and where it would run.

    Attributes:
        estimate: None where nothing was measured.
        placement: on the cluster at `address`; None without an address.
        undecided: whether an autoscaler that does not say what it can add may yet make room.
    """

    estimate: Estimate | None
    address: str | None = None
    nodes: int = 0
    placement: Placement | None = None
    undecided: bool = False

    @property
    def impossible(self) -> bool:
        return self.placement is not None and bool(self.placement.problems) and not self.undecided

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"estimate": self.estimate.to_dict() if self.estimate else None}
        if self.placement is not None:
            document["placement"] = {
                "address": self.address,
                "nodes": self.nodes,
                "trials_at_once": self.placement.trials,
                "added": dict(self.placement.added),
                "problems": list(self.placement.problems),
                "undecided": self.undecided,
            }
        return document

    def lines(self) -> list[str]:
        """For a person."""
        lines = self.estimate.lines(self.placement.trials if self.placement else None) if self.estimate else []
        if self.placement is None:
            return lines
        where = f"the cluster at {self.address} ({self.nodes} nodes now)"
        if self.placement.problems:
            may = "; its autoscaler may add one" if self.undecided else ""
            return [*lines, *(f"{where} has no node for it{may}: {problem}" for problem in self.placement.problems)]
        added = ", ".join(f"{count} {name}" for name, count in self.placement.added.items())
        more = f", when its autoscaler has added {added}" if added else ""
        return [*lines, f"{where} holds {self.placement.trials} trials at once beside the teachers{more}"]


def make_forecast(plan: Plan, data: ImageData, *, measure: bool, address: str | None) -> Forecast:
    """Measures and places a plan, and starts nothing else.

    Raises:
        InfrastructureError: there is no cluster at the address.
    """
    if address is None:
        return Forecast(estimate=estimate(plan, data) if measure else None)
    connect(address, plan.spec)
    try:
        nodes, addable = nodes_of_cluster(), addable_nodes()
        found = place(plan.spec, nodes, addable or ())
        # What is there must hold it: measuring asks no autoscaler for a node.
        able = measure and not place(plan.spec, nodes).problems
        measured = estimate(plan, data, remote=True) if able else None
        return Forecast(estimate=measured, address=address, nodes=len(nodes), placement=found, undecided=addable is None)
    finally:
        ray.shutdown()


def estimate(plan: Plan, data: ImageData, *, remote: bool = False) -> Estimate:
    """Measures the plan's networks and adds up what its trials will take.

    Args:
        remote: on the connected cluster, with the resources of a trial or of each teacher; else in this process.
    """
    spec = plan.spec
    chosen = _spread(plan.students)
    students = {_key(planned.student.model, planned.student.options): planned for planned in plan.students}
    measure = _on_cluster(spec, data) if remote else _here(spec, data)
    jobs = [Job(planned.student.model, planned.student.options) for planned in chosen]
    where, speeds = measure(jobs, spec.training, _one_worker(spec.trial_resources))
    of_student = dict(zip((_key(job.model, job.options) for job in jobs), speeds, strict=True))
    for key, planned in students.items():
        of_student.setdefault(key, _scaled(planned, chosen, of_student))

    samples, validation, epochs = len(data.train.labels), len(data.validation.labels), spec.search.max_epochs
    per_epoch = {key: samples * speed.train + validation * speed.forward for key, speed in of_student.items()}
    # Workers that train a student together are taken to share its samples without loss.
    trial_s = {key: epochs * seconds / spec.trial_resources.num_workers for key, seconds in per_epoch.items()}
    known = sum(planned.trials for planned in plan.students)
    # An adaptive search chooses most of its students later: the ones that are known stand for them.
    scale = plan.num_trials / known if known else 0.0
    trials_s = scale * sum(planned.trials * trial_s[key] for key, planned in students.items())
    gpu_s = trials_s * spec.trial_resources.gpu

    views = make_views(spec, data)
    asked_of = knowledge_demand(spec, plan.representative_trials, data, views, adaptive=plan.search is not None)
    asking = Counter(name for trial in plan.representative_trials for name in trial.teachers)
    shared_s = training_s = inside_s = 0.0
    for teacher in plan.teachers:
        if not teacher.trials:
            continue
        recipe = spec.teachers[teacher.name]
        asked = list(asked_of.get(teacher.name, {}).values())
        job = Job(teacher.model, teacher.options, cloudpickle.dumps([each.kind for each in asked]))
        _, (speed,) = measure([job], recipe.train, recipe.resources)
        seen = min(views.count, epochs) * samples
        training = recipe.train.epochs * (samples * speed.train + validation * speed.forward) if teacher.trains else 0.0
        # Alone a trial pays for a pass back only where it asks for gradients, and next to nothing for its reductions.
        back = min(1.0, sum(each.trials for each in asked if each.kind.of_input) / max(1, asking[teacher.name]))
        shared_s += seen * speed.teach
        inside_s += scale * teacher.trials * samples * epochs * (speed.forward + back * max(0.0, speed.teach - speed.forward))
        training_s += training
        gpu_s += (training + seen * speed.teach) * recipe.resources.gpu
    mean_s = trials_s / plan.num_trials if plan.num_trials else 0.0
    return Estimate(
        where=where,
        students=len(students),
        measured=len(chosen),
        trial_hours=trials_s / _HOUR_S,
        gpu_hours=gpu_s / _HOUR_S,
        teacher_hours=shared_s / _HOUR_S,
        teacher_training_hours=training_s / _HOUR_S,
        inside_hours=inside_s / _HOUR_S,
        confirm_hours=plan.confirm_trials * mean_s / _HOUR_S,
    )


class Job(NamedTuple):
    """A network to be measured, and the kinds of knowledge that are asked of it, pickled."""

    model: str
    options: Mapping[str, Any]
    asked: bytes = b""


Measure = Callable[[Sequence[Job], Training, Resources | TrialResources], tuple[str, list[Speed]]]


def _here(spec: SweepSpec, data: ImageData) -> Measure:
    small = _excerpt(data, spec.training.batch_size)

    def measure(jobs: Sequence[Job], training: Training, claim: Resources | TrialResources) -> tuple[str, list[Speed]]:
        before = torch.get_num_threads()
        torch.set_num_threads(_threads(claim))
        try:
            return measure_speeds(jobs, small, training, spec.views.policy)
        finally:
            torch.set_num_threads(before)

    return measure


def _on_cluster(spec: SweepSpec, data: ImageData) -> Measure:
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
    """The device, and the speed of each network, about a second each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name(0) if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return where, [_speed(job, data, training, policy, device) for job in jobs]


def _speed(job: Job, data: ImageData, training: Training, policy: tuple[Any, ...], device: str) -> Speed:
    epochs = 10_000
    trainer = Trainer(
        new_student=lambda: build_model(job.model, num_classes=data.num_classes, input_shape=data.input_shape, **job.options),
        method=Method(),
        data=data,
        views=Views(policy, epochs if policy else 1, data.input_shape, len(data.train.labels), 0),
        # Next to no learning: a second of training must not end in a loss that is not finite.
        training=training.model_copy(update={"learning_rate": 1e-12, "warmup_epochs": 0.0, "compile": False}),
        epochs=epochs,
        student_name=job.model,
        device=device,
    )

    def evaluate() -> None:
        evaluate_model(trainer.student, data, data.validation, device)

    forward = _median_s(evaluate, SECONDS_EACH / 2) / len(data.validation.labels)
    whole = _median_s(trainer.run_epoch, SECONDS_EACH)
    return Speed(
        train=max(0.0, whole - forward * len(data.validation.labels)) / len(data.train.labels),
        forward=forward,
        teach=max(forward, _teaching_s(trainer.student, job, data, device)) if job.asked else forward,
    )


def _teaching_s(model: nn.Module, job: Job, data: ImageData, device: str) -> float:
    """Seconds per sample of one pass for all the kinds that are asked."""
    kinds = {str(number): kind for number, kind in enumerate(cloudpickle.loads(job.asked))}
    count = min(_TAUGHT, len(data.train.labels))
    places, labels = torch.arange(count), data.train.labels[:count].to(device)
    images = data.normalise(data.train.images.index_select(0, places).to(device))
    with FeatureReader(model.eval(), layers_of(kinds)) as reader:
        seconds = _median_s(
            lambda: compute_knowledge(reader, kinds, images, labels, (0, places), tasks.of(data)), SECONDS_EACH / 2
        )
    return seconds / count


def _median_s(work: Callable[[], Any], seconds: float) -> float:
    """The median time of a call, over about so many seconds and at least two calls behind the first one."""
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
    """A few batches of the data set: enough to be timed, little enough to be sent."""

    def first(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    few = first(data.train, _FEW_BATCHES * batch_size)
    return ImageData(
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


def _spread(students: Sequence[PlannedStudent]) -> list[PlannedStudent]:
    """All students, or so many of them evenly spread over their MACs, with the smallest and the largest."""
    ordered = sorted(students, key=lambda planned: planned.size.macs)
    if len(ordered) <= _MAX_STUDENTS:
        return ordered
    step = (len(ordered) - 1) / (_MAX_STUDENTS - 1)
    return [ordered[round(place * step)] for place in range(_MAX_STUDENTS)]


def _scaled(planned: PlannedStudent, measured: Sequence[PlannedStudent], speeds: Mapping[str, Speed]) -> Speed:
    """The speed of the measured student with the nearest MACs, of the same model where there is one, scaled by MACs."""
    same = [each for each in measured if each.student.model == planned.student.model] or measured
    nearest = min(same, key=lambda each: abs(each.size.macs - planned.size.macs))
    speed = speeds[_key(nearest.student.model, nearest.student.options)]
    ratio = planned.size.macs / nearest.size.macs if nearest.size.macs else 1.0
    return Speed(train=ratio * speed.train, forward=ratio * speed.forward)


def _one_worker(claim: TrialResources) -> TrialResources:
    parts = claim.num_workers
    return claim.model_copy(update={"cpu": claim.cpu / parts, "gpu": claim.gpu / parts, "workers": 1})


def _threads(claim: Resources | TrialResources) -> int:
    return max(1, int(claim.cpu))


def _key(model: str, options: Mapping[str, Any]) -> str:
    return f"{model} {canonical_json(dict(options))}"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{_HOUR_S * hours:.1f} s"
