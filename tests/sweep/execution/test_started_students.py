"""Trials of students that start with given weights, in this process."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError
from stillhouse.models.registry import build_model
from stillhouse.spec.load import validate
from stillhouse.spec.records import Trial
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.students import make_student
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.student_starts import prepare_starts

MakeTrial = Callable[..., Trial]
STILL = Training(batch_size=40, optimizer="sgd", learning_rate=1e-30, momentum=0.0, weight_decay=0.0)
"""A training that leaves weights as they are."""


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A wrapped checkpoint of 7 classes with a classifier of another name."""
    torch.manual_seed(1)
    state = build_model("lenet", num_classes=7, input_shape=(1, 8, 8)).state_dict()
    torch.save({"net": {name.replace("classifier.", "last."): value for name, value in state.items()}}, tmp_path / "seven.pth")
    return tmp_path / "seven.pth"


@pytest.fixture
def started(given: Path, tmp_path: Path, views: Views) -> tuple[Any, TrialEnvironment]:
    """The student of a spec and the environment in which its trials run."""
    student = {"model": "lenet", "name": "s", "weights": str(given), "head": "new", "rename": {"^last": "classifier"}}
    spec = validate({"name": "x", "dataset": {"name": "digits"}, "students": [student], "methods": ["scratch"]})
    starts = prepare_starts(spec, tmp_path / "home")
    environment = TrialEnvironment(folder=str(tmp_path / "sweep"), views=views, training=STILL, starts=starts)
    return spec.students[0].choose({}), environment


def test_a_trial_begins_with_the_weights_and_a_head_of_its_seed(
    started: tuple[Any, TrialEnvironment], given: Path, digits: ImageData, make_trial: MakeTrial
) -> None:
    choice, environment = started
    given_state = torch.load(given)["net"]
    given.write_bytes(b"replaced while the sweep runs")
    record = run_to_end(make_trial(student=choice), environment, digits)
    assert record.status == "finished", record.reason
    model = make_student(choice, digits, seed=0, source=environment.start_weights("s")).model
    kept = [name for name, value in model.state_dict().items() if name in given_state]
    assert kept
    assert all(torch.equal(model.state_dict()[name], given_state[name]) for name in kept)
    assert len(model.state_dict()) == len(kept) + 2


def test_weights_that_are_gone_are_a_failure_of_the_infrastructure(
    started: tuple[Any, TrialEnvironment], digits: ImageData, make_trial: MakeTrial
) -> None:
    choice, environment = started
    damaged = dataclasses.replace(environment.starts["s"], weights_hash="0" * 32)
    environment = dataclasses.replace(environment, starts={"s": damaged})
    with pytest.raises(
        InfrastructureError, match="lacks the weights with which student 's' starts; run the same command again"
    ):
        run_to_end(make_trial(student=choice), environment, digits)


def test_operators_apply_to_the_started_network(
    given: Path, tmp_path: Path, views: Views, digits: ImageData, make_trial: MakeTrial
) -> None:
    torch.save(build_model("resnet8", num_classes=10, input_shape=(1, 8, 8)).state_dict(), tmp_path / "ten.pth")
    student = {
        "model": "resnet8",
        "name": "s",
        "weights": str(tmp_path / "ten.pth"),
        "compress": [{"quantize": {"weight_bits": 8}}],
    }
    spec = validate({"name": "x", "dataset": {"name": "digits"}, "students": [student], "methods": ["scratch"]})
    starts = prepare_starts(spec, tmp_path / "home")
    environment = TrialEnvironment(folder=str(tmp_path / "sweep"), views=views, training=STILL, starts=starts)
    choice = spec.students[0].choose(spec.students[0].settings)
    record = run_to_end(make_trial(student=choice), environment, digits)
    assert (record.status, record.metrics["weight_bits"]) == ("finished", 8)
