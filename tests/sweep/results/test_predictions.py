"""The file of predictions: what the winners returned, sample by sample, and nothing of the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.execution.examination import outputs_file
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results import predictions
from stillhouse.sweep.results.predictions import drop_outputs, write_predictions

TARGETS = np.array([2, 0, 1])


@pytest.fixture
def facts() -> SweepFacts:
    return SweepFacts(name="s", spec={}, dataset={"name": "digits"}, baseline="scratch", planned=3)


@pytest.fixture
def records(make_record: Callable[..., TrialRecord]) -> list[TrialRecord]:
    """Two settings of one method, of which `a` wins, the control `c`, and a trial that failed."""

    def finished(key: str, value: float, **trial: Any) -> TrialRecord:
        return make_record(key, (value,), trial=trial, metrics={"validation_accuracy": value, "test_accuracy": value})

    return [
        finished("a", 0.75, method="m", hyperparameters={"weight": 1.0}, seed=3),
        finished("b", 0.5, method="m", hyperparameters={"weight": 2.0}),
        finished("c", 0.25),
        make_record("d", (), status="failed", reason="diverged"),
    ]


def store(home: SweepHome, key: str, logits: NDArray[np.float32]) -> None:
    path = home.folder / outputs_file(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"logits": logits}, path)


def outputs(seed: int, rows: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def test_each_winner_has_one_row_for_each_sample(tmp_path: Path, facts: SweepFacts, records: list[TrialRecord]) -> None:
    home = SweepHome(tmp_path, "s")
    for seed, key in enumerate("abc"):
        store(home, key, outputs(seed))
    assert write_predictions(facts, records, TARGETS, home) is None
    table = parquet.read_table(home.report / "predictions.parquet").to_pydict()
    assert table["trial"] == ["a"] * 3 + ["c"] * 3
    assert table["method"] == ["m"] * 3 + ["scratch"] * 3
    assert table["seed"] == [3] * 3 + [0] * 3
    assert table["sample"] == [0, 1, 2] * 2
    assert table["target"] == [2, 0, 1] * 2
    assert np.array_equal(np.array(table["logits"], np.float32), np.concatenate([outputs(0), outputs(2)]))
    drop_outputs(facts, records, home)
    assert sorted(path.stem for path in (home.folder / "outputs").iterdir()) == ["a", "c"]
    assert not [path for path in home.report.iterdir() if path.name.startswith(".")]


def test_what_is_missing_damaged_or_of_another_test_split_is_left_out(
    tmp_path: Path, facts: SweepFacts, records: list[TrialRecord]
) -> None:
    home = SweepHome(tmp_path, "s")
    assert write_predictions(facts, records, TARGETS, home) is None
    store(home, "a", outputs(0, rows=5))
    assert write_predictions(facts, records, TARGETS, home) is None
    assert not (home.report / "predictions.parquet").exists()
    (home.folder / outputs_file("a")).write_bytes(b"no weights")
    store(home, "c", outputs(2))
    assert write_predictions(facts, records, TARGETS, home) is None
    assert set(parquet.read_table(home.report / "predictions.parquet").to_pydict()["trial"]) == {"c"}


def test_targets_of_several_numbers_are_lists(tmp_path: Path, facts: SweepFacts, records: list[TrialRecord]) -> None:
    home, targets = SweepHome(tmp_path, "s"), np.arange(6, dtype=np.float32).reshape(3, 2)
    store(home, "a", outputs(0))
    write_predictions(facts, records, targets, home)
    assert parquet.read_table(home.report / "predictions.parquet").to_pydict()["target"] == [[0, 1], [2, 3], [4, 5]]


def test_too_much_for_one_file_is_a_sentence_and_stays_where_it_is(
    tmp_path: Path, facts: SweepFacts, records: list[TrialRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = SweepHome(tmp_path, "s")
    store(home, "a", outputs(0))
    monkeypatch.setattr(predictions, "MAX_BYTES", 10)
    note = write_predictions(facts, records, TARGETS, home)
    assert note is not None
    assert str(home.folder / "outputs") in note
    assert not home.report.exists()
