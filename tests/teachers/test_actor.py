"""The shared teacher's actor, called as Ray calls it, from several threads: what is loaded, and what goes wrong."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge import logits
from stillhouse.teachers import actor as actor_module
from stillhouse.teachers.actor import TeacherActor
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import LoadedTeacher
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.ticket import FillRequest


@pytest.fixture
def actor(
    trained: tuple[Path, LoadedTeacher],
    make_definition: Callable[..., TeacherDefinition],
    digits: ImageData,
    views: Views,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TeacherActor:
    """Over a home with a trained teacher."""
    shutil.copytree(trained[0], tmp_path / "teachers")
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    monkeypatch.setattr(TeacherActor, "_obtain_data", lambda _self: digits)
    home = HomeAddress(path=str(tmp_path))
    return TeacherActor(make_definition(), [None], views, home, "float32", 1, [], [], gpu_share=0.25)


def test_a_teacher_is_loaded_once_for_drivers_that_ask_at_the_same_time(
    actor: TeacherActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second service would go on filling when the one that is known has come to rest."""
    made: list[TeacherService] = []
    second = threading.Event()

    def making(*arguments: Any, **options: Any) -> TeacherService:
        made.append(TeacherService(*arguments, **options))
        if len(made) > 1:
            second.set()
        second.wait(0.5)
        return made[-1]

    monkeypatch.setattr(actor_module, "TeacherService", making)
    answers: list[dict[str, Any]] = []
    drivers = [threading.Thread(target=lambda: answers.append(actor.prepare())) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert answers[0] == answers[1]
    assert len(made) == 1


def test_what_keeps_a_teacher_from_being_loaded_is_an_answer_to_drivers_and_an_error_to_trials(
    actor: TeacherActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial must be able to tell what is not its own fault."""

    def lost(_self: TeacherActor) -> ImageData:
        raise InfrastructureError("the data set was lost")

    monkeypatch.setattr(TeacherActor, "_obtain_data", lost)
    error = actor.prepare()["error"]
    assert (type(error), str(error)) == (InfrastructureError, "the data set was lost")
    with pytest.raises(InfrastructureError, match="the data set was lost"):
        actor.counters()


def test_the_teacher_takes_no_more_of_a_gpu_than_its_share(actor: TeacherActor, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(actor_module, "limit_memory", shares.append)
    actor.prepare()
    assert shares == [0.25]


def refuse(_share: float) -> None:
    raise InfrastructureError("0.01 of a GPU is less than what a process takes")


def test_a_share_that_holds_no_process_is_an_answer_to_drivers(actor: TeacherActor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "limit_memory", refuse)
    assert str(actor.prepare()["error"]).startswith("0.01 of a GPU")


def poisoned(*_arguments: object) -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("lost", [True, False])
def test_a_teacher_whose_gpu_answers_no_more_ends_and_any_other_error_is_the_callers(
    actor: TeacherActor, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Ray starts it again; the next call of a process with a poisoned GPU would fail like every later one."""
    ended: list[int] = []
    actor.prepare()
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", poisoned if lost else lambda: None)
    monkeypatch.setattr(TeacherService, "evaluate", poisoned)
    with pytest.raises(torch.AcceleratorError):
        actor.evaluate("test")
    assert ended == ([1] if lost else [])
    # Views are filled in a thread that nobody calls.
    ended.clear()
    service = actor._ready()
    monkeypatch.setattr(service, "fill", poisoned)
    service.request(FillRequest(view=0, kinds=(logits(),)))
    if (filling := service._thread) is not None:
        filling.join(60)
    assert service._error is not None
    assert ended == ([1] if lost else [])
