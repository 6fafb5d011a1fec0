"""The plan of a sweep that has run says what is done, what runs again and why, and what is left."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.knowledge_demand import plan_demand
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.preview.standing import Standing, find_standing
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest
from stillhouse.sweep.teacher_setup import definition_in
from stillhouse.teachers.definition import base_identity, view_identity
from stillhouse.teachers.library import TeacherLibrary

DATASET: dict[str, Any] = {"name": "digits", "validation": 80, "options": {"limit": 240, "limit_test": 100}}
SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": DATASET,
    "students": ["mlp"],
    "methods": {"scratch": {"label_smoothing": {"uniform": [0, 0.3]}}},
    "search": {"trials_per_method": 3, "max_epochs": 1},
}
MakeContext = Callable[..., RunContext]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation=80, options=DATASET["options"])


@pytest.fixture
def make_context(digits: ImageData, tmp_path: Path) -> MakeContext:
    def make(data: ImageData = digits, **changes: Any) -> RunContext:
        home = SweepHome(tmp_path / "home", "s")
        home.ledger.folder.mkdir(parents=True, exist_ok=True)
        return RunContext(
            plan=make_plan(check({**SPEC, **changes}), data),
            data=data,
            sweep_home=home,
            progress=Progress("s", quiet=True),
            shutdown=ShutdownRequest(home.stop_request),
        )

    return make


def train(context: RunContext, number: int = 0) -> TrialRecord:
    """Trains a trial of the plan and writes its record."""
    environment = TrialEnvironment(
        folder=str(context.sweep_home.folder),
        views=context.views,
        training=context.spec.training,
        evaluation=evaluation_identity(context.data),
    )
    return run_to_end(context.plan.trials[number], environment, context.data)


def statuses(standing: Standing) -> list[tuple[str, bool]]:
    return [(each.status, each.trains) for _trial, each in standing.trials.values()]


def test_finished_failed_and_missing_trials_are_told_apart(make_context: MakeContext) -> None:
    context = make_context()
    train(context)
    failed = context.plan.trials[1]
    context.sweep_home.ledger.write(TrialRecord(trial=failed, status="failed", reason="diverged"))
    standing = find_standing(context)
    assert statuses(standing) == [("finished", False), ("failed", False), ("missing", True)]
    assert [trial.key for trial in standing.to_train] == [context.plan.trials[2].key]
    assert standing.student_macs == pytest.approx(context.plan.cost.students / 3)
    assert standing.lines() == [
        "done before: 2 of 3 trials (1 finished, 1 failed)",
        "missing: 1 trials",
        f"left: 1 trials, {standing.student_macs:.3g} MACs, 33 % of the plan, and 0 MACs of teachers",
    ]


def test_a_finished_sweep_has_nothing_left(make_context: MakeContext) -> None:
    context = make_context(search={"trials_per_method": 1, "max_epochs": 1})
    train(context)
    standing = find_standing(context)
    assert standing.lines()[-1] == "left: no trial; the same command writes the report again"
    document = standing.to_dict([context.plan.trials[0].key])
    assert json.loads(json.dumps(document)) == document
    assert document["finished"] == 1
    assert document["left"] == {"trials": 0, "student_macs": 0, "teacher_macs": 0, "views": 0}
    assert document["further_trials"] == []


def test_another_training_set_makes_every_trial_outdated(make_context: MakeContext, digits: ImageData) -> None:
    train(make_context())
    images = 255 - digits.train.images
    changed = dataclasses.replace(digits, train=dataclasses.replace(digits.train, images=images), fingerprint="other")
    standing = find_standing(make_context(changed))
    assert statuses(standing) == [("outdated", True), ("missing", True), ("missing", True)]
    assert "outdated: 1 trials (scratch on mlp): the data set, a teacher or the method has changed" in standing.lines()


def test_another_test_split_is_only_read_again(make_context: MakeContext, digits: ImageData) -> None:
    train(make_context())
    images, labels = digits.test.images.numpy()[:50].copy(), digits.test.labels.numpy()[:50].copy()
    other = dataclasses.replace(digits, read_test=lambda: (images, labels), _test=None)
    standing = find_standing(make_context(other))
    assert statuses(standing)[0] == ("outdated", False)
    assert any("the stored student is evaluated again" in line for line in standing.lines())


def test_damage_is_named_and_nothing_is_moved(make_context: MakeContext) -> None:
    context = make_context()
    record, damaged = train(context), context.plan.trials[1]
    (context.sweep_home.folder / str(record.weights)).write_bytes(b"")
    context.sweep_home.ledger.path(damaged.key).write_bytes(b"nothing")
    before = sorted(path for path in context.sweep_home.folder.rglob("*"))
    standing = find_standing(context)
    assert statuses(standing)[:2] == [("outdated", True), ("outdated", True)]
    assert standing.of(record.trial.key).why == "its stored weights are damaged or missing"
    assert standing.of(damaged.key).why == "its record is damaged"
    assert sorted(path for path in context.sweep_home.folder.rglob("*")) == before


def test_a_stopped_trial_runs_to_its_end_where_no_scheduler_stops_any(make_context: MakeContext) -> None:
    context = make_context()
    stopped = TrialRecord(trial=context.plan.trials[0], status="stopped")
    context.sweep_home.ledger.write(stopped)
    assert statuses(find_standing(context))[0] == ("outdated", True)
    asha = make_context(search={**SPEC["search"], "scheduler": "asha"})
    asha.sweep_home.ledger.write(TrialRecord(trial=asha.plan.trials[0], status="stopped"))
    assert statuses(find_standing(asha))[0] == ("stopped", False)


def test_an_edited_method_runs_again(make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from stillhouse.distill.method import Card, Method\n\n\n"
        "class Edited(Method):\n    card = Card(title='x', equations='x')\n"
    )
    (tmp_path / "edited_method.py").write_text(code)
    from stillhouse import methods

    methods.add_folder(tmp_path)
    context = make_context(methods={"edited_method": {}}, search={"trials_per_method": 1, "max_epochs": 1})
    numbers = [number for number, trial in enumerate(context.plan.trials) if trial.method == "edited_method"]
    train(context, numbers[0])
    monkeypatch.setattr("stillhouse.methods.version_in_key", lambda name: "edited" if name == "edited_method" else None)
    later = make_context(methods={"edited_method": {}}, search={"trials_per_method": 1, "max_epochs": 1})
    (trial,) = [trial for trial in later.plan.trials if trial.method == "edited_method"]
    standing = find_standing(later).of(trial.key)
    assert (standing.status, standing.trains) == ("outdated", True)
    assert standing.why == "the code of its method, operator or models has changed"


def test_teacher_and_sealed_views_are_found(make_context: MakeContext, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"methods": {"kd": {}}, "views": {"policy": ["crop"], "count": 3}}
    changes["search"] = {"trials_per_method": 1, "max_epochs": 3}
    untrained = make_context(teachers={"big": {"model": "lenet"}}, **changes)
    (teacher,) = find_standing(untrained).teachers
    assert (teacher.found, teacher.views, teacher.left) == (False, {"logits": (0, 3)}, 3)
    weights = tmp_path / "big.safetensors"
    save_weights(build_model("lenet", num_classes=10, input_shape=(1, 8, 8)), weights, {})
    given = make_context(teachers={"big": {"model": "lenet", "weights": str(weights)}}, **changes)
    definition = definition_in(given, "big")
    content = TeacherLibrary(tmp_path / "home" / "teachers").content(definition, given.data, given.views)
    (demand,) = plan_demand(given.plan, given.data)["big"].values()
    base = base_identity(weights_hash=str(content), definition=definition, data=given.data, views=given.views, dtype="float32")
    store, view = KnowledgeStore(tmp_path / "home" / "knowledge"), min(demand.views)
    rows = given.data.train.labels.numpy()[:, None].repeat(10, axis=1).astype("float32")
    with store.writer(view_identity(base, demand.kind, view), rows=len(rows), shape=(10,), dtype="float32") as writer:
        writer.put(np.arange(len(rows)), rows)
        writer.commit()
        writer.seal()
    standing = find_standing(given)
    (teacher,) = standing.teachers
    assert (teacher.found, teacher.views, teacher.left) == (True, {"logits": (1, 3)}, 2)
    macs = given.plan.teachers[0].size.macs
    assert standing.teacher_macs == 2 * len(rows) * macs
    assert "teacher big: found; 1 of 3 views of logits are sealed" in standing.lines()


def test_the_dry_run_of_the_command_line_has_a_status_for_each_trial(make_context: MakeContext, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(SPEC))
    command = ["sweep", str(spec), "--dry-run", "--home", str(tmp_path / "home"), "--json"]
    new = json.loads(CliRunner().invoke(app, command).stdout)
    assert [(each["status"], each["why"]) for each in new["trials"]] == [("missing", None)] * 3
    assert new["standing"] is None
    train(make_context())
    document = json.loads(CliRunner().invoke(app, command).stdout)
    assert [each["status"] for each in document["trials"]] == ["finished", "missing", "missing"]
    assert document["standing"]["finished"] == 1
    assert document["standing"]["left"]["trials"] == 2
    assert "done before: 1 of 3 trials (1 finished)" in CliRunner().invoke(app, command[:-1]).stdout
