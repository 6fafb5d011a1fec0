"""Calls of a teacher's actor that restarts, has no room in its queue, or does not come back. Ray itself is replaced."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.ray_process import ACTOR_TIMEOUT_S
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.call_queue import QueueFull
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.ticket import TeacherTicket

TICKET = TeacherTicket(
    definition=TeacherDefinition(name="big", model="lenet", num_classes=10, input_shape=(1, 8, 8)),
    weights_path="",
    weights_hash="",
    base={},
    home=HomeAddress(path="/home"),
    actor="teacher-1",
)


class Actor:
    """Gives the answers in order; an exception is raised, `None` for an actor that cannot be found."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    def find(self, _name: str, *, namespace: str) -> "Actor":
        if self.answers and self.answers[0] is None:
            self.answers.pop(0)
            raise ValueError("Failed to look up actor")
        return self

    def __getattr__(self, _method: str) -> "Actor":
        return self

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ActorLink]:
    def make(actor: Actor, timeout_s: float = 60.0) -> ActorLink:
        def get(answer: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(ray, "get_actor", actor.find)
        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        return ActorLink(TICKET, timeout_s=timeout_s)

    return make


def test_a_call_survives_the_actors_restart(link: Callable[..., ActorLink]) -> None:
    actor = Actor(None, ActorDiedError(), None, ActorUnavailableError("restarting", None), 42)
    assert link(actor).call("request", 3) == 42
    assert actor.asked == [(3,), (3,), (3,)]


def test_an_actor_that_does_not_come_back_is_one_sentence(link: Callable[..., ActorLink]) -> None:
    with pytest.raises(InfrastructureError, match="teacher 'big' did not answer for 0 s"):
        link(Actor(ActorDiedError()), timeout_s=0.0).call("request", 3)


def test_a_call_that_finds_the_queue_full_is_repeated_as_long_as_the_actor_answers(
    link: Callable[..., ActorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = Actor(*[QueueFull(48)] * 50, 42)
    busy = link(actor, timeout_s=5.0)
    pauses: list[float] = []
    seconds = itertools.accumulate(itertools.repeat(1.0))
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    assert busy.call("call") == 42
    assert len(actor.asked) == 51
    assert pauses[:3] == [0.01, 0.02, 0.04], "it doubles"
    assert max(pauses) == 1.0


def test_a_call_of_a_lost_actor_is_repeated_after_growing_pauses_for_two_minutes(
    link: Callable[..., ActorLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = link(Actor(ActorDiedError()), timeout_s=ACTOR_TIMEOUT_S)
    clock = [0.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with pytest.raises(InfrastructureError, match="did not answer for 120 s"):
        lost.call("call")
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert 100 < sum(pauses) <= 120


def test_an_error_of_the_teacher_itself_is_not_waited_out(link: Callable[..., ActorLink]) -> None:
    actor = Actor(ValueError("a map of the wrong shape"))
    with pytest.raises(ValueError, match="wrong shape"):
        link(actor).call("forward")
    assert len(actor.asked) == 1
