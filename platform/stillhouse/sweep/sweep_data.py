"""The data set of a sweep, read as its spec names it."""

from pathlib import Path

from stillhouse import tasks
from stillhouse.data.datasets import ImageData, dataset_facts, load_dataset
from stillhouse.spec.schema import SweepSpec


def load_sweep_data(spec: SweepSpec, home: Path, *, download: bool) -> ImageData:
    """The data set with its validation split, and the task that the spec names or the data set declares.

    The split does not depend on the search's seed: all searches of these data share their teachers.

    Args:
        home: decoded image files are stored in its folder `data`.
        download: whether missing files may be downloaded.

    Raises:
        UsageError: files are missing or damaged, or there is no such task.
    """
    wanted = spec.dataset
    declared = dataset_facts(wanted.name, size=wanted.size, options=wanted.options).task
    task = spec.task or declared
    return load_dataset(
        wanted.name,
        root=wanted.root,
        validation=wanted.validation,
        download=download,
        size=wanted.size,
        options=wanted.options,
        cache=home / "data",
        task=tasks.name_of(task),
        targets=tasks.find(task).targets,
    )
