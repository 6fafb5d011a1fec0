"""Trials that Tune gives up since their workers were lost: run again while that helps."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse.errors import InfrastructureError
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.check import check
from stillhouse.sweep.sweep import Sweep

MakeRecord = Callable[..., TrialRecord]
SPEC = {
    "name": "lossy",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "students": ["mlp"],
    "methods": ["scratch"],
    "search": {"trials_per_method": 1, "max_epochs": 1},
}


class LossyCluster:
    """Each run gives so many records, and loses so many trials, as it was told."""

    def __init__(self, runs: list[tuple[int, int]], make_record: MakeRecord) -> None:
        self._runs = iter(runs)
        self._make_record = make_record
        self.count = 0

    def run(self, _feed: Any, _environment: Any, *, on_record: Callable[[TrialRecord], None], **_options: Any) -> list[str]:
        finished, lost = next(self._runs)
        for number in range(finished):
            on_record(self._make_record(f"{self.count}-{number}"))
        self.count += 1
        return [f"lost-{number}: its worker died" for number in range(lost)]


def run(tmp_path: Path, cluster: LossyCluster) -> dict[str, TrialRecord]:
    sweep = Sweep(check(SPEC), home=tmp_path)
    records: dict[str, TrialRecord] = {}
    feed: Any = SimpleNamespace(has_next=lambda: True, known=(), expected=0)

    def keep(record: TrialRecord) -> None:
        records[record.trial.key] = record

    sweep._run_phase(cluster, lambda: feed, sweep.plan(), None, records, keep)  # type: ignore[arg-type]
    return records


def test_lost_trials_are_run_again_until_none_is_lost(tmp_path: Path, make_record: MakeRecord) -> None:
    cluster = LossyCluster([(0, 3), (2, 1), (1, 0)], make_record)
    assert len(run(tmp_path, cluster)) == 3
    assert cluster.count == 3


def test_a_sweep_ends_with_one_sentence_when_running_again_finishes_nothing(tmp_path: Path, make_record: MakeRecord) -> None:
    cluster = LossyCluster([(4, 2), (1, 1), (0, 1)], make_record)
    with pytest.raises(
        InfrastructureError, match=r"^1 of 6 trials did not finish, the first is lost-0: its worker died; the others"
    ):
        run(tmp_path, cluster)
