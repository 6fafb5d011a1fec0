import io
import json
import math
from collections.abc import Callable

import pandas as pd
import pyarrow.parquet as pq

from stillhouse.report.trials_table import csv_bytes, described_table, parquet_bytes, trials_table
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]
Sweep = Callable[..., list[TrialRecord]]

CONTRACT = [
    "trial",
    "method",
    "student",
    "teacher",
    "seed",
    "parameters",
    "size_bytes",
    "macs",
    "latency_ms",
    "validation_accuracy",
    "test_accuracy",
]


def test_the_table_begins_with_the_columns_that_scripts_rely_on_then_one_per_hyperparameter(facts: Facts, sweep: Sweep) -> None:
    table = trials_table(facts(), sweep())
    assert table.columns.tolist()[:11] == CONTRACT
    searched = ["hint_weight", "map_weight", "peer_weight", "sigma", "soft_weight", "temperature"]
    assert table.columns.tolist()[11:18] == [*searched, "status"]


def test_there_is_one_row_per_trial_in_the_order_given(facts: Facts, sweep: Sweep) -> None:
    records = sweep()
    assert trials_table(facts(), records)["trial"].tolist() == [record.trial.key for record in records]


def test_a_hyperparameter_named_like_another_column_gets_a_prefix(facts: Facts, record: Make) -> None:
    table = trials_table(facts(), [record(seed=3, hyperparameters={"seed": 7, "status": "warm", "temperature": 4.0})])
    row = table.iloc[0]
    assert (row["seed"], row["hyperparameter_seed"]) == (3, 7)
    assert (row["status"], row["hyperparameter_status"]) == ("finished", "warm")
    assert row["temperature"] == 4.0


def test_an_option_and_a_metric_never_take_a_hyperparameters_column(facts: Facts, record: Make) -> None:
    made = record(hyperparameters={"student_width": 1.5, "f1": 2.0}, options={"width": 0.5}, metrics={"f1": 0.75})
    row = trials_table(facts(), [made]).iloc[0]
    assert (row["student_width"], row["student_student_width"]) == (1.5, 0.5)
    assert (row["f1"], row["metric_f1"]) == (2.0, 0.75)


def test_compression_and_drop_are_against_the_trials_own_teacher(facts: Facts, record: Make) -> None:
    row = trials_table(facts(), [record(parameters=8_557, test=0.9)]).iloc[0]
    assert math.isclose(row["compression_ratio"], 855_770 / 8_557)
    assert math.isclose(row["accuracy_drop"], 0.941 - 0.9, abs_tol=1e-12)


def test_a_failed_trial_has_missing_numbers_and_its_reason(facts: Facts, record: Make) -> None:
    row = trials_table(facts(), [record(test=None, status="failed", reason="loss is NaN")]).iloc[0]
    assert math.isnan(row["test_accuracy"])
    assert row["reason"] == "loss is NaN"


def test_an_empty_sweep_still_has_typed_columns(facts: Facts) -> None:
    table = trials_table(facts(), [])
    assert len(table) == 0
    assert table.columns.tolist()[:11] == CONTRACT
    assert str(table["parameters"].dtype) == "Int64"
    assert str(table["test_accuracy"].dtype) == "float64"


def test_values_of_mixed_kinds_become_text_and_lists_become_json(facts: Facts, record: Make) -> None:
    records = [record(hyperparameters={"layer": 1, "widths": [8, 4]}), record(hyperparameters={"layer": "last"})]
    table = trials_table(facts(), records)
    assert table["layer"].tolist() == ["1", "last"]
    assert json.loads(table["widths"][0]) == [8, 4]


def test_integers_beyond_64_bits_and_non_finite_sizes_do_no_harm(facts: Facts, record: Make) -> None:
    table = trials_table(facts(), [record(hyperparameters={"huge": 2**70}, metrics={"macs": math.inf})])
    assert table["huge"][0] == float(2**70)
    assert table["macs"].isna().all()


def test_parquet_holds_the_same_rows_with_units_and_descriptions(facts: Facts, sweep: Sweep) -> None:
    records = sweep()
    table = trials_table(facts(), records)
    payload = parquet_bytes(described_table(facts(), records), {"sweep": "made-up"})
    arrow = pq.read_table(io.BytesIO(payload))
    assert arrow.schema.field("latency_ms").metadata[b"unit"] == b"ms"
    assert all(field.metadata[b"description"] for field in arrow.schema)
    assert json.loads(arrow.schema.metadata[b"stillhouse"])["sweep"] == "made-up"
    assert arrow.column("trial").to_pylist() == table["trial"].tolist()
    assert arrow.column("test_accuracy").to_pandas().equals(table["test_accuracy"])


def test_an_empty_table_can_be_written_as_parquet(facts: Facts) -> None:
    payload = parquet_bytes(described_table(facts(), []), {})
    assert pq.read_table(io.BytesIO(payload)).num_rows == 0


def test_csv_reads_back_with_the_same_numbers(facts: Facts, sweep: Sweep) -> None:
    table = trials_table(facts(), sweep())
    again = pd.read_csv(io.BytesIO(csv_bytes(table)))
    pd.testing.assert_series_equal(again["test_accuracy"], table["test_accuracy"], rtol=1e-15)
    assert again.columns.tolist() == table.columns.tolist()
