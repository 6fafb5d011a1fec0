"""Served knowledge: a batch's pixels go to the actor, its answer comes back as a copy. Ray itself is replaced."""

from collections.abc import Callable
from typing import Any

import torch

from stillhouse.knowledge import logits
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.served import ActorModel, ServedKnowledge


def test_served_knowledge_sends_a_batchs_pixels_and_copies_the_answer(link: Callable[..., tuple[ActorLink, Any]]) -> None:
    answer = torch.ones(2, 10).numpy()
    answer.flags.writeable = False
    calls, actor = link({"logits": answer})
    source = ServedKnowledge(calls, {"logits": logits()})
    gathered = source.gather(torch.arange(2), torch.full((2, 1, 8, 8), 3.0))
    assert source.samples_forwarded == 2
    assert gathered["logits"].add_(1).tolist() == [[2.0] * 10] * 2
    assert actor.asked[0][0].tolist() == torch.full((2, 1, 8, 8), 3.0).tolist()


def pass_through(teacher: Any, images: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return images, classes


def test_a_procedure_goes_to_the_actor_with_its_tensors_and_options(link: Callable[..., tuple[ActorLink, Any]]) -> None:
    answer = [torch.ones(2, 1, 8, 8).numpy(), torch.tensor([3, 4]).numpy()]
    for array in answer:
        array.flags.writeable = False
    calls, actor = link(answer)
    images, classes = torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16), torch.tensor([1, 2])
    moved, reached = ActorModel(calls).run(pass_through, (images, classes), {"rounds": 3})
    assert moved.dtype == torch.bfloat16
    assert moved.add_(1).unique().tolist() == [2.0]
    assert reached.tolist() == [3, 4]
    _, procedure, arrays, options = actor.asked[0]
    assert procedure is pass_through
    assert [array.dtype.name for array in arrays] == ["float32", "int64"]
    assert options == {"rounds": 3}
