"""How many hours a plan takes, from speeds measured on the machine that will run it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray import cloudpickle

from stillhouse.data.datasets import ImageData
from stillhouse.distill.batch_statistics import NUM_SAMPLES
from stillhouse.spec.records import StudentChoice
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.planning.cost import PlannedStudent
from stillhouse.sweep.planning.knowledge_demand import plan_demand
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.preview.generated import generated_samples
from stillhouse.sweep.preview.speed import Job, Speed, measure_here, measure_on_cluster, one_worker

_MAX_STUDENTS = 16
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Hours of the search phase, summed over all trials and teachers; trials that run at once make it shorter.

    Attributes:
        where: the machine that measured.
        measured: how many distinct students were measured; the others are scaled by their MACs from the nearest one.
        trial_hours: of the trials without their teachers.
        gpu_hours: of trials and teachers, each times its share of a GPU; 0 without GPUs.
        teacher_hours: one pass of each teacher over the views that the trials read, for all kinds of knowledge together, and
            over what methods that see no data generate.
        teacher_training_hours: training the teachers without given weights, if they are not trained yet.
        inside_hours: the teachers' passes if a teacher ran inside every trial.
        confirm_hours: of the confirm phase and of the trials with untrained teachers, at most.
        sharing: how many trials share a GPU, each of which was measured alone; 1 without sharing.
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
    sharing: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self, at_once: int | None) -> list[str]:
        """The estimate as text; `at_once` is how many trials run at once, if that is known."""
        alone = self.trial_hours + self.teacher_training_hours
        lines = [
            f"measured on {self.where}: {self.measured} of {self.students} students"
            + (", the others scaled by their MACs" if self.measured < self.students else ""),
            f"trials: {_hours(self.trial_hours)} in all, excluding method-specific losses"
            + (f"; about {_hours(self.trial_hours / at_once)} with {at_once} at once" if at_once else "")
            + (f"; confirming: at most {_hours(self.confirm_hours)}" if self.confirm_hours else ""),
            f"teachers: {_hours(self.teacher_hours)} shared, {_hours(self.inside_hours)} inside every trial; "
            f"training them, once: {_hours(self.teacher_training_hours)}",
        ]
        if self.gpu_hours:
            lines.append(f"GPU-hours: {self.gpu_hours:.3g}")
        if self.sharing > 1:
            lines.append(
                f"each trial was measured alone on its GPU; {self.sharing} that share one may each take up to {self.sharing} "
                "times as long"
            )
        share = (self.teacher_hours / alone) if alone else 0.0
        return [*lines, f"the shared teachers add {100 * share:.1f}% to trials and training"] if self.teacher_hours else lines


def estimate(plan: Plan, data: ImageData, *, remote: bool = False) -> Estimate:
    """Measures the plan's networks and adds up what its trials will take.

    Args:
        remote: measures on the connected cluster, with the resources of a trial or of the teacher; else in this process.
    """
    spec = plan.spec
    chosen = _spread(plan.students)
    students = {student_key(planned.student): planned for planned in plan.students}
    measure = measure_on_cluster(spec, data) if remote else measure_here(spec, data)
    jobs = [Job(planned.student) for planned in chosen]
    where, speeds = measure(jobs, spec.training, one_worker(spec.trial_resources))
    of_student = dict(zip((student_key(job.network) for job in jobs), speeds, strict=True))
    for key, planned in students.items():
        of_student.setdefault(key, _scaled(planned, chosen, of_student, on_gpu=spec.trial_resources.gpu > 0))

    samples, validation, epochs = len(data.train.labels), len(data.validation.labels), spec.search.max_epochs
    per_epoch = {key: _epoch_s(speed, spec.training, samples, validation) for key, speed in of_student.items()}
    # Assumes that workers of one trial share its samples without overhead.
    trial_s = {key: epochs * seconds / spec.trial_resources.num_workers for key, seconds in per_epoch.items()}
    known = sum(planned.trials for planned in plan.students)
    # An adaptive search chooses most of its students later: the known ones represent them.
    scale = plan.num_trials / known if known else 0.0
    generated = generated_samples(plan, data)
    again = _samples_again(spec.training, samples)
    # What these trials take more, or less, than trials that see the data set.
    differ_s = sum(
        (each.samples - each.epochs * samples) * of_student[key].train - each.epochs * again * of_student[key].forward
        for each in generated
        for key in (student_key(each.trial.student),)
    )
    trials_s = scale * (
        sum(planned.trials * trial_s[key] for key, planned in students.items()) + differ_s / spec.trial_resources.num_workers
    )
    gpu_s = trials_s * spec.trial_resources.gpu

    views = make_views(spec, data)
    demand = plan_demand(plan, data)
    taught = Counter(name for trial in plan.representative_trials for name in trial.teachers)
    shared_s = training_s = inside_s = 0.0
    for teacher in plan.teachers:
        if not teacher.is_needed:
            continue
        recipe = spec.teachers[teacher.name]
        needed = list(demand.get(teacher.name, {}).values())
        network = StudentChoice(name=teacher.name, model=teacher.model, options=dict(teacher.options))
        job = Job(network, cloudpickle.dumps([each.kind for each in needed]) if needed else b"")
        _, (speed,) = measure([job], recipe.train, recipe.resources)
        seen = min(views.count, epochs) * samples
        training = recipe.train.epochs * _epoch_s(speed, recipe.train, samples, validation) if teacher.trains else 0.0
        # Inline, a trial pays for a backward pass only if it needs input gradients, and almost nothing for its reductions.
        back = min(1.0, sum(each.trials for each in needed if each.kind.of_input) / max(1, taught[teacher.name]))
        own = [each for each in generated if teacher.name in each.trial.teachers]
        called_s = scale * sum(each.samples for each in own) * speed.forward
        passes_s = (seen if teacher.trials > len(own) else 0) * speed.teach + called_s
        shared_s += passes_s
        of_data = teacher.trials * epochs - sum(each.epochs for each in own)
        inside_s += scale * of_data * samples * (speed.forward + back * max(0.0, speed.teach - speed.forward)) + called_s
        training_s += training
        gpu_s += (training + passes_s) * recipe.resources.gpu
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
        confirm_hours=(plan.confirm_trials + plan.control_trials) * mean_s / _HOUR_S,
        sharing=int(1 / spec.trial_resources.gpu) if 0 < spec.trial_resources.gpu < 1 else 1,
    )


def _epoch_s(speed: Speed, training: Training, samples: int, validation: int) -> float:
    """Seconds of an epoch: its steps, its evaluation, and the passes that recompute the statistics of BatchNorm."""
    return samples * speed.train + (validation + _samples_again(training, samples)) * speed.forward


def _samples_again(training: Training, samples: int) -> int:
    """How many samples pass once more after an epoch, for the statistics of BatchNorm."""
    return min(samples, NUM_SAMPLES) if training.batchnorm_statistics == "recomputed" else 0


def _spread(students: Sequence[PlannedStudent]) -> list[PlannedStudent]:
    """All students, or `_MAX_STUDENTS` of them evenly spread over their MACs, including the smallest and the largest."""
    ordered = sorted(students, key=lambda planned: planned.size.macs)
    if len(ordered) <= _MAX_STUDENTS:
        return ordered
    step = (len(ordered) - 1) / (_MAX_STUDENTS - 1)
    return [ordered[round(number * step)] for number in range(_MAX_STUDENTS)]


def _scaled(planned: PlannedStudent, measured: Sequence[PlannedStudent], speeds: Mapping[str, Speed], *, on_gpu: bool) -> Speed:
    """The speed of the measured student with the nearest MACs, if possible of the same model, scaled by MACs.

    On a GPU, a smaller student is expected to take as long: a step of a small student is the start of its kernels.
    """
    same = [each for each in measured if each.student.model == planned.student.model] or measured
    nearest = min(same, key=lambda each: abs(each.size.macs - planned.size.macs))
    speed = speeds[student_key(nearest.student)]
    ratio = planned.size.macs / nearest.size.macs if nearest.size.macs else 1.0
    ratio = max(1.0, ratio) if on_gpu else ratio
    return Speed(train=ratio * speed.train, forward=ratio * speed.forward)


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{_HOUR_S * hours:.1f} s"
