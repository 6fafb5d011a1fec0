"""Served knowledge: a batch's pixels go to the actor, its answer comes back as a copy. Ray itself is replaced."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
import torch

from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge import logits
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.served import ServedKnowledge
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


def test_served_knowledge_sends_a_batchs_pixels_and_copies_the_answer(link: Callable[..., ActorLink]) -> None:
    answer = torch.ones(2, 10).numpy()
    answer.flags.writeable = False
    actor = Actor({"logits": answer})
    source = ServedKnowledge(link(actor), {"logits": logits()})
    gathered = source.gather(torch.arange(2), torch.full((2, 1, 8, 8), 3.0))
    assert source.samples_forwarded == 2
    assert gathered["logits"].add_(1).tolist() == [[2.0] * 10] * 2
    assert actor.asked[0][0].tolist() == torch.full((2, 1, 8, 8), 3.0).tolist()
