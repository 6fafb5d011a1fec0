"""Trials that were lost with their workers."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.errors import InfrastructureError
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.cluster.trial_watch import LostTrial
from stillhouse.sweep.cluster.tune_run import RESTARTS_OF_A_TRIAL
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.trial_retries import run_phase

MakeTrial = Callable[..., Trial]
MakeRecord = Callable[..., TrialRecord]
MakeContext = Callable[[Mapping[str, Any]], RunContext]
SPEC = {
    "name": "lossy",
    "students": ["mlp"],
    "methods": ["scratch"],
    "search": {"trials_per_method": 1, "max_epochs": 1},
}


class LossyCluster:
    """Each run gives so many records, and loses so many trials, as requested.

    Attributes:
        deaths: of the workers of each lost trial, in each run.
        epochs: the one before those, run by run.
    """

    deaths = 1
    epochs: tuple[int, ...] = (0, 0, 0)

    def __init__(self, runs: list[tuple[int, int]], make_record: MakeRecord) -> None:
        self._runs = iter(runs)
        self._make_record = make_record
        self.count = 0

    def run(
        self, _queue: Any, _environment: Any, *, on_record: Callable[[TrialRecord], None], **_options: Any
    ) -> list[LostTrial]:
        finished, lost = next(self._runs)
        epoch = self.epochs[self.count]
        for number in range(finished):
            on_record(self._make_record(f"{self.count}-{number}"))
        self.count += 1
        return [LostTrial(f"lost-{number}", "its worker died", self.deaths, epoch) for number in range(lost)]


Run = Callable[[LossyCluster], dict[str, TrialRecord]]


@pytest.fixture
def run(make_context: MakeContext, make_trial: MakeTrial) -> Run:
    return partial(run_lossy, make_context, make_trial)


def run_lossy(make_context: MakeContext, make_trial: MakeTrial, cluster: LossyCluster) -> dict[str, TrialRecord]:
    context = make_context(SPEC)
    phases = Phases(plan=context.plan, read_latencies=dict)
    records: dict[str, TrialRecord] = {}
    known = {key: make_trial(key) for key in ("lost-0", "lost-1")}
    queue: Any = SimpleNamespace(has_next=lambda: True, known=known, expected=0)

    def add(record: TrialRecord) -> None:
        records[record.trial.key] = record

    stand_in: Any = cluster
    environment = TrialEnvironment(folder=str(context.sweep_home.folder), views=context.views, training=context.spec.training)
    run_phase(stand_in, lambda: queue, phases, context, environment, records, add)
    return records


def test_lost_trials_are_run_again_until_none_is_lost(run: Run, make_record: MakeRecord) -> None:
    cluster = LossyCluster([(0, 3), (2, 1), (1, 0)], make_record)
    assert len(run(cluster)) == 3
    assert cluster.count == 3


def test_a_sweep_ends_with_one_sentence_when_running_again_finishes_nothing(run: Run, make_record: MakeRecord) -> None:
    cluster = LossyCluster([(4, 2), (1, 1), (0, 1)], make_record)
    with pytest.raises(
        InfrastructureError, match=r"^1 of 6 trials did not finish, the first is lost-0: its worker died; the others"
    ):
        run(cluster)


def test_a_trial_that_kills_all_its_workers_fails_alone(run: Run, make_record: MakeRecord, tmp_path: Path) -> None:
    cluster = LossyCluster([(1, 1), (0, 1), (1, 0)], make_record)
    cluster.deaths = 1 + RESTARTS_OF_A_TRIAL
    checkpoint = tmp_path / "sweeps" / "lossy" / "trials" / "lost-0" / "checkpoint"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    records = run(cluster)
    assert cluster.count == 3, "what is left runs after it"
    assert {key: record.status for key, record in records.items() if record.status == "failed"} == {"lost-0": "failed"}
    assert str(records["lost-0"].reason).startswith("its worker died 8 times in epoch 1; if memory ran out, lower training")
    assert SweepHome(tmp_path, "lossy").ledger.read("lost-0") == records["lost-0"]
    assert not checkpoint.exists(), "when it is retried it begins anew"


def test_a_trial_whose_workers_die_in_different_epochs_is_not_to_blame(run: Run, make_record: MakeRecord) -> None:
    cluster = LossyCluster([(1, 1), (0, 1)], make_record)
    cluster.deaths, cluster.epochs = 1 + RESTARTS_OF_A_TRIAL, (0, 1)
    with pytest.raises(InfrastructureError, match=r"^1 of 2 trials did not finish"):
        run(cluster)


def test_where_more_workers_die_than_trials_finish_the_infrastructure_is_to_blame(run: Run, make_record: MakeRecord) -> None:
    cluster = LossyCluster([(1, 2), (0, 2)], make_record)
    cluster.deaths = 1 + RESTARTS_OF_A_TRIAL
    with pytest.raises(InfrastructureError, match=r"^2 of 3 trials did not finish"):
        run(cluster)
