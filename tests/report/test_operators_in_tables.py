"""Operators in tables and labels: columns for what they left, labels that tell students of one name apart."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from stillhouse.report.configurations import choice_labels
from stillhouse.report.trials_table import trials_table
from stillhouse.spec.records import StudentChoice, SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]
LAST = ["collapsed", "weight_bits", "activation_bits", "compression", "nonzero_parameters", "int8_latency_ms"]


def changed(record: TrialRecord, *operators: dict[str, dict[str, Any]], **fields: Any) -> TrialRecord:
    student = StudentChoice(name="small", model="resnet8", compress=list(operators), derived_from="large")
    trial = record.trial.model_copy(update={"student": student})
    return record.model_copy(update={"trial": trial, **fields})


def test_the_columns_of_operators_come_after_all_older_ones_and_say_nothing_of_a_plain_student(
    facts: Facts, record: Make
) -> None:
    table = trials_table(facts(), [record()])
    columns = table.columns.tolist()
    first = columns.index(LAST[0])
    assert columns[first : first + len(LAST)] == LAST
    assert {name.split("_")[0] for name in columns[first + len(LAST) :]} == {"program", "onnx"}
    row = table.iloc[0]
    assert (row["weight_bits"], row["activation_bits"]) == (32, 32)
    assert pd.isna(row["compression"])
    assert pd.isna(row["nonzero_parameters"])
    assert pd.isna(row["int8_latency_ms"])


def test_a_student_with_operators_has_their_numbers_once(facts: Facts, record: Make) -> None:
    metrics = {"weight_bits": 4.0, "activation_bits": 8.0, "nonzero_parameters": 1234.0, "int8_latency_ms": 0.5}
    made = changed(record(), {"cut": {"ratio": 0.5}}, compression="cut(ratio=0.5)", metrics=metrics)
    table = trials_table(facts(), [made])
    row = table.iloc[0]
    assert (row["weight_bits"], row["activation_bits"], row["nonzero_parameters"]) == (4, 8, 1234)
    assert row["int8_latency_ms"] == 0.5
    assert row["compression"] == "cut(ratio=0.5)"
    assert not [name for name in table.columns if name.startswith("metric_")]


def test_bits_of_a_trial_that_failed_are_unknown(facts: Facts, record: Make) -> None:
    made = changed(record(test=None, status="failed", reason="no"), {"cut": {"ratio": 0.5}}, compression="cut(ratio=0.5)")
    assert pd.isna(trials_table(facts(), [made]).iloc[0]["weight_bits"])


def test_options_in_which_students_of_a_name_differ_have_a_column(facts: Facts, record: Make) -> None:
    made = [changed(record(), {"cut": {"ratio": ratio, "kind": "l1"}}) for ratio in (0.25, 0.5)]
    table = trials_table(facts(), made)
    assert table["student_compress[0].cut.ratio"].tolist() == [0.25, 0.5]
    assert not [name for name in table.columns if name.endswith("kind")]


def test_labels_have_the_options_of_operators_that_tell_students_apart(record: Make) -> None:
    made = [changed(record(), {"cut": {"ratio": ratio, "kind": "l1"}}) for ratio in (0.25, 0.5)]
    assert sorted(choice_labels(made).values()) == ["small cut.ratio=0.25", "small cut.ratio=0.5"]
