"""A sweep whose trials share a process: the students are those of trials with a process each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from stillhouse.errors import SpecError
from stillhouse.spec.load import validate
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.workers import environment_of_workers

SPEC: dict[str, Any] = {
    "name": "packed",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 400, "limit_test": 100}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"kd": {"temperature": {"uniform": [2.0, 6.0]}}},
    "search": {"trials_per_method": 3, "max_epochs": 2, "confirm_seeds": 0},
}


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        namespace="stillhouse",
        runtime_env={"env_vars": dict(environment_of_workers())},
    )
    yield
    ray.shutdown()


def sweep(home: Path, packed: int) -> Results:
    spec = validate({**SPEC, "trial_resources": {"packed": packed}, "max_concurrent_trials": max(2, packed)})
    return Sweep(spec, home=home, progress=Progress("packed", quiet=True)).run()


@pytest.mark.ray
@pytest.mark.slow
def test_packed_trials_end_with_the_students_of_trials_that_have_a_process_each(cluster: None, tmp_path: Path) -> None:
    packed, apart = sweep(tmp_path / "packed", 3), sweep(tmp_path / "apart", 1)
    assert {record.status for record in packed.records} == {"finished"}
    weights = [{record.trial.key: record.weights_hash for record in results.records} for results in (packed, apart)]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 4  # three of kd, and the baseline


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            {"trial_resources": {"packed": 4, "workers": 2, "cpu": 2}},
            "trial_resources.packed must be 1 where several workers train a student, got 4 with 2 workers",
        ),
        ({"trial_resources": {"packed": 4, "gpu": 2}}, "trial_resources.packed must be 1 with more than one GPU, got 4"),
        ({"trial_resources": {"packed": 4}, "training": {"compile": True}}, "training.compile must be false with"),
        (
            {"trial_resources": {"packed": 4}, "training": {"micro_batch": "auto"}},
            "training.micro_batch must be null",
        ),
        ({"trial_resources": {"packed": 0}}, "trial_resources.packed must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_sentence(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate({**SPEC, **sections})
    assert sentence in str(caught.value)
