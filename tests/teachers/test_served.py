"""Served knowledge: a batch's pixels go to the actor, its answer comes back as a copy. Ray itself is replaced."""

from collections.abc import Callable
from typing import Any

import torch

from stillhouse.knowledge import logits
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.served import ServedKnowledge


def test_served_knowledge_sends_a_batchs_pixels_and_copies_the_answer(link: Callable[..., tuple[ActorLink, Any]]) -> None:
    answer = torch.ones(2, 10).numpy()
    answer.flags.writeable = False
    calls, actor = link({"logits": answer})
    source = ServedKnowledge(calls, {"logits": logits()})
    gathered = source.gather(torch.arange(2), torch.full((2, 1, 8, 8), 3.0))
    assert source.samples_forwarded == 2
    assert gathered["logits"].add_(1).tolist() == [[2.0] * 10] * 2
    assert actor.asked[0][0].tolist() == torch.full((2, 1, 8, 8), 3.0).tolist()
