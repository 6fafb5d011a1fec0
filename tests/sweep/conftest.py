"""Trials and records to work with."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from stillhouse.spec.records import StudentChoice, Trial, TrialRecord

MakeTrial = Callable[..., Trial]
MakeRecord = Callable[..., TrialRecord]


@pytest.fixture
def make_trial() -> MakeTrial:
    def make(key: str = "a", **fields: Any) -> Trial:
        student = StudentChoice(name="mlp", model="mlp", options={"hidden": [16]})
        return Trial(**{"key": key, "student": student, "method": "scratch", "epochs": 2, **fields})

    return make


@pytest.fixture
def make_record(make_trial: MakeTrial) -> MakeRecord:
    def make(
        key: str = "a", accuracies: tuple[float, ...] = (0.5,), *, trial: Mapping[str, Any] | None = None, **fields: Any
    ) -> TrialRecord:
        curve = [{"epoch": number, "validation_accuracy": value} for number, value in enumerate(accuracies, 1)]
        metrics = {"parameters": 1000.0, "validation_accuracy": accuracies[-1]} if accuracies else {}
        return TrialRecord(
            **{
                "trial": make_trial(key, **(trial or {})),
                "status": "finished",
                "epochs_run": len(curve),
                "curve": curve,
                "metrics": metrics,
                **fields,
            }
        )

    return make
