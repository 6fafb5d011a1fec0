"""Records whose data, teacher or weights have changed under their names: their trials run again, and the note says why."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights, weights_hash
from stillhouse.spec.records import Basis, SweepFacts, TeacherFacts, TrialRecord
from stillhouse.sweep.execution.trial_environment import TeacherScore, TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.facts import initial_facts
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.outdated import Reason
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.re_evaluation import evaluate_again
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.reuse import reusable_records, take_over_trials
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest
from stillhouse.sweep.teacher_setup import known_teachers

DATASET: dict[str, Any] = {"name": "digits", "validation": 80, "options": {"limit": 240, "limit_test": 100}}
MakeContext = Callable[..., RunContext]


class Notes(Progress):
    """Collects notes instead of showing them."""

    def __init__(self) -> None:
        super().__init__("s", quiet=True)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation=80, options=DATASET["options"])


@pytest.fixture
def make_context(digits: ImageData, tmp_path: Path) -> MakeContext:
    """The context of a run of a sweep with one scratch trial, and one that a teacher from a file taught."""

    def make(data: ImageData = digits, *, name: str = "s", **changes: Any) -> RunContext:
        home = SweepHome(tmp_path / "home", name)
        home.ledger.folder.mkdir(parents=True, exist_ok=True)
        spec = {"name": name, "dataset": DATASET, "students": ["mlp"], "methods": {"scratch": {}}, "search": SEARCH, **changes}
        return RunContext(
            plan=make_plan(check(spec), data),
            data=data,
            sweep_home=home,
            progress=Notes(),
            shutdown=ShutdownRequest(home.stop_request),
        )

    return make


SEARCH = {"trials_per_method": 1, "max_epochs": 1}


def with_other_test(data: ImageData) -> ImageData:
    """The same training and validation data; the test half is another half of the published one."""
    images, labels = data.test.images.numpy()[:50].copy(), data.test.labels.numpy()[:50].copy()
    return dataclasses.replace(data, read_test=lambda: (images, labels), _test=None)


def environment(context: RunContext, **fields: Any) -> TrialEnvironment:
    return TrialEnvironment(
        folder=str(context.sweep_home.folder),
        views=context.views,
        training=context.spec.training,
        evaluation=evaluation_identity(context.data),
        **fields,
    )


def train(context: RunContext) -> TrialRecord:
    """Trains the plan's first trial and writes its record."""
    return run_to_end(context.plan.trials[0], environment(context), context.data)


def accuracy(context: RunContext, record: TrialRecord) -> float:
    """Of the stored weights, computed from the images alone."""
    data = context.data
    student = build_model("mlp", num_classes=10, input_shape=(1, 8, 8))
    from safetensors.torch import load_file

    student.load_state_dict(load_file(context.sweep_home.folder / str(record.weights)))
    student.eval()
    with torch.no_grad():
        right = student(data.normalise(data.test.images)).argmax(1) == data.test.labels
    return float(right.float().mean())


def notes(context: RunContext) -> str:
    assert isinstance(context.progress, Notes)
    return "\n".join(context.progress.notes)


def test_a_changed_test_split_is_read_by_the_stored_students_and_nothing_trains_again(
    make_context: MakeContext, digits: ImageData
) -> None:
    first = make_context()
    record = train(first)
    later = make_context(with_other_test(digits))
    records = reusable_records(later)
    assert list(records) == [record.trial.key]
    changed = evaluate_again(later, records, environment(later))
    (renewed,) = changed.values()
    assert renewed.metrics["test_accuracy"] == pytest.approx(accuracy(later, record))
    assert renewed.weights_hash == record.weights_hash
    assert renewed.metrics["validation_accuracy"] == record.metrics["validation_accuracy"]
    assert renewed.basis.evaluation == evaluation_identity(later.data) != record.basis.evaluation
    assert later.sweep_home.ledger.read(record.trial.key) == renewed
    assert "1 students were evaluated" in notes(later)
    assert not evaluate_again(later, records, environment(later)), "once is enough"


def test_the_comparison_with_the_teacher_follows_the_new_value(make_context: MakeContext, digits: ImageData) -> None:
    first = make_context(teachers={"big": {"model": "lenet"}}, methods={"kd": {}})
    record = train(first)
    taught = next(trial for trial in first.plan.trials if trial.method == "kd")
    record = record.model_copy(update={"trial": record.trial.model_copy(update={"teacher": "big", "method": taught.method})})
    later = make_context(with_other_test(digits), teachers={"big": {"model": "lenet"}}, methods={"kd": {}})
    records = {record.trial.key: record}
    teachers = {"big": TeacherScore(parameters=10_000, test_value=0.75)}
    (renewed,) = evaluate_again(later, records, environment(later, teachers=teachers)).values()
    assert renewed.metrics["accuracy_drop"] == pytest.approx(0.75 - renewed.metrics["test_accuracy"])


def test_a_trial_with_values_of_peers_runs_again_since_peers_are_not_stored(
    make_context: MakeContext, digits: ImageData
) -> None:
    record = train(make_context())
    later = make_context(with_other_test(digits))
    record = record.model_copy(update={"metrics": {**record.metrics, "test_accuracy_peer1": 0.5}})
    records = {record.trial.key: record}
    assert not evaluate_again(later, records, environment(later))
    assert not records
    assert not list(later.sweep_home.ledger.keys())


def test_a_record_of_the_first_release_is_taken_as_the_present_one_and_stamped(make_context: MakeContext) -> None:
    context = make_context()
    record = train(context).model_copy(update={"basis": Basis()})
    context.sweep_home.ledger.write(record)
    (completed,) = reusable_records(context).values()
    assert completed.basis.evaluation == evaluation_identity(context.data)
    assert context.sweep_home.ledger.read(record.trial.key) == completed
    assert completed.model_copy(update={"basis": Basis()}) == record


def test_a_record_without_a_basis_has_that_of_the_facts(make_context: MakeContext, digits: ImageData) -> None:
    context = make_context()
    record = train(context).model_copy(update={"basis": Basis()})
    context.sweep_home.ledger.write(record)
    context.sweep_home.write_facts(initial_facts(context, None, ""))
    later = make_context(with_other_test(digits))
    (completed,) = reusable_records(later).values()
    assert completed.basis.test == evaluation_identity(digits)["test"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["bit", "removed", "empty"])
def test_damaged_weights_of_a_student_make_its_trial_run_again(
    make_context: MakeContext, damage: Callable[[Path], None]
) -> None:
    context = make_context()
    record = train(context)
    damage(context.sweep_home.folder / str(record.weights))
    assert not reusable_records(context)
    assert "the stored weights of 1 trained students are damaged or missing" in notes(context)
    assert record.trial.key in notes(context)
    assert [path.name for path in (context.sweep_home.ledger.folder / "aside").iterdir()] == [f"{record.trial.key}.1.record"]
    again = train(context)
    assert again.weights_hash == record.weights_hash, "the same trial gives the same student"
    assert list(reusable_records(context)) == [record.trial.key]


def test_a_fork_takes_over_no_damaged_student(make_context: MakeContext) -> None:
    origin, fork = make_context(), make_context(name="fork")
    record = train(origin)
    flip(origin.sweep_home.folder / str(record.weights))
    records: dict[str, TrialRecord] = {}
    take_over_trials(origin.sweep_home, fork, Phases(plan=fork.plan, read_latencies=dict), records)
    assert not records


def lenet_file(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    model = build_model("lenet", num_classes=10, input_shape=(1, 8, 8))
    save_weights(model, path)
    return weights_hash(model)


def taught_record(context: RunContext, identities: list[str]) -> TrialRecord:
    trial = next(trial for trial in context.plan.trials if trial.teacher)
    record = TrialRecord(
        trial=trial,
        status="finished",
        metrics={"validation_accuracy": 0.5},
        basis=Basis(**evaluation_identity(context.data), teachers=identities),
    )
    context.sweep_home.ledger.write(record)
    return record


@pytest.fixture
def moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], str]:
    """Points the name `models:/big@best` to weights; returns their hash."""
    target = tmp_path / "current.safetensors"
    monkeypatch.setattr("stillhouse.sweep.teacher_setup.fetch_weights", lambda *_arguments, **_options: target)
    return lambda seed: lenet_file(target, seed)


TAUGHT = {"teachers": {"big": {"model": "lenet", "weights": "mlflow:models:/big@best"}}, "methods": {"kd": {}}}


def test_a_moved_alias_is_another_teacher_and_its_students_run_again(
    make_context: MakeContext, moving: Callable[[int], str]
) -> None:
    first = moving(0)
    context = make_context(**TAUGHT)
    assert known_teachers(context) == {"big": first}
    record = taught_record(context, [first])
    assert list(reusable_records(make_context(**TAUGHT))) == [record.trial.key]
    moving(1)
    later = make_context(**TAUGHT)
    assert later.plan.trials == context.plan.trials, "the keys know the alias's text only"
    assert not reusable_records(later)
    assert "is another network than the one that taught them (kd with big)" in notes(later)


def test_students_of_the_first_release_had_the_teacher_that_the_facts_name(
    make_context: MakeContext, moving: Callable[[int], str]
) -> None:
    first = moving(0)
    context = make_context(**TAUGHT)
    record = taught_record(context, [])
    context.sweep_home.ledger.write(record.model_copy(update={"basis": Basis()}))
    facts = initial_facts(context, None, "")
    teacher = TeacherFacts(name="big", model="lenet", key=first, parameters=1, size_bytes=1, macs=1)
    context.sweep_home.write_facts(SweepFacts.model_validate({**facts.model_dump(), "teachers": [teacher.model_dump()]}))
    (completed,) = reusable_records(make_context(**TAUGHT)).values()
    assert completed.basis.teachers == [first]
    context.sweep_home.ledger.write(record.model_copy(update={"basis": Basis()}))
    moving(1)
    assert not reusable_records(make_context(**TAUGHT))


def test_a_store_that_does_not_answer_costs_nothing_that_is_finished(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.errors import InfrastructureError

    def fail(*_arguments: Any, **_options: Any) -> Path:
        raise InfrastructureError("the store does not answer")

    monkeypatch.setattr("stillhouse.sweep.teacher_setup.fetch_weights", fail)
    context = make_context(**TAUGHT)
    record = taught_record(context, ["some teacher"])
    assert list(reusable_records(context)) == [record.trial.key]
    assert "teacher big cannot be compared" in notes(context)


def test_a_replaced_weights_file_leaves_no_record_of_the_earlier_teacher_in_the_ledger(
    make_context: MakeContext, tmp_path: Path
) -> None:
    path = tmp_path / "big.safetensors"
    lenet_file(path, 0)
    spec = {"teachers": {"big": {"model": "lenet", "weights": str(path)}}, "methods": {"kd": {}}}
    context = make_context(**spec)
    taught_record(context, [])
    lenet_file(path, 1)
    later = make_context(**spec)
    assert not reusable_records(later)
    assert not list(later.sweep_home.ledger.keys()), "a report that reads the ledger must not mix two teachers"
    assert Reason.CONTENT.value.split(" {")[0] in notes(later)


def test_a_report_of_an_interrupted_run_has_one_test_split(make_context: MakeContext, digits: ImageData) -> None:
    context = make_context()
    record = train(context)
    context.sweep_home.write_spec({"name": "s"})
    context.sweep_home.write_facts(initial_facts(make_context(with_other_test(digits)), None, ""))
    results = Results.read(context.sweep_home.home, "s")
    assert not results.records
    assert "1 trials are left out: another test split" in results.facts.notes[-1]
    context.sweep_home.ledger.write(record.model_copy(update={"basis": Basis()}))
    assert len(Results.read(context.sweep_home.home, "s").records) == 1, "a record of the first release"
