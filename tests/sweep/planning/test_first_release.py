"""A sweep that an earlier release began keeps its teacher's normalisation, and with it the keys of its trials."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.data.datasets import load_dataset
from stillhouse.errors import SpecError
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.load import spec_to_dict
from stillhouse.sweep.planning.first_release import teachers_as_begun, with_teachers_as_begun, without_key
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.sweep import Sweep

DATASET = {"name": "digits", "validation": 80, "options": {"limit": 240}}


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """Its teacher comes with a file that states another normalisation than the data's."""
    torch.manual_seed(0)
    save_weights(build_model("lenet", num_classes=10, input_shape=(1, 8, 8)), tmp_path / "big.safetensors")
    (tmp_path / "preprocessing.json").write_text(json.dumps({"mean": [0.0], "std": [1.0]}))
    teacher = {"model": "lenet", "weights": str(tmp_path / "big.safetensors")}
    return {
        "name": "s",
        "dataset": DATASET,
        "teachers": {"big": teacher},
        "students": ["mlp"],
        "methods": {"scratch": {}, "kd": {}},
        "search": {"trials_per_method": 1},
    }


def keys(spec: Any) -> dict[str, str]:
    data = load_dataset("digits", validation=80, options={"limit": 240})
    return {trial.method: trial.key for trial in make_plan(check(spec), data).trials}


def said(spec: dict[str, Any], value: Any) -> dict[str, Any]:
    return {**spec, "teachers": {"big": {**spec["teachers"]["big"], "normalization": value}}}


def test_only_trials_with_a_teacher_of_its_own_normalisation_get_other_keys(spec: dict[str, Any], tmp_path: Path) -> None:
    stated, first_release = keys(spec), keys(said(spec, "dataset"))
    assert stated["scratch"] == first_release["scratch"]
    assert stated["kd"] != first_release["kd"]
    assert keys(said(spec, "0..1")) == stated, "the same normalisation, whether it is stated or recorded"
    (tmp_path / "preprocessing.json").unlink()
    assert keys(spec) == first_release


def test_a_sweep_begun_without_the_key_keeps_its_keys_and_its_stored_spec(spec: dict[str, Any], tmp_path: Path) -> None:
    checked = check(spec)
    stored = without_key(spec_to_dict(checked), ["big"])
    assert "normalization" not in stored["teachers"]["big"]
    names = teachers_as_begun(checked, stored)
    assert names == {"big"}
    assert keys(with_teachers_as_begun(checked, names))["kd"] == keys(said(spec, "dataset"))["kd"]
    sweep = Sweep(checked, home=tmp_path / "home")
    sweep.sweep_home.folder.mkdir(parents=True)
    sweep.sweep_home.write_spec(stored)
    assert {trial.method: trial.key for trial in sweep.plan().trials} == keys(said(spec, "dataset"))


def test_a_sweep_begun_with_the_key_takes_what_is_stated(spec: dict[str, Any]) -> None:
    checked = check(spec)
    assert teachers_as_begun(checked, spec_to_dict(checked)) == frozenset()
    assert teachers_as_begun(checked, None) == frozenset()


@pytest.mark.parametrize("value", ["imagnet", 3, {"mean": 0.5}, {"mean": "a", "std": 1}, [0, 1]])
def test_a_wrong_normalisation_is_one_sentence_with_the_choices(spec: dict[str, Any], value: Any) -> None:
    with pytest.raises(SpecError, match=r"teachers.big.normalization must be one of dataset, imagenet, 0..1, -1..1, 0..255 or"):
        check(said(spec, value))


def test_a_teacher_that_the_sweep_trains_has_none_of_its_own(spec: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"teachers.big.normalization needs weights"):
        check({**spec, "teachers": {"big": {"model": "lenet", "normalization": "0..1"}}})
