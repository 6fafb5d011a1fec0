"""Calls of a teacher's actor from the driver: what its trouble becomes. Ray itself is replaced."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.sweep.cluster import teacher_actors
from stillhouse.sweep.cluster.teacher_actors import call_actor


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
    monkeypatch.setattr(teacher_actors, "_PAUSE_S", 0.0)


def test_a_reduction_that_raises_at_the_teacher_is_one_sentence() -> None:
    cause = ValueError("no such axis")
    traceback = "Traceback (most recent call last):\n  File own.py, line 3, in reduce\nValueError: no such axis\n"
    handle = Handle({"measure": RayTaskError("measure", traceback, cause).as_instanceof_cause()})
    with pytest.raises(UsageError, match="cannot measure what the methods need from it: ValueError: no such axis") as caught:
        call_actor(handle, "measure")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_teachers_actor_keeps_its_sentence_and_its_exit_code() -> None:
    cause = InfrastructureError("no space for 16 bytes of knowledge in /home")
    handle = Handle({"measure": RayTaskError("measure", "Traceback ...", cause).as_instanceof_cause()})
    with pytest.raises(InfrastructureError, match=r"^no space for 16 bytes of knowledge in /home$"):
        call_actor(handle, "measure")


def test_an_actor_that_does_not_come_back_is_an_infrastructure_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_actors, "ACTOR_TIMEOUT_S", -1.0)
    with pytest.raises(InfrastructureError, match="actor is gone"):
        call_actor(Handle({"measure": ActorDiedError()}), "measure")
