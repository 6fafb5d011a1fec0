"""Calls of a teacher's actor that restarts, has no room in its queue, or does not come back. Ray itself is replaced."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.ray_process import ACTOR_TIMEOUT_S
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.call_queue import QueueFull

MakeLink = Callable[..., tuple[ActorLink, Any]]


def test_a_call_survives_the_actors_restart(link: MakeLink) -> None:
    calls, actor = link(None, ActorDiedError(), None, ActorUnavailableError("restarting", None), 42)
    assert calls.call("request", 3) == 42
    assert actor.asked == [(3,), (3,), (3,)]


def test_an_actor_that_does_not_come_back_is_one_sentence(link: MakeLink) -> None:
    calls, _ = link(ActorDiedError(), timeout_s=0.0)
    with pytest.raises(InfrastructureError, match="teacher 'big' did not answer for 0 s"):
        calls.call("request", 3)


def test_a_call_that_finds_the_queue_full_is_repeated_as_long_as_the_actor_answers(
    link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, actor = link(*[QueueFull(48)] * 50, 42, timeout_s=5.0)
    pauses: list[float] = []
    seconds = itertools.accumulate(itertools.repeat(1.0))
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    assert busy.call("call") == 42
    assert len(actor.asked) == 51
    assert pauses[:3] == [0.01, 0.02, 0.04], "it doubles"
    assert max(pauses) == 1.0


def test_a_call_of_a_lost_actor_is_repeated_after_growing_pauses_for_two_minutes(
    link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, _ = link(ActorDiedError(), timeout_s=ACTOR_TIMEOUT_S)
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


def test_an_error_of_the_teacher_itself_is_not_waited_out(link: MakeLink) -> None:
    calls, actor = link(ValueError("a map of the wrong shape"))
    with pytest.raises(ValueError, match="wrong shape"):
        calls.call("forward")
    assert len(actor.asked) == 1
