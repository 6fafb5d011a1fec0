"""What is measured of a loaded teacher: whether its outputs are logits, and whether another normalisation suits it better."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from stillhouse import tasks
from stillhouse.data.images import ImageData, Split
from stillhouse.data.normalisation import DATASET, Normalisation, alternatives
from stillhouse.distill.evaluation import evaluate
from stillhouse.errors import UsageError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.tasks import OutputProblem
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.own_normalisation import OwnNormalisation

_IMAGES, _OUTPUTS = 1000, 64
_LEAST = 0.02
"""A share of the images, or of the value of a metric that is no share, below which a difference is not clear."""


def doubts(definition: TeacherDefinition, model: nn.Module, data: ImageData, device: str) -> list[str]:
    """Sentences on what looks wrong about a loaded teacher, each with its remedy; empty if nothing does."""
    found = [*_other_outputs(definition, model, data, device)]
    reads_images = not tasks.of(data).draws
    given = definition.weights is not None and not definition.is_trained
    if given and not definition.normalisation_is_stated and reads_images:
        found += _better_normalisation(definition, model, data, device)
    return found


def unfit_outputs(model: nn.Module, data: ImageData, device: str) -> str:
    """Why the loaded teacher's outputs must not be read as what the task expects of them, with the remedy; "" if they may."""
    problem = _output_problem(model, data, device)
    return f"{problem.description}; {problem.remedy}" if problem is not None and problem.certain else ""


def check_outputs(name: str, unfit: str, kinds: Iterable[Knowledge]) -> None:
    """Refuses a teacher with unfit outputs where some kind of knowledge is computed from outputs, not from layers alone.

    Args:
        unfit: as `unfit_outputs` returns it.

    Raises:
        UsageError: naming these kinds.
    """
    if unfit and (read := sorted({str(kind) for kind in kinds if not kind.layers})):
        raise UsageError(
            f"teachers.{name} cannot teach: its methods need {', '.join(read)}, but {unfit}, "
            "or use only methods that read layers"
        )


def _output_problem(model: nn.Module, data: ImageData, device: str) -> OutputProblem | None:
    task = tasks.of(data)
    with torch.inference_mode():
        return task.output_problem(task.outputs(model(task.first_inputs(data, data.for_checks, _OUTPUTS, device))))


def _other_outputs(definition: TeacherDefinition, model: nn.Module, data: ImageData, device: str) -> Iterator[str]:
    if (problem := _output_problem(model, data, device)) is not None:
        yield f"teacher {definition.name}: {problem.description}; {problem.remedy}"


def _better_normalisation(definition: TeacherDefinition, model: nn.Module, data: ImageData, device: str) -> Iterator[str]:
    """Compares the usual normalisations on validation images, or on training images where there are none."""
    if not data.mean:  # samples without pixels, such as texts
        return
    judged = data.for_checks
    metric, count = tasks.of(data).metric, min(_IMAGES, len(judged))
    some = Split(judged.images[:count], judged.labels[:count], judged.name)
    values = {}
    for name, normalisation in alternatives(data).items():
        handle = OwnNormalisation(normalisation, Normalisation.of(data)).attach(model)
        values[name] = evaluate(model, data, some, device)
        handle.remove()
    best = max(values, key=lambda name: metric.sign * values[name])
    clear = max(_LEAST, 2 / math.sqrt(count)) * (1.0 if metric.percent else abs(values[DATASET]))
    if metric.sign * (values[best] - values[DATASET]) > clear:
        yield (
            f"teacher {definition.name} sees the data set's normalisation, with which its {metric.label} on {count} "
            f"{'validation' if len(data.validation) else 'training'} images is {values[DATASET]:.4f}; "
            f"with {best} it is {values[best]:.4f}: write teachers.{definition.name}.normalization: {best}"
        )
