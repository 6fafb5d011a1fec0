"""A sweep through Ray with networks from elsewhere: a folder of timm teaches, weights of other classes are trained further."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stillhouse.distill.evaluation import evaluate
from stillhouse.models.registry import build_model
from stillhouse.models.weights import state_hash
from stillhouse.sweep.execution.stored_student import load_student
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of timm as it writes it, for images of 16 pixels in -1..1, and a ResNet-8 of 7 classes."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    stated = {"mean": [0.5], "std": [0.5], "input_size": [1, 16, 16]}
    timm.models.save_for_hf(net, folder / "timm", model_config={"pretrained_cfg": stated}, safe_serialization=True)
    config = json.loads((folder / "timm" / "config.json").read_text())
    # `save_for_hf` writes the size of the network's own configuration.
    config["pretrained_cfg"] |= stated
    (folder / "timm" / "config.json").write_text(json.dumps(config))
    seven = build_model("resnet8", num_classes=7, input_shape=(1, 8, 8), width=0.5)
    torch.save({"model": {f"module.{name}": value for name, value in seven.state_dict().items()}}, folder / "seven.pth")
    return folder


@pytest.fixture(scope="module")
def spec(folder: Path) -> dict[str, Any]:
    seven = {"model": "resnet8", "width": 0.5, "weights": str(folder / "seven.pth"), "head": "new"}
    return {
        "name": "given",
        "dataset": {"name": "digits", "validation": 60, "options": {"limit": 240}},
        "teachers": {
            "big": {"model": "timm:test_resnet", "weights": str(folder / "timm")},
            "further": {**seven, "train": {"epochs": 1}},
        },
        "students": ["resnet8", {"name": "started", **seven}],
        "methods": {"kd": {}, "attention_transfer": {}},
        "search": {"trials_per_method": 3, "max_epochs": 1},
    }


@pytest.fixture(scope="module")
def results(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Sweep(check(spec), home=tmp_path_factory.mktemp("home")).run()


def test_a_network_of_timm_teaches_by_outputs_and_by_maps(results: Results) -> None:
    assert [record.reason for record in results.records if record.status != "finished"] == []
    taught = {(record.trial.method, record.trial.teacher) for record in results.records if record.trial.teacher}
    assert taught == {(method, teacher) for method in ("kd", "attention_transfer") for teacher in ("big", "further")}


def test_its_own_pixels_and_image_size_are_those_of_its_folder(results: Results, folder: Path) -> None:
    facts = {teacher.name: teacher for teacher in results.facts.teachers}
    assert facts["big"].normalization == "mean [0.5], std [0.5]"
    assert results.facts.spec["teachers"]["big"]["resize"] == 16
    assert facts["big"].key == state_hash(safetensors.torch.load_file(folder / "timm" / "model.safetensors"))
    net = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    assert facts["big"].parameters == sum(weight.numel() for weight in net.parameters())


def test_weights_of_other_classes_are_trained_further(results: Results) -> None:
    facts = {teacher.name: teacher for teacher in results.facts.teachers}
    assert facts["further"].trained_now
    assert not facts["big"].trained_now
    assert facts["further"].train_seconds > 0


def test_the_plan_shows_where_weights_come_from(results: Results, spec: dict[str, Any]) -> None:
    plan = Sweep(check(spec), home=results.home).plan()
    assert {teacher.name: (teacher.trains, teacher.start) for teacher in plan.teachers} == {
        "big": (False, ""),
        "further": (True, "starts with seven.pth, new head"),
    }
    assert {planned.student.name: planned.changes for planned in plan.students} == {
        "resnet8": [],
        "started": ["starts with seven.pth, new head"],
    }


def test_a_started_student_is_loaded_with_what_was_judged(results: Results) -> None:
    sweep = Sweep(check(results.facts.spec), home=results.home)
    record = next(each for each in results.records if each.trial.student.name == "started")
    data = sweep.data()
    student = load_student(results.sweep_home, sweep.spec, record, data)
    assert evaluate(student, data, data.test, "cpu") == record.metrics["test_accuracy"]


def test_nothing_is_trained_again(results: Results, spec: dict[str, Any]) -> None:
    again = Sweep(check(spec), home=results.home).run()
    assert (again.reused, len(again.records)) == (len(results.records), len(results.records))
