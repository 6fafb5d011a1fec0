from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from stillhouse.report import Source, write_comparison
from stillhouse.report.comparison import differences
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.size_bound import Budget

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]
Sweep = Callable[..., list[TrialRecord]]


def seeds(record: Make, method: str, mean: float, sweep: str, wobble: float = 0.001) -> list[TrialRecord]:
    return [
        record(method, seed=seed, test=mean + wobble * (seed - 1) ** (1 + (method == "b")), key=f"{sweep}{method}{seed}")
        for seed in range(3)
    ]


def test_the_best_of_all_sweeps_on_the_same_data_is_named_with_its_sweep(facts: Facts, record: Make, tmp_path: Path) -> None:
    sources = [
        Source(facts=facts(name="first"), records=seeds(record, "a", 0.80, "x")),
        Source(facts=facts(name="second"), records=seeds(record, "b", 0.95, "y")),
    ]
    files = write_comparison(sources, tmp_path)
    assert [(each["sweep"], each["method"]) for each in files.best] == [("second", "b")]
    page = files.page.read_text()
    assert "trained with b in sweep second" in page
    assert "It is better than its one rival of at most its size: the 95% interval of each difference lies above zero." in page


def test_sweeps_on_different_data_are_not_ranked_against_each_other(facts: Facts, record: Make, tmp_path: Path) -> None:
    other = {"name": "other_images", "fingerprint": "beef"}
    sources = [
        Source(facts=facts(name="first"), records=[record("a", test=0.5)]),
        Source(facts=facts(name="second", dataset=other), records=[record("b", test=0.9)]),
    ]
    assert len(differences(sources)) == 1
    files = write_comparison(sources, tmp_path)
    assert "their results cannot be compared" in files.page.read_text()
    assert [each["sweep"] for each in files.best] == ["first", "second"]


def test_two_image_folders_are_told_apart_by_their_names(facts: Facts) -> None:
    sources = [
        Source(facts=facts(name=name, dataset={"name": "image_folder", "folder": folder, "fingerprint": folder}), records=[])
        for name, folder in (("a", "signs"), ("b", "flowers"))
    ]
    (sentence,) = differences(sources)
    assert "a on signs (image_folder) and b on flowers (image_folder)" in sentence


def test_two_test_splits_of_the_same_training_data_are_named(facts: Facts) -> None:
    split = [{"name": "digits", "fingerprint": "f", "evaluation": {"test": test}} for test in ("a" * 32, "b" * 32)]
    sources = [Source(facts=facts(name=name, dataset=data), records=()) for name, data in zip("pq", split, strict=True)]
    (sentence,) = differences(sources)
    assert "different test splits (p on aaaaaaaa and q on bbbbbbbb)" in sentence
    assert not differences(
        [sources[0], Source(facts=facts(name="r", dataset={"name": "digits", "fingerprint": "f"}), records=())]
    )


def test_a_trial_that_two_sweeps_share_is_no_rival_of_itself(facts: Facts, record: Make, tmp_path: Path) -> None:
    shared = [record("a", seed=seed, test=0.9 + seed / 1000) for seed in range(3)]
    sources = [Source(facts=facts(name=name), records=shared) for name in ("first", "second")]
    (answer,) = write_comparison(sources, tmp_path).best
    assert answer["tied_with"] == []


def test_the_tables_hold_every_trial_of_every_sweep_with_the_sweep_first(facts: Facts, sweep: Sweep, tmp_path: Path) -> None:
    sources = [
        Source(facts=facts(name=name), records=sweep(trials_per_pair=1, seed=number)) for number, name in enumerate("ab")
    ]
    files = write_comparison(sources, tmp_path)
    table = pq.read_table(files.table)
    assert table.column_names[0] == "sweep"
    assert table.column("sweep").to_pylist() == ["a"] * len(sources[0].records) + ["b"] * len(sources[1].records)
    assert len(pd.read_csv(files.csv)) == table.num_rows


def test_a_setting_that_is_a_number_here_and_a_word_there_becomes_text(facts: Facts, record: Make, tmp_path: Path) -> None:
    sources = [
        Source(facts=facts(name="a"), records=[record(hyperparameters={"mode": 3, "rate": 1})]),
        Source(facts=facts(name="b"), records=[record(hyperparameters={"mode": "soft", "rate": 0.5})]),
    ]
    table = pd.read_parquet(write_comparison(sources, tmp_path).table)
    assert table["mode"].tolist() == ["3", "soft"]
    assert table["rate"].tolist() == [1.0, 0.5]


def test_sweeps_without_results_are_a_page_that_says_so(facts: Facts, record: Make, tmp_path: Path) -> None:
    failed = record(status="failed", test=None, reason="out of memory")
    sources = [Source(facts=facts(name="empty"), records=[]), Source(facts=facts(name="broken"), records=[failed])]
    files = write_comparison(sources, tmp_path)
    page = files.page.read_text()
    assert "No trial of empty and broken finished with a test accuracy" in page
    assert "out of memory" in page
    assert files.best == ()


def test_a_budget_that_no_sweep_meets_is_said_for_all_of_them(facts: Facts, record: Make, tmp_path: Path) -> None:
    sources = [Source(facts=facts(name=name), records=[record()]) for name in ("a", "b")]
    files = write_comparison(sources, tmp_path, [Budget("parameters", 5)])
    assert files.best == ({"question": "budget", "budget": {"parameters": 5}, "trial": None},)
    assert "In none of a and b does a finished student fit 5 parameters" in files.page.read_text()
