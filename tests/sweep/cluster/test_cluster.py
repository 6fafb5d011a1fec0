"""What the driver makes of a teacher's trouble. Ray itself is stood in for; whole sweeps are in test_end_to_end."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.home_access.leases import LeaseHolder
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.cluster import cluster, teacher_actors
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.cluster.teacher_actors import call_actor
from stillhouse.sweep.cluster.trial_watch import LostTrial, TrialWatch
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.shutdown import ShutdownRequest


@dataclass
class Handle:
    """An actor's handle: the answers of its methods; an error is raised to whoever takes it for an answer."""

    answers: dict[str, Any]

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *_arguments: self.answers.get(method))


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []))
    monkeypatch.setattr(cluster, "_PAUSE_S", 0.0)
    monkeypatch.setattr(teacher_actors, "_PAUSE_S", 0.0)


def test_a_reduction_that_raises_at_the_teacher_is_one_sentence() -> None:
    cause = ValueError("no such axis")
    traceback = "Traceback (most recent call last):\n  File own.py, line 3, in reduce\nValueError: no such axis\n"
    handle = Handle({"measure": RayTaskError("measure", traceback, cause).as_instanceof_cause()})
    with pytest.raises(UsageError, match="can not measure what the methods ask of it: ValueError: no such axis") as caught:
        call_actor(handle, "measure")
    assert "\n" not in str(caught.value)


def test_what_the_teachers_actor_itself_finds_wrong_keeps_its_sentence_and_its_exit_code() -> None:
    cause = InfrastructureError("no room for 16 bytes of knowledge under /home")
    handle = Handle({"measure": RayTaskError("measure", "Traceback ...", cause).as_instanceof_cause()})
    with pytest.raises(InfrastructureError, match=r"^no room for 16 bytes of knowledge under /home$"):
        call_actor(handle, "measure")


def test_a_teacher_that_stays_away_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ACTOR_TIMEOUT_S", -1.0)
    monkeypatch.setattr(teacher_actors, "ACTOR_TIMEOUT_S", -1.0)
    with pytest.raises(InfrastructureError, match="actor is gone"):
        call_actor(Handle({"measure": ActorDiedError()}), "measure")


# A teacher that dies while it is made ready

GONE = ActorUnavailableError("the actor is restarting", None)
DIES = Handle({"process_id": 1, "prepare": GONE})
RESTARTS = Handle({"process_id": GONE, "prepare": GONE})
READY = Handle({"process_id": 2, "prepare": {"device": "cpu"}, "status": "ready"})
LAST_WORDS = Handle({"process_id": 1, "prepare": {"device": "cpu"}, "status": "ready"})


def prepare(tmp_path: Path, *handles: Handle) -> Any:
    """What comes of a teacher whose actor is found in these states, one after another."""
    found = iter(handles)
    driver = Cluster.__new__(Cluster)
    driver._progress = Progress("s", quiet=True)
    driver._shutdown = ShutdownRequest(tmp_path / "stop")
    driver._local = False
    driver._leases = LeaseHolder({})
    driver._leases.is_granted = lambda handle: handle is not LAST_WORDS  # type: ignore[method-assign]
    definition: Any = SimpleNamespace(name="big")
    return driver._prepare(definition, lambda: ("big-actor", next(found)))


def test_a_teacher_that_takes_long_to_come_back_has_not_died_as_often_as_it_was_asked(tmp_path: Path) -> None:
    assert prepare(tmp_path, DIES, *[RESTARTS] * 9, DIES, *[RESTARTS] * 9, READY).handle is READY


def test_a_teacher_that_answers_and_gives_no_lease_is_started_again(tmp_path: Path) -> None:
    assert prepare(tmp_path, LAST_WORDS, LAST_WORDS, READY).handle is READY


def test_a_teacher_that_dies_again_and_again_ends_the_sweep_with_the_count_of_its_deaths(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"^teacher 'big' died 4 times while it was made ready: .*restarting"):
        prepare(tmp_path, *[DIES, RESTARTS] * 4)


def test_a_teacher_that_does_not_come_back_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ACTOR_TIMEOUT_S", -1.0)
    monkeypatch.setattr(teacher_actors, "ACTOR_TIMEOUT_S", -1.0)
    with pytest.raises(InfrastructureError, match=r"^teacher 'big' did not come back for"):
        prepare(tmp_path, RESTARTS)


# A connection that is made by half


def test_who_can_not_join_a_cluster_whole_leaves_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_home: Path, _max_bytes: None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    left: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(True))
    monkeypatch.setattr(cluster, "connect", lambda _address, _spec: None)
    monkeypatch.setattr(cluster, "shared_home", full)
    monkeypatch.setattr(Cluster, "_check_placement", lambda _self, _home: None)
    one = SimpleNamespace(cpu=1, num_workers=1)
    spec: Any = SimpleNamespace(name="s", trial_resources=one, knowledge=SimpleNamespace(max_bytes=None))
    ending, progress = ShutdownRequest(tmp_path / "stop"), Progress("s", quiet=True)
    monkeypatch.setattr(ending, "listen", lambda: None)
    with pytest.raises(OSError, match="No space left"):
        Cluster(spec, address="head:6379", home=tmp_path, progress=progress, shutdown=ending)
    assert left == [True]


# A record that is damaged before the driver has read it


def test_a_finished_trial_whose_record_can_not_be_read_is_lost_and_not_stopped(
    tmp_path: Path, make_trial: Callable[..., Trial], make_record: Callable[..., TrialRecord]
) -> None:
    ledger, lost, records = Ledger(tmp_path), list[str](), list[TrialRecord]()
    watch = TrialWatch(lambda _trial: 1000, ledger, Progress("s", quiet=True), on_record=records.append, on_loss=lost.append)
    trial = make_trial("a")
    watch.add(trial)
    ledger.write(make_record("a"))
    ledger.path("a").write_bytes(ledger.path("a").read_bytes()[:-1])
    ended = SimpleNamespace(config={TRIAL_CONFIG: trial.model_dump_json()}, last_result={"status": "finished"})
    watch.on_trial_complete(1, [], ended)
    assert (lost, records) == (["a"], [])
    assert watch.lost() == [LostTrial("a", "its record is gone or damaged")]


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
        lambda _trial: 1000, Ledger(tmp_path), Progress("s", quiet=True), on_record=lambda _record: None, on_loss=lost.append
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
