"""A trained network is put together again as its method left it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse import methods
from stillhouse.data.datasets import load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method
from stillhouse.errors import UsageError
from stillhouse.export import onnx, program
from stillhouse.export.agreement import agreement
from stillhouse.models.weights import save_weights
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.stored_student import load_student
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import find_trial, load_data, read_spec
from stillhouse.testing import MethodTrial

LENET = "aa00000000000001"
METHOD = '''
"""A student that answers through a helper behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, Setup, Step, hyperparameter


@dataclass(frozen=True, kw_only=True)
class SecondHead(Method):
    card: ClassVar[Card] = Card(title="None", arxiv=None, family="other", equations="none")
    width: int = hyperparameter(7, minimum=1)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        classes = setup.student.num_classes
        return {"head": Helper(module=nn.Sequential(nn.Linear(classes, self.width), nn.Linear(self.width, classes)))}

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        return {"student": nn.Sequential(student, modules["head"])}

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(step.modules["head"](step.logits), step.targets)}
'''


def test_helpers_that_the_student_cannot_do_without_come_along(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "second_head.py").write_text(METHOD)
    spec = validate(
        {
            "name": "own",
            "dataset": {"name": "digits", "validation": 100, "options": {"limit": 300}},
            "students": ["lenet"],
            "methods": {"second_head": {"width": 5}},
            "method_paths": [str(tmp_path / "own")],
        }
    )
    sweep_home = SweepHome(tmp_path / "home", "own")
    data = load_dataset("digits", validation=100, options={"limit": 300})
    trial = Trial(
        key="ee",
        student=StudentChoice(name="lenet", model="lenet"),
        method="second_head",
        hyperparameters={"width": 5},
        epochs=1,
    )
    sweep_home.write_spec(spec_to_dict(spec, secrets=True))
    sweep_home.write_facts(SweepFacts(name="own", spec={}, dataset={}, baseline="scratch", planned=1))
    methods.add_folder(tmp_path / "own")
    environment = TrialEnvironment(
        folder=str(sweep_home.folder), views=Views((), 1, data.input_shape, len(data.train)), training=Training(batch_size=32)
    )
    record = run_to_end(trial, environment, data)
    assert record.status == "finished", record.reason

    results = Results.read(tmp_path / "home", "own")
    kept = read_spec(results.sweep_home)
    student = load_student(results.sweep_home, kept, find_trial(results, "ee"), load_data(results, kept))
    with torch.no_grad():
        right = student(data.normalise(data.validation.images)).argmax(dim=1) == data.validation.labels
    assert float(right.float().mean()) == pytest.approx(record.metrics["validation_accuracy"])
    assert sum(parameter.numel() for parameter in student.parameters()) == record.metrics["parameters"]
    assert not any(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.find(name).classifiers is not Method.classifiers])
def test_whatever_a_method_says_answers_in_the_end_is_built_again_and_exported(swept: Any, name: str, tmp_path: Path) -> None:
    trainer = MethodTrial(methods.find(name)()).trainer()
    trainer.run_epoch()
    answers = trainer.classifier.eval()
    trial = Trial(key="ff", student=StudentChoice(name="lenet", model="lenet"), method=name, teacher="big", epochs=4)
    digest = save_weights(answers, swept.sweep_home.folder / "students" / "ff.safetensors")
    record = TrialRecord(trial=trial, status="finished", weights="students/ff.safetensors", weights_hash=digest)
    data = swept.data()
    student = load_student(swept.sweep_home, read_spec(swept.sweep_home), record, data)
    images = data.normalise(data.validation.images[:20])
    with torch.no_grad():
        torch.testing.assert_close(student(images), answers(images))
    traced = program.make_program(student, data.input_shape)
    onnx.save_onnx(traced, tmp_path / "student.onnx", "logits")
    found = agreement(student, onnx.load_answer(tmp_path / "student.onnx"), images, what="ONNX")
    assert found.same_class == 20


def test_the_trained_network_has_the_accuracy_of_its_record(swept: Any) -> None:
    results = Results.read(swept.home, "tiny")
    spec, record = read_spec(results.sweep_home), swept.record()
    data = load_data(results, spec)
    student = load_student(results.sweep_home, spec, record, data)
    assert not student.training
    with torch.no_grad():
        right = student(data.normalise(data.validation.images)).argmax(dim=1) == data.validation.labels
    assert float(right.float().mean()) == pytest.approx(record.metrics["validation_accuracy"])
    assert data.test_reads == 0


def test_a_model_that_changed_since_does_not_take_the_weights(swept: Any) -> None:
    record = swept.record()
    wider = record.trial.model_copy(update={"student": StudentChoice(name="lenet", model="lenet", options={"width": 2.0})})
    results = Results.read(swept.home, "tiny")
    spec = read_spec(results.sweep_home)
    with pytest.raises(UsageError, match="do classes, input channels and width agree"):
        load_student(results.sweep_home, spec, record.model_copy(update={"trial": wider}), swept.data())


def test_names_that_look_like_those_of_a_parallel_model_are_kept(swept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own model may call its inside `module`, which other people's checkpoints have as a prefix."""
    inside = swept.student()
    wrapper = torch.nn.Module()
    wrapper.module = inside
    record = swept.record()
    digest = save_weights(wrapper, swept.sweep_home.folder / record.weights)
    monkeypatch.setattr("stillhouse.sweep.execution.stored_student.rebuilt_student", lambda *_: wrapper)
    results = Results.read(swept.home, "tiny")
    changed = record.model_copy(update={"weights_hash": digest})
    assert load_student(results.sweep_home, read_spec(results.sweep_home), changed, swept.data()) is wrapper


def test_torchs_global_generator_is_left_as_it_was(swept: Any) -> None:
    results = Results.read(swept.home, "tiny")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_student(results.sweep_home, read_spec(results.sweep_home), swept.record(), swept.data())
    assert torch.equal(torch.rand(3), expected)
