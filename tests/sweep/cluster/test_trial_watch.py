"""What the driver records of trials as Tune reports them: lost records, stopped trials, workers that die."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from stillhouse.spec.metric import ACCURACY
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.cluster.trial_watch import LostTrial, TrialWatch
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.progress import Progress

# A record that is damaged before the driver has read it


def test_a_finished_trial_whose_record_cannot_be_read_is_lost_and_not_stopped(
    tmp_path: Path, make_trial: Callable[..., Trial], make_record: Callable[..., TrialRecord]
) -> None:
    ledger, lost, records = Ledger(tmp_path), list[str](), list[TrialRecord]()
    watch = TrialWatch(
        ACCURACY, lambda _trial: 1000, ledger, Progress("s", quiet=True), on_record=records.append, on_loss=lost.append
    )
    trial = make_trial("a")
    watch.add(trial)
    ledger.write(make_record("a"))
    ledger.path("a").write_bytes(ledger.path("a").read_bytes()[:-1])
    ended = SimpleNamespace(config={TRIAL_CONFIG: trial.model_dump_json()}, last_result={"status": "finished"})
    watch.on_trial_complete(1, [], ended)
    assert (lost, records) == (["a"], [])
    assert watch.lost() == [LostTrial("a", "its record is missing or damaged")]


# A trial that kills its workers


DIED = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
CRASHED = "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file."
NO_MEMORY = "Worker exit detail: 1 worker(s) were killed due to the node running low on memory."
"""Words of ray 2.60."""


CRASH, NODE = DIED + CRASHED, "The actor died because its node has died. Node Id: 4c2e1f"


@pytest.mark.parametrize(
    ("events", "deaths", "epoch"),
    [
        ([CRASH], 1, 0),
        ([NO_MEMORY], 1, 0),
        ([DIED + NO_MEMORY], 1, 0),
        ([NODE], 0, 0),
        (["ray.exceptions.RayTaskError(InfrastructureError): teacher 'big' did not answer for 120 s"], 0, 0),
        ([1, 2, CRASH, CRASH, 1, 2, CRASH], 3, 2),
        ([1, 2, CRASH, CRASH, NODE, CRASH], 1, 2),
        ([1, CRASH, 2, CRASH], 1, 2),
        ([1, 2, CRASH, 1, CRASH, CRASH], 2, 1),
    ],
)
def test_deaths_of_a_trials_workers_are_counted_while_they_die_in_the_same_epoch(
    events: list[str | int], deaths: int, epoch: int, tmp_path: Path, make_trial: Callable[..., Trial]
) -> None:
    lost = list[str]()
    watch = TrialWatch(
        ACCURACY,
        lambda _trial: 1000,
        Ledger(tmp_path),
        Progress("s", quiet=True),
        on_record=lambda _record: None,
        on_loss=lost.append,
    )
    trial, path = make_trial("a"), tmp_path / "error.txt"
    ended = SimpleNamespace(config={TRIAL_CONFIG: trial.model_dump_json()}, error_file=str(path))
    watch.add(trial)
    for number, event in enumerate(events, 1):
        if isinstance(event, int):
            watch.on_trial_result(1, [], ended, {"key": "a", "status": "running", "epoch": event, "validation_accuracy": 0.5})
            continue
        with path.open("a") as file:
            file.write(f"Failure # {number} (occurred at noon)\n{event}\n")
        (watch.on_trial_error if number == len(events) else watch.on_trial_recover)(1, [], ended)
    assert lost == ["a"]
    (one,) = watch.lost()
    assert (one.deaths, one.epoch) == (deaths, epoch)
    assert one.reason in str(events[-1])
