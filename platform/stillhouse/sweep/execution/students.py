"""A trial's student: its network, its identity and its size."""

import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from stillhouse import compress, tasks
from stillhouse.compress.operator import Calibration, Conversion
from stillhouse.compress.students import convert_student
from stillhouse.data.datasets import ImageData
from stillhouse.data.hashing import reading_order
from stillhouse.distill.method import sum_of_terms
from stillhouse.durable import canonical_json
from stillhouse.knowledge.code_version import named_version
from stillhouse.models.given_weights import load_start
from stillhouse.models.registry import build_model
from stillhouse.models.size import ModelSize
from stillhouse.models.weights import load_state
from stillhouse.spec.records import StudentChoice

_CALIBRATION_BATCH = 64
_CALIBRATION_SEED = 0


def build_student(student: StudentChoice, data: ImageData) -> nn.Module:
    """The student's model with fresh weights, before its operators."""
    return build_model(student.model, **tasks.of(data).model_arguments(data), **student.options)


def make_student(student: StudentChoice, data: ImageData, *, seed: int, source: Mapping[str, Tensor] | None) -> Conversion:
    """A student as its trial trains it: the same network in every worker and after every resume.

    Args:
        seed: of the trial.
        source: the weights of the teacher that the student is derived from, or with which it starts.

    Raises:
        ChainError: an operator cannot change the network.
    """
    model = build_student(student, data)
    if source is not None and student.start:
        named = (student.model, student.options, data.num_classes, data.input_shape)
        load_start(model, student.start, named=named, weights=source)
    elif source is not None:
        load_state(model, source, source=f"teacher '{student.derived_from}'")
    return convert_student(
        model,
        student,
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        seed=seed,
        calibration=Calibration(
            batches=functools.partial(_calibration_batches, data), loss=functools.partial(_calibration_loss, data)
        ),
    )


def student_key(student: StudentChoice) -> str:
    """Equal for equal networks, whatever their names; includes the code of user-defined models and operators."""
    options = ",".join(f"{name}={student.options[name]!r}" for name in sorted(student.options))
    version = named_version(student.model)
    key = f"{student.model}({options})" + (f"#{version}" if version else "")
    if not student.compress:
        return key
    versions = [compress.version_in_key(name) for entry in student.compress for name in entry]
    changed = canonical_json([student.compress, [each for each in versions if each], student.derived_from is not None])
    return f"{key} {changed}"


def size_metrics(size: ModelSize) -> dict[str, float]:
    return {
        "parameters": size.parameters,
        "trainable_parameters": size.trainable_parameters,
        "size_bytes": size.size_bytes,
        "macs": size.macs,
    }


def _calibration_batches(data: ImageData, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples of the training split in an order of their own: that of a folder goes class by class."""
    task = tasks.of(data)
    order = torch.from_numpy(reading_order(_CALIBRATION_SEED, 0, len(data.train))[:count])
    for places in order.split(_CALIBRATION_BATCH):
        yield task.evaluation_inputs(data, data.train.images[places], places), data.train.labels[places]


def _calibration_loss(data: ImageData, outputs: Tensor, targets: Tensor) -> Tensor:
    task = tasks.of(data)
    return sum_of_terms(task.losses(task.outputs(outputs), targets))
