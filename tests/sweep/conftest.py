"""Trials, records and the context of a run to work with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.datasets import load_dataset
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest

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


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[[Mapping[str, Any]], RunContext]:
    """The context of a spec on 160 digits to train on and 80 to validate; its home is `tmp_path`."""

    def make(spec: Mapping[str, Any]) -> RunContext:
        dataset = {"name": "digits", "validation": 80, "options": {"limit": 240}}
        data = load_dataset("digits", validation=80, options={"limit": 240})
        sweep_home = SweepHome(tmp_path, spec["name"])
        return RunContext(
            plan=make_plan(check({**spec, "dataset": dataset}), data),
            data=data,
            sweep_home=sweep_home,
            progress=Progress(spec["name"], quiet=True),
            shutdown=ShutdownRequest(sweep_home.stop_request),
        )

    return make
