"""`dataset.validation: 0`, to repeat a published result: all images train, nothing is chosen, and every place says so."""

import copy
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.sweeps import _print_results
from stillhouse.data.datasets import load_dataset
from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.data.images import channel_statistics
from stillhouse.data.views import Views
from stillhouse.errors import SpecError, UsageError
from stillhouse.report import parse_budget
from stillhouse.spec.load import spec_to_dict
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_runner import run_to_end
from stillhouse.sweep.facts import initial_facts
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check, check_file
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.export import export_trial
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest
from stillhouse.sweep.sweep import Sweep
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import TeacherLibrary

SPEC: dict[str, Any] = {
    "name": "again",
    "dataset": {"name": "digits", "validation": 0, "options": {"limit": 200, "limit_test": 100}},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"scratch": {}, "kd": "defaults"},
    "search": {"max_epochs": 8, "confirm_seeds": 1},
    "training": {"optimizer": "adamw", "learning_rate": 0.02, "batch_size": 32},
    # Nobody listens there, which costs a sweep nothing.
    "tracking": {"uri": "http://127.0.0.1:9"},
}
PAIRS = Path(__file__).parents[2] / "search_spaces" / "cifar100_pairs.yaml"


def with_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    spec = copy.deepcopy(SPEC)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            spec[section][name] = value
        else:
            spec[section] = value
    return spec


def test_all_images_train_and_none_validate() -> None:
    whole = load_dataset("digits", validation=0)
    assert len(whole.validation) == 0
    # 1,797 digits, of which the last 360 are the test split.
    assert len(whole.train) == 1_437
    assert (whole.mean, whole.std) == channel_statistics(whole.train.images.numpy())
    assert whole.for_checks is whole.train


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (
            {"search.scheduler": "asha"},
            "must be > 0 with search.scheduler: asha, which stops trials by validation results, got 0",
        ),
        ({"search.scheduler": "median"}, "must be > 0 with search.scheduler: median"),
        (
            {"search.algorithm": "tpe"},
            "must be > 0 with search.algorithm: tpe, which chooses trials by validation results, got 0",
        ),
        (
            {"methods": {"kd": {"temperature": {"choice": [1.0, 4.0]}}}, "search.algorithm": "grid"},
            "must be > 0 to choose between settings, got 0: kd has 2 with mlp;",
        ),
        ({"methods": {"kd": {}}}, "must be > 0 to choose between settings, got 0: kd has 8 with mlp;"),
        (
            {"teachers": dict.fromkeys(("one", "two"), SPEC["teachers"]["big"])},
            "must be > 0 to choose between settings, got 0: kd has 2 with mlp;",
        ),
        (
            {"students": [{"model": "mlp", "hidden": [16], "width": {"choice": [0.5, 1.0]}}]},
            "must be > 0 to choose between settings, got 0: scratch has 2 with mlp;",
        ),
    ],
)
def test_a_choice_by_validation_results_is_refused_in_one_sentence(changes: Mapping[str, Any], rule: str) -> None:
    with pytest.raises(SpecError) as refused:
        check(with_changes(changes))
    (problem,) = refused.value.problems
    assert str(problem).startswith(f"dataset.validation {rule}")


@pytest.mark.parametrize("value", [-1, -0.5, 1.0, True])
def test_a_negative_number_is_no_number_of_images(value: Any) -> None:
    with pytest.raises(SpecError, match=r"dataset\.validation must be a number of samples >= 0"):
        check(with_changes({"dataset.validation": value}))


@pytest.mark.parametrize(
    "pair", [(), ("name=cifar100-x4", "teachers.teacher.model=resnet32x4", "students=[resnet8x4]")], ids=["first", "second"]
)
def test_the_published_pairs_train_on_all_images_and_choose_nothing(pair: tuple[str, ...], tmp_path: Path) -> None:
    spec = check_file(PAIRS, [f"dataset.root={tmp_path}", *pair])
    assert spec.dataset.validation == 0
    assert {"scratch", "kd", "fitnets", "attention_transfer"} <= set(spec.methods or {})
    # As in the published training, not as in the defaults.
    for recipe in (spec.training, spec.teachers["teacher"].train):
        assert (recipe.optimizer, recipe.weight_decay, recipe.gradient_clip) == ("sgd", 5e-4, None)
        assert recipe.milestones == (0.625, 0.75, 0.875)
        assert recipe.batchnorm_statistics == "running"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A whole sweep, its trials in this process: those of the search, and those of the confirm phase."""
    home = tmp_path_factory.mktemp("home")
    spec = check({**SPEC, "teachers": {}, "methods": {"scratch": {}, "label_smoothing": "defaults"}})
    data = load_dataset("digits", validation=0, options=SPEC["dataset"]["options"])
    sweep_home, plan = SweepHome(home, "again"), make_plan(spec, data)
    context = RunContext(
        plan=plan,
        data=data,
        sweep_home=sweep_home,
        progress=Progress("again", quiet=True),
        shutdown=ShutdownRequest(sweep_home.stop_request),
    )
    facts = initial_facts(context, None, "stillhouse sweep again.yaml")
    views = make_views(spec, data)
    environment = TrialEnvironment(
        folder=str(sweep_home.folder), views=views, training=spec.training, evaluation=evaluation_identity(data)
    )
    sweep_home.write_spec(spec_to_dict(spec, secrets=True))
    sweep_home.write_facts(facts)
    records = [run_to_end(trial, environment, data) for trial in plan.trials]
    records += [run_to_end(trial, environment, data) for trial in plan.trials_to_confirm(records)]
    return Results(facts=facts, records=records, sweep_home=sweep_home, planned=len(records))


def test_each_trial_runs_and_is_confirmed_and_has_no_validation_value(results: Results) -> None:
    assert [record.reason for record in results.records if record.status != "finished"] == []
    assert sorted((each.trial.method, each.trial.seed) for each in results.records) == [
        ("label_smoothing", 0),
        ("label_smoothing", 1),
        ("scratch", 0),
        ("scratch", 1),
    ]
    assert results.table()["validation_accuracy"].isna().all()
    assert results.table()["test_accuracy"].notna().all()
    for record in results.records:
        assert record.collapsed is False
        assert math.isfinite(record.metrics["nll"])
        # A temperature would have to be fitted on validation data.
        assert "ece_scaled" not in record.metrics


def test_nothing_is_chosen_and_the_gain_is_known(results: Results, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert results.best() is None
    assert results.best_numbers() == {}
    assert results.front() == []
    document = results.to_json()
    assert document["pareto"] == []
    (gain,) = document["gains"]
    by_seed = {(each.trial.method, each.trial.seed): each.metrics["test_accuracy"] for each in results.records}
    # Of the fresh seed.
    assert gain["gain"] == pytest.approx(by_seed["label_smoothing", 1] - by_seed["scratch", 1])
    _print_results(results)
    assert "nan" not in capsys.readouterr().out
    page = results.report(tmp_path).page.read_text(encoding="utf-8")
    assert "no validation split (dataset.validation: 0), so nothing is chosen" in page
    assert "best student is" not in page
    assert "Learning curves" not in page
    assert "NaN" not in page.partition("<script")[0]
    assert results.report(tmp_path, [parse_budget("parameters=100k")]).best == ()


def test_a_run_that_has_everything_repeats_the_page(results: Results) -> None:
    again = Sweep.named("again", home=results.home).run()
    assert again.reused == len(results.records)
    assert again.files is not None


def test_a_student_is_exported_by_its_key_and_not_as_the_best(results: Results, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no validation split, so it chose no best student; name a trial by its key"):
        export_trial(results.home, "again", "best", tmp_path / "best")
    exported = export_trial(results.home, "again", results.records[0].trial.key, tmp_path / "one")
    # Compared on training images.
    assert exported["agreement"]["onnx"]["images"] > 0


def test_a_teacher_is_trained_and_has_no_validation_value(tmp_path: Path) -> None:
    data = load_dataset("digits", validation=0, options=SPEC["dataset"]["options"])
    definition = TeacherDefinition(name="big", model="lenet", epochs=1, num_classes=10, input_shape=(1, 8, 8))
    told: list[str] = []
    obtain = partial(TeacherLibrary(tmp_path).obtain, definition, data, Views((), 1, data.input_shape, len(data.train)))
    assert obtain(progress=told.append).validation_value is None
    assert obtain(progress=told.append).trained_now is False
    assert not [line for line in told if "validation" in line]
