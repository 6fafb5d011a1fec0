"""What is found out about a finished student: the metric as before, the task's evidence, and its outputs in a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillhouse import tasks
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.images import Split
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import evaluate, split_outputs
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.node_home import NodeHome
from stillhouse.models.registry import build_model
from stillhouse.spec.records import StudentChoice, Trial
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.examination import examine, outputs_file
from stillhouse.sweep.execution.trial_environment import TeacherScore, TrialEnvironment
from stillhouse.tasks import Evidence, SplitOutputs
from stillhouse.tasks.classification import Classification
from stillhouse.teachers.stored_outputs import compute_outputs


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits", options={"limit": 200, "limit_test": 90}, validation=40)


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=[8])


def trial(**fields: object) -> Trial:
    return Trial.model_validate(
        {"key": "k", "student": StudentChoice(name="s", model="mlp"), "method": "m", "epochs": 1, **fields}
    )


@pytest.fixture
def environment(tmp_path: Path, data: ImageData) -> TrialEnvironment:
    """Two teachers: the weak one is an untrained network, the good one has the student's own outputs."""
    home = NodeHome(HomeAddress(path=str(tmp_path)))
    scores = {}
    for name, seed, value in (("weak", 1, 0.1), ("good", 0, 0.9)):
        compute_outputs(network(seed), data, tmp_path / f"outputs-{seed}", "cpu", home)
        scores[name] = TeacherScore(parameters=1, test_value=value, outputs=str(tmp_path / f"outputs-{seed}"))
    views = Views(("crop",), 1, data.input_shape, len(data.train))
    return TrialEnvironment(folder=str(tmp_path / "sweep"), views=views, training=Training(), teachers=scores)


def examined(data: ImageData, environment: TrialEnvironment, task: tasks.Task, **fields: object) -> tuple[float, Evidence]:
    student = network(0)

    def outputs_of(split: Split) -> SplitOutputs:
        return split_outputs(student, data, split, "cpu")

    def value(split: Split) -> float:
        return evaluate(student, data, split, "cpu")

    return examine(outputs_of, value, data, task, trial(**fields), environment)


def test_the_metric_is_that_of_an_evaluation_and_the_outputs_are_kept(data: ImageData, environment: TrialEnvironment) -> None:
    value, _ = examined(data, environment, tasks.find("classification"))
    assert value == evaluate(network(0), data, data.test, "cpu")
    kept = load_file(Path(environment.folder) / outputs_file("k"))
    assert (kept["logits"].argmax(1) == data.test.labels).double().mean() == pytest.approx(value)


def test_a_student_is_compared_with_its_own_teacher_and_one_without_with_the_best(
    data: ImageData, environment: TrialEnvironment
) -> None:
    task = tasks.find("classification")
    _, alone = examined(data, environment, task)
    _, taught = examined(data, environment, task, teacher="weak")
    _, by_both = examined(data, environment, task, teacher="weak+good")
    assert (alone.numbers["teacher_agreement"], alone.numbers["teacher_kl"]) == (1.0, 0.0)
    assert by_both.numbers == alone.numbers
    assert taught.numbers["teacher_agreement"] < 1
    assert taught.numbers["teacher_kl"] > 0


class Unmeasured(Classification):
    measures = ()


class Odd(Classification):
    def evidence(self, validation: SplitOutputs, test: SplitOutputs, teacher: SplitOutputs | None) -> Evidence:
        return Evidence(numbers={"nll": float("nan"), "ece": 0.5, "ece_scaled": float("inf")})


def test_a_task_without_measures_costs_no_pass_and_keeps_nothing(data: ImageData, environment: TrialEnvironment) -> None:
    value, evidence = examined(data, environment, Unmeasured())
    assert (value, evidence) == (evaluate(network(0), data, data.test, "cpu"), Evidence())
    assert not Path(environment.folder).exists()


def test_numbers_that_are_none_are_left_out(data: ImageData, environment: TrialEnvironment) -> None:
    assert examined(data, environment, Odd())[1].numbers == {"ece": 0.5}
