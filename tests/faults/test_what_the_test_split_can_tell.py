"""A reader sees how large the test split is, what guessing reaches on it, and how far its size alone leaves each value open."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stillhouse.cli.output import answer_line
from stillhouse.cli.sweeps import _print_results
from stillhouse.report import Source, write_comparison, write_report
from stillhouse.report.comparison import differences
from stillhouse.report.narrative import about_data
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import StudentChoice, SweepFacts, TeacherFacts, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results

DATA: dict[str, Any] = {
    "name": "image_folder",
    "folder": "signs",
    "num_classes": 3,
    "class_names": ["fist", "palm", "thumb"],
    "majority": {split: {"class": "palm", "share": 0.5} for split in ("train", "validation", "test")},
    "train_samples": 30,
    "validation_samples": 10,
    "test_samples": 10,
    "fingerprint": "f0",
}


@pytest.fixture
def facts() -> Callable[..., SweepFacts]:
    def make(name: str = "made", *, validation: float = 0.9, **changes: Any) -> SweepFacts:
        teacher = {"name": "big", "model": "lenet", "key": "k", "parameters": 1_000, "size_bytes": 4_000, "macs": 9}
        return SweepFacts(
            name=name,
            spec={},
            dataset=DATA | changes,
            baseline="scratch",
            planned=1,
            teachers=[TeacherFacts.model_validate({**teacher, "validation_accuracy": validation, "test_accuracy": 0.9})],
            objectives={"validation_accuracy": "max", "parameters": "min"},
        )

    return make


def trial(key: str = "a", *, test: float = 0.8, validation: float = 0.8, seed: int = 0) -> TrialRecord:
    sizes = {"parameters": 100.0, "size_bytes": 400.0, "macs": 50.0, "latency_ms": 0.5}
    return TrialRecord(
        trial=Trial(key=key, student=StudentChoice(name="mlp", model="mlp"), method="scratch", seed=seed, epochs=1),
        status="finished",
        metrics={**sizes, "validation_accuracy": validation, "test_accuracy": test},
    )


# 8 of 10: Wilson's interval is 0.4902 to 0.9433, in every table of it; 9 of 10: 0.5958 to 0.9821.
RANGE = "49.0% to 94.3%"


def test_page_files_and_answer_have_the_interval_with_one_seed(facts: Callable[..., SweepFacts], tmp_path: Path) -> None:
    files = write_report(facts(), [trial()], tmp_path)
    page = files.page.read_text(encoding="utf-8")
    assert f"80.0% on test data (one seed, so no interval over seeds; {RANGE} by the size of the test split, 10)" in page
    assert f"80.00% ({RANGE})" in page
    assert "test 90.00% (59.6% to 98.2% by the size of the test split)" in page
    assert files.best[0]["test_split_interval"] == pytest.approx([0.49016, 0.94332], abs=1e-5)
    assert "one seed; by the size of the test split 0.4902 to 0.9433" in answer_line(files.best[0], ACCURACY)
    for table in (pd.read_csv(files.csv), pd.read_parquet(files.table)):
        assert table["test_accuracy_low"].tolist() == pytest.approx([0.49016], abs=1e-5)
        assert table["test_accuracy_high"].tolist() == pytest.approx([0.94332], abs=1e-5)


def test_more_seeds_do_not_shrink_it(facts: Callable[..., SweepFacts], tmp_path: Path) -> None:
    records = [trial(str(seed), seed=seed, test=0.8 + (seed - 1) / 10) for seed in range(3)]
    assert f"n = 3; {RANGE} by the size" in write_report(facts(), records, tmp_path).page.read_text(encoding="utf-8")


def test_the_terminal_and_its_document_have_it(
    facts: Callable[..., SweepFacts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_home = SweepHome(tmp_path, "made")
    sweep_home.write_spec({"name": "made"})
    sweep_home.write_facts(facts())
    sweep_home.ledger.write(trial())
    results = Results.read(tmp_path, "made")
    _print_results(results)
    lines = capsys.readouterr().out.splitlines()
    assert "95% by test split" in lines[0]
    assert "0.8000 0.4902 to 0.9433" in " ".join(lines[1].split())
    assert "test accuracy 0.9000 (0.5958 to 0.9821)" in next(line for line in lines if line.startswith("teacher"))
    document = json.loads(json.dumps(results.to_json()))
    assert document["pareto"][0]["test_split_interval"] == pytest.approx([0.49016, 0.94332], abs=1e-5)
    assert document["teachers"][0]["test_split_interval"] == pytest.approx([0.59585, 0.98213], abs=1e-5)


def test_test_split_classes_and_the_most_common_class_are_named(facts: Callable[..., SweepFacts], tmp_path: Path) -> None:
    words = (
        "The test split has 10 samples of 3 classes (fist, palm and thumb), next to 30 for training and 10 for validation. "
        "Its most common class, palm, is 50.0% of it."
    )
    assert about_data(facts()) == words
    assert words in write_report(facts(), [trial()], tmp_path).page.read_text(encoding="utf-8")


def test_facts_of_earlier_releases_have_no_such_words_and_no_empty_columns_elsewhere(
    facts: Callable[..., SweepFacts], tmp_path: Path
) -> None:
    earlier = facts().model_copy(update={"dataset": {"name": "digits", "fingerprint": "f"}})
    assert about_data(earlier) == ""
    files = write_report(earlier, [trial()], tmp_path)
    assert "by the size of the test split, " not in files.page.read_text(encoding="utf-8")
    assert files.best[0]["test_split_interval"] is None


def test_a_metric_that_is_no_share_has_no_such_interval(facts: Callable[..., SweepFacts], tmp_path: Path) -> None:
    metric = Metric(name="error", direction="min", label="mean error")
    changed = facts().model_copy(update={"metric": metric, "objectives": {}, "teachers": []})
    record = trial().model_copy(update={"metrics": {"parameters": 9.0, "validation_error": 0.5, "test_error": 0.5}})
    files = write_report(changed, [record], tmp_path)
    assert files.best[0]["test_split_interval"] is None
    assert "test_error_low" not in pd.read_csv(files.csv)


def test_a_teacher_that_is_worse_than_the_best_student_is_part_of_the_answer(
    facts: Callable[..., SweepFacts], tmp_path: Path
) -> None:
    words = "The teacher big is worse than the best student: on validation data 70.0% against 80.0%."
    page = write_report(facts(validation=0.7), [trial()], tmp_path / "worse").page.read_text(encoding="utf-8")
    assert words in page.partition('id="tradeoff-section"')[0]
    better = write_report(facts(), [trial()], tmp_path / "better").page.read_text(encoding="utf-8")
    assert "is worse than the best student" not in better


def test_two_folders_of_one_name_are_told_apart_by_their_content(facts: Callable[..., SweepFacts], tmp_path: Path) -> None:
    one, other = facts("a", fingerprint="0123456789abcdef"), facts("b", fingerprint="fedcba9876543210", train_samples=7)
    (sentence,) = differences([Source(facts=one, records=[]), Source(facts=other, records=[])])
    assert "a on signs (image_folder), 30 training images, fingerprint 0123456789ab" in sentence
    assert "b on signs (image_folder), 7 training images, fingerprint fedcba987654" in sentence
    same = facts("c", fingerprint="0123456789abcdef")
    assert differences([Source(facts=one, records=[]), Source(facts=same, records=[])]) == []
    write_comparison([Source(facts=one, records=[trial()]), Source(facts=other, records=[trial("b")])], tmp_path / "out")
