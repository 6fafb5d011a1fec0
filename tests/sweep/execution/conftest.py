"""Digits, their views, and a teacher whose knowledge is sealed, for trials that run in this process."""

from collections.abc import Callable, Mapping

import pytest

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge import logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.ticket import TeacherTicket

SealedTeacher = Callable[..., TeacherTicket]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", options={"limit": 200}, validation=40)


@pytest.fixture(scope="module")
def views(digits: ImageData) -> Views:
    return Views(("crop",), 2, digits.input_shape, len(digits.train))


@pytest.fixture(scope="module")
def sealed_teacher(tmp_path_factory: pytest.TempPathFactory, digits: ImageData, views: Views) -> SealedTeacher:
    """Makes a teacher that trained for two epochs and whose logits are sealed in all views, so that no actor is called."""

    def make(model: str, modes: Mapping[str, str] | None = None) -> TeacherTicket:
        home = tmp_path_factory.mktemp("home")
        (home / "knowledge").mkdir()
        definition = TeacherDefinition(name="big", model=model, epochs=2, num_classes=10, input_shape=(1, 8, 8))
        teacher = TeacherLibrary(home / "teachers").obtain(definition, digits, views)
        service = TeacherService(teacher, digits, views, KnowledgeStore(home / "knowledge"))
        for view in range(views.count):
            service.fill(view, [logits()])
        return TeacherTicket(
            definition=definition,
            weights_path=str(teacher.path),
            weights_hash=teacher.weights_hash,
            base=service.base,
            home=HomeAddress(path=str(home)),
            actor="never-asked",
            modes={logits().id: "cached", **(modes or {})},
        )

    return make
