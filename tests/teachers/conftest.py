"""A few digits, a small teacher that is trained once, its services, its ticket, and links to actors that do not run."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.training import Training
from stillhouse.teachers import view_filler
from stillhouse.teachers.actor_link import ActorLink
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import LoadedTeacher, TeacherLibrary
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.ticket import TeacherTicket

MakeDefinition = Callable[..., TeacherDefinition]
MakeService = Callable[..., TeacherService]


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """160 images to train on, 40 to validate."""
    return load_dataset("digits", options={"limit": 200}, validation=40)


@pytest.fixture(scope="session")
def views(digits: ImageData) -> Views:
    return Views(("crop",), 3, digits.input_shape, len(digits.train))


@pytest.fixture(scope="session")
def make_definition(digits: ImageData) -> MakeDefinition:
    base = TeacherDefinition(
        name="big",
        model="lenet",
        training=Training(batch_size=64),
        epochs=3,
        num_classes=digits.num_classes,
        input_shape=digits.input_shape,
    )

    def make(**changes: Any) -> TeacherDefinition:
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, make_definition: MakeDefinition, digits: ImageData, views: Views
) -> tuple[Path, LoadedTeacher]:
    """A library's folder and the teacher in it; not to be written to."""
    root = tmp_path_factory.mktemp("library")
    return root, TeacherLibrary(root).obtain(make_definition(), digits, views)


@pytest.fixture
def make_service(trained: tuple[Path, LoadedTeacher], digits: ImageData, views: Views, tmp_path: Path) -> Iterator[MakeService]:
    """Services over one store, as an actor that is restarted."""
    (tmp_path / "knowledge").mkdir()
    made: list[TeacherService] = []

    def make(store: KnowledgeStore | None = None, **options: Any) -> TeacherService:
        service = TeacherService(trained[1], digits, views, store or KnowledgeStore(tmp_path / "knowledge"), **options)
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four batches of 40 rows, each a stretch of its own."""
    monkeypatch.setattr(view_filler, "FILL_BATCH", 40)
    monkeypatch.setattr(view_filler, "_STRETCH_S", 0.0)


@pytest.fixture
def ticket() -> TeacherTicket:
    """A ticket of a teacher that has no weights and whose actor does not run."""
    return TeacherTicket(
        definition=TeacherDefinition(name="big", model="lenet", num_classes=10, input_shape=(1, 8, 8)),
        weights_path="",
        weights_hash="",
        base={},
        home=HomeAddress(path="/home"),
        actor="teacher-1",
    )


class ScriptedActor:
    """Gives the answers in order; an exception is raised, `None` for an actor that cannot be found."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    def find(self, _name: str, *, namespace: str) -> "ScriptedActor":
        if self.answers and self.answers[0] is None:
            self.answers.pop(0)
            raise ValueError("Failed to look up actor")
        return self

    def __getattr__(self, _method: str) -> "ScriptedActor":
        return self

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch, ticket: TeacherTicket) -> Callable[..., tuple[ActorLink, ScriptedActor]]:
    """A link to an actor that gives the answers, and that actor. Nothing sleeps."""

    def make(*answers: Any, timeout_s: float = 60.0) -> tuple[ActorLink, ScriptedActor]:
        def get(answer: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        actor = ScriptedActor(*answers)
        monkeypatch.setattr(ray, "get_actor", actor.find)
        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        return ActorLink(ticket, timeout_s=timeout_s), actor

    return make
