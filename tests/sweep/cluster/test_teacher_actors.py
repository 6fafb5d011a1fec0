"""Calls of a teacher's actor from the driver: what its trouble becomes. Ray itself is replaced."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.sweep.cluster import teacher_actors
from stillhouse.sweep.cluster.teacher_actors import call_actor

MakeHandle = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_actors, "_PAUSE_S", 0.0)


def test_a_reduction_that_raises_at_the_teacher_is_one_sentence(make_handle: MakeHandle) -> None:
    cause = ValueError("no such axis")
    traceback = "Traceback (most recent call last):\n  File own.py, line 3, in reduce\nValueError: no such axis\n"
    handle = make_handle(measure=RayTaskError("measure", traceback, cause).as_instanceof_cause())
    with pytest.raises(UsageError, match="cannot measure what the methods need from it: ValueError: no such axis") as caught:
        call_actor(handle, "measure")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_teachers_actor_keeps_its_sentence_and_its_exit_code(make_handle: MakeHandle) -> None:
    cause = InfrastructureError("no space for 16 bytes of knowledge in /home")
    handle = make_handle(measure=RayTaskError("measure", "Traceback ...", cause).as_instanceof_cause())
    with pytest.raises(InfrastructureError, match=r"^no space for 16 bytes of knowledge in /home$"):
        call_actor(handle, "measure")


def test_an_actor_that_does_not_come_back_is_an_infrastructure_error(
    make_handle: MakeHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_actors, "ACTOR_TIMEOUT_S", -1.0)
    with pytest.raises(InfrastructureError, match="actor is gone"):
        call_actor(make_handle(measure=ActorDiedError()), "measure")
