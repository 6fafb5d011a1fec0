"""The trial's side of the shared actor: what it waits for and what it does not. Ray itself is stood in for."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError

from stillhouse.errors import InfrastructureError
from stillhouse.knowledge import logits
from stillhouse.teachers.client import ActorLink, ServedKnowledge
from stillhouse.teachers.definition import TeacherDefinition, TeacherTicket

TICKET = TeacherTicket(
    definition=TeacherDefinition(name="big", model="lenet", num_classes=10, input_shape=(1, 8, 8)),
    weights_path="",
    weights_hash="",
    base={},
    dtype="float32",
    store="",
    actor="teacher-1",
    namespace="stillhouse",
)


class Actor:
    """Gives the answers in order; an exception is raised, `None` for an actor that can not be found."""

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
    def make(actor: Actor, patience_s: float = 60.0) -> ActorLink:
        def get(answer: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(ray, "get_actor", actor.find)
        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        return ActorLink(TICKET, patience_s=patience_s)

    return make


def test_a_call_outlives_the_actors_restart(link: Callable[..., ActorLink]) -> None:
    actor = Actor(None, ActorDiedError(), None, ActorUnavailableError("restarting", None), 42)
    assert link(actor).call("request", 3) == 42
    assert actor.asked == [(3,), (3,), (3,)]


def test_an_actor_that_does_not_come_back_is_one_sentence(link: Callable[..., ActorLink]) -> None:
    with pytest.raises(InfrastructureError, match="teacher 'big' did not answer for 0 s"):
        link(Actor(ActorDiedError()), patience_s=0.0).call("request", 3)


def test_an_error_of_the_teacher_itself_is_not_waited_out(link: Callable[..., ActorLink]) -> None:
    actor = Actor(ValueError("a map of the wrong shape"))
    with pytest.raises(ValueError, match="wrong shape"):
        link(actor).call("forward")
    assert len(actor.asked) == 1


def test_served_knowledge_sends_a_batchs_pixels_and_copies_the_answer(link: Callable[..., ActorLink]) -> None:
    answer = torch.ones(2, 10).numpy()
    answer.flags.writeable = False
    actor = Actor({"logits": answer})
    gathered = ServedKnowledge(link(actor), {"logits": logits()}).gather(torch.arange(2), torch.full((2, 1, 8, 8), 3.0))
    assert gathered["logits"].add_(1).tolist() == [[2.0] * 10] * 2
    assert actor.asked[0][0].tolist() == torch.full((2, 1, 8, 8), 3.0).tolist()
