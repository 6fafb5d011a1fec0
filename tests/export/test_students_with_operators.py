"""Exports of students with operators: plain networks at the size that was reported, and a card that says what was done."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.export import export_trial

PRUNED: dict[str, Any] = {"prune": {"ratio": 0.5}}
SPARSE: dict[str, Any] = {"prune": {"ratio": 0.75, "pattern": "unstructured"}}
FACTORED: dict[str, Any] = {"low_rank": {"ratio": 0.25}}
SPEC: dict[str, Any] = {
    "name": "routes",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 300}},
    "students": [
        {"name": "pruned", "model": "resnet8", "compress": [PRUNED]},
        {"name": "sparse", "model": "resnet8", "compress": [SPARSE]},
        {"name": "factored", "model": "resnet8", "compress": [FACTORED]},
    ],
    "methods": {"scratch": {}},
    "search": {"max_epochs": 1},
}


def digits() -> ImageData:
    return load_dataset("digits", validation=100, options={"limit": 300})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one trained student of each kind, made in this process."""
    home = tmp_path_factory.mktemp("home")
    sweep_home, data = SweepHome(home, "routes"), digits()
    views = Views((), 1, data.input_shape, len(data.train))
    environment = TrialEnvironment(folder=str(sweep_home.folder), views=views, training=Training(batch_size=32))
    for name, operator in (("pruned", PRUNED), ("sparse", SPARSE), ("factored", FACTORED)):
        student = StudentChoice(name=name, model="resnet8", compress=[operator])
        record = run_to_end(Trial(key=f"{name:0<16}", student=student, method="scratch", epochs=1), environment, data)
        assert record.status == "finished", record.reason
    spec = spec_to_dict(validate(SPEC))
    sweep_home.write_spec(spec)
    facts = SweepFacts(
        name="routes",
        spec=spec,
        dataset={"name": data.name, "fingerprint": data.fingerprint},
        baseline="scratch",
        planned=3,
        objectives={"validation_accuracy": "max", "parameters": "min"},
    )
    sweep_home.write_facts(facts)
    return home


def record_of(home: Path, name: str) -> TrialRecord:
    record = SweepHome(home, "routes").ledger.read(f"{name:0<16}")
    assert record is not None
    return record


def answers(folder: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = torch.export.load(folder / "student.pt2").module()(images)
    return logits


@pytest.mark.parametrize(
    ("name", "done"),
    [
        ("pruned", "prune(ratio=0.5)"),
        ("sparse", "prune(ratio=0.75, pattern=unstructured)"),
        ("factored", "low_rank(ratio=0.25)"),
    ],
)
def test_the_export_is_a_plain_network_that_reaches_the_recorded_accuracy(
    home: Path, name: str, done: str, tmp_path: Path
) -> None:
    record, data = record_of(home, name), digits()
    document = export_trial(home, "routes", record.trial.key, tmp_path / "student")
    weights = load_file(tmp_path / "student" / "student.safetensors")
    assert (
        sum(each.numel() for key, each in weights.items() if key.endswith(("weight", "bias"))) == record.metrics["parameters"]
    )
    assert not [key for key in weights if "mask" in key or "nonzero" in key]
    right = answers(tmp_path / "student", data.normalise(data.test.images)).argmax(1) == data.test.labels
    assert float(right.float().mean()) == pytest.approx(record.metrics["test_accuracy"])
    assert document["compression"] == done == record.compression
    assert json.loads((tmp_path / "student" / "export.json").read_text())["derived_from"] is None
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"What was done to the network before training, in order: `{done}`." in card
    assert f"| parameters that are not zero | {record.metrics['nonzero_parameters']:,.0f} |" in card
