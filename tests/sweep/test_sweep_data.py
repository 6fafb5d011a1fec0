"""The data set of a sweep is the one that its spec describes, whatever the search's seed."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import UsageError
from stillhouse.spec.load import validate
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.sweep_data import load_sweep_data


def spec(**changes: Any) -> SweepSpec:
    options = {"limit": 200, "limit_test": 50}
    dataset = {"name": "digits", "validation": 40, "options": options}
    return validate({"name": "s", "dataset": dataset, "students": ["mlp"], "methods": ["scratch"], **changes})


def test_the_splits_have_the_sizes_of_the_spec(tmp_path: Path) -> None:
    data = load_sweep_data(spec(), tmp_path, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (160, 40, 50)
    assert data.input_shape == (1, 8, 8)


def test_the_split_does_not_depend_on_the_seed_of_the_search(tmp_path: Path) -> None:
    first, second = (load_sweep_data(spec(search={"seed": seed}), tmp_path, download=False) for seed in (0, 5))
    assert (first.fingerprint, first.validation.labels.tolist()) == (second.fingerprint, second.validation.labels.tolist())


def test_a_task_that_the_spec_names_gives_the_data_of_that_task(tmp_path: Path) -> None:
    named, declared = (load_sweep_data(spec(**task), tmp_path, download=False) for task in ({"task": "classification"}, {}))
    assert named.fingerprint == declared.fingerprint


def test_files_that_are_missing_are_not_downloaded_unless_they_may_be(tmp_path: Path) -> None:
    wanted = spec(dataset={"name": "mnist", "root": str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match=r"dataset\.root must be a folder that exists, got .*nowhere"):
        load_sweep_data(wanted, tmp_path, download=False)
