"""A finished student on the test split: the metric's value, what else the task finds, and the outputs themselves."""

import math
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save

from stillhouse.data.images import ImageData, Split
from stillhouse.distill.evaluation import value_of
from stillhouse.durable import write_atomic
from stillhouse.spec.records import Trial
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.tasks import Evidence, SplitOutputs, Task

OUTPUTS = "outputs"
"""The folder, under the sweep's, of what students returned for the test split."""


def outputs_file(key: str) -> Path:
    """Where the outputs of a trial's student are, relative to the sweep's folder."""
    return Path(OUTPUTS) / f"{key}.safetensors"


def examine(
    outputs_of: Callable[[Split], SplitOutputs],
    evaluate: Callable[[Split], float],
    data: ImageData,
    task: Task,
    trial: Trial,
    environment: TrialEnvironment,
) -> tuple[float, Evidence]:
    """The value of the task's metric on the test split, and the task's evidence, whose numbers are all finite.

    The outputs on the test split are stored, so that others can compute what the task does not.

    Args:
        outputs_of: what the student returns for a split.
        evaluate: the metric's value on a split, for a task that finds no evidence in outputs.

    Raises:
        InfrastructureError: the teacher's outputs cannot be read, or the home cannot be reached.
        OSError: the disk is full.
    """
    if not task.measures:
        return evaluate(data.test), Evidence()
    test = outputs_of(data.test)
    teacher = environment.teacher_outputs(trial, task.metric)
    found = task.evidence(outputs_of(data.validation), test, teacher)
    details = dict(found.details)
    if pictures := task.pictures(data, test, teacher):
        details["pictures"] = [list(each) for each in pictures]
    home = environment.own_home
    path = home.here(environment.folder) / outputs_file(trial.key)
    write_atomic(path, save({name: value.contiguous() for name, value in test.outputs.items()}))
    home.push(path)
    finite = {name: value for name, value in found.numbers.items() if math.isfinite(value)}
    return value_of(test, data), Evidence(numbers=finite, details=details)
