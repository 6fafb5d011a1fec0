"""Trials of students with operators, in this process: what they begin with, what they store, and how that is loaded again."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stillhouse.compress.storage import unpacked_state
from stillhouse.compress.students import chain_of, rebuilt_student
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import evaluate
from stillhouse.distill.maps import KnownChannels
from stillhouse.knowledge import feature, logits
from stillhouse.models.weights import state_bytes
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.students import make_student
from stillhouse.sweep.execution.trial_environment import TeacherScore, TrialEnvironment
from stillhouse.sweep.execution.trial_runner import TrialRunner, run_to_end
from stillhouse.teachers.ticket import TeacherTicket

MakeTrial = Callable[..., Trial]
PRUNED = {"prune": {"ratio": 0.5, "importance": "taylor"}}
LOW_BIT = {"quantize": {"weight_bits": 4}}
SPARSE = {"prune": {"ratio": 0.75, "pattern": "unstructured"}}


FACTORED = {"low_rank": {"ratio": 0.5}}
ROUTES: tuple[tuple[dict[str, Any], ...], ...] = (
    (PRUNED, SPARSE),
    (FACTORED, {"share_weights": {"k": 8, "share_at": 0.5}}, LOW_BIT),
    ({"compact": {}},),
)


@pytest.fixture(scope="module")
def ticket(sealed_teacher: Callable[..., TeacherTicket]) -> TeacherTicket:
    return sealed_teacher("resnet8", {feature("pool").id: "inline"})


@pytest.fixture
def environment(tmp_path: Path, views: Views, ticket: TeacherTicket) -> TrialEnvironment:
    return TrialEnvironment(
        folder=str(tmp_path / "sweep"),
        views=views,
        training=Training(batch_size=40),
        tickets={"big": ticket},
        teachers={"big": TeacherScore(parameters=78_000, test_value=0.5, identity="that network")},
        checkpoint_interval_s=0.0,
    )


def derived(*operators: dict[str, Any]) -> StudentChoice:
    return StudentChoice(name="derived", model="resnet8", compress=list(operators), derived_from="big")


def stored(record: TrialRecord, environment: TrialEnvironment) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(environment.folder) / str(record.weights))


@pytest.mark.parametrize(
    ("operators", "bits"),
    [
        ((PRUNED,), (32, 32)),
        ((SPARSE,), (32, 32)),
        ((PRUNED, SPARSE, LOW_BIT), (4, 8)),
        (({"low_rank": {"energy": 0.9}}, {"share_weights": {"k": 8}}), (3, 32)),
        (({"compact": {}}, LOW_BIT), (4, 8)),
    ],
    ids=["pruned", "sparse", "pruned, sparse and in low precision", "factored and shared", "compact and in low precision"],
)
def test_a_stored_student_is_built_again_from_its_record_and_judged_alike(
    operators: tuple[dict[str, Any], ...],
    bits: tuple[int, int],
    environment: TrialEnvironment,
    digits: ImageData,
    make_trial: MakeTrial,
) -> None:
    record = run_to_end(make_trial(student=derived(*operators), method="kd", teacher="big"), environment, digits)
    assert record.status == "finished", record.reason
    record = TrialRecord.model_validate_json(record.model_dump_json())
    student, tensors = rebuilt_student(record.trial.student, record.conversion, 10, (1, 8, 8)), stored(record, environment)
    student.load_state_dict(
        unpacked_state(chain_of(record.trial.student), record.conversion, student, student, tensors), strict=True
    )
    assert evaluate(student, digits, digits.test, "cpu") == record.metrics["test_accuracy"]
    assert evaluate(student, digits, digits.validation, "cpu") == record.metrics["validation_accuracy"]
    # Without its metadata, the file has the length that is reported.
    content = (Path(environment.folder) / str(record.weights)).read_bytes()
    with safetensors.safe_open(Path(environment.folder) / str(record.weights), framework="pt") as file:
        assert file.metadata() == {"trial": record.trial.key, "model": "resnet8"}
    assert record.metrics["size_bytes"] == state_bytes(tensors) <= len(content) <= state_bytes(tensors) + 200
    nonzero = sum(int(weight.count_nonzero()) for weight in student.parameters())
    assert record.metrics["nonzero_parameters"] == nonzero <= record.metrics["parameters"]
    assert (record.metrics["weight_bits"], record.metrics["activation_bits"]) == bits
    assert record.basis.source == "that network"


def test_zeros_stay_zero_and_make_the_file_smaller(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    plain = run_to_end(make_trial("plain", student=derived()), environment, digits)
    sparse = run_to_end(make_trial("sparse", student=derived(SPARSE)), environment, digits)
    assert sparse.metrics["parameters"] == plain.metrics["parameters"]
    assert sparse.metrics["macs"] == plain.metrics["macs"]
    # 1/32 for the bits and 1/4 of the values; shortcuts, batch normalisation and the last layer stay as they are.
    assert 0.28 < sparse.metrics["size_bytes"] / plain.metrics["size_bytes"] < 0.35
    assert 0.25 < sparse.metrics["nonzero_parameters"] / plain.metrics["parameters"] < 0.3
    assert "nonzero_parameters" not in plain.metrics


def test_a_derived_student_begins_with_what_its_teacher_learned(
    environment: TrialEnvironment, digits: ImageData, ticket: TeacherTicket
) -> None:
    source = safetensors.torch.load_file(ticket.weights_path)
    taken = make_student(derived(), digits, seed=3, source=source).model.state_dict()
    assert all(torch.equal(taken[name], value) for name, value in source.items())
    # Ten epochs would be a test of the optimiser; the untrained student shows what it took over.
    student = make_student(derived(), digits, seed=3, source=source).model
    fresh = make_student(StudentChoice(name="fresh", model="resnet8"), digits, seed=3, source=None).model
    assert evaluate(student, digits, digits.train, "cpu") > evaluate(fresh, digits, digits.train, "cpu")


@pytest.mark.parametrize("method", ["scratch", "mutual_learning", "simkd", "born_again"])
def test_methods_that_make_more_students_or_replace_layers_store_what_is_judged(
    method: str, environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    teacher = "big" if method in ("simkd", "born_again") else None
    trial = make_trial(student=derived(SPARSE), method=method, teacher=teacher, epochs=3)
    record = run_to_end(trial, environment, digits)
    assert record.status == "finished", record.reason
    tensors = stored(record, environment)
    assert record.metrics["size_bytes"] == state_bytes(tensors)
    assert any(name.endswith(".nonzero") for name in tensors)
    helpers = [name for name in tensors if name.startswith("helpers/")]
    assert bool(helpers) is (method == "simkd"), "only there the classifier has more than the student"


@pytest.mark.parametrize("operators", ROUTES, ids=["pruned and sparse", "factored, shared and in low precision", "compact"])
def test_the_delivery_mode_changes_no_bit_of_the_student(
    operators: tuple[dict[str, Any], ...],
    environment: TrialEnvironment,
    digits: ImageData,
    make_trial: MakeTrial,
    ticket: TeacherTicket,
) -> None:
    trial = make_trial("cached", student=derived(*operators), method="kd", teacher="big")
    cached = run_to_end(trial, environment, digits)
    modes = {**ticket.modes, logits().id: "inline"}
    inside = dataclasses.replace(environment, tickets={"big": dataclasses.replace(ticket, modes=modes)})
    inline = run_to_end(trial.model_copy(update={"key": "inline"}), inside, digits)
    assert (cached.teaching["way"], inline.teaching["way"]) == ("cached", "inline")
    assert inline.weights_hash == cached.weights_hash
    assert inline.metrics["test_accuracy"] == cached.metrics["test_accuracy"]


def test_a_pruned_student_is_compared_with_the_channels_of_its_teacher_that_remain(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, ticket: TeacherTicket
) -> None:
    kind = feature("layer3").id
    environment = dataclasses.replace(
        environment, tickets={"big": dataclasses.replace(ticket, modes={**ticket.modes, kind: "inline"})}
    )
    trial = make_trial(
        student=derived(PRUNED, SPARSE), method="fitnets", teacher="big", hyperparameters={"hint_layer": "layer3"}, epochs=4
    )
    runner = TrialRunner(trial, environment, digits)
    began = make_student(trial.student, digits, seed=trial.seed, source=safetensors.torch.load_file(ticket.weights_path))
    regressor = runner._trainer._modules["regressor"]
    assert isinstance(regressor, KnownChannels)
    assert regressor.indices.tolist() == list(began.kept_channels["layer3.0.bn2"])
    runner.run_epoch()
    again = TrialRunner(trial, environment, digits)
    assert torch.equal(again._trainer._modules["regressor"].get_buffer("indices"), regressor.indices)
    assert run_to_end(trial, environment, digits).status == "finished"


def test_a_method_takes_the_students_model_from_its_entry_and_not_its_label_in_the_spec(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    low_bit = StudentChoice(name="two-bits", model="resnet8", compress=[LOW_BIT])
    trial = make_trial(student=low_bit, method="apprentice", hyperparameters={"scheme": "joint"}, epochs=1)
    record = run_to_end(trial, environment, digits)
    assert record.status == "finished", record.reason


@pytest.mark.parametrize("operators", ROUTES, ids=["pruned and sparse", "factored, shared and in low precision", "compact"])
def test_an_interrupted_trial_ends_with_the_same_bits(
    operators: tuple[dict[str, Any], ...], environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    trial = make_trial("straight", student=derived(*operators), epochs=3)
    straight = run_to_end(trial, environment, digits)
    for _ in range(3):
        runner = TrialRunner(trial.model_copy(update={"key": "resumed"}), environment, digits)
        runner.run_epoch()
        runner.save()
    resumed = TrialRunner(trial.model_copy(update={"key": "resumed"}), environment, digits).finish()
    assert resumed.weights_hash == straight.weights_hash
    assert resumed.conversion == straight.conversion
    assert resumed.metrics["validation_accuracy"] == straight.metrics["validation_accuracy"]


def test_a_teacher_whose_weights_are_gone_is_a_failure_of_the_infrastructure(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, ticket: TeacherTicket
) -> None:
    from stillhouse.errors import InfrastructureError

    lost = dataclasses.replace(ticket, weights_hash="another")
    with pytest.raises(InfrastructureError, match="no longer holds the weights that teacher 'big' was loaded from"):
        TrialRunner(make_trial(student=derived(PRUNED)), dataclasses.replace(environment, tickets={"big": lost}), digits)
