"""Students that learned nothing are marked in the document of `--json`, in the table, in the summary of a run and in MLflow."""

import json
from pathlib import Path

import pytest

from stillhouse.cli.sweeps import _print_results
from stillhouse.report.trials_table import trials_table
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results
from stillhouse.tracking.entries import record_digest, trial_entry

# A quarter of the validation images has the most common class.
FACTS = SweepFacts(
    name="signs",
    spec={"training": {"learning_rate": 0.2, "gradient_clip": 5.0, "batchnorm_statistics": "recomputed", "warmup_epochs": 1}},
    dataset={"name": "image_folder", "num_classes": 4, "trivial": {"validation": 0.25, "test": 0.25}},
    baseline="scratch",
    planned=4,
    objectives={"validation_accuracy": "max", "parameters": "min"},
)


def record(key: str, value: float, collapsed: bool | None, status: str = "finished") -> TrialRecord:
    metrics = {"validation_accuracy": value, "test_accuracy": value, "parameters": 100.0, "size_bytes": 400.0}
    trial = Trial(key=key, student=StudentChoice(name="lenet", model="lenet"), method="scratch", seed=len(key), epochs=2)
    return TrialRecord.model_validate(
        {"trial": trial, "status": status, "epochs_run": 2, "metrics": metrics, "collapsed": collapsed}
    )


# "noise" is better than 0.25, but was marked at its end by the number of validation images; "old" has no mark, as in the first
# release, and is judged by its value.
RECORDS = (record("good", 0.75, False), record("noise", 0.275, True), record("old", 0.25, None), record("oldgood", 0.5, None))
COLLAPSED = ["noise", "old"]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    home = SweepHome(tmp_path, "signs")
    home.write_spec({"name": "signs"})
    home.write_facts(FACTS)
    for each in RECORDS:
        home.ledger.write(each)
    return Results.read(tmp_path, "signs")


def test_results_and_their_document_list_them(results: Results) -> None:
    assert sorted(each.trial.key for each in results.collapsed) == COLLAPSED
    document = json.loads(json.dumps(results.to_json()))
    assert sorted(document["collapsed"]) == COLLAPSED


def test_the_table_has_a_last_column_for_them(results: Results) -> None:
    table = trials_table(FACTS, RECORDS)
    assert dict(zip(table["trial"], table["collapsed"], strict=True)) == {
        each.trial.key: each.trial.key in COLLAPSED for each in RECORDS
    }
    assert results.table()["collapsed"].sum() == 2


def test_a_failed_trial_is_not_one_of_them() -> None:
    assert not trials_table(FACTS, [record("lost", 0.0, None, status="failed")])["collapsed"].any()


def test_the_summary_of_a_run_names_them_with_what_to_change(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    _print_results(results)
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[-1] for line in printed.splitlines() if line.startswith(("good ", "noise ", "old "))}
    assert rows == {"good": "pareto", "noise": "collapsed", "old": "collapsed"}
    assert "collapsed: noise scratch lenet: validation accuracy 0.2750" in printed
    (advice,) = [line for line in printed.splitlines() if line.startswith("2 students are no better than")]
    assert advice.endswith("train for more epochs, or lower training.learning_rate (it is 0.2)")


def test_mlflow_has_a_tag_for_them_alone() -> None:
    tags = {each.trial.key: trial_entry(each, FACTS).tags.get("collapsed") for each in RECORDS}
    assert tags == {"good": None, "noise": "true", "old": None, "oldgood": None}


def test_a_record_without_a_mark_keeps_the_digest_by_which_mlflow_knows_it() -> None:
    without, marked = record("k", 0.5, None), record("k", 0.5, True)
    assert record_digest(without) != record_digest(marked)
    assert "collapsed" not in json.loads(without.model_dump_json(exclude_none=True))
