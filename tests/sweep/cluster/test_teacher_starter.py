"""Starting the teachers' actors: deaths while they prepare, and actors that are about to end. Ray itself is replaced."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.leases import LeaseHolder
from stillhouse.spec.load import validate
from stillhouse.sweep.cluster import teacher_starter
from stillhouse.sweep.cluster.teacher_starter import TeacherStarter
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.shutdown import ShutdownRequest


@dataclass
class Handle:
    """An actor's handle: the answers of its methods; an answer that is an error is raised."""

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
    monkeypatch.setattr(teacher_starter, "_PAUSE_S", 0.0)


# A teacher that dies while it is made ready

GONE = ActorUnavailableError("the actor is restarting", None)
DIES = Handle({"process_id": 1, "prepare": GONE})
RESTARTS = Handle({"process_id": GONE, "prepare": GONE})
READY = Handle({"process_id": 2, "prepare": {"device": "cpu"}, "status": "ready"})
LAST_WORDS = Handle({"process_id": 1, "prepare": {"device": "cpu"}, "status": "ready"})


def prepare(tmp_path: Path, *handles: Handle) -> Any:
    """What comes of a teacher whose actor is found in these states, one after another."""
    found = iter(handles)
    leases = LeaseHolder({})
    leases.is_granted = lambda handle: handle is not LAST_WORDS  # type: ignore[method-assign]
    starter = TeacherStarter(
        validate({"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": ["scratch"]}),
        home=HomeAddress(path=str(tmp_path)),
        nodes={},
        leases=leases,
        import_paths=(),
        progress=Progress("s", quiet=True),
        shutdown=ShutdownRequest(tmp_path / "stop"),
    )
    definition: Any = SimpleNamespace(name="big")
    return starter.prepare(definition, lambda: ("big-actor", next(found)))


def test_a_restarting_actor_that_refuses_calls_counts_as_one_death(tmp_path: Path) -> None:
    assert prepare(tmp_path, DIES, *[RESTARTS] * 9, DIES, *[RESTARTS] * 9, READY).handle is READY


def test_a_teacher_that_grants_no_lease_is_started_again(tmp_path: Path) -> None:
    assert prepare(tmp_path, LAST_WORDS, LAST_WORDS, READY).handle is READY


def test_a_teacher_that_dies_again_and_again_ends_the_sweep_with_the_count_of_its_deaths(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"^teacher 'big' died 4 times while it was prepared: .*restarting"):
        prepare(tmp_path, *[DIES, RESTARTS] * 4)


def test_a_teacher_that_does_not_come_back_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_starter, "ACTOR_TIMEOUT_S", -1.0)
    with pytest.raises(InfrastructureError, match=r"^teacher 'big' did not come back for"):
        prepare(tmp_path, RESTARTS)
