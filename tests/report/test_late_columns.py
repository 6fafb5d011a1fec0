"""Columns of what was measured of winners after all trials."""

from collections.abc import Callable

import pandas as pd

from stillhouse.report.trials_table import described_table
from stillhouse.spec.records import SweepFacts, TrialRecord

FACTS = SweepFacts(name="s", spec={}, dataset={"name": "d"}, baseline="control", planned=2)


def test_winners_have_values_and_other_trials_none(record: Callable[..., TrialRecord]) -> None:
    plain, winner = record("control"), record("soft_targets")
    found = {"program_latency_ms": 0.25, "onnx_latency_ms": 0.125, "robustness_noise": 0.5}
    table = described_table(FACTS, [plain, winner.model_copy(update={"metrics": winner.metrics | found})])
    for name, value in found.items():
        assert pd.isna(table.frame[name][0])
        assert table.frame[name][1] == value
    described = {column.name: column for column in table.columns}
    assert described["program_latency_ms"].unit == "ms"
    assert "one sample in the torch.export program" in described["program_latency_ms"].description
    assert described["robustness_noise"].unit == "fraction"


def test_columns_of_degraded_images_are_there_only_where_they_were_measured(record: Callable[..., TrialRecord]) -> None:
    frame = described_table(FACTS, [record("control")]).frame
    assert "onnx_latency_batch64_ms" in frame
    assert not [name for name in frame if str(name).startswith("robustness")]


def test_a_hyperparameter_of_such_a_name_has_another_column(record: Callable[..., TrialRecord]) -> None:
    frame = described_table(FACTS, [record("soft_targets", hyperparameters={"onnx_latency_ms": 3.0})]).frame
    assert frame["hyperparameter_onnx_latency_ms"].tolist() == [3.0]
    assert frame["onnx_latency_ms"].isna().all()
