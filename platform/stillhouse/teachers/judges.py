"""The judge that a task's metric needs: trained once for a data set, found by its content later."""

from collections.abc import Callable
from dataclasses import replace

import torch

from stillhouse import tasks
from stillhouse.data.images import ImageData
from stillhouse.data.views import Views
from stillhouse.errors import UsageError
from stillhouse.tasks import Judge, Task
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import TeacherLibrary


def prepare(
    data: ImageData,
    library: TeacherLibrary,
    *,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _text: None,
    ending: Callable[[], bool] = lambda: False,
) -> None:
    """Sets `data.prepared`, once; does nothing for a task without a judge.

    The judge is a classifier of the data set's own classes, stored among the teachers of the home.

    Raises:
        Interrupted: the judge's training was to end; its checkpoint is written.
        UsageError: the data set cannot be judged, or files of it are missing.
    """
    task = tasks.of(data)
    judge = None if data.prepared else task.judge(data)
    if judge is None:
        return
    if (problem := task.split_problem(data, data.test)) is not None:
        raise UsageError(problem)
    definition = _definition(judge, task, data)
    views = Views((), 1, data.input_shape, len(data.train))
    loaded = library.obtain(definition, replace(data, task=None), views, device=device, progress=progress, ending=ending)
    if loaded.validation_value is None:
        raise UsageError(f"dataset.validation must be > 0 for task {task.name}, whose judge is tested on that split, got 0")
    data.prepared = dict(task.prepare(data, loaded.model, loaded.validation_value))


def prepare_untrained(data: ImageData) -> None:
    """As `prepare`, with a judge that is not trained: to measure how long evaluating takes, not how good a model is."""
    task = tasks.of(data)
    judge = task.judge(data)
    if judge is not None:
        with torch.random.fork_rng(devices=[]):
            network = _definition(judge, task, data).build().eval()
        data.prepared = dict(task.prepare(data, network, 0.0))


def _definition(judge: Judge, task: Task, data: ImageData) -> TeacherDefinition:
    return TeacherDefinition(
        name=f"judge of {task.name}",
        model=judge.model,
        options=judge.options,
        training=judge.training,
        epochs=judge.epochs,
        seed=judge.seed,
        num_classes=data.num_classes,
        input_shape=data.input_shape,
    )
