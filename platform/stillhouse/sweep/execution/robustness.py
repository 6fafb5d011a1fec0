"""The value of a task's metric for a trained student on degraded test images."""

import math
from typing import Any

import ray

from stillhouse.data.datasets import ImageData
from stillhouse.data.degradations import DEGRADATIONS, degraded
from stillhouse.distill.evaluation import evaluate
from stillhouse.errors import StillhouseError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.node_home import node_home
from stillhouse.home_access.ray_process import own_device
from stillhouse.spec.late_metrics import ROBUSTNESS_PREFIX
from stillhouse.spec.records import TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.execution.stored_student import load_student
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.user_code import user_code
from stillhouse.workers import prepare_worker

NAMES = tuple(f"{ROBUSTNESS_PREFIX}{name}" for name in DEGRADATIONS)
"""Of the metrics."""


def robustness_of(
    record_json: str,
    spec: SweepSpec,
    home: HomeAddress,
    data: list[Any],
    threads: int,
    import_paths: list[str],
    method_folders: list[str],
) -> tuple[dict[str, float], str]:
    """The metrics of `NAMES` of the student of a record, in a worker; or why there are none.

    Args:
        data: the reference of the data set in the object store.
    """
    prepare_worker(import_paths, threads, method_folders)
    record = TrialRecord.model_validate_json(record_json)
    assert record.weights is not None
    there = node_home(home)
    sweep_home = SweepHome(there.folder, spec.name)
    there.pull(sweep_home.folder / record.weights)
    images = ImageData.from_arrays(*ray.get(data[0]))
    try:
        with user_code():
            return degraded_values(sweep_home, spec, record, images, own_device()), ""
    except StillhouseError as error:
        return {}, str(error)


def degraded_values(
    sweep_home: SweepHome, spec: SweepSpec, record: TrialRecord, data: ImageData, device: str
) -> dict[str, float]:
    """The metrics of `NAMES`, those that are finite.

    Raises:
        UsageError: the student's weights are missing or damaged.
        NoNumbersError: the student returns NaN for degraded images.
    """
    student = load_student(sweep_home, spec, record, data).to(device)
    values = {f"{ROBUSTNESS_PREFIX}{name}": evaluate(student, data, degraded(data.test, name), device) for name in DEGRADATIONS}
    return {name: value for name, value in values.items() if math.isfinite(value)}
