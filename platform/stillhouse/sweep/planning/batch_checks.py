"""Whether the batches of a spec leave enough samples to every worker and every forward pass."""

from collections.abc import Mapping, Sequence

from stillhouse.data.datasets import ImageData
from stillhouse.distill.batches import smallest_part
from stillhouse.errors import Problem
from stillhouse.models.architecture import needs_two_samples
from stillhouse.models.blueprint import blueprint
from stillhouse.spec.schema import StudentSpec, SweepSpec, TeacherSpec
from stillhouse.spec.training import Training
from stillhouse.sweep.planning.method_settings import prior_corners


def last_batch_problems(spec: SweepSpec, num_images: int) -> list[Problem]:
    """Whether every worker gets a sample of an epoch's last batch. The trainer drops a last batch of one sample.

    Args:
        num_images: the size of the training split.
    """
    workers, size = spec.trial_resources.num_workers, spec.training.batch_size
    left = num_images % size
    if not 1 < left < workers <= size:
        return []
    rule = f"must leave a last batch of at least {workers} samples, one for each worker of a trial"
    return [Problem("training.batch_size", f"{rule}, got {size}, which leaves {left} of {num_images}; change it")]


def lone_sample_problems(
    spec: SweepSpec, students: Sequence[StudentSpec], teachers: Mapping[str, TeacherSpec], data: ImageData
) -> list[Problem]:
    """Forward passes of a training that see one sample alone, where the network's BatchNorm cannot train on it.

    Args:
        students, teachers: those that can be built.
    """
    checked: list[tuple[str, Training, int, StudentSpec | TeacherSpec]] = [
        ("training", spec.training, spec.trial_resources.num_workers, student) for student in students
    ]
    checked += [(f"teachers.{name}.train", each.train, 1, each) for name, each in teachers.items() if each.is_trained]
    return [
        _lone_sample_problem(key, training, workers, entry.model, data)
        for key, training, workers, entry in checked
        if _sees_one_sample(training, workers, data)
        and any(
            needs_two_samples(blueprint(entry.model, options, data.num_classes, data.input_shape).architecture)
            for options in prior_corners(entry.options)
        )
    ]


def _sees_one_sample(training: Training, workers: int, data: ImageData) -> bool:
    return smallest_part(len(data.train), training.batch_size, workers, _fixed_micro_batch(training)) == 1


def _lone_sample_problem(key: str, training: Training, workers: int, model: str, data: ImageData) -> Problem:
    micro = _fixed_micro_batch(training)
    of, remedy = (f"{workers} workers", "enlarge it")
    if micro is not None:
        of, remedy = (f"micro_batch {micro}", "enlarge it or set it to null")
    return Problem(
        f"{key}.{'batch_size' if micro is None else 'micro_batch'}",
        f"must leave at least two samples to every forward pass, since BatchNorm of {model} cannot train on one, got batches "
        f"of {training.batch_size} for {of}, with {len(data.train)} training images; {remedy}",
    )


def _fixed_micro_batch(training: Training) -> int | None:
    return training.micro_batch if isinstance(training.micro_batch, int) else None
