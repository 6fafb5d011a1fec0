"""A sweep's home with trained students, made in this process, and one of them exported."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.errors import StillhouseError, UsageError
from stillhouse.models.weights import load_weights
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import StudentChoice, SweepFacts, TeacherFacts, Trial, TrialRecord
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.students import build_student
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.export import export_trial

SWEEP = "tiny"
EPOCHS = 8
"""Enough that no student is at chance: those would be on no front. The smaller one has fewer, so that both are on it."""
SPEC: dict[str, Any] = {
    "name": SWEEP,
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 300}},
    "views": {"policy": [], "count": 1},
    "teachers": {"big": {"model": "resnet8"}},
    "students": ["lenet", {"model": "mlp", "hidden": [16]}],
    "methods": {"scratch": {}},
    "search": {"max_epochs": EPOCHS},
}
TRAINING = Training(batch_size=32, optimizer="adamw", learning_rate=0.01)
LENET, MLP, STOPPED, FAILED = "aa00000000000001", "ab00000000000002", "ac00000000000003", "fd00000000000004"


@dataclass(frozen=True)
class Swept:
    """A home with one sweep."""

    home: Path

    @property
    def sweep_home(self) -> SweepHome:
        return SweepHome(self.home, SWEEP)

    def record(self, key: str = LENET) -> TrialRecord:
        record = self.sweep_home.ledger.read(key)
        assert record is not None
        return record

    def data(self) -> ImageData:
        return digits()

    def student(self, key: str = LENET) -> nn.Module:
        """The trained network, put together here and not by the exporter."""
        record = self.record(key)
        assert record.weights is not None
        student = build_student(record.trial.student, self.data())
        load_weights(student, self.sweep_home.folder / record.weights)
        return student.eval()

    def logits(self, images: Tensor, key: str = LENET) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.student(key)(self.data().normalise(images))
        return logits

    def export(self, trial: str, folder: Path, **options: Any) -> dict[str, Any]:
        return export_trial(self.home, SWEEP, trial, folder, **options)


def digits() -> ImageData:
    return load_dataset("digits", validation=100, options={"limit": 300})


def trial(key: str, model: str, epochs: int = EPOCHS, **options: Any) -> Trial:
    student = StudentChoice(name=model, model=model, options=options)
    return Trial(key=key, student=student, method="scratch", seed=3, epochs=epochs)


@pytest.fixture(scope="session")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    sweep_home, data = SweepHome(home, SWEEP), digits()
    views = Views((), 1, data.input_shape, len(data.train))
    environment = TrialEnvironment(folder=str(sweep_home.folder), views=views, training=TRAINING)
    for each in (trial(LENET, "lenet"), trial(MLP, "mlp", 2, hidden=[16])):
        record = run_to_end(each, environment, data)
        assert record.status == "finished", record.reason
    ledger = Ledger(sweep_home.folder / "ledger")
    ledger.write(TrialRecord(trial=trial(STOPPED, "lenet"), status="stopped", epochs_run=1))
    ledger.write(TrialRecord(trial=trial(FAILED, "lenet"), status="failed", reason="the loss is not finite"))
    spec = validate(SPEC)
    sweep_home.write_spec(spec_to_dict(spec, secrets=True))
    sweep_home.write_facts(
        SweepFacts(
            name=SWEEP,
            spec=spec_to_dict(spec),
            dataset={"name": data.name, "fingerprint": data.fingerprint},
            baseline="scratch",
            planned=4,
            teachers=[
                TeacherFacts(
                    name="big", model="resnet8", key="c0ffee", parameters=77_850, size_bytes=1, macs=1, test_accuracy=0.9375
                )
            ],
            objectives={"validation_accuracy": "max", "parameters": "min"},
            command="stillhouse sweep tiny.yaml --set tracking.uri=postgresql://me:hunter2@db/x",
        )
    )
    return home


@pytest.fixture(scope="session")
def exported(first_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Swept, Path, dict[str, Any]]:
    """The home, the folder that the LeNet was exported to, and what the export said."""
    swept = Swept(first_home)
    folder = tmp_path_factory.mktemp("exports") / "lenet"
    return swept, folder, swept.export(LENET, folder)


@pytest.fixture
def swept(first_home: Path, tmp_path: Path) -> Swept:
    """A home of the test's own."""
    home = tmp_path / "home"
    shutil.copytree(first_home, home)
    return Swept(home)


@pytest.fixture
def change_record(swept: Swept) -> Callable[..., None]:
    def change(key: str = LENET, **fields: Any) -> None:
        swept.sweep_home.ledger.write(swept.record(key).model_copy(update=fields))

    return change


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Exports what cannot be exported and returns the sentence that refuses it; nothing may have been written."""

    def refused(swept: Swept, trial: str, folder: Path, kind: type[StillhouseError] = UsageError, **options: Any) -> str:
        before = folder.exists() and sorted(folder.iterdir())
        with pytest.raises(kind) as caught:
            swept.export(trial, folder, **options)
        assert (folder.exists() and sorted(folder.iterdir())) == before
        assert not list(folder.parent.glob(".*.part"))
        sentence = str(caught.value)
        assert "\n" not in sentence
        return sentence

    return refused
